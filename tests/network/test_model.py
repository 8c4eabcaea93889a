"""Factories, weights in every form, preprocessing, descriptions; each kind of bad weights
refused."""

import contextlib
import hashlib
import http.server
import json
import math
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rfatlas.errors import RfatlasError
from rfatlas.network import model, weight_files
from rfatlas.network.torchvision_ops import torchvision

REPOSITORY = Path(__file__).resolve().parents[2]
INPUT = {"resize": 64, "crop": 64, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
FACTORY = "torchvision.models.resnet18"
KWARGS = {"num_classes": 5}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return model.build(FACTORY, KWARGS, seed=7)


def config(weights: str, **changes) -> dict:
    return {
        "factory": FACTORY,
        "kwargs": KWARGS,
        "weights": weights,
        "sha256": None,
        "input": INPUT,
        **changes,
    }


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# ---- factories


def test_seeded_factories_draw_the_weights_that_torch_draws():
    state = torch.random.get_rng_state()
    built = model.build(FACTORY, KWARGS, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(3)
    assert same(built, torchvision().models.resnet18(**KWARGS))
    assert not same(built, model.build(FACTORY, KWARGS, seed=4))
    assert not built.training


def test_factory_from_a_file(tmp_path):
    file = tmp_path / "my net.py"
    file.write_text("from torch import nn\ndef make(n): return nn.Conv2d(3, n, 3)\nother = 5\n")
    assert model.build(f"{file}:make", {"n": 4}).out_channels == 4
    with pytest.raises(RfatlasError, match="no callable 'mak' .* closest are make"):
        model.build(f"{file}:mak", {})
    with pytest.raises(RfatlasError, match="failed: TypeError"):
        model.build(f"{file}:make", {"m": 4})


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("torchvision.models.resnet19", "no callable 'resnet19'.*resnet1[08]"),
        ("no.such.package", "cannot be imported"),
        ("missing.py:make", "no file missing.py"),
        ("builtins.dict", "returned dict; it must return a torch.nn.Module"),
    ],
)
def test_bad_factories_are_refused(factory, message):
    with pytest.raises(RfatlasError, match=message):
        model.build(factory, {})


# ---- weights in every form


def nested_and_prefixed(tensors):
    return {"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "best": np.float64(91.7)}


@pytest.mark.parametrize("form", ["safetensors", "pth", "pt", "th", "npz", "nested", "url"])
def test_every_form_of_weights_gives_the_same_network(form, network, tmp_path):
    tensors = network.state_dict()
    path = tmp_path / f"w.{form if form not in ('nested', 'url') else 'pth'}"
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "npz":
        np.savez(path, **{k: v.numpy() for k, v in tensors.items()})
    elif form == "nested":
        torch.save(nested_and_prefixed(tensors), path)
    else:
        torch.save({"model": tensors} if form == "pt" else tensors, path)
    weights, changes = str(path), {}
    if form == "url":
        weights = path.as_uri()
        changes["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert same(model.make(config(weights, **changes)), network)


def test_old_checkpoints_without_batch_counters_are_taken(network, tmp_path):
    tensors = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    save_file(tensors, tmp_path / "old.safetensors")
    assert same(model.make(config(str(tmp_path / "old.safetensors"))), network)


def test_misfits_are_listed(network):
    tensors = dict(network.state_dict())
    tensors["fc.weight"] = torch.zeros(6, 512)
    tensors["extra"] = torch.zeros(1)
    tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"].clone()
    tensors["layer1.0.conv1.weight"][0, 0, 0, 0] = math.nan
    tensors["bn1.bias"] = torch.full((64,), math.inf)
    del tensors["conv1.weight"]
    with pytest.raises(RfatlasError) as caught:
        weight_files.load_tensors(network, tensors, "my.pth")
    message = str(caught.value)
    assert "my.pth" in message
    assert "1 missing: conv1.weight" in message
    assert "1 unexpected: extra" in message
    assert "1 misshaped: fc.weight (6, 512) instead of (5, 512)" in message
    assert "2 with NaN or infinite values" in message
    assert "layer1.0.conv1.weight[0, 0, 0, 0] = nan" in message and "bn1.bias[0] = inf" in message
    assert "layer1.0.conv1.weight" in message and "bn1.bias" in message


class Bomb:
    def __reduce__(self):
        return (open, ("/tmp/rfatlas-bomb-went-off", "w"))


@pytest.mark.parametrize("name", ["raw.pth", "torch.pth", "inside.pt"])
def test_pickled_code_never_runs(name, tmp_path):
    path, trace = tmp_path / name, Path("/tmp/rfatlas-bomb-went-off")
    trace.unlink(missing_ok=True)
    if name == "raw.pth":
        path.write_bytes(pickle.dumps({"conv1.weight": Bomb()}))
    elif name == "torch.pth":
        torch.save(Bomb(), path)
    else:
        torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "args": Bomb()}, path)
    with pytest.raises(RfatlasError, match="cannot be read as tensors.*pickled objects"):
        weight_files.read_tensors(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pth", b"", "cannot be read"),
        ("noise.safetensors", b"\x00" * 64, "cannot be read"),
        ("text.npz", b"hello", "cannot be read"),
        ("weights.onnx", b"x", "unknown ending; use one of .safetensors"),
    ],
)
def test_files_without_tensors_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RfatlasError, match=message):
        weight_files.read_tensors(tmp_path / name)


def test_checkpoint_without_tensors_and_missing_file(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(RfatlasError, match="holds no named tensors"):
        weight_files.read_tensors(tmp_path / "epoch.pth")
    with pytest.raises(RfatlasError, match="nowhere.pth: no such file"):
        weight_files.read_tensors(tmp_path / "nowhere.pth")


def test_object_arrays_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", a=np.array([Bomb()], dtype=object))
    with pytest.raises(RfatlasError, match="cannot be read as tensors"):
        weight_files.read_tensors(tmp_path / "o.npz")
    assert not Path("/tmp/rfatlas-bomb-went-off").exists()


def test_wrong_digest_is_refused(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    for weights in (str(tmp_path / "w.safetensors"), (tmp_path / "w.safetensors").as_uri()):
        with pytest.raises(RfatlasError, match="has sha256 .*expected 00ff"):
            model.make(config(weights, sha256="00ff" * 16))


def test_unreachable_url_says_what_to_do(tmp_path):
    with pytest.raises(RfatlasError, match="cannot be downloaded.*set weights to the file's path"):
        weight_files.fetch("https://127.0.0.1:9/w.pth", "0" * 64, tmp_path)
    assert not list(tmp_path.glob("w.pth*[!k]"))


CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /<kind>/w.pth with the fault that `kind` names; notes what is asked."""

    asked: list[tuple[str, str | None]] = []

    def do_GET(self):
        kind, wanted = self.path.split("/")[1], self.headers.get("Range")
        self.asked.append((self.path, wanted))
        if kind == "missing":
            return self.send_error(404)
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/whole/w.pth")
            return self.end_headers()
        body = CONTENT
        if kind == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) - (1000 if kind == "short" else 0)))
        self.end_headers()
        stop = len(body) // 3 if kind == "cut_always" else len(body)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[:stop])

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def asked(kind):
    return [wanted for path, wanted in Server.asked if path == f"/{kind}/w.pth"]


DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("kind", ["whole", "moved"])
def test_downloads_are_checked_and_kept(server, tmp_path, kind):
    Server.asked.clear()
    url = f"{server}/{kind}/w.pth"
    path = weight_files.fetch(url, DIGEST[:8].upper(), tmp_path)
    assert path.read_bytes() == CONTENT
    weight_files.fetch(url, DIGEST, tmp_path)
    assert asked(kind) == [None], "a file already there with the right digest is not fetched again"
    path.write_bytes(CONTENT[:-1])
    assert weight_files.fetch(url, DIGEST, tmp_path).read_bytes() == CONTENT
    assert asked(kind) == [None, None]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.pth", "w.pth.lock"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "cannot be downloaded.*404"),
        ("wrong", "expected sha256 .*got"),
        ("short", "expected sha256 .*got"),
        ("cut_always", "expected sha256 .*broke off"),
    ],
)
def test_downloads_that_are_not_what_was_asked_for_are_refused(server, tmp_path, kind, message):
    with pytest.raises(RfatlasError, match=message):
        weight_files.fetch(f"{server}/{kind}/w.pth", DIGEST, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth.lock"], "nothing half-written is left"


def test_named_weights_of_torchvision():
    entry = weight_files.torchvision_weights("torchvision.models.resnet34", "IMAGENET1K_V1")
    assert entry.url.endswith(".pth")
    with pytest.raises(RfatlasError, match="no weights 'IMAGENET1K_V7'; it has IMAGENET1K_V1"):
        weight_files.torchvision_weights("torchvision.models.resnet34", "IMAGENET1K_V7")
    with pytest.raises(RfatlasError, match="not a torchvision factory"):
        weight_files.torchvision_weights("my.net", "IMAGENET1K_V1")


# ---- preprocessing and description


def test_input_comes_from_torchvision_unless_given():
    entry = config("IMAGENET1K_V2", factory="torchvision.models.resnet50", input=None)
    assert model.resolve_input(entry)["resize"] == 232
    entry["input"] = {"resize": 256, "crop": None}
    resolved = model.resolve_input(entry)
    assert (resolved["resize"], resolved["crop"]) == (256, 224)
    assert resolved["mean"] == [0.485, 0.456, 0.406]
    with pytest.raises(RfatlasError, match="std not given"):
        model.resolve_input(config("random:1", input={k: INPUT[k] for k in INPUT if k != "std"}))


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
    description = model.describe(network, INPUT)
    assert description["default_layers"] == ["conv1", "maxpool"] + [
        f"layer{i}.{j}" for i in range(1, 5) for j in range(2)
    ]
    layers = {layer["name"]: layer for layer in description["layers"]}
    assert layers["layer2.0"] | {"gflops": 0} == {
        "name": "layer2.0", "channels": 128, "height": 8, "width": 8, "rectified": True,
        "size": 67, "stride": 8, "start": 0.5, "gflops": 0,
    }  # fmt: skip
    assert layers["avgpool"]["size"] is None
    assert description["n_classes"] == 5
    assert description["parameters"] == sum(p.numel() for p in network.parameters())
    assert json.loads(json.dumps(description)) == description
    deep = model.describe(torchvision().models.resnet50().eval(), INPUT)["default_layers"]
    assert len(deep) == 2 + 3 + 4 + 6 + 3 and deep[2] == "layer1.0"


# ---- batch norm of a random network


def test_reestimated_batch_norm_is_that_of_the_data():
    """First norm: exactly the moments of its input over all images; behind it, outputs are
    standard."""
    network = model.build(FACTORY, KWARGS, seed=1)
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
    model.save(network, path, config("random:7"), INPUT)
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
    model.save(network, path, config("random:7"), INPUT)
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
