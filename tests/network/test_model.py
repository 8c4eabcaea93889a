"""Preprocessing, descriptions, batch norm of random networks, the stage's files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_resnet
import torch
from safetensors.torch import save_file
from small_resnet import INPUT, config, same

from rfatlas.errors import RfatlasError
from rfatlas.network import model, weight_files
from rfatlas.network.torchvision_ops import torchvision

REPOSITORY = Path(__file__).resolve().parents[2]

# ---- preprocessing and description


def test_input_comes_from_torchvision_unless_given():
    entry = config("IMAGENET1K_V2", factory="torchvision.models.resnet50", input=None)
    assert model.resolve_input(entry)["resize"] == 232
    entry["input"] = {"resize": 256, "crop": None}
    resolved = model.resolve_input(entry)
    assert (resolved["resize"], resolved["crop"]) == (256, 224)
    assert resolved["mean"] == [0.485, 0.456, 0.406]
    entry["input"] = {"resize": 160}
    with pytest.raises(RfatlasError, match="input: crop 224 is more than resize, 160; give both"):
        model.resolve_input(entry)
    with pytest.raises(RfatlasError, match="std not given"):
        model.resolve_input(config("random:1", input={k: INPUT[k] for k in INPUT if k != "std"}))


@pytest.mark.parametrize(
    ("factory", "weights"),
    [
        ("regnet_y_16gf", "IMAGENET1K_SWAG_LINEAR_V1"),
        ("efficientnet_b3", "IMAGENET1K_V1"),
        ("resnet18", "IMAGENET1K_V1"),
    ],
)
def test_the_interpolation_is_that_of_the_named_weights(factory, weights):
    found = model.resolve_input({"factory": f"torchvision.models.{factory}", "weights": weights})
    transform = torchvision().models.get_model_weights(factory)[weights].transforms()
    assert found["interpolation"] == transform.interpolation.value
    assert found["resize"] == transform.resize_size[0]


@pytest.mark.parametrize(
    ("factory", "weights", "missing"),
    [
        ("segmentation.fcn_resnet50", "COCO_WITH_VOC_LABELS_V1", "crop"),
        ("detection.retinanet_resnet50_fpn", "COCO_V1", "resize, crop, mean, std"),
        ("video.r3d_18", "KINETICS400_V1", "resize, crop"),
    ],
)
def test_weights_that_are_not_for_photographs_lack_sizes(factory, weights, missing):
    entry = {"factory": f"torchvision.models.{factory}", "weights": weights}
    with pytest.raises(RfatlasError, match=f"input: {missing} not given"):
        model.resolve_input(entry)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"resize": None, "crop": 32}, (None, 32, "bilinear")),
        ({"resize": [48, 48]}, ([48, 48], 48, "bilinear")),
        ({"resize": [48, 64], "crop": 40}, ([48, 64], 40, "bilinear")),
        ({"resize": 40, "crop": 32, "interpolation": "lanczos"}, (40, 32, "lanczos")),
        ({"resize": "default", "crop": 32}, "resize not given"),
        ({"resize": [48, 64]}, "crop not given"),
        ({"resize": None}, "crop not given"),
    ],
)
def test_sizes_of_input(given, found):
    entry = config("random:1", input={"mean": INPUT["mean"], "std": INPUT["std"]} | given)
    if isinstance(found, str):
        with pytest.raises(RfatlasError, match=found):
            model.resolve_input(entry)
    else:
        resolved = model.resolve_input(entry)
        assert tuple(resolved[key] for key in ("resize", "crop", "interpolation")) == found


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "resnet18.tv_in1k"])
def test_networks_of_timm_bring_their_input_and_take_weights_from_a_file(name, tmp_path):
    entry = {"factory": "timm.create_model", "kwargs": {"model_name": name, "num_classes": 4}}
    drawn = model.make(entry | {"weights": "random:3"})
    torch.save({"state_dict": drawn.state_dict(), "arch": "resnet18"}, tmp_path / "w.pth.tar")
    entry["weights"] = str(tmp_path / "w.pth.tar")
    network = model.make(entry)
    assert same(network, drawn)
    found = model.resolve_input(entry | {"input": {"mean": [0.5, 0.5, 0.5]}}, network)
    from timm.data import create_transform, resolve_model_data_config

    resize, crop, _, normalise = create_transform(**resolve_model_data_config(network)).transforms
    assert found == {
        "resize": resize.size,
        "crop": crop.size[0],
        "mean": [0.5, 0.5, 0.5],
        "std": pytest.approx(normalise.std.tolist()),
        "interpolation": resize.interpolation.value,
    }


def test_preprocess_is_torchvisions():
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
    transforms = torchvision().transforms
    reference = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(INPUT["mean"], INPUT["std"])]
    )
    expected = torch.stack([reference(Image.fromarray(image)) for image in images])
    assert torch.allclose(
        model.preprocess(images, INPUT["mean"], INPUT["std"]), expected, atol=1e-6
    )


def test_description_of_torchvision_networks(network):
    description = model.describe(network, model.trace(network, INPUT), INPUT)
    assert description["default_layers"] == ["conv1", "maxpool"] + [
        f"layer{i}.{j}" for i in range(1, 5) for j in range(2)
    ]
    layers = {layer["name"]: layer for layer in description["layers"]}
    assert layers["layer2.0"] | {"gflops": 0} == {
        "name": "layer2.0", "channels": 128, "height": 8, "width": 8, "rectified": True,
        "size": 67, "stride": 8, "start": [0.5, 0.5], "gflops": 0, "rf_kind": "exact", "probed": [],
    }  # fmt: skip
    assert layers["avgpool"]["size"] is None
    assert description["n_classes"] == 5
    assert description["parameters"] == sum(p.numel() for p in network.parameters())
    assert json.loads(json.dumps(description)) == description
    network = torchvision().models.resnet50().eval()
    deep = model.default_layers(network, model.trace(network, INPUT))
    assert len(deep) == 2 + 3 + 4 + 6 + 3 and deep[2] == "layer1.0"


# ---- batch norm of a random network


def test_reestimated_batch_norm_is_that_of_the_data():
    """First norm: exactly the moments of its input over all images; behind it, outputs are
    standard."""
    network = small_resnet.make(seed=1)
    images = torch.rand(24, 3, 32, 32)
    model.reestimate_batch_norm(network, images.split(8))
    with torch.no_grad():
        value = network.conv1(images)
    assert torch.allclose(network.bn1.running_mean, value.mean((0, 2, 3)), atol=1e-5)
    expected = torch.stack([part.var((0, 2, 3)) for part in value.split(8)]).mean(0)
    assert torch.allclose(network.bn1.running_var, expected, rtol=1e-4)
    assert not network.training and network.bn1.momentum == 0.1


# ---- the stage's files


def test_saved_models_come_back_whole(network, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(network, model.trace(network, INPUT), path, config("random:7"), INPUT)
    back = model.load(path)
    assert same(back.module, network)
    assert (
        back.weights_sha256
        == weight_files.digest(network)
        == model.read_header(path)["weights_sha256"]
    )
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(back.module(images), network(images), rtol=1e-4, atol=1e-5)


def test_damaged_model_files_are_named(network, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(network, model.trace(network, INPUT), path, config("random:7"), INPUT)
    content = bytearray(path.read_bytes())
    content[-100] ^= 64
    path.write_bytes(content)
    with pytest.raises(RfatlasError, match="model.safetensors.*(digest|NaN)"):
        model.load(path)
    path.write_bytes(content[:1000])
    with pytest.raises(RfatlasError, match="model.safetensors.*damaged"):
        model.load(path)


def test_describe_answers_on_standard_output(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    models = {
        "good": config(str(tmp_path / "w.safetensors")),
        "wrong": config(str(tmp_path / "w.safetensors"), kwargs={"num_classes": 6}),
        "later": config("https://example.org/w.pth", sha256="0" * 64),
    }
    done = subprocess.run(
        [sys.executable, "-m", "rfatlas.network.model", "describe"],
        input=json.dumps({"models": models}),
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY / "scripts"), "PATH": "/usr/bin:/bin"},
    )
    answer = json.loads(done.stdout)
    assert set(answer["descriptions"]) == {"good", "later"}
    assert answer["descriptions"]["good"]["n_classes"] == 5
    (error,) = answer["errors"]
    assert error.startswith("models.wrong.weights: ") and "fc.weight" in error
