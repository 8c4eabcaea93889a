"""Skip and residual: the parts against whole networks with one branch detached, sums against loops,
blocks without one of the branches."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from tasks import task
from test_receptive_fields import loaded, photographs, resnet18, top_tables, whole_image
from test_virtual_filters import TwoWays, randomise
from torch import nn

from rfatlas.demo_net import resnet_demo
from rfatlas.fields import crops, receptive_fields, skip_residual
from rfatlas.files import store
from rfatlas.network import weight_files
from rfatlas.network.torchvision_ops import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from resnet20 import resnet20

ROOT = Path(__file__).resolve().parents[2]


def measure(network, layer, images, top, output, channels=None, parts=None):
    """The columns of all channels of a layer; of each channel `parts` units are split, or all."""
    channels = np.arange(len(top["image"])) if channels is None else channels
    parts = parts or top["image"].shape[1]
    work = task("receptive_fields", output)
    receptive_fields.measure(network, layer, images, channels, top, 1, parts, work)
    return pd.read_csv(output.with_suffix(".csv"))[["channel", *skip_residual.COLUMNS]]


class Detached(nn.Module):
    """A module whose output no gradient passes."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x).detach()


def resnet50(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(torchvision().models.resnet50(num_classes=5), seed)


def demo() -> nn.Module:
    network = resnet_demo()
    path = ROOT / "resources" / "demo" / "resnet_demo.safetensors"
    weight_files.load_tensors(network, weight_files.read_tensors(path), str(path))
    return network.eval()


# ---- exactness

# Network, layer, image size, and the modules that end the residual branch and (where the block has
# one) the skip connection.
BLOCKS = [
    (resnet18, "layer1.0", 96, "bn2", None),
    (resnet18, "layer2.0", 96, "bn2", "downsample"),
    (resnet18, "layer4.1", 96, "bn2", None),
    (resnet50, "layer1.0", 64, "bn3", "downsample"),
    (resnet50, "layer2.1", 64, "bn3", None),
    (demo, "layer2.0", 64, "bn2", "downsample"),
    (demo, "layer3.1", 64, "bn2", None),
    (resnet20, "layer2.0", 32, "bn2", None),
]


@pytest.mark.parametrize(("make", "layer", "extent", "residual", "skip"), BLOCKS)
def test_parts_are_the_gradients_with_the_other_branch_detached(
    make, layer, extent, residual, skip, tmp_path
):
    """One unit per channel, so that the means are its own: against plain backward passes of the
    whole network, in which a module of one branch lets no gradient through."""
    network, images = loaded(make(), extent), photographs(2, extent, 3)
    top = top_tables(network, layer, images, 1, 16)
    channels = np.flatnonzero(top["image"][:, 0] >= 0)[:3]
    assert len(channels) == 3
    top = {key: rows[channels] for key, rows in top.items()}
    table = measure(network, layer, images, top, tmp_path / "x.h5", channels)
    with store.open(tmp_path / "x.h5", "receptive_fields") as file:
        found = {key: file[f"parts/{key}"][:].astype(float) for key in ("skip", "residual")}
    assert table["skip_reason"][channels].isna().all()
    cut = crops.window(network.graph.field(layer), extent)
    block = network.module.get_submodule(layer)
    for i, c in enumerate(channels):
        n, (y, x) = top["image"][i, 0], top["yx"][i, 0]
        start = [int(cut.window_start(np.array([p]), axis)[0]) for axis, p in enumerate((y, x))]

        def window(field, start=start):
            s = cut.size
            padded = np.pad(field, ((0, 0), (s, s), (s, s)))
            return padded[:, s + start[0] : 2 * s + start[0], s + start[1] : 2 * s + start[1]]

        value, whole = whole_image(network, layer, images[n], c, y, x)
        scale = np.abs(whole).max()
        assert value > 0 and scale > 0
        assert np.abs(found["skip"][i] + found["residual"][i] - window(whole)).max() < 1e-5 * scale
        parts = {}
        for part, other in (("skip", residual), ("residual", skip)):
            if other is not None:
                module = getattr(block, other)
                setattr(block, other, Detached(module))
                parts[part] = whole_image(network, layer, images[n], c, y, x)[1]
                setattr(block, other, module)
                assert np.abs(found[part][i] - window(parts[part])).max() < 1e-5 * scale
        parts.setdefault("residual", whole - parts["skip"])
        row = table.iloc[c]
        shares = {name: (part * whole).sum() / (whole**2).sum() for name, part in parts.items()}
        assert row["skip_energy_share"] == pytest.approx(shares["skip"], abs=1e-4)
        assert row["residual_energy_share"] == pytest.approx(shares["residual"], abs=1e-4)
        assert row["skip_energy_share"] + row["residual_energy_share"] == pytest.approx(1, abs=1e-6)
        energy = (parts["skip"] ** 2).sum() / (whole**2).sum()
        assert row["skip_energy"] == pytest.approx(energy, rel=1e-3)


def test_real_resnet18_adds_up_to_its_gradients(tmp_path, shared_data):
    """Published weights, real photographs: skip and residual part against one backward pass."""
    network = torchvision().models.resnet18()
    weights = shared_data / "resnet18" / "resnet18.safetensors"
    weight_files.load_tensors(network, weight_files.read_tensors(weights), str(weights))
    extent = 128
    network = loaded(network.eval(), extent)
    from PIL import Image

    names = sorted((shared_data / "photographs").glob("*.JPEG"))[:3]
    assert len(names) == 3
    images = np.stack(
        [np.asarray(Image.open(name).convert("RGB").resize((extent, extent))) for name in names]
    )
    for layer in ("layer1.1", "layer2.0", "layer3.1", "layer4.0"):
        top = top_tables(network, layer, images, 1, 24)
        channels = np.flatnonzero(top["image"][:, 0] >= 0)[:4]
        top = {key: rows[channels] for key, rows in top.items()}
        measure(network, layer, images, top, tmp_path / f"{layer}.h5", channels)
        cut = crops.window(network.graph.field(layer), extent)
        with h5py.File(tmp_path / f"{layer}.h5") as file:
            found = file["parts/skip"][:].astype(float) + file["parts/residual"][:]
            np.testing.assert_allclose(file["mean_gradient"][:], found, atol=1e-6)
        for i, c in enumerate(channels):
            n, (y, x) = top["image"][i, 0], top["yx"][i, 0]
            _, whole = whole_image(network, layer, images[n], c, y, x)
            t, u = (int(cut.window_start(np.array([p]), a)[0]) for a, p in enumerate((y, x)))
            s = cut.size
            padded = np.pad(whole, ((0, 0), (s, s), (s, s)))
            window = padded[:, s + t : 2 * s + t, s + u : 2 * s + u]
            assert np.abs(found[i] - window).max() < 1e-5 * np.abs(whole).max()


# ---- blocks that lack one part


def test_share_of_the_skip_is_one_where_the_residual_branch_gives_nothing(tmp_path):
    network = resnet18(2)
    with torch.no_grad():
        network.layer1[1].bn2.weight.zero_()
        network.layer1[1].bn2.bias.zero_()
    network, images = loaded(network, 64), photographs(3, 64)
    top = top_tables(network, "layer1.1", images, 4, 20)
    table = measure(network, "layer1.1", images, top, tmp_path / "x.h5")
    driven = (top["image"] >= 0).any(axis=1)
    rows = table[:20][driven]
    assert len(rows) > 5
    assert (rows["skip_energy_share"] == 1).all() and (rows["residual_energy_share"] == 0).all()
    assert (rows["skip_energy"] == 1).all() and (rows["residual_energy"] == 0).all()
    assert (rows["skip_mean_share"] == 1).all() and (rows["skip_activation_share"] == 1).all()
    undefined = ["skip_residual_cosine", "skip_residual_correlation", "residual_radius"]
    assert rows[undefined].isna().all(axis=None)


def test_share_of_the_skip_is_zero_in_a_block_without_one(tmp_path):
    network, images = loaded(randomise(resnet_demo(5, skip=False), 1), 64), photographs(3, 64)
    top = top_tables(network, "layer2.1", images, 4, 64)
    top["image"][3] = -1
    table = measure(network, "layer2.1", images, top, tmp_path / "x.h5")
    driven = (top["image"] >= 0).any(axis=1)
    assert driven.sum() > 30
    assert (table["skip_energy_share"][driven] == 0).all()
    assert (table["residual_energy_share"][driven] == 1).all()
    assert (table["skip_reason"][driven] == skip_residual.SKIPLESS).all()
    assert table["skip_energy_share"][~driven].isna().all()
    with store.open(tmp_path / "x.h5") as file:
        assert "parts" not in file


@pytest.mark.parametrize(
    ("make", "extent", "layer", "reason"),
    [
        (resnet18, 64, "conv1", "no residual block ends here"),
        (resnet18, 64, "maxpool", "no residual block ends here"),
        (resnet18, 64, "layer1.0.conv1", "no residual block ends here"),
        (TwoWays, 16, "both", "both terms of the sum add are equally deep"),
    ],
)
def test_where_no_block_ends_the_table_says_so(make, extent, layer, reason, tmp_path):
    network, images = loaded(make().eval(), extent), photographs(2, extent)
    top = top_tables(network, layer, images, 3, 4)
    table = measure(network, layer, images, top, tmp_path / "x.h5")
    assert (table["skip_reason"][:4] == reason).all()
    numbers = table.drop(columns=["channel", "skip_reason"])
    assert numbers.isna().all(axis=None)


# ---- sums


def test_sums_are_those_of_a_loop_over_units(tmp_path):
    """Means, shares, cosine, radii and activations against sums over whole images, unit by unit;
    the skip part by detaching the residual branch."""
    extent, layer = 64, "layer2.0"
    network, images = loaded(resnet18(4), extent), photographs(4, extent, 3)
    top = top_tables(network, layer, images, 5, 40)
    channels = np.flatnonzero((top["image"] >= 0).all(1))[:3]
    top = {key: rows[channels].copy() for key, rows in top.items()}
    top["image"][1, 3:] = -1
    top["image"][2] = -1
    table = measure(network, layer, images, top, tmp_path / "x.h5", channels)
    assert len(table) == 128
    with h5py.File(tmp_path / "x.h5") as file:
        found = {key: file["parts"][key][:] for key in file["parts"]}
    block, s = network.module.layer2[0], found["skip"].shape[-1]
    kept = {}
    block.downsample.register_forward_hook(lambda m, a, value: kept.update(skip=value))
    # torchvision adds the skip connection to this very tensor.
    block.bn2.register_forward_hook(lambda m, a, value: kept.update(residual=value.clone()))
    for i in range(2):
        count, means = np.zeros((s, s)), np.zeros((2, 3, s, s))
        energy, product = np.zeros(2), 0.0
        spread, inside, terms = np.zeros(2), np.zeros(2), np.zeros(2)
        for k in range(5):
            n, (y, x) = top["image"][i, k], top["yx"][i, k]
            if n < 0:
                continue
            _, whole = whole_image(network, layer, images[n], channels[i], y, x)
            terms += [kept[name][0, channels[i], y, x].item() for name in ("skip", "residual")]
            norm, block.bn2 = block.bn2, Detached(block.bn2)
            _, skip = whole_image(network, layer, images[n], channels[i], y, x)
            block.bn2 = norm
            parts = (skip, whole - skip)
            energy += [(part**2).sum() for part in parts]
            product += (parts[0] * parts[1]).sum()
            # The centre of unit (0, 0)'s box is pixel 0.5, the stride 8.
            t, u = (int(np.floor(0.5 + 8 * p - s / 2)) for p in (y, x))
            for row in range(s):
                for column in range(s):
                    py, px = t + row, u + column
                    if not (0 <= py < extent and 0 <= px < extent):
                        continue
                    count[row, column] += 1
                    distance = (py + 0.5 - 0.5 - 8 * y) ** 2 + (px + 0.5 - 0.5 - 8 * x) ** 2
                    for number, part in enumerate(parts):
                        means[number, :, row, column] += part[:, py, px]
                        square = (part[:, py, px] ** 2).sum()
                        inside[number] += square
                        spread[number] += square * distance
        assert np.array_equal(found["count"][i], count)
        means /= np.maximum(count, 1)
        for number, key in enumerate(("skip", "residual")):
            scale = np.abs(means[number]).max()
            np.testing.assert_allclose(found[key][i], means[number], atol=1e-4 * scale)
        row, total = table.iloc[channels[i]], energy.sum() + 2 * product
        expected = {
            "skip_energy_share": (energy[0] + product) / total,
            "residual_energy_share": (energy[1] + product) / total,
            "skip_energy": energy[0] / total,
            "residual_energy": energy[1] / total,
            "skip_residual_cosine": product / np.sqrt(energy.prod()),
            "skip_mean_share": (means[0] * means.sum(0)).sum() / (means.sum(0) ** 2).sum(),
            "skip_residual_correlation": np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1],
            "skip_activation_share": terms[0] / terms.sum(),
            "skip_radius": np.sqrt(spread[0] / inside[0]),
            "residual_radius": np.sqrt(spread[1] / inside[1]),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=2e-3, abs=2e-3), name
        assert pd.isna(row["skip_reason"])
    silent = table.iloc[channels[2]]
    assert silent["skip_reason"] == skip_residual.SILENT
    others = np.delete(np.arange(128), channels)
    assert (table["skip_reason"][others] == skip_residual.LEFT_OUT).all()
    numbers = table.drop(columns=["channel", "skip_reason"])
    assert numbers.iloc[[channels[2], *others]].isna().all(axis=None)
    assert numbers.iloc[channels[:2]].notna().all(axis=None)


def test_the_strongest_units_alone_can_be_split(tmp_path):
    network, images = loaded(resnet18(4), 64), photographs(3, 64, 7)
    top = top_tables(network, "layer2.0", images, 5, 6)
    table = measure(network, "layer2.0", images, top, tmp_path / "some.h5", parts=2)
    measure(network, "layer2.0", images, top, tmp_path / "all.h5")
    few = {key: rows[:, :2] for key, rows in top.items()}
    expected = measure(network, "layer2.0", images, few, tmp_path / "few.h5")
    pd.testing.assert_frame_equal(table, expected, rtol=1e-4, atol=1e-5)
    some, all_, few = (h5py.File(tmp_path / f"{name}.h5") for name in ("some", "all", "few"))
    with some, all_, few:
        for key in ("skip", "residual", "count"):
            scale = 2e-5 * np.abs(few["parts"][key][:]).max()
            np.testing.assert_allclose(some["parts"][key], few["parts"][key], atol=scale)
        for key in ("mean_gradient", "mean_abs_gradient", "effective", "energy_inside"):
            scale = 2e-5 * np.nanmax(np.abs(all_[key]))
            np.testing.assert_allclose(some[key], all_[key], atol=scale, err_msg=key)
