"""Textures: the noise has their spectrum, the indices by hand and by another's definition, all
layers in one pass against each alone, planted units, the shipped samples."""

import csv
import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tasks import task
from test_receptive_fields import loaded, resnet18
from torch import nn

from rfatlas.files import store
from rfatlas.physiology import texture
from rfatlas.physiology.probe import Probe
from rfatlas.plan import estimates

FOLDER = Path(__file__).resolve().parents[2] / "resources" / "textures"
SHEET = FOLDER / "textures.png"
FAMILIES = [row["family"] for row in csv.DictReader((FOLDER / "textures.csv").open())]


@pytest.fixture(scope="module")
def samples() -> dict[str, np.ndarray]:
    return dict(zip(FAMILIES, texture.tiles(SHEET, FAMILIES), strict=True))


# ---- stimuli


def test_noise_has_the_spectrum_and_the_mean_of_its_texture_but_not_its_phases(samples):
    random = np.random.default_rng(1)
    for tiles in samples.values():
        noise = texture.scrambled(tiles[0], random)
        found, expected = (np.abs(np.fft.fft2(tile)) for tile in (noise, tiles[0]))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert noise.mean() == pytest.approx(tiles[0].mean())
        assert abs(np.corrcoef(noise.ravel(), tiles[0].ravel())[0, 1]) < 0.3
        # Of random phases, many waves add up to a Gaussian.
        assert abs(((noise - noise.mean()) ** 4).mean() / noise.var() ** 2 - 3) < 0.8


@pytest.mark.parametrize("size", [32, 128, 224])
def test_pictures_are_grey_then_noise_and_texture_in_turn(samples, size):
    chosen = np.stack(list(samples.values()))[:3, :2]
    blank, *shown = texture.pictures(chosen, size)
    again = list(texture.pictures(chosen, size))
    assert (blank == 0.5).all() and len(shown) == 3 * 2 * 2
    assert all((one == two).all() for one, two in zip(shown, again[1:], strict=True))
    for index, one in enumerate(shown):
        assert one.shape == (size, size) and one.min() >= 0 and one.max() <= 1
        if size >= 128:
            # A tile goes on at its borders.
            assert (one[:, 128:] == one[:, : size - 128]).all()
            assert one[:128, :128].mean() == pytest.approx(0.5, abs=0.02)
            assert one[:128, :128].std() == pytest.approx(texture.CONTRAST, rel=0.05)
        if index % 2:
            tile = chosen.reshape(-1, 128, 128)[index // 2]
            side = min(size, 128)
            assert np.corrcoef(one[:side, :side].ravel(), tile[:side, :side].ravel())[0, 1] > 0.97


# ---- indices


def test_indices_by_hand():
    # Families: 3 against 1, 1 against 3, 4 against 0, nothing.
    texture_means, noise_means = np.array([3.0, 1, 4, 0]), np.array([1.0, 3, 0, 0])
    response = np.stack([noise_means, texture_means], 1)[None, :, :, None].repeat(2, -1)
    assert texture.modulation(response) == pytest.approx([(0.5 - 0.5 + 1) / 3])
    assert np.isnan(texture.modulation(np.zeros((1, 4, 2, 2)))).all()
    assert texture.sparseness(np.array([[2.0, 2, 2], [0, 0, 5], [0, 0, 0]])) == pytest.approx(
        [0, 1, np.nan], nan_ok=True
    )
    # (1 - (1/2)^2 / (1/2)) / (1 - 1/4)
    assert texture.sparseness(np.array([[1.0, 1, 0, 0]])) == pytest.approx([2 / 3])


def test_variance_ratio_is_that_of_an_analysis_of_variance():
    random = np.random.default_rng(0)
    families = random.uniform(1, 5, (6, 14, 1))
    response = (families + random.normal(0, 0.3, (6, 14, 5))).clip(0)
    found = texture.variance_ratio(response)
    for one, expected in zip(np.sqrt(response), found, strict=True):
        within = sum(((row - row.mean()) ** 2).sum() for row in one) / (14 * 4)
        mean_square = 5 * ((one.mean(1) - one.mean()) ** 2).sum() / 13
        between = (mean_square - within) / 5
        shares = between / (within + between), within / (within + between)
        assert (shares[0] + 0.02) / (shares[1] + 0.02) == pytest.approx(expected)
    # Whatever the unit; only samples differ; only families do; nothing does.
    assert texture.variance_ratio(7 * response) == pytest.approx(found)
    only_samples = np.tile([0.0, 1, 4, 9, 16], (1, 14, 1))
    assert texture.variance_ratio(only_samples) == pytest.approx([0.02 / 1.02])
    only_families = only_samples.transpose(0, 2, 1)
    assert texture.variance_ratio(only_families) == pytest.approx([1.02 / 0.02])
    assert np.isnan(texture.variance_ratio(np.ones((1, 14, 5)))).all()


def test_reasons_and_the_blank():
    random = np.random.default_rng(0)
    response = random.uniform(1, 2, (4, 3, 2, 5))
    response[1] = 0.5
    response[2] = 1 + 1e-7 * response[2]
    response[3] = response[0] + 10
    found = texture.columns(response, np.array([0, 1, 1, 10.0]))
    assert found["texture_reason"].tolist() == ["", "no_response", "weak", ""]
    for name, values in found.items():
        if name != "texture_reason":
            assert np.isnan(values[1:3]).all()
            assert values[3] == pytest.approx(values[0])
    assert found["texture_max"][0] == response[0, :, 1].max()
    assert found["noise_max"][0] == response[0, :, 0].max()


# ---- a network


def test_one_pass_answers_as_each_layer_alone(samples, tmp_path):
    network = loaded(resnet18(), 64)
    layers = ["conv1", "maxpool", "layer2.0", "layer4.1"]
    few = {name: samples[name][:2] for name in FAMILIES[:2]}
    texture.measure(network, layers, few, task("texture", tmp_path / "texture.h5"))
    shown = np.stack(list(texture.pictures(np.stack(list(few.values())), 64)))
    table = pd.read_csv(tmp_path / "texture.csv")
    assert list(table) == list(texture.COLUMNS)
    with store.open(tmp_path / "texture.h5", "texture") as file:
        assert file["family"].asstr()[:].tolist() == FAMILIES[:2]
        for layer in layers:
            probe = Probe(network, layer)
            whole = np.repeat(shown[..., None], 3, -1)
            expected = probe.respond(probe.cut(whole))[0]
            scale = float(np.abs(expected).max())
            assert file[layer]["blank"][:] == pytest.approx(expected[0], abs=1e-4 * scale)
            response = file[layer]["response"][:]
            assert response.shape == (probe.channels, 2, 2, 2)
            by_hand = expected[1:].reshape(2, 2, 2, -1).transpose(3, 0, 2, 1)
            assert response == pytest.approx(by_hand, abs=1e-4 * scale)
            rows = table[table["layer"] == layer]
            assert rows["channel"].tolist() == list(range(probe.channels))


class Planted(nn.Module):
    """Units after a bank of linear ones (`conv1`): their energy around a place (channel 0), and the
    square of the energy (channel 1), which a texture's clusters of contrast drive more."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 5, padding=2, bias=False)
        with torch.no_grad():
            edge = torch.tensor([-1.0, -2, 0, 2, 1]).expand(5, 5) / 10
            self.conv1.weight.copy_(torch.stack([edge, edge.T])[:, None].expand(-1, 3, -1, -1))
        self.energy = nn.AvgPool2d(9, 4, 4)
        self.relu = nn.ReLU()

    def forward(self, x):
        energy = (self.conv1(x) ** 2).sum(1, keepdim=True)
        return self.relu(self.energy(torch.cat([energy, energy**3 / 100], 1)))


def test_a_planted_unit_of_clustered_contrast_prefers_textures(samples, tmp_path):
    network = loaded(Planted().eval(), 64)
    texture.measure(network, ["conv1", "relu"], samples, task("texture", tmp_path / "texture.h5"))
    table = pd.read_csv(tmp_path / "texture.csv").set_index(["layer", "channel"])
    linear, energy, higher = (
        table.loc[key, "texture_modulation"] for key in (("conv1", 0), ("relu", 0), ("relu", 1))
    )
    assert abs(linear) < 0.2 and abs(energy) < 0.2
    assert higher > abs(energy) + 0.03


# ---- what is shipped


def test_the_shipped_samples_are_those_of_the_record(samples):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(SHEET.read_bytes()).hexdigest() in text
    assert SHEET.stat().st_size < 1.5e6
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(FAMILIES)
    shown = np.stack(list(samples.values()))
    assert shown.shape == (len(FAMILIES), 4, 128, 128) and len(FAMILIES) >= 10
    assert estimates._TEXTURES == 1 + 2 * shown.shape[0] * shown.shape[1]
    # The samples of a family are alike in their statistics and not the same picture.
    for tiles in shown:
        pairs = np.corrcoef(tiles.reshape(4, -1))[np.triu_indices(4, 1)]
        assert np.abs(pairs).max() < 0.5
