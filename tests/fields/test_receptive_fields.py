"""Receptive fields: exact crops against the whole image, planted and closed forms, brute-force
sums."""

from collections import OrderedDict

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from kills import check_resumes
from small_resnet import box
from tasks import task
from torch import nn

from rfatlas.errors import RfatlasError
from rfatlas.fields import crops, receptive_fields
from rfatlas.figures import style
from rfatlas.files import store
from rfatlas.network import graph, model
from rfatlas.network.geometry import Field, Geometry
from rfatlas.network.torchvision_ops import torchvision

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ATTRS = store.provenance("receptive_fields", {})


def loaded(network: nn.Module, extent: int) -> model.LoadedModel:
    traced = graph.trace(network, torch.zeros(1, 3, extent, extent))
    network.to(memory_format=torch.channels_last)
    description = {"input": {"resize": extent, "crop": extent, "mean": MEAN, "std": STD}}
    return model.LoadedModel(network, traced, description, "0" * 64, torch.device("cpu"))


def resnet18(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = torchvision().models.resnet18(num_classes=10).eval()
    with torch.no_grad():
        for child in network.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.running_mean.normal_(0, 0.1)
                child.bias.uniform_(0.1, 0.4)
    return network


def photographs(count: int, extent: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, extent, extent, 3), np.uint8)


def whole_image(network: model.LoadedModel, layer: str, image: np.ndarray, c: int, y: int, x: int):
    """Activation and gradient (3, H, W) by one plain forward and backward pass of the whole
    network."""
    pixels = torch.tensor(image / 255, dtype=torch.float32).permute(2, 0, 1)[None].requires_grad_()
    kept = {}
    handle = network.module.get_submodule(layer).register_forward_hook(
        lambda child, args, value: kept.__setitem__("value", value)
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    network.module((pixels - mean) / std)
    handle.remove()
    value = kept["value"][0, c, y, x]
    value.backward()
    return value.item(), pixels.grad[0].numpy()


def top_tables(network: model.LoadedModel, layer: str, images: np.ndarray, k: int, channels: int):
    """Random positive units of each channel, with their activations, in the form of
    activations.h5."""
    with torch.no_grad():
        maps = network.graph.extractor([layer], False)(network.preprocess(images))[layer].numpy()
    rng = np.random.default_rng(1)
    value = np.full((channels, k), 0, np.float32)
    image = np.full((channels, k), -1, np.int32)
    yx = np.full((channels, k, 2), -1, np.int16)
    for c in range(channels):
        n, y, x = np.nonzero(maps[:, c] > 0)
        # Corners first: there padding matters; then anything.
        corner = np.flatnonzero((y * x == 0) | (y == maps.shape[2] - 1) | (x == maps.shape[3] - 1))
        chosen = np.r_[rng.permutation(corner)[: k // 2], rng.permutation(len(n))]
        chosen = chosen[np.sort(np.unique(chosen, return_index=True)[1])][:k]
        order = chosen[np.argsort(-maps[n, c, y, x][chosen], kind="stable")]
        value[c, : len(order)] = maps[n, c, y, x][order]
        image[c, : len(order)] = n[order]
        yx[c, : len(order)] = np.stack([y, x], 1)[order]
    return {"value": value, "image": image, "yx": yx}


def measure(network, layer, images, top, output, channels=None, keep=3, memory_mb=3000.0, parts=0):
    channels = np.arange(len(top["image"])) if channels is None else channels
    work = task("receptive_fields", output, memory_mb)
    receptive_fields.measure(network, layer, images, channels, top, keep, parts, work)
    table = pd.read_csv(output.with_suffix(".csv"))
    assert table["channel"].tolist() == list(range(network.graph.shape(layer)[0]))
    return table.iloc[channels].reset_index(drop=True)


# ---- exactness


@pytest.mark.parametrize(
    "layer",
    [
        "conv1",
        "maxpool",
        "layer1.0.conv1",
        "layer1.1",
        "layer2.0",
        "layer2.1",
        "layer3.0",
        "layer4.1",
    ],
)
def test_crop_gives_what_the_whole_image_gives(layer, tmp_path):
    """Border and interior units: activation and gradient of the crop equal those of the whole
    network."""
    extent = 128
    network, images = loaded(resnet18(), extent), photographs(3, extent)
    top = top_tables(network, layer, images, 6, 24)
    # Random networks have channels that no noise drives.
    channels = np.flatnonzero((top["image"] >= 0).all(1))[:3]
    assert len(channels) == 3
    top = {key: rows[channels] for key, rows in top.items()}
    table = measure(network, layer, images, top, tmp_path / "x.h5", channels, keep=6)
    assert (table["certificate_max"] < 1e-4).all()
    with store.open(tmp_path / "x.h5", "receptive_fields") as file:
        gradient, patch = file["gradient"][:], file["patch"][:]
        size, stride, start = (file.attrs[key] for key in ("size", "stride", "start"))
        certificate = file["certificate"][:]
    s = gradient.shape[-1]
    assert s == min(size, extent)
    for c in range(2):
        for k in range(0, 6, 2):
            n, (y, x) = top["image"][c, k], top["yx"][c, k]
            value, whole = whole_image(network, layer, images[n], channels[c], y, x)
            assert value == pytest.approx(top["value"][c, k], abs=1e-5 * float(top["value"].max()))
            assert certificate[c, k] < 1e-4 * value
            # docs/files.md: S x S around the centre of the unit's box, zero outside the image.
            t, u = np.floor(start + np.multiply((y, x), stride) - s / 2).astype(int)
            padded = np.pad(whole, ((0, 0), (s, s), (s, s)))[
                :, s + t : 2 * s + t, s + u : 2 * s + u
            ]
            scale = np.abs(whole).max()
            assert np.abs(gradient[c, k] - padded).max() < 2e-5 * scale
            pixels = np.pad(images[n], ((s, s), (s, s), (0, 0)))[
                s + t : 2 * s + t, s + u : 2 * s + u
            ]
            assert np.array_equal(patch[c, k], pixels)
            if size <= extent:
                assert np.square(padded).sum() == pytest.approx(np.square(whole).sum(), rel=1e-5)


def test_conv1_gradient_is_its_kernel_over_the_input_std(tmp_path):
    network, images = loaded(resnet18(1), 64), photographs(2, 64)
    top = top_tables(network, "conv1", images, 1, 64)
    top["yx"][:], top["image"][:] = 11, 1
    with torch.no_grad():
        values = network.graph.prefix("conv1")(network.preprocess(images))[1, :, 11, 11]
    top["value"][:, 0] = values.numpy()
    measure(network, "conv1", images, top, tmp_path / "conv1.h5", keep=1)
    kernel = network.module.conv1.weight.numpy() / np.array(STD).reshape(3, 1, 1)
    with h5py.File(tmp_path / "conv1.h5") as file:
        assert file.attrs["size"] == 7 and file.attrs["stride"].tolist() == [2, 2]
        assert file.attrs["start"].tolist() == [0.5, 0.5]
        np.testing.assert_allclose(file["gradient"][:, 0], kernel, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(file["mean_gradient"][:], kernel, rtol=1e-5, atol=1e-8)


def test_both_axes_of_an_oblong_kernel_are_told(tmp_path):
    """The file and model.json say where each pixel of a window lies in the image, down and
    across."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, (5, 4), stride=(2, 1), padding=(3, 1))
    network, images = loaded(nn.Sequential(OrderedDict(conv1=conv)), 32), photographs(2, 32)
    measure(network, "conv1", images, top_tables(network, "conv1", images, 4, 4), tmp_path / "x.h5")
    top = top_tables(network, "conv1", images, 4, 4)
    with h5py.File(tmp_path / "x.h5") as file:
        size, start, stride = (file.attrs[key] for key in ("size", "start", "stride"))
        gradient, patch = file["gradient"][:], file["patch"][:]
    assert start.tolist() == [0.5 + 4 / 2 - 3, 0.5 + 3 / 2 - 1] and stride.tolist() == [2, 1]
    described = model.describe(network.module, network.graph, network.description["input"])
    assert described["layers"][0]["start"] == start.tolist()
    weight = conv.weight.detach() / torch.tensor(STD)[:, None, None]
    for c, k in np.ndindex(patch.shape[:2]):
        first = np.floor(start + stride * top["yx"][c, k] - size / 2).astype(int)
        blank = style.outside(top["yx"][c, k], start, stride, size, 32)
        around = np.pad(images[top["image"][c, k]], ((9, 9), (9, 9), (0, 0)))
        cut = around[first[0] + 9 :][:size, first[1] + 9 :][:, :size]
        # The kernel's first pixel is at stride * position - padding.
        y, x = top["yx"][c, k] * stride - (3, 1) - first
        box = slice(y, y + 5), slice(x, x + 4)
        assert np.array_equal(patch[c, k][box], cut[box]) and not cut[blank].any()
        expected = np.zeros((3, size, size))
        expected[:, *box] = weight[c]
        np.testing.assert_allclose(gradient[c, k], expected * ~blank, rtol=1e-5, atol=1e-8)


def test_units_on_the_edge_of_a_relu_or_a_pooling_are_found(tmp_path):
    """On plain images differences of neighbours are exactly zero, and all places of a pooling equal
    but for what is beside the image; means are neither."""
    first, last = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        first.weight.zero_()
        first.weight[0, :, 1] = torch.tensor([-1.0, 0, 1])
        first.weight[1, :, 1, 1] = 1
        first.bias[:] = torch.tensor([0.0, 5.0])
        last.weight[:, :, 0, 0] = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    images = np.full((2, 16, 16, 3), 128, np.uint8)
    top = {
        "image": np.tile([0, 1], (2, 1)),
        "yx": np.full((2, 2, 2), 5),
        "value": np.zeros((2, 2), np.float32),
    }
    for between, edges in ((nn.ReLU(), [True, False]), (nn.MaxPool2d(3, 1, 1), [True, True])):
        network = loaded(nn.Sequential(OrderedDict(a=first, b=between, c=last)).eval(), 16)
        with torch.no_grad():
            value = network.graph.prefix("c")(network.preprocess(images))
        top["value"] = value[:, :, 5, 5].numpy().T
        table = measure(network, "c", images, top, tmp_path / "x.h5")
        assert (table["certificate_max"] < 1e-6).all()
        assert (table["gradient_change"] > 0.1).tolist() == edges
        assert (table["gradient_change"] < 1e-6).tolist() == [not edge for edge in edges]


def test_pixels_outside_the_box_change_nothing(tmp_path):
    """Also guards against displaced crops (+1 px at conv1 to +31 px at layer4 in the original
    code)."""
    network = loaded(resnet18(), 96)
    for layer, y, x in (("conv1", 20, 30), ("layer1.1", 9, 12), ("layer2.0", 5, 7)):
        geometry = network.graph.field(layer).local
        top, left, bottom, right = box(geometry, y, x)
        image = photographs(1, 96, 5)
        other = photographs(1, 96, 6)
        inside = slice(max(top, 0), bottom), slice(max(left, 0), right)
        other[0][inside] = image[0][inside]
        prefix = network.graph.prefix(layer)
        with torch.no_grad():
            a, b = (prefix(network.preprocess(i))[0, :, y, x] for i in (image, other))
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
            other[0][max(top, 0), left] = 255 - image[0][max(top, 0), left]
            other[0][bottom - 1, right - 1] = 255 - image[0][bottom - 1, right - 1]
            assert not torch.allclose(a, prefix(network.preprocess(other))[0, :, y, x], rtol=1e-5)


# ---- sums


def test_sums_are_those_of_a_loop_over_units(tmp_path):
    """Counts, means, effective RF, split halves and energy against brute force on the whole
    image."""
    extent, layer = 64, "layer1.0"
    network, images = loaded(resnet18(2), extent), photographs(4, extent, 3)
    top = top_tables(network, layer, images, 7, 3)
    top["image"][1, 5:] = -1
    top["image"][2, :] = -1
    table = measure(network, layer, images, top, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        found = {key: file[key][:] for key in file}
    s = 27
    for c in range(2):
        count = np.zeros((s, s), int)
        sums = {key: np.zeros((3, s, s)) for key in ("mean_image", "mean_gradient", "effective")}
        sums["mean_abs_gradient"] = np.zeros((3, s, s))
        halves = [[np.zeros((3, s, s)), np.zeros((s, s))] for _ in range(2)]
        for k in range(7):
            n, (y, x) = top["image"][c, k], top["yx"][c, k]
            if n < 0:
                continue
            t, u = y * 4 - 13, x * 4 - 13
            _, whole = whole_image(network, layer, images[n], c, y, x)
            g = np.pad(whole, ((0, 0), (s, s), (s, s)))[:, s + t : 2 * s + t, s + u : 2 * s + u]
            p = np.pad(images[n] / 255, ((s, s), (s, s), (0, 0)))
            p = p[s + t : 2 * s + t, s + u : 2 * s + u].transpose(2, 0, 1)
            seen = np.pad(np.ones((extent, extent), int), s)[s + t : 2 * s + t, s + u : 2 * s + u]
            count += seen
            sums["mean_image"] += p
            sums["mean_gradient"] += g
            sums["mean_abs_gradient"] += np.abs(g)
            sums["effective"] += np.abs(g) * p
            halves[k % 2][0] += g
            halves[k % 2][1] += seen
        assert np.array_equal(found["count"][c], count)
        for key, total in sums.items():
            expected = total / np.maximum(count, 1)
            np.testing.assert_allclose(
                found[key][c], expected, atol=2e-5 * np.abs(expected).max(), err_msg=key
            )
        first, second = (total / np.maximum(n, 1) for total, n in halves)
        expected = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert table["split_half"][c] == pytest.approx(expected, abs=1e-4)
    assert table["n_units"].tolist() == [7, 5, 0]
    assert table["energy_inside"][:2].tolist() == pytest.approx([1, 1])
    assert (
        table.iloc[2][["certificate_max", "energy_inside", "split_half", "erf_sigma"]].isna().all()
    )
    assert not found["patch"][2].any() and not found["count"][2].any()


def test_energy_inside_counts_what_the_window_cuts_off(tmp_path):
    """A box larger than the image, seen from a corner unit: the window centred there loses
    gradient."""
    extent, layer = 64, "layer3.0"
    network, images = loaded(resnet18(3), extent), photographs(1, extent, 4)
    top = top_tables(network, layer, images, 1, 2)
    with torch.no_grad():
        maps = network.graph.prefix(layer)(network.preprocess(images))[0].numpy()
    channels = np.flatnonzero(maps[:, 0, 0] > 0)[:2]
    top = {
        "value": maps[channels, 0, 0][:, None],
        "image": np.zeros((2, 1), np.int32),
        "yx": np.zeros((2, 1, 2), np.int16),
    }
    table = measure(network, layer, images, top, tmp_path / "x.h5", channels)
    for i, c in enumerate(channels):
        _, whole = whole_image(network, layer, images[0], c, 0, 0)
        # Centre of unit (0, 0) at 0.5: the 64 px window is pixels -32 to 31.
        expected = np.square(whole[:, :32, :32]).sum() / np.square(whole).sum()
        assert table["energy_inside"][i] == pytest.approx(expected, rel=1e-4)
        assert expected < 0.999


@pytest.mark.parametrize(("batch", "memory"), [(1, 3000.0), (5, 3000.0), (None, 700.0)])
def test_batches_and_memory_do_not_change_results(tmp_path, monkeypatch, batch, memory):
    network, images = loaded(resnet18(4), 64), photographs(3, 64, 7)
    top = top_tables(network, "layer2.0", images, 5, 6)
    first = measure(network, "layer2.0", images, top, tmp_path / "a.h5", parts=3)
    if batch:
        plan = (4, batch)
        monkeypatch.setattr(receptive_fields, "plan", lambda *args: plan)
    again = measure(network, "layer2.0", images, top, tmp_path / "b.h5", None, 3, memory, parts=3)
    # What rounding leaves of a certificate depends on who shares a batch.
    assert max(first.pop("certificate_max").max(), again.pop("certificate_max").max()) < 1e-4
    pd.testing.assert_frame_equal(first, again, rtol=1e-4, atol=1e-5)
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert np.array_equal(a["count"][:], b["count"][:])
        assert np.array_equal(a["parts/count"][:], b["parts/count"][:])
        for key in ("gradient", "mean_gradient", "mean_image", "effective", "parts/skip"):
            np.testing.assert_allclose(a[key], b[key], atol=2e-5 * np.abs(a[key][:]).max())


def test_units_of_one_crop_share_its_forward_pass():
    """Every unit comes once; a batch holds each crop once; a round's units lie in its first
    crops."""
    rng = np.random.default_rng(0)
    n = 300
    units = crops.Units(
        np.arange(n), np.zeros(n, int), rng.integers(0, 12, n), *rng.integers(0, 7, (2, n)),
        np.ones(n, np.float32),
    )  # fmt: skip
    cut = crops.window(Field(local=Geometry((32, 32), (-217, -217), (217, 217))), 224)
    seen = []
    for rounds in crops.batches(units, cut, 5):
        assert len(np.unique(units.image[rounds[0]])) == len(rounds[0]) <= 5
        for rows in rounds:
            assert np.array_equal(units.image[rows], units.image[rounds[0]][: len(rows)])
            seen.extend(rows)
    assert sorted(seen) == list(range(n))


# ---- effective receptive field


@pytest.mark.parametrize("sigma", [1.5, 4.0, 9.0])
def test_gaussian_fit_recovers_a_planted_gaussian(sigma):
    grid = np.arange(43)
    field = 3 * np.exp(-((grid[:, None] - 20.3) ** 2 + (grid - 23.1) ** 2) / (2 * sigma**2))
    fitted, y, x, r2 = receptive_fields.fit_gaussian(field)
    assert fitted == pytest.approx(sigma, rel=1e-3)
    assert (y, x) == (pytest.approx(20.3, abs=0.01), pytest.approx(23.1, abs=0.01))
    assert r2 > 0.9999
    noisy = field + np.random.default_rng(0).normal(0, 0.15, field.shape)
    assert receptive_fields.fit_gaussian(noisy)[0] == pytest.approx(sigma, rel=0.05)


def test_effective_rf_fraction_of_a_gaussian_is_that_of_a_two_and_a_half_sigma_disc():
    """exp(-r^2 / 2 s^2) exceeds 4.55 % within r = s sqrt(2 ln(1 / 0.0455)) = 2.486 s."""
    grid = np.arange(101)
    field = np.exp(-((grid[:, None] - 50) ** 2 + (grid - 50) ** 2) / (2 * 12.0**2))
    sigma, r2, fraction = receptive_fields.effective_rf(np.stack([field, field, 2 * field]))
    assert sigma == pytest.approx(12, rel=1e-3) and r2 > 0.9999
    assert fraction == pytest.approx(np.pi * (2.486 * 12) ** 2 / 101**2, rel=0.01)
    assert np.isnan(receptive_fields.effective_rf(np.zeros((3, 9, 9)))).all()


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
import test_receptive_fields as t
from rfatlas.fields import crops, receptive_fields
from rfatlas.files import store

store.SAVE_EVERY_S = store.SAVE_COSTS = 0
receptive_fields.plan = lambda *args: (4, 2)
network, images = t.loaded(t.resnet18(4), 64), t.photographs(3, 64, 7)
top = t.top_tables(network, "layer2.0", images, 6, 10)
receptive_fields.look = counted(receptive_fields.look)
t.measure(network, "layer2.0", images, top, output, parts=2)
"""
    check_resumes(script, tmp_path, lambda batches: (4, batches // 2))


def test_plan_keeps_within_memory():
    """A layer that sees the whole image of 224 px: fewer channels and crops with less memory."""
    cut = crops.window(Field(whole=True), 224)
    sizes = [receptive_fields.plan(cut, 512, 100, 9, 60e6, mb) for mb in (1000, 2000, 4000)]
    for memory, size in zip((1000, 2000, 4000), sizes, strict=True):
        sums = size[0] * 224 * 224 * (5 * 3 * 8 + 2 * 4)
        assert sums < (memory - 700) * 1e6 / 2
        assert size[1] * 60e6 < (memory - 700) * 1e6 / 2
    assert sizes[0][0] < sizes[1][0] < sizes[2][0] < 512
    assert receptive_fields.plan(cut, 512, 100, 9, 60e6, 1)[1] == 1
