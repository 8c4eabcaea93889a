"""Stimuli at the centre unit: against the whole network with the stimulus pasted into an image, and
against pictures drawn pixel by pixel."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_receptive_fields import MEAN, STD, loaded, photographs, resnet18
from torch import nn

from rfatlas.network import graph
from rfatlas.physiology import probe
from rfatlas.physiology.probe import Probe

EXTENT = 128


def hooked(network: nn.Module, name: str, pixels: torch.Tensor, before: bool) -> torch.Tensor:
    """The last input (`before`) or output of a module in a plain pass of the whole network."""
    kept = {}
    module = network.get_submodule(name)
    handle = module.register_forward_hook(
        lambda child, args, value: kept.__setitem__("value", args[0] if before else value)
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        network((pixels - mean) / std)
    handle.remove()
    return kept["value"]


def centre(maps: torch.Tensor) -> np.ndarray:
    return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].numpy()


# The layer; where a plain pass finds its value before the last ReLU.
LAYERS = [
    ("conv1", "conv1", False),
    ("layer1.0.conv1", "layer1.0.conv1", False),
    ("maxpool", "bn1", False),
    ("relu", "layer4.1.relu", True),
    ("layer1.1", "layer1.1.relu", True),
    ("layer2.0", "layer2.0.relu", True),
    ("layer3.0", "layer3.0.relu", True),
    ("layer4.1", "layer4.1.relu", True),
]


@pytest.mark.parametrize(("layer", "before", "is_input"), LAYERS)
def test_crop_answers_like_the_whole_image(layer, before, is_input):
    module = resnet18(3)
    with torch.no_grad():
        module.bn1.bias.sub_(1)
    network = loaded(module, EXTENT)
    if layer == "relu":
        before, is_input = "bn1", False
    one = Probe(network, layer)
    whole = torch.tensor(photographs(6, EXTENT)).permute(0, 3, 1, 2) / 255
    stimuli = torch.tensor(photographs(6, one.crop, 1)).permute(0, 3, 1, 2) / 255
    top, left = one.origin
    whole[:, :, top : top + one.crop, left : left + one.crop] = stimuli
    value, unrectified = one.respond(stimuli)
    expected = centre(hooked(network.module, layer, whole, False))
    plain = hooked(network.module, before, whole, is_input)
    if layer == "maxpool":
        plain = F.max_pool2d(plain, 3, 2, 1)
    scale = np.abs(centre(plain)).max()
    assert value.shape == unrectified.shape == (6, one.channels)
    np.testing.assert_allclose(value, expected, atol=2e-5 * scale, rtol=0)
    np.testing.assert_allclose(unrectified, centre(plain), atol=2e-5 * scale, rtol=0)
    if network.graph.rectified(layer):
        np.testing.assert_allclose(value, np.maximum(unrectified, 0), atol=1e-6 * scale)
        assert (unrectified < 0).any()


def test_early_layers_see_few_pixels():
    network = loaded(resnet18(), 224)
    assert [Probe(network, layer).crop for layer in ("conv1", "maxpool")] == [8, 16]
    deep = Probe(network, "layer4.1")
    assert (deep.crop, deep.size, deep.stride) == (224, 224, 32)
    # Unit 3 of 7 stands half a stride before the middle of the image.
    assert deep.centre == (96.5, 96.5)


def test_only_the_box_of_the_centre_unit_matters():
    network = loaded(resnet18(), EXTENT)
    one = Probe(network, "layer1.1")
    y, x = one.centre
    stimuli = torch.rand(1, 3, one.crop, one.crop)
    other = torch.rand(1, 3, one.crop, one.crop)
    rows, columns = (slice(round(c - one.size / 2), round(c + one.size / 2)) for c in (y, x))
    other[:, :, rows, columns] = stimuli[:, :, rows, columns]
    assert not torch.equal(stimuli, other)
    a, b = one.respond(stimuli)[0], one.respond(other)[0]
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("layer", ["maxpool", "layer2.0", "layer4.1"])
def test_threads_and_batches_change_nothing(layer):
    one = Probe(loaded(resnet18(), 64), layer)
    stimuli = torch.rand(7, 3, one.crop, one.crop)
    expected = one.respond(stimuli)
    threads = torch.get_num_threads()
    try:
        for one.batch in (1, 3):
            for count in (1, 2):
                torch.set_num_threads(count)
                for a, b in zip(one.respond(stimuli), expected, strict=True):
                    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    finally:
        torch.set_num_threads(threads)


def test_batches_fit_the_memory():
    network = loaded(resnet18(), 224)
    roomy, narrow = (Probe(network, "layer4.1", memory) for memory in (8000, 800))
    kept = network.graph.kept_bytes("layer4.1")
    assert 1 <= narrow.batch < roomy.batch
    assert narrow.batch * kept <= 1e8


class Moody(nn.Module):
    """A block, one ReLU called twice, behind a branch on the values."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()
        self.conv2 = nn.Conv2d(5, 5, 3, padding=1)

    def forward(self, x):
        x = self.relu(self.conv1(x))
        return self.relu(self.conv2(x)) if x.sum() > -1 else x


def test_a_module_called_twice_is_its_last_call():
    torch.manual_seed(0)
    network = loaded(nn.Sequential(Moody(), nn.Conv2d(5, 2, 1)), 16)
    pixels = torch.rand(3, 3, 16, 16)
    one = Probe(network, "0")
    assert (one.size, one.stride) == (5, 1)
    rows, columns = (slice(start, start + one.crop) for start in one.origin)
    value, unrectified = one.respond(pixels[:, :, rows, columns])
    for found, name in ((value, "0"), (unrectified, "0.conv2")):
        expected = centre(hooked(network.module, name, pixels, False))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    one = Probe(network, "0.conv1")
    value, unrectified = one.respond(pixels[:, :, : one.crop, : one.crop])
    assert np.array_equal(value, unrectified) and (value < 0).any()


def test_a_relu_behind_which_branches_join_is_not_left_out():
    """A sum of two rectified branches has no last ReLU of its own."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
            self.end = nn.Identity()

        def forward(self, x):
            return self.end(F.relu(self.a(x)) + F.relu(self.b(x)))

    network = graph.trace(Joined(), torch.zeros(1, 3, 8, 8))
    value, unrectified = network.prefix_and_unrectified("end")(torch.randn(1, 3, 8, 8))
    assert network.rectified("end") and torch.equal(value, unrectified)


# ---- drawing


def test_vertical_bars_are_modulated_along_x():
    """The convention by drawn pictures: 0 degrees = vertical bars; 45 = ascending to the upper
    right."""
    one = Probe(loaded(resnet18(), 64), "layer1.0")
    upright, level, oblique = one.carriers([0, 90, 45], [0.1] * 3, [0] * 3).numpy()
    inside = one.aperture().numpy() > 0
    middle = round(one.centre[0] - 0.5)
    for column in range(one.crop):
        drawn = math.cos(2 * math.pi * 0.1 * (column + 0.5 - one.centre[1]))
        assert upright[inside[:, column], column] == pytest.approx(drawn, abs=1e-6)
    assert np.allclose(level, upright.T, atol=1e-6)
    # Equal along the anti-diagonal's normal, that is from the upper left to the lower right.
    assert oblique[middle, middle] == pytest.approx(1)
    assert oblique[middle + 3, middle + 3] == pytest.approx(1, abs=1e-6)
    assert oblique[middle - 3, middle + 3] == pytest.approx(
        math.cos(2 * math.pi * 0.1 * 3 * math.sqrt(2)), abs=1e-6
    )


def test_phase_moves_the_grating_towards_lower_x():
    """cos(2 pi f x + phase): the peak stands where x = -phase / (2 pi f)."""
    one = Probe(loaded(resnet18(), 64), "layer1.0")
    (carrier,) = one.carriers([0], [0.1], [72]).numpy()
    row, column = (int(c - 0.5) for c in one.centre)
    assert carrier[row, column - 2] == pytest.approx(1, abs=1e-6)


def test_gratings_are_those_drawn_pixel_by_pixel():
    one = Probe(loaded(resnet18(), 64), "layer2.0")
    theta, frequency, phase = [0, 17, 130], [0.013, 0.4, 0.21], [0, 200, 45]
    carriers = one.carriers(theta, frequency, phase).numpy()
    pictures = one.paint(torch.from_numpy(carriers), (1, -1, 0.5)).numpy()
    for n in range(3):
        for row, column in np.ndindex(one.crop, one.crop):
            x, y = column + 0.5 - one.centre[1], one.centre[0] - row - 0.5
            angle = math.radians(theta[n])
            along = x * math.cos(angle) + y * math.sin(angle)
            expected = math.cos(2 * math.pi * frequency[n] * along + math.radians(phase[n]))
            if math.hypot(x, y) > one.size / 2:
                expected = 0
            assert carriers[n, row, column] == pytest.approx(expected, abs=2e-6)
            for channel, weight in enumerate((1, -1, 0.5)):
                assert pictures[n, channel, row, column] == pytest.approx(
                    probe.GREY + 0.5 * weight * expected, abs=2e-6
                )
    assert pictures.min() >= 0 and pictures.max() <= 1


def test_every_grating_has_its_own_diameter_and_contrast():
    one = Probe(loaded(resnet18(), 64), "layer1.0")
    drawn = ([20.0, 70.0, 20.0], [0.1, 0.2, 0.1], [30.0, 0.0, 30.0])
    whole = one.carriers(*drawn)
    assert torch.equal(one.carriers(*drawn, one.size, 1.0), whole)
    own = one.carriers(*drawn, [5.0, 9.0, 1000.0], [0.5, 0.25, 1.0]).numpy()
    pixel = np.arange(one.crop) + 0.5
    distance = np.hypot(pixel[:, None] - one.centre[0], pixel - one.centre[1])
    for n, (diameter, contrast) in enumerate([(5, 0.5), (9, 0.25)]):
        np.testing.assert_allclose(
            own[n], contrast * whole[n].numpy() * (distance <= diameter / 2), atol=1e-7
        )
    # An aperture beyond the box is full.
    assert (np.abs(own[2]) > 0).sum() > (np.abs(whole[2].numpy()) > 0).sum()


def test_uniform_fields_and_pieces_of_images():
    one = Probe(loaded(resnet18(), 64), "layer1.0")
    colours = np.array([[0, 0, 0], [0.2, 0.4, 0.6]])
    fields = one.uniform(colours)
    assert fields.shape == (2, 3, one.crop, one.crop)
    assert torch.allclose(fields[1, :, 3, 5], torch.tensor([0.2, 0.4, 0.6]))
    image = photographs(1, 64) / 255
    top, left = one.origin
    piece = one.cut(image)
    assert piece.shape == (1, 3, one.crop, one.crop)
    assert np.allclose(piece[0, :, 2, 3], image[0, top + 2, left + 3], atol=1e-7)


def test_no_stimuli_have_no_answers():
    one = Probe(loaded(resnet18(), 64), "conv1")
    value, unrectified = one.respond(torch.zeros(0, 3, 8, 8))
    assert value.shape == unrectified.shape == (0, 64)


def test_batch_norm_and_normalisation_are_the_models_own():
    """A closed form: a 1 x 1 convolution behind normalisation, without any crop."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU()).eval()
    with torch.no_grad():
        network[1].running_mean.copy_(torch.tensor([0.1, -0.2]))
        network[1].running_var.copy_(torch.tensor([0.5, 2.0]))
    stimulus = torch.tensor([0.3, 0.5, 0.9])
    one = Probe(loaded(network, 16), "2")
    value, unrectified = one.respond(one.uniform(stimulus[None].numpy()))
    normalised = (stimulus - torch.tensor(MEAN)) / torch.tensor(STD)
    plain = network[0].weight[:, :, 0, 0] @ normalised + network[0].bias
    plain = (plain - network[1].running_mean) / (network[1].running_var + 1e-5).sqrt()
    np.testing.assert_allclose(unrectified[0], plain.detach(), atol=1e-5)
    np.testing.assert_allclose(value[0], plain.detach().clamp(min=0), atol=1e-5)
