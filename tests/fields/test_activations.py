"""Stage activations: brute force, float64, loops, split ranges."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from rfatlas.errors import RfatlasError
from rfatlas.fields import activations, summaries
from rfatlas.fields.activations import RangePass
from rfatlas.fields.summaries import NonFiniteError, Summary
from rfatlas.files import store
from rfatlas.network import model

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
LISTS = ("top", "top_per_image", "bottom", "bottom_per_image")


def planted(seed, shape, low=-3, high=4, rectified=False):
    """Small integers: most values tie with many others."""
    values = np.random.default_rng(seed).integers(low, high, shape).astype(np.float32)
    return np.maximum(values, 0) if rectified else values


def summarise(values, k, rectified=False, batch=7, start=0, layer="layer"):
    summary = Summary(layer, *values.shape[1:], rectified, k)
    for first in range(0, len(values), batch):
        summary.update(torch.from_numpy(values[first : first + batch]), start + first)
    return summary


def brute_force(values, k, name, rectified, start=0):
    """(value, image, y, x) of the K best units of each channel, by sorting all of them."""
    sign = -1 if name.startswith("bottom") else 1
    best = []
    for channel in range(values.shape[1]):
        units = []
        for image, plane in enumerate(values[:, channel]):
            own = sorted((-sign * v, image + start, y, x) for (y, x), v in np.ndenumerate(plane))
            own = [unit for unit in own if unit[0] != 0 or not rectified]
            units += own[:1] if name.endswith("per_image") else own
        units = [(-sign * v, *place) for v, *place in sorted(units)[:k]]
        best.append(units + [(0, -1, -1, -1)] * (k - len(units)))
    return np.array(best)


def stored(tmp_path, summary):
    """The datasets of a summary's group, as written."""
    with h5py.File(tmp_path / "summary.h5", "w") as file:
        summary.write(file)
        return {key: data[()] for key, data in file[summary.layer].items()}


def assert_lists(found, values, k, rectified, start=0):
    for name in LISTS[:2] if rectified else LISTS:
        expected = brute_force(values, k, name, rectified, start)
        np.testing.assert_array_equal(found[f"{name}_value"], expected[..., 0], name)
        np.testing.assert_array_equal(found[f"{name}_image"], expected[..., 1], name)
        np.testing.assert_array_equal(found[f"{name}_yx"], expected[..., 2:], name)
    assert any(key.startswith("bottom") for key in found) != rectified


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("batch", [1, 5, 64])
@pytest.mark.parametrize(
    "shape, k", [((40, 3, 4, 5), 16), ((12, 2, 9, 7), 50), ((30, 4, 1, 1), 8), ((9, 2, 3, 2), 1)]
)
def test_lists_are_those_of_sorting_everything_with_ties(tmp_path, shape, k, batch, rectified):
    values = planted(0, shape, rectified=rectified)
    summary = summarise(values, k, rectified, batch, start=100)
    assert_lists(stored(tmp_path, summary), values, k, rectified, start=100)


@pytest.mark.parametrize("seed", range(4))
def test_lists_of_real_values_in_both_memory_formats(tmp_path, seed):
    values = np.random.default_rng(seed).normal(size=(50, 5, 6, 6)).astype(np.float32)
    values *= np.linspace(0.5, 3, 50, dtype=np.float32)[:: (-1) ** seed, None, None, None]
    summary = Summary("layer", 5, 6, 6, False, 20)
    for first in range(0, 50, 25):
        batch = torch.from_numpy(values[first : first + 25])
        summary.update(batch.contiguous(memory_format=torch.channels_last), first)
    assert_lists(stored(tmp_path, summary), values, 20, False)


def test_steps_smaller_than_a_batch_change_nothing(tmp_path, monkeypatch):
    values = planted(3, (33, 4, 6, 5))
    monkeypatch.setattr(summaries, "_SCAN_ELEMENTS", {"cpu": 200})
    monkeypatch.setattr(summaries, "_PASS_ELEMENTS", {"cpu": 300})
    summary = summarise(values, 12, batch=16)
    assert_lists(stored(tmp_path, summary), values, 12, False)
    np.testing.assert_allclose(summary.mean, values.mean((0, 2, 3), dtype=np.float64), rtol=1e-6)


def test_zeros_of_rectified_layers_enter_no_list(tmp_path):
    values = np.zeros((6, 2, 3, 3), np.float32)
    values[4, 1, 2, 1] = 0.5
    found = stored(tmp_path, summarise(values, 3, rectified=True))
    assert found["top_image"].tolist() == [[-1, -1, -1], [4, -1, -1]]
    assert found["top_value"].tolist() == [[0, 0, 0], [0.5, 0, 0]]
    assert found["top_yx"][1].tolist() == [[2, 1], [-1, -1], [-1, -1]]
    assert stored(tmp_path, summarise(values, 3))["top_image"].tolist() == [[0] * 3, [4, 0, 0]]


def test_types_are_those_of_the_design(tmp_path):
    found = stored(tmp_path, summarise(planted(1, (3, 2, 4, 4)), 5))
    kinds = {"value": "float32", "image": "int32", "yx": "int16"}
    for name, data in found.items():
        assert data.dtype == kinds.get(name.rpartition("_")[2], "float64"), name
    assert found["top_yx"].shape == (2, 5, 2)


@pytest.mark.parametrize(
    "offset, scale", [(0, 1), (3, 1), (1000, 0.1), (-1e4, 1), (0, 1e25), (0, 1e-25)]
)
def test_moments_are_those_of_float64(tmp_path, offset, scale):
    random = np.random.default_rng(0)
    values = (offset + scale * random.normal(size=(23, 3, 11, 13))).astype(np.float32)
    values[:, 1] = offset + scale
    values[5:, 2] = 0
    exact = values.astype(np.float64)
    found = stored(tmp_path, summarise(values, 4, batch=5))
    np.testing.assert_allclose(found["mean"], exact.mean((0, 2, 3)), rtol=1e-5, atol=1e-7 * scale)
    np.testing.assert_allclose(found["var"], exact.var((0, 2, 3)), rtol=1e-5, atol=1e-9 * scale**2)
    np.testing.assert_array_equal(found["max"], exact.max((0, 2, 3)))
    np.testing.assert_allclose(found["fraction_active"], (exact > 0).mean((0, 2, 3)), rtol=1e-12)


def test_values_per_image_are_maximum_and_mean_of_each_map():
    values = planted(5, (9, 3, 4, 6))
    peak, mean = Summary("layer", 3, 4, 6, False, 2).update(torch.from_numpy(values), 0)
    np.testing.assert_array_equal(peak, values.max((2, 3)))
    np.testing.assert_allclose(mean, values.mean((2, 3)), rtol=1e-6, atol=1e-7)
    assert peak.dtype == mean.dtype == np.float32


def test_global_layer_counts_as_maps_of_one_unit(tmp_path):
    values = planted(6, (20, 5))
    summary = Summary("layer", 5, 1, 1, False, 6)
    summary.update(torch.from_numpy(values), 0)
    assert_lists(stored(tmp_path, summary), values[:, :, None, None], 6, False)
    np.testing.assert_allclose(summary.m2 / 20, values.var(0), rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_any_split_merges_to_the_whole_in_any_order(tmp_path, seed):
    random = np.random.default_rng(seed)
    rectified = bool(seed % 2)
    values = planted(seed, (45, 3, 4, 4), rectified=rectified)
    whole = stored(tmp_path, summarise(values, 10, rectified))
    cuts = [0, *sorted(random.integers(0, 46, 5)), 45]
    parts = [
        summarise(values[a:b], 10, rectified, batch=int(random.integers(1, 20)), start=a)
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    for part, a in zip(parts, cuts, strict=False):
        if not part.images:
            part.start = part.stop = a
    while len(parts) > 1:
        i = int(random.integers(len(parts) - 1))
        left, right = parts[i : i + 2]
        left.merge(right)
        parts[i : i + 2] = [left]
    merged = stored(tmp_path, parts[0])
    assert merged.keys() == whole.keys()
    for name, data in merged.items():
        if name in ("mean", "var"):
            np.testing.assert_allclose(data, whole[name], rtol=1e-12, atol=1e-15)
        else:
            np.testing.assert_array_equal(data, whole[name], name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rectified", [False, True])
def test_activations_that_are_not_finite_are_named(value, rectified):
    values = planted(0, (8, 3, 5, 5), rectified=True)
    values[6, 2, 4, 1] = value
    summary = Summary("layer2.0", 3, 5, 5, rectified, 4)
    with pytest.raises(
        NonFiniteError, match=r"layer2\.0, channel 2, image 36: .*(nan|inf)"
    ) as error:
        summary.update(torch.from_numpy(values), 30)
    assert error.value.image == 36


def test_class_means_are_those_of_loops():
    random = np.random.default_rng(0)
    means = random.normal(size=(60, 4)).astype(np.float32)
    labels = random.integers(-1, 6, 60)
    labels[labels == 3] = 2
    found = activations.class_means(means, labels, 7)
    for label in range(7):
        rows = [means[i] for i in range(60) if labels[i] == label]
        expected = np.mean(rows, 0, dtype=np.float64) if rows else np.full(4, np.nan)
        np.testing.assert_allclose(found[label], expected, rtol=1e-12)
    assert np.isnan(found[3]).all() and np.isnan(found[6]).all()


def test_accuracy_is_that_of_loops():
    random = np.random.default_rng(0)
    logits = random.integers(-4, 5, (80, 9)).astype(np.float32)
    labels = random.integers(-1, 9, 80)
    top1, top5, loss = [], [], []
    for row, label in zip(logits.tolist(), labels, strict=True):
        if label < 0:
            continue
        ranked = sorted(range(9), key=lambda j: (-row[j], j))
        top1.append(ranked[0] == label)
        top5.append(label in ranked[:5])
        loss.append(math.log(sum(math.exp(v) for v in row)) - row[label])
    found = activations.accuracy(logits, labels)
    assert found["labelled"] == len(top1) < 80
    assert found["top1"] == np.mean(top1) and found["top5"] == np.mean(top5)
    assert found["loss"] == pytest.approx(np.mean(loss), rel=1e-12)
    assert activations.accuracy(logits + np.float32(1000), labels)["loss"] == pytest.approx(
        found["loss"], rel=1e-6
    )
    unknown = activations.accuracy(logits, np.full(80, -1))
    assert unknown["labelled"] == 0 and math.isnan(unknown["top1"]) and math.isnan(unknown["loss"])


# ---- ranges


# The last is called as the group of the network's outputs.
SHAPES = {"conv1": (4, 6, 6), "layer1.0": (3, 3, 3), "output": (5, 1, 1)}
RECTIFIED = {"conv1": False, "layer1.0": True, "output": True}


def invented(first, last):
    """Layers and outputs of the images [first, last), the same in whatever batch they come."""
    layers = {name: [] for name in SHAPES}
    outputs = {"logits": [], "features": []}
    for image in range(first, last):
        random = np.random.default_rng(image)
        for name, shape in SHAPES.items():
            low = 0 if RECTIFIED[name] else -4
            layers[name].append(random.integers(low, 5, shape).astype(np.float32) / 4)
        outputs["logits"].append(random.normal(size=7).astype(np.float32))
        outputs["features"].append(random.normal(size=5).astype(np.float32))
    layers = {name: torch.from_numpy(np.array(rows)) for name, rows in layers.items()}
    layers["output"] = layers["output"][:, :, 0, 0]
    return layers, {name: torch.from_numpy(np.array(rows)) for name, rows in outputs.items()}


def invented_labels(start, stop):
    return np.random.default_rng(1).integers(-1, 7, 1000)[start:stop]


def range_file(folder, start, stop, total, batch=8, sha="weights"):
    attrs = store.provenance("activations", {"range": [start, stop], "top_k": 6}, sha)
    attrs |= {"start": start, "stop": stop, "total": total}
    outputs = {"logits": 7, "features": 5}
    with store.create(folder / f"{start}-{stop}.h5", attrs) as file:
        run = RangePass(file, start, stop, SHAPES, RECTIFIED, outputs, 6, ["layer1.0"])
        while run.position < stop:
            run.add(*invented(run.position, min(stop, run.position + batch)))
        run.finish(invented_labels(start, stop), 7)
    return folder / f"{start}-{stop}.h5"


def contents(path):
    found = {}
    with store.open(path, "activations") as file:
        file.visititems(
            lambda name, item: found.update(
                {f"{name}@{key}": value for key, value in item.attrs.items()}
                | ({name: item[()]} if isinstance(item, h5py.Dataset) else {})
            )
        )
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if re.search("(mean|var|class_mean|loss)$", name):
            np.testing.assert_allclose(value, other[name], rtol=1e-10, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(value, other[name], name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return contents(range_file(tmp_path_factory.mktemp("whole"), 0, 50, 50))


def test_a_range_holds_what_the_images_gave(whole):
    layers, outputs = invented(0, 50)
    maps = layers["layer1.0"].numpy()
    np.testing.assert_array_equal(whole["layer1.0/maps"], maps.astype(np.float16))
    assert whole["layer1.0/maps"].dtype == np.float16 and "conv1/maps" not in whole
    np.testing.assert_array_equal(whole["output/logits"], outputs["logits"])
    np.testing.assert_array_equal(whole["output/features"], outputs["features"])
    np.testing.assert_array_equal(whole["output/labels"], invented_labels(0, 50))
    np.testing.assert_array_equal(whole["layer1.0/image_max"], maps.max((2, 3)))
    np.testing.assert_allclose(whole["layer1.0/image_mean"], maps.mean((2, 3)), rtol=1e-6)
    mine = maps[invented_labels(0, 50) == 2].mean((0, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(whole["layer1.0/class_mean"][2], mine, rtol=1e-6)
    known = np.nonzero(invented_labels(0, 50) >= 0)[0]
    right = outputs["logits"].numpy()[known].argmax(1) == invented_labels(0, 50)[known]
    assert whole["output@top1"] == right.mean()


def test_maps_beyond_half_precision_stay_finite(tmp_path):
    with store.create(tmp_path / "a.h5", store.provenance("activations", {})) as file:
        run = RangePass(file, 0, 1, {"conv1": (1, 1, 2)}, {"conv1": False}, {}, 1, ["conv1"])
        run.add({"conv1": torch.tensor([1e6, -1e6]).view(1, 1, 1, 2)}, {})
        run.finish(np.array([-1]), 0)
    found = contents(tmp_path / "a.h5")
    assert found["conv1/maps"].ravel().tolist() == [65504, -65504]
    assert math.isnan(found["output@top1"]) and "output/logits" not in found
    assert found["conv1/class_mean"].shape == (0, 1)


@pytest.mark.parametrize("cuts", [[0, 50], [0, 17, 18, 50], [0, 0, 30, 30, 49, 50, 50]])
def test_merged_ranges_are_one_range(tmp_path, whole, cuts):
    parts = []
    for i, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
        folder = tmp_path / str(i)
        parts.append(range_file(folder, start, stop, 50, batch=5 + i))
    activations.merge(parts, tmp_path / "activations.h5")
    assert_same(contents(tmp_path / "activations.h5"), whole)
    with store.open(tmp_path / "activations.h5") as file:
        assert (file.attrs["start"], file.attrs["stop"]) == (0, 50)
        assert json.loads(file.attrs["config"]) == {"top_k": 6}
        for name in ("mean", "top_value", "image_max", "class_mean"):
            assert file["conv1"][name].fletcher32, name


def test_a_hundred_ranges_merge_to_what_all_values_give(tmp_path):
    cuts = np.sort(np.random.default_rng(8).choice(np.arange(1, 130), 99, replace=False))
    spans = zip([0, *cuts], [*cuts, 130], strict=True)
    parts = [range_file(tmp_path / "ranges", int(a), int(b), 130) for a, b in spans]
    activations.merge(parts, tmp_path / "activations.h5")
    found = contents(tmp_path / "activations.h5")
    layers, outputs = invented(0, 130)
    labels = invented_labels(0, 130)
    for layer, values in layers.items():
        values = summaries.as_maps(values).numpy()
        own = {name.removeprefix(f"{layer}/"): value for name, value in found.items()}
        assert_lists(own, values, 6, RECTIFIED[layer])
        units = values.swapaxes(0, 1).reshape(values.shape[1], -1).astype(np.float64)
        np.testing.assert_allclose(own["mean"], units.mean(1), rtol=1e-12)
        np.testing.assert_allclose(own["var"], units.var(1), rtol=1e-10)
        np.testing.assert_array_equal(own["max"], units.max(1))
        np.testing.assert_allclose(own["fraction_active"], (units > 0).mean(1), rtol=1e-12)
        np.testing.assert_array_equal(own["image_max"], values.max((2, 3)))
        for label in range(7):
            mine = values[labels == label].mean((0, 2, 3), dtype=np.float64)
            np.testing.assert_allclose(own["class_mean"][label], mine, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(found["output/logits"], outputs["logits"])
    known = labels >= 0
    right = outputs["logits"].numpy().argmax(1)[known] == labels[known]
    assert found["output@top1"] == pytest.approx(right.mean())


def test_ranges_that_do_not_belong_together_are_refused(tmp_path):
    parts = {key: range_file(tmp_path, *key, 30) for key in ((0, 10), (10, 20), (20, 30), (15, 30))}
    other = range_file(tmp_path / "other", 10, 20, 30, sha="others")

    def attempt(*keys):
        activations.merge([parts.get(key, other) for key in keys], tmp_path / "merged.h5")

    for keys, message in (
        (((0, 10), (20, 30)), "starts at 20, expected 10"),
        (((10, 20), (0, 10), (20, 30)), "starts at 10, expected 0"),
        (((0, 10), (10, 20), (15, 30)), "starts at 15, expected 20"),
        (((0, 10), (10, 20)), "end at 20, expected 30"),
        (((0, 10), "other", (20, 30)), "weights_sha256 differ"),
    ):
        with pytest.raises(RfatlasError, match=message):
            attempt(*keys)
    assert not list(tmp_path.glob("merged*"))
    attempt((0, 10), (10, 20), (20, 30))


MEMORY = """
import resource, sys
sys.path[:0] = [{scripts!r}]
import numpy as np, torch
from pathlib import Path
from rfatlas.fields import activations
from rfatlas.files import store
torch.set_num_threads(1)
total, folder = int(sys.argv[1]), Path(sys.argv[2])
paths = []
for start, stop in ((0, total // 2), (total // 2, total)):
    paths.append(folder / f"{{start}}-{{stop}}.h5")
    attrs = store.provenance("activations", {{"range": [start, stop]}})
    attrs |= {{"start": start, "stop": stop, "total": total}}
    with store.create(paths[-1], attrs) as file:
        run = activations.RangePass(
            file, start, stop, {{"conv1": (64, 8, 8)}}, {{"conv1": False}},
            {{"logits": 1000}}, 10, ["conv1"],
        )
        generator = torch.Generator().manual_seed(start)
        while run.position < stop:
            count = min(50, stop - run.position)
            run.add(
                {{"conv1": torch.randn(count, 64, 8, 8, generator=generator)}},
                {{"logits": torch.randn(count, 1000, generator=generator)}},
            )
        run.finish(np.zeros(stop - start, np.int64), 1000)
activations.merge(paths, folder / "activations.h5")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peak = {}
    for total in (500, 4000):
        folder = tmp_path / str(total)
        code = MEMORY.format(scripts=str(SCRIPTS))
        command = [sys.executable, "-c", code, str(total), str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak[total] = int(done.stdout) / 1024
    # The additional images' activations take 55 MB in f32, 27 MB as the f16 maps that are kept.
    assert peak[4000] - peak[500] < 20


def test_merging_needs_no_torch():
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import rfatlas.fields.activations; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- a real network


FACTORY = """
from collections import OrderedDict
from torch import nn

def net(classes=6, scale=1.0, head=True):
    parts = OrderedDict(
        conv1=nn.Conv2d(3, 8, 5, stride=2, padding=2), bn=nn.BatchNorm2d(8), relu=nn.ReLU(),
        conv2=nn.Conv2d(8, 5, 3, padding=1), relu2=nn.ReLU(inplace=True),
    )
    if head:
        parts |= OrderedDict(
            pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(5, classes)
        )
    module = nn.Sequential(parts)
    module.conv1.weight.data *= min(scale, 1e3)
    module.conv2.weight.data *= scale
    return module
"""
LAYERS = ["conv1", "relu", "relu2", "flat"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting(tmp_path_factory.mktemp("network"))


class Setting:
    """A small network and packed images on disk, and their activations by the plain module."""

    def __init__(self, folder):
        self.folder = folder
        random = np.random.default_rng(0)
        self.images = random.integers(0, 256, (37, 16, 16, 3), dtype=np.uint8)
        self.labels = random.integers(-1, 6, 37)
        (folder / "net.py").write_text(FACTORY)
        self.packed = self.pack("images", self.labels)
        self.weights = self.save("model")

    def pack(self, name, labels):
        path = self.folder / f"{name}.h5"
        with store.create(path, store.provenance("images", {"name": name})) as file:
            file["images"], file["labels"] = self.images, labels
            file["names"] = [f"photo{i}.png" for i in range(len(labels))]
            file.attrs["class_names"] = [f"class {i}" for i in range(6)]
        return path

    def save(self, name, **kwargs):
        config = {
            "factory": f"{self.folder / 'net.py'}:net",
            "kwargs": kwargs,
            "weights": "random:3",
        }
        input = {"resize": 16, "crop": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
        module = model.build(config["factory"], kwargs, 3)
        path = self.folder / f"{name}.safetensors"
        model.save(module, model.trace(module, input), path, config, input)
        return path

    def compute(self, output, start=0, stop=37, **options):
        options = {"layers": LAYERS, "top_k": 9, "device": "cpu", "keep_maps": ["relu2"]} | options
        images = options.pop("images", self.packed)
        weights = options.pop("weights", self.weights)
        activations.compute(images, weights, output, start=start, stop=stop, **options)
        return output

    def expected(self):
        module = model.load(self.weights).module
        pixels = torch.from_numpy(self.images).permute(0, 3, 1, 2).float() / 255
        mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
        value = (pixels - mean[:, None, None]) / std[:, None, None]
        found = {}
        with torch.inference_mode():
            for name, child in module.named_children():
                value = child(value)
                found[name] = value.clone()
        return found


def test_a_network_gives_what_its_modules_give(tmp_path, setting):
    found = contents(setting.compute(tmp_path / "a.h5", batch_size=10))
    expected = setting.expected()
    for layer in LAYERS:
        values = (
            expected[layer].numpy().astype(np.float64).reshape(37, expected[layer].shape[1], -1)
        )
        for name, function in (("image_max", np.max), ("image_mean", np.mean)):
            np.testing.assert_allclose(found[f"{layer}/{name}"], function(values, 2), atol=1e-5)
        np.testing.assert_allclose(found[f"{layer}/var"], values.var((0, 2)), rtol=1e-4)
        top = np.sort(values.transpose(1, 0, 2).reshape(values.shape[1], -1))[:, :-10:-1]
        np.testing.assert_allclose(found[f"{layer}/top_value"], top, atol=1e-5)
        assert found[f"{layer}@rectified"] == (layer != "conv1")
    np.testing.assert_allclose(found["output/logits"], expected["fc"], atol=1e-5)
    np.testing.assert_allclose(found["output/features"], expected["flat"], atol=1e-5)
    np.testing.assert_allclose(found["relu2/maps"], expected["relu2"], rtol=1e-3, atol=1e-3)
    for layer in ("conv1", "relu2"):
        values = expected[layer].numpy()
        image = found[f"{layer}/top_image"]
        y, x = np.moveaxis(found[f"{layer}/top_yx"].astype(int), -1, 0)
        there = values[image, np.arange(len(image))[:, None], y, x]
        np.testing.assert_allclose(found[f"{layer}/top_value"], there, atol=1e-5)


def test_neither_batches_nor_ranges_change_the_result(tmp_path, setting):
    one = contents(setting.compute(tmp_path / "one.h5", batch_size=37))
    parts = [
        setting.compute(tmp_path / f"{start}.h5", start, stop, batch_size=4)
        for start, stop in ((0, 15), (15, 30), (30, 45), (45, 60))
    ]
    activations.merge(parts, tmp_path / "activations.h5")
    merged = contents(tmp_path / "activations.h5")
    assert merged.keys() == one.keys()
    for name, value in merged.items():
        if name.endswith(("_image", "_yx", "labels")) or value.dtype.kind != "f":
            np.testing.assert_array_equal(value, one[name], name)
        else:
            np.testing.assert_allclose(value, one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_network_without_classifier_has_no_accuracy(tmp_path, setting):
    weights = setting.save("headless", head=False)
    options = {"weights": weights, "layers": ["relu2"]}
    found = contents(setting.compute(tmp_path / "a.h5", **options))
    assert math.isnan(found["output@top1"]) and "output/logits" not in found
    assert found["relu2/class_mean"].shape == (6, 5)


def test_bad_input_is_refused_in_one_line(tmp_path, setting):
    output = tmp_path / "a.h5"
    labels = setting.labels.copy()
    labels[5] = 6
    with pytest.raises(RfatlasError, match=r"photo5\.png: label 6 .* 6 classes .* 0 to 5"):
        setting.compute(output, images=setting.pack("mislabelled", labels))
    with pytest.raises(RfatlasError, match="layer 'conv9'"):
        setting.compute(output, layers=["conv9"], keep_maps=[])
    exploding = setting.save("exploding", scale=3e38)
    with pytest.raises(
        RfatlasError, match=r"layer relu2, channel \d, image \d+: .*inf.*photo\d+\.png"
    ):
        setting.compute(output, weights=exploding)
    assert not output.exists()
