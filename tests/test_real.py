"""Published networks on real pictures, end to end through the workflow (data beside the
repository)."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from rfatlas.files import store
from rfatlas.network import model, weight_files

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.workflow


def run_workflow(folder: Path, shared_data: Path, config: str) -> Path:
    """Run a config in a folder of its own, with the data where the config looks for them."""
    place = folder / "place"
    place.mkdir()
    (folder / "shared").symlink_to(shared_data.parent)
    (place / "tests").symlink_to(ROOT / "tests")
    words = ["--snakefile", ROOT / "Snakefile", "--cores", "2", "--quiet", "all", "--configfile"]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *words, ROOT / "tests" / "configs" / config],
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return place / "results"


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory, shared_data):
    return run_workflow(tmp_path_factory.mktemp("resnet18"), shared_data, "real.yaml")


@pytest.fixture(scope="module")
def resnet20(tmp_path_factory, shared_data):
    return run_workflow(tmp_path_factory.mktemp("resnet20"), shared_data, "cifar.yaml")


def test_resnet18_predicts_what_an_independent_script_did_image_by_image(resnet18, shared_data):
    with (shared_data / "resnet18" / "reference_predictions.csv").open() as file:
        reference = {row["file"]: row for row in csv.DictReader(file)}
    with (
        store.open(resnet18 / "resnet18" / "activations.h5", "activations") as activations,
        store.open(resnet18 / "images" / "photographs_256_224.h5", "images") as images,
    ):
        logits = activations["output/logits"][:]
        top1, top5 = (activations["output"].attrs[key] for key in ("top1", "top5"))
        names, labels = images["names"].asstr()[:], images["labels"][:]
    assert len(names) == len(reference) == 400
    ranked = np.argsort(-logits, axis=1)[:, :5]
    for name, classes in zip(names, ranked, strict=True):
        expected = [int(reference[Path(name).name][f"top{i}"]) for i in range(1, 6)]
        assert classes.tolist() == expected, name
    assert (ranked[:, 0] == labels).sum() == 303 and top1 == 303 / 400
    assert (ranked == labels[:, None]).any(axis=1).sum() == 371 and top5 == 371 / 400


def test_resnet18_receptive_fields_are_exact(resnet18, shared_data):
    table = pd.read_csv(resnet18 / "resnet18" / "channels.csv")
    measured = table[table["n_units"] > 0]
    assert set(measured["layer"]) == set(table["layer"])
    assert (measured["certificate_max"] < 1e-4).all()
    kernel = weight_files.read_tensors(shared_data / "resnet18" / "resnet18.safetensors")[
        "conv1.weight"
    ]
    expected = kernel[:4].numpy() / np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    with store.open(resnet18 / "resnet18" / "receptive_fields" / "conv1.h5") as file:
        found = file["mean_gradient"][:]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_resnet18_best_units_are_those_of_a_plain_loop(resnet18, shared_data):
    """Top-K of a block output and of conv1 against torchvision's own network, kept whole in
    memory."""
    from rfatlas.network.torchvision_ops import torchvision

    network = torchvision().models.resnet18().eval()
    network.load_state_dict(
        weight_files.read_tensors(shared_data / "resnet18" / "resnet18.safetensors"), strict=False
    )
    kept = {"conv1": [], "layer3.1": []}
    for layer, maps in kept.items():
        # Cloned, since torchvision's ReLUs write over what they read.
        network.get_submodule(layer).register_forward_hook(
            lambda child, args, value, maps=maps: maps.append(value[:, :8].clone())
        )
    with store.open(resnet18 / "images" / "photographs_256_224.h5") as file, torch.no_grad():
        for start in range(0, 60, 20):
            pixels = file["images"][start : start + 20]
            network(model.preprocess(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with h5py.File(resnet18 / "resnet18" / "activations.h5") as file:
        for layer, maps in kept.items():
            values = torch.cat(maps).numpy()
            image_max = file[layer]["image_max"][:60, :8]
            scale = float(np.abs(values).max())
            assert np.abs(image_max - values.max((2, 3))).max() < 1e-5 * scale
            image, yx = file[layer]["top_image"][:8], file[layer]["top_yx"][:8]
            for c, k in zip(*np.nonzero((image >= 0) & (image < 60)), strict=True):
                y, x = yx[c, k]
                found = file[layer]["top_value"][c, k]
                assert found == pytest.approx(values[image[c, k], c, y, x], abs=1e-5 * scale)


def test_resnet20_gets_its_915_images_right(resnet20):
    with (
        store.open(resnet20 / "resnet20" / "activations.h5", "activations") as activations,
        store.open(resnet20 / "images" / "cifar10_32_32.h5", "images") as images,
    ):
        right = activations["output/logits"][:].argmax(1) == images["labels"][:]
        assert activations["output"].attrs["top1"] == 0.915
        assert [name.split("_")[-1] for name in images.attrs["class_names"]][:3] == [
            "airplane",
            "automobile",
            "bird",
        ]
    assert right.sum() == 915
    # The last layer's ablation is a closed form on cached logits.
    for layer in ("conv1", "layer1.2", "layer3.2"):
        with store.open(resnet20 / "resnet20" / "ablation" / f"{layer}.h5", "ablation") as file:
            known = file["intact/prediction"][:] == file["label"][:]
            assert (known == right[file["image"][:]]).all() and len(known) == 100, layer
    described = json.loads((resnet20 / "resnet20" / "model.json").read_text())
    assert len(described["default_layers"]) == 1 + 9, "the stem and nine blocks; no maxpool"
    table = pd.read_csv(resnet20 / "resnet20" / "channels.csv")
    assert (table["certificate_max"].dropna() < 1e-4).all()
    # Three 3x3 convolutions of stride 1 see 7 px; each stage doubles the step: 2 (6 + 12 + 24) + 3.
    sizes = table.groupby("layer")["rf_size"].first()
    assert sizes["layer1.2"] == 15
