"""Skip and residual: the parts against whole networks with one branch detached, sums against loops,
blocks without one of the branches, and jobs that are killed."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from kills import check_resumes
from tasks import task
from test_receptive_fields import loaded, photographs, resnet18, top_tables, whole_image
from test_virtual_filters import TwoWays, Untraceable, randomise
from torch import nn

from rfatlas.demo_net import resnet_demo
from rfatlas.errors import RfatlasError
from rfatlas.fields import crops, skip_residual
from rfatlas.files import store
from rfatlas.network import weight_files
from rfatlas.network.torchvision_ops import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from resnet20 import resnet20

ROOT = Path(__file__).resolve().parents[2]
ATTRS = store.provenance("skip_residual", {})


def measure(network, layer, images, top, output, channels=None, memory_mb=3000.0):
    channels = np.arange(len(top["image"])) if channels is None else channels
    work = task("skip_residual", output, memory_mb)
    skip_residual.measure(network, layer, images, channels, top, work)
    return pd.read_csv(output.with_suffix(".csv"))


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
    with store.open(tmp_path / "x.h5", "skip_residual") as file:
        found = {key: file[key][:].astype(float) for key in ("skip", "residual")}
        assert file.attrs["reason"] == ""
    cut = crops.window(network.graph.geometry(layer), extent)
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
        cut = crops.window(network.graph.geometry(layer), extent)
        with h5py.File(tmp_path / f"{layer}.h5") as file:
            found = file["skip"][:].astype(float) + file["residual"][:]
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
        assert "skip" not in file and file.attrs["reason"] == skip_residual.SKIPLESS


@pytest.mark.parametrize(
    ("make", "extent", "layer", "reason"),
    [
        (resnet18, 64, "conv1", "no residual block ends here"),
        (resnet18, 64, "maxpool", "no residual block ends here"),
        (resnet18, 64, "layer1.0.conv1", "no residual block ends here"),
        (TwoWays, 16, "both", "both terms of the sum add are equally deep"),
        (Untraceable, 16, "left", "torch.fx cannot trace the network"),
    ],
)
def test_where_no_block_ends_the_table_says_so(make, extent, layer, reason, tmp_path):
    network, images = loaded(make().eval(), extent), photographs(2, extent)
    top = top_tables(network, layer, images, 3, 4)
    work = task("skip_residual", tmp_path / "x.h5")
    found = skip_residual.measure(network, layer, images, np.arange(4), top, work)
    table = pd.read_csv(tmp_path / "x.csv")
    assert found == reason and (table["skip_reason"][:4] == reason).all()
    numbers = table.drop(columns=["layer", "channel", "skip_reason"])
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
        found = {key: file[key][:] for key in file}
    assert found["channel"].tolist() == channels.tolist()
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
    numbers = table.drop(columns=["layer", "channel", "skip_reason"])
    assert numbers.iloc[[channels[2], *others]].isna().all(axis=None)
    assert numbers.iloc[channels[:2]].notna().all(axis=None)


@pytest.mark.parametrize(("batch", "memory"), [(1, 3000.0), (5, 3000.0), (None, 700.0)])
def test_batches_and_memory_do_not_change_results(tmp_path, monkeypatch, batch, memory):
    network, images = loaded(resnet18(4), 64), photographs(3, 64, 7)
    top = top_tables(network, "layer2.0", images, 5, 6)
    measure(network, "layer2.0", images, top, tmp_path / "a.h5")
    if batch:
        monkeypatch.setattr(crops, "plan", lambda *args: crops.Plan(block=4, batch=batch))
    measure(network, "layer2.0", images, top, tmp_path / "b.h5", memory_mb=memory)
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert np.array_equal(a["count"][:], b["count"][:])
        for key in ("skip", "residual"):
            np.testing.assert_allclose(a[key], b[key], atol=2e-5 * np.abs(a[key][:]).max())
    a, b = (pd.read_csv(tmp_path / name) for name in ("a.csv", "b.csv"))
    pd.testing.assert_frame_equal(a, b, rtol=1e-4, atol=1e-5)


# ---- faults


def test_activations_of_other_weights_are_refused(tmp_path):
    network, images = loaded(resnet18(5), 64), photographs(2, 64)
    top = top_tables(network, "layer1.0", images, 3, 4)
    with pytest.raises(
        RfatlasError, match=r"layer layer1\.0, channel \d+: .* cached .* activations\.h5"
    ):
        measure(loaded(resnet18(6), 64), "layer1.0", images, top, tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()


def test_killed_jobs_resume_and_end_with_the_same_file(tmp_path):
    script = """
import test_skip_residual as t
from rfatlas.fields import crops, skip_residual

crops._SAVE_EVERY_S = 0.0
crops.plan = lambda *args: crops.Plan(block=4, batch=2)
network, images = t.loaded(t.resnet18(4), 64), t.photographs(3, 64, 7)
top = t.top_tables(network, "layer2.0", images, 6, 10)
skip_residual.look = counted(skip_residual.look)
t.measure(network, "layer2.0", images, top, output)
"""
    check_resumes(script, tmp_path, lambda batches: (4, batches // 2))
