"""First-order estimates against derivatives by differences through the whole network, in double
precision, and against the exact change where only pooling and a linear layer follow."""

import copy

import numpy as np
import pytest
import torch
from test_ablate import EXTENT, plain_loop, values
from test_receptive_fields import loaded, photographs, resnet18

from rfatlas.ablation import first_order

LAYERS = ["conv1", "layer1.0", "layer2.0.conv1", "layer3.0.bn2", "layer4.1"]
MODES = ("zero", "mean", "shuffle")
LABELS = np.array([3, 0, 9])


@pytest.fixture(scope="module")
def case():
    """A network, images (the last a partner only), means, and what the pass says."""
    network, images = loaded(resnet18(), EXTENT), photographs(4, EXTENT)
    rng = np.random.default_rng(2)
    means = {layer: rng.uniform(0, 1, network.graph.shape(layer)[0]) for layer in LAYERS}
    found = first_order.FirstOrder(network, dict.fromkeys(LAYERS, MODES), means, channels=12)
    return network, images, means, found(images, LABELS)


def odds_and_margin(logits: np.ndarray) -> np.ndarray:
    """By plain sums over the other classes, (2, n) of (n, classes)."""
    found = []
    for row, label in zip(logits, LABELS, strict=True):
        others = np.delete(row, label)
        found.append([row[label] - np.log(np.exp(others).sum()), row[label] - others.max()])
    return np.array(found).T


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer", LAYERS[:-1])
def test_changes_are_derivatives_towards_the_replacement(case, layer, mode):
    network, images, means, (_, changes) = case
    double = copy.deepcopy(network.module).double()
    pixels = network.preprocess(images)
    map_ = values(network, layer, pixels).double()
    other = {
        "zero": torch.zeros(1, map_.shape[1], 1, 1),
        "mean": torch.as_tensor(means[layer]).view(1, -1, 1, 1),
        "shuffle": map_[1:],
    }[mode].expand_as(map_[:-1])
    for channel in (0, 5, 11):
        logits = []
        for step in (1e-6, -1e-6):

            def move(child, args, value, step=step, channel=channel):
                value = value.clone()
                value[:, channel] += step * (other - map_[:-1])[:, channel]
                return value

            handle = double.get_submodule(layer).register_forward_hook(move)
            with torch.no_grad():
                logits.append(double(pixels[:-1].double()).numpy())
            handle.remove()
        slope = (odds_and_margin(logits[0]) - odds_and_margin(logits[1])) / 2e-6
        found = changes[layer, mode][:, :, channel]
        np.testing.assert_allclose(found, slope, rtol=2e-3, atol=2e-4 * np.abs(slope).max())


def test_at_the_weights_the_replacement_is_the_network_without_filters(case):
    network, images, means, _ = case
    layers = {"maxpool": ("zero",), "layer1.0": ("zero",)}
    none = {layer: np.zeros(64) for layer in layers}
    (_, weight), (_, output) = (
        first_order.FirstOrder(network, layers, none, site)(images, LABELS)
        for site in ("weight", "output")
    )
    empty = copy.deepcopy(network)
    with torch.no_grad():
        empty.module.conv1.weight.zero_()
    without = values(empty, "maxpool", network.preprocess(images))[0].mean((1, 2))
    given = {"maxpool": without.numpy(), "layer1.0": np.zeros(64)}
    # A constant map of this value, but for the border of the pooling, which is the same.
    _, mean = first_order.FirstOrder(network, {"maxpool": ("mean",)}, given)(images, LABELS)
    np.testing.assert_allclose(weight["maxpool", "zero"], mean["maxpool", "mean"], atol=1e-4)
    assert not np.allclose(weight["maxpool", "zero"], output["maxpool", "zero"], atol=1e-3)
    assert (weight["layer1.0", "zero"] == output["layer1.0", "zero"]).all()


def test_behind_the_last_block_changes_are_exact(case):
    network, images, means, (intact, changes) = case
    before = odds_and_margin(network.module(network.preprocess(images))[:-1].detach().numpy())
    np.testing.assert_allclose(intact, before, atol=1e-4)
    for mode in MODES:
        sets = [[channel] for channel in range(12)]
        logits = plain_loop(network, LAYERS[-1], images, sets, mode, means[LAYERS[-1]])
        for channel, after in enumerate(logits):
            expected = odds_and_margin(after) - before
            found = changes[LAYERS[-1], mode][:, :, channel]
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_batches_fit_the_memory():
    network = loaded(resnet18(), 224)
    means = {"conv1": np.zeros(64)}
    roomy, narrow = (
        first_order.FirstOrder(network, {"conv1": MODES}, means, memory_mb=memory).batch
        for memory in (8000, 1500)
    )
    assert 1 <= narrow < roomy
    # Activations that a backward pass needs, and gradients as large.
    assert narrow * network.graph.kept_bytes() <= 5e8 / 2
