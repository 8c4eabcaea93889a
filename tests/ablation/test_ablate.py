"""Ablation of channels: the plain loop over the whole network, image by image, is the judge."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_receptive_fields import loaded, photographs, resnet18
from torch import nn

from rfatlas.ablation import ablate
from rfatlas.errors import RfatlasError
from rfatlas.network.torchvision_ops import torchvision

EXTENT = 48


def resnet50() -> nn.Module:
    torch.manual_seed(1)
    network = torchvision().models.resnet50(num_classes=10).eval()
    with torch.no_grad():
        for child in network.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.running_mean.normal_(0, 0.1)
                child.bias.uniform_(0.1, 0.4)
        # Logits of a trained network's size.
        network.fc.weight.div_(20)
    return network


NETWORKS = {"resnet18": resnet18, "resnet50": resnet50}


def values(network, layer: str, pixels: torch.Tensor) -> torch.Tensor:
    """The layer's value by a hook in the whole network."""
    kept = []
    handle = network.module.get_submodule(layer).register_forward_hook(
        lambda child, args, value: kept.append(value.clone())
    )
    network.module(pixels)
    handle.remove()
    return kept[-1]


@torch.no_grad()
def plain_loop(network, layer, images, sets, mode, means=None) -> np.ndarray:
    """Logits (sets, n, classes): the whole network once per set, its channels replaced by a hook;
    image i's partner is image i + 1."""
    pixels = network.preprocess(images)
    partner, found = values(network, layer, pixels)[1:], []
    for channels in sets:

        def replace(child, args, value, channels=channels):
            value = value.clone()
            for c in channels:
                if mode == "zero":
                    value[:, c] = 0
                elif mode == "mean":
                    value[:, c] = float(means[c])
                else:
                    value[:, c] = partner[:, c]
            return value

        handle = network.module.get_submodule(layer).register_forward_hook(replace)
        found.append(network.module(pixels[:-1]).numpy())
        handle.remove()
    return np.array(found)


def by_hand(logits: np.ndarray, labels: np.ndarray):
    """Prediction, in_top5 and loss from logits (..., n, classes)."""
    logits = logits.astype(np.float64)
    order = np.argsort(-logits, axis=-1, kind="stable")
    label = np.broadcast_to(labels, logits.shape[:-1])[..., None]
    loss = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, label, -1)[..., 0]
    return order[..., 0], (order[..., :5] == label).any(-1), loss


LAYERS = {
    "resnet18": ["conv1", "maxpool", "layer1.0", "layer2.0.conv1", "layer3.0.bn2", "layer4.1"],
    "resnet50": ["conv1", "maxpool", "layer1.0.bn2", "layer2.0", "layer3.1.conv3", "layer4.2"],
}
CASES = [(name, layer) for name, layers in LAYERS.items() for layer in layers]


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """A network, its images (the last a partner only), means and an ablator of each layer."""
    network, images = loaded(NETWORKS[request.param](), EXTENT), photographs(4, EXTENT)
    rng = np.random.default_rng(2)
    layers = LAYERS[request.param]
    means = {layer: rng.uniform(0, 1, network.graph.shape(layer)[0]) for layer in layers}
    ablators = {layer: ablate.Ablator(network, layer, means[layer]) for layer in layers}
    return request.param, network, images, means, ablators


@pytest.mark.parametrize("mode", ["zero", "mean", "shuffle"])
@pytest.mark.parametrize("place", range(6))
def test_ablation_is_the_plain_loop(case, place, mode):
    name, network, images, means, ablators = case
    layer = LAYERS[name][place]
    ablator = ablators[layer]
    seen = ablator.see(images)
    channels = network.graph.shape(layer)[0]
    sets = [[0], [channels - 1], [1, 5, 7], list(range(0, channels, 2)), []]
    expected = plain_loop(network, layer, images, sets, mode, means[layer])
    found = ablator.logits(seen, sets, mode).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    labels = np.array([3, 0, 9])
    judged = ablator.ablate(seen, sets, mode, labels)
    prediction, in_top5, loss = by_hand(expected, labels)
    assert (judged.prediction == prediction).all() and (judged.in_top5 == in_top5).all()
    np.testing.assert_allclose(judged.loss, loss, atol=1e-4)
    # The empty set is the intact network, to the bit.
    assert (judged.loss[-1] == ablator.intact(seen, labels).loss).all()
    assert np.abs(found[3] - found[4]).max() > 1e-3, "half of the channels change something"


def test_only_the_last_block_has_a_closed_form(case):
    name, *_, ablators = case
    assert [layer for layer in LAYERS[name] if ablators[layer].closed] == LAYERS[name][-1:]


def test_zeroed_filters_leave_the_bias(case):
    """Against a copy of the network whose filters are really zeroed."""
    name, network, images, _, ablators = case
    sets = [[3], [0, 4, 9]]
    for layer in ("conv1", "maxpool"):
        ablator = ablators[layer]
        seen = ablator.see(images)
        found = ablator.logits(seen, sets, "weight").numpy()
        zero = ablator.logits(seen, sets, "zero").numpy()
        for channels, logits in zip(sets, found, strict=True):
            copied = copy.deepcopy(network.module)
            with torch.no_grad():
                copied.conv1.weight[channels] = 0
                expected = copied(network.preprocess(images[:-1])).numpy()
            np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)
        # Before the normalisation there is no bias yet; behind it there is.
        assert (np.abs(found - zero).max() < 1e-5) == (layer == "conv1")
    deeper = LAYERS[name][2]
    assert ablators["maxpool"].replacement.has_filters()
    assert not ablators[deeper].replacement.has_filters()
    with pytest.raises(RfatlasError, match=rf"{deeper}.*not the first convolution"):
        ablators[deeper].ablate(ablators[deeper].see(images), sets, "weight", np.zeros(3, int))


def test_cached_features_give_what_the_images_give(case):
    name, network, images, _, ablators = case
    layer = LAYERS[name][-1]
    ablator, seen = ablators[layer], ablators[layer].see(images)
    features = values(network, layer, network.preprocess(images)).mean((2, 3)).numpy()
    logits = network.module(network.preprocess(images[:-1])).detach().numpy()
    recalled = ablator.recall(features, logits)
    for mode in ("zero", "mean", "shuffle"):
        found = ablator.logits(recalled, [[2], [4, 9]], mode)
        expected = ablator.logits(seen, [[2], [4, 9]], mode)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


class Stem(nn.Module):
    """Three channels that are, for an image whose red is r: max(r - 0.5, 0), a constant 2, and 0.
    Pixels enter as they are (mean 0, std 1)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.conv1.weight.zero_()
            self.conv1.weight[0, 0] = 1.0
            self.conv1.bias.copy_(torch.tensor([-0.5, 2.0, -1.0]))
            self.conv2.weight.zero_()
            self.conv2.weight[range(3), range(3), 1, 1] = 1.0
            self.conv2.bias.zero_()
            # Class 1 if red exceeds 0.75, as long as the constant is there to compare with.
            self.fc.weight.copy_(torch.tensor([[0.0, 0, 0], [8.0, -1.5, 5]]))
            self.fc.bias.copy_(torch.tensor([0.0, 1.0]))

    def forward(self, x):
        x = self.conv2(self.relu(self.conv1(x)))
        return self.fc(x.mean((2, 3)))


def stem(levels) -> tuple:
    network = loaded(Stem().eval(), 8)
    network.description["input"] |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    images = np.zeros((len(levels), 8, 8, 3), np.uint8)
    images[..., 0] = np.array(levels)[:, None, None]
    return network, images


def test_images_at_the_replacement_do_not_run_again():
    network, images = stem([40, 250, 60, 240, 100, 230])
    ablator = ablate.Ablator(network, "relu", np.array([0.0, 2.0, 0.0]))
    seen = ablator.see(images)
    labels = np.zeros(5, int)
    suffix = ablator._suffix
    passes = []
    ablator._suffix = lambda value: passes.append(len(value)) or suffix(value)
    # Of the first channel two of five images are above zero; the second always; the third never.
    ablator.ablate(seen, [[0], [1], [2]], "zero", labels)
    assert sum(passes) == 2 + 5 + 0
    passes.clear()
    ablator.ablate(seen, [[0], [1], [2], [1, 2]], "mean", labels)
    assert sum(passes) == 2
    passes.clear()
    # Bright and dark take turns, but both 60 and 100 are below the threshold.
    ablator.ablate(seen, [[0], [1], [2]], "shuffle", labels)
    assert sum(passes) == 5


def test_zero_mean_and_shuffle_tell_signal_from_constant():
    """A channel that carries the signal, one that is silent but whose constant the decision needs,
    and one that carries nothing."""
    rng = np.random.default_rng(0)
    levels = np.where(rng.random(40) < 0.5, 30, 250)
    labels = (levels > 190).astype(int)
    network, images = stem(levels)
    mean = values(network, "relu", network.preprocess(images)).mean((0, 2, 3)).numpy()
    ablator = ablate.Ablator(network, "relu", mean)
    order = ablate.sequence(labels, None, seed=4)
    right = {}
    for mode in ("zero", "mean", "shuffle"):
        parts = []
        for rows, seen in ablator.batches(images, order, 0, 40, 16):
            assert (ablator.intact(seen, labels[rows]).prediction == labels[rows]).all()
            judged = ablator.ablate(seen, [[0], [1], [2]], mode, labels[rows])
            parts.append(judged.prediction == labels[rows])
        right[mode] = np.concatenate(parts, axis=1).mean(axis=1)
    chance = 0.65
    assert all(right[mode][0] < chance for mode in right), "signal: every mode destroys it"
    assert right["zero"][1] < chance, "a constant that is needed: only zero takes it away"
    assert right["mean"][1] == right["shuffle"][1] == 1
    assert all(right[mode][2] == 1 for mode in right), "nothing: no mode does anything"


def test_the_order_is_one_cycle_of_the_labelled_images():
    labels = np.array([0, 1, -1, 2, 0, -1, 1, 1])
    order = ablate.sequence(labels, None, seed=3)
    assert sorted(order) == [0, 1, 3, 4, 6, 7]
    assert (ablate.sequence(labels, 4, seed=3) == order[:4]).all()
    assert (ablate.sequence(labels, None, seed=3) == order).all()
    assert (ablate.sequence(labels, None, seed=5) != order).any()
    partner = {}
    for start, stop in ((0, 2), (2, 5), (5, 6)):
        rows = ablate.with_partner(order, start, stop)
        partner |= dict(zip(rows[:-1].tolist(), rows[1:].tolist(), strict=True))
    place, visited = order[0], []
    for _ in order:
        visited.append(place)
        place = partner[place]
    assert place == order[0] and sorted(visited) == sorted(order)


def test_ties_go_to_the_lower_class():
    logits = torch.tensor([[1.0, 1, 1, 1, 1, 1, 0]])
    assert ablate.judge(logits, torch.tensor([4])).in_top5[0]
    assert not ablate.judge(logits, torch.tensor([5])).in_top5[0]
    assert ablate.judge(logits, torch.tensor([5])).prediction[0] == 0


class NoClasses(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return F.relu(self.conv1(x))


def test_without_a_classifier_or_labels_there_is_nothing_to_lose():
    with pytest.raises(RfatlasError, match="classifier.*stages.ablation"):
        ablate.Ablator(loaded(NoClasses().eval(), 8), "conv1")
    with pytest.raises(RfatlasError, match=r"0 of 3.*label"):
        ablate.sequence(np.full(3, -1), None, 0)
