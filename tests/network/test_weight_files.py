"""Weights in every form that trainers write them, found, loaded and checked; each kind of bad
weights refused."""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import enum
import hashlib
import http.server
import io
import logging
import math
import pathlib
import pickle
import sys
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_resnet import config, same
from torch import nn

from rfatlas.errors import RfatlasError
from rfatlas.network import model, weight_files

# ---- every form


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


# ---- as trainers write them


class Small(nn.Module):
    """A network of two blocks and a head."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(*(nn.Conv2d(4, 4, 3, bias=False) for _ in range(2)))
        self.register_buffer("scale", torch.ones(4), persistent=False)
        self.fc = nn.Linear(4, classes)


def planted(shift: float = 0.0) -> dict[str, torch.Tensor]:
    """Values for a Small: no two tensors are alike."""
    tensors = Small().state_dict()
    numbers = torch.Generator().manual_seed(5)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = torch.rand(tensor.shape, generator=numbers) + shift
    return tensors


OWN, OTHER = planted(), planted(1.0)


def under(prefix: str, tensors=OWN) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def filled(module: nn.Module) -> nn.Module:
    module.load_state_dict(OWN)
    return module


def holds(module: nn.Module, tensors=OWN) -> bool:
    return all(torch.equal(module.state_dict()[name], tensors[name]) for name in tensors)


def load(content, path: Path, key: str | None = None, **how) -> nn.Module:
    torch.save(content, path, **how)
    module = Small()
    weight_files.load_tensors(module, weight_files.read_tensors(path), str(path), key)
    return module


Setting = collections.namedtuple("Setting", "lr")
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
FORMS = {
    "lightning": {"epoch": 1, "state_dict": under("model."), "optimizer_states": [OPTIMIZER]},
    "imagenet example": {"state_dict": under("module."), "best_acc1": torch.tensor(70.0)},
    "compiled, then DDP": under("_orig_mod.module."),
    "DDP, then compiled": under("module._orig_mod."),
    "wrapped in its middle": {k.replace("layer1.", "layer1.module."): v for k, v in OWN.items()},
    "a part of a larger network": under("encoder.backbone.") | {"decoder.weight": torch.zeros(2)},
    "averaged": {"n_averaged": torch.tensor(2), **under("module.")},
    "EMA alone": {"state_dict_ema": OWN},
    "DINO": {"teacher": under("backbone."), "epoch": 3},
    "nested twice": {"model": {"state_dict": OWN}, "optimizer": OPTIMIZER},
    "in a list": [OWN, OPTIMIZER],
    "arrays": {"model": {name: tensor.numpy() for name, tensor in OWN.items()}},
    "half precision": {name: tensor.double() for name, tensor in OWN.items()},
    "pickled whole": filled(Small()),
    "pickled whole and wrapped": {"ema": None, "model": nn.DataParallel(filled(Small()))},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_what_trainers_write_is_read_whatever_the_file_is_called(form, legacy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    if legacy and form.startswith("pickled whole"):
        pytest.skip("torch's loader of tensors takes no networks in this form")
    ending = ["ckpt", "pth.tar", "bin", "PTH", "weights"][len(form) % 5]
    path = tmp_path / f"w.{ending}"
    assert holds(load(FORMS[form], path, _use_new_zipfile_serialization=not legacy))
    said = any(" of the network is " in line for line in caplog.messages)
    assert said == (form not in ("half precision", "pickled whole")), "of other names"


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_other_files_are_read_whatever_they_are_called(form, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    if form == "npz":
        with path.open("wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in under("module.").items()})
    else:
        save_file(under("module."), path)
    module = Small()
    weight_files.load_tensors(module, weight_files.read_tensors(path), str(path))
    assert holds(module)


def test_a_wrapped_network_takes_the_weights_of_what_it_wraps(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Small()

    torch.save({"state_dict": OWN}, tmp_path / "w.pth")
    module = Wrapped()
    weight_files.load_tensors(module, weight_files.read_tensors(tmp_path / "w.pth"), "w.pth")
    assert holds(module.backbone)


TWO = {
    "EMA": ({"state_dict_ema": OTHER, "state_dict": OWN}, "state_dict", "state_dict_ema"),
    "teacher": ({"student": OWN, "teacher": under("backbone.", OTHER)}, "student", "teacher"),
    "momentum": (
        {"state_dict": under("module.q.") | under("module.k.", OTHER) | {"queue": torch.zeros(9)}},
        *("state_dict.module.q", "state_dict.module.k"),
    ),
}


@pytest.mark.parametrize("form", TWO)
def test_of_several_weights_that_fit_all_are_named_and_a_key_chooses(form, tmp_path, caplog):
    content, taken, left = TWO[form]
    assert holds(load(content, tmp_path / "w.pth"))
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert f"{taken!r} are taken" in warning and left in warning and "weights_key" in warning
    caplog.clear()
    assert holds(load(content, tmp_path / "w.pth", left), OTHER)
    assert holds(load(content, tmp_path / "w.pth", taken), OWN)
    assert not [entry for entry in caplog.records if entry.levelname == "WARNING"]
    with pytest.raises(
        RfatlasError, match="weights_key: 'nowhere': .*no tensors below it; .*below"
    ):
        load(content, tmp_path / "w.pth", "nowhere")


def test_the_same_weights_twice_are_no_choice(tmp_path, caplog):
    assert holds(
        load({"model": OWN, "ema": {k: v.clone() for k, v in OWN.items()}}, tmp_path / "w")
    )
    assert "weights_key" not in caplog.text


def test_the_home_folder_is_known_by_its_sign(network, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "net.py").write_text("from torchvision.models import resnet18\n")
    save_file(network.state_dict(), tmp_path / "w.pth")
    entry = config("~/w.pth", factory="~/net.py:resnet18")
    assert same(model.make(entry), network)


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Options:
    lr: float = 0.1


class Attributes(dict):
    pass


class Armed:
    """Its code runs when it is unpickled in the usual way."""

    trace = Path("/tmp/rfatlas-state-was-set")

    def __init__(self):
        self.value = 1

    def __setstate__(self, state):
        self.trace.touch()


def omegaconf() -> object:
    """A DictConfig as OmegaConf pickles it, from a package that is gone when it is read."""
    package = types.ModuleType("omegaconf.dictconfig")
    package.DictConfig = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    sys.modules["omegaconf"] = sys.modules["omegaconf.dictconfig"] = package
    made = package.DictConfig()
    made.__dict__ |= {"_content": {"lr": 0.1}, "_parent": made, "_type": dict}
    return made


def beside() -> dict[str, object]:
    space = argparse.Namespace(lr=0.1, where=pathlib.Path("a"), more=argparse.Namespace(x=None))
    return {
        "Namespace": space,
        "omegaconf": omegaconf(),
        "scalars": [np.float64(1), np.float32(2), np.int64(3), np.bool_(True), np.str_("a")],
        "arrays": [np.arange(3), np.array(["a"]), np.random.default_rng(0).random((2, 2))],
        "random state": np.random.get_state(),
        "dates": [datetime.datetime(2026, 1, 1), datetime.timedelta(1)],
        "containers": [collections.defaultdict(list, a=[1]), collections.deque([1], 2), {1}],
        "an enumeration": Colour.RED,
        "a dataclass": Options(),
        "a tuple with names": Setting(0.1),
        "a dict of its own": Attributes(a=Attributes(b=1)),
        "a class": Options,
        "a function": math.sqrt,
        "armed": Armed(),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", beside())
def test_harmless_objects_beside_the_weights_do_not_block_them(kind, legacy, tmp_path):
    content = {"state_dict": OWN, "args": beside()[kind]}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    sys.modules.pop("omegaconf", None), sys.modules.pop("omegaconf.dictconfig", None)
    Armed.trace.unlink(missing_ok=True)
    module = Small()
    weight_files.load_tensors(module, weight_files.read_tensors(tmp_path / "w.pth"), "w.pth")
    assert holds(module) and not Armed.trace.exists()


def test_scalars_under_the_names_of_older_numpy_are_read(tmp_path):
    file = io.BytesIO()
    torch.save({"model": OWN, "best": np.float64(3.0), "a": np.ones(2)}, file)
    with zipfile.ZipFile(file) as new, zipfile.ZipFile(tmp_path / "w.pth", "w") as old:
        for info in new.infolist():
            data = new.read(info).replace(b"cnumpy._core.", b"cnumpy.core.")
            old.writestr(info.filename, data)
    tensors = weight_files.read_tensors(tmp_path / "w.pth")
    assert torch.equal(tensors["a"], torch.ones(2, dtype=torch.float64))


def less(*names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in OWN.items() if name not in names}


MISFITS = {
    "classes": (
        OWN | {"fc.weight": torch.zeros(9, 4), "fc.bias": torch.zeros(9)},
        "9 outputs .* 3",
    ),
    "renamed": (less("fc.bias") | {"head.bias": OWN["fc.bias"]}, "head.bias there is fc.bias here"),
    "smaller": (less("layer1.1.weight"), "1 missing: layer1.1.weight.*holds a part"),
    "larger": ({"net": OWN | {"more": torch.zeros(1)}}, "1 unexpected: net/more.*builds a part"),
    "wider": (OWN | {"layer1.0.weight": torch.zeros(8, 4, 3, 3)}, "misshaped.*another width"),
    "another": ({f"stem.{i}": torch.zeros(i) for i in range(9)}, "the weights of another network"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_mismatch_names_the_first_tensors_of_both_sides_and_a_guess(kind, tmp_path):
    content, guess = MISFITS[kind]
    with pytest.raises(RfatlasError, match=guess) as caught:
        load(content, tmp_path / "w.pth")
    message = str(caught.value)
    assert "the network's tensors begin with conv1.weight, bn1.weight, bn1.bias and" in message
    first = list(weight_files.read_tensors(tmp_path / "w.pth"))[:3]
    assert f"those of the file with {', '.join(first)}" in message and "perhaps" in message


def test_what_a_file_without_tensors_holds_is_named(tmp_path):
    torch.save({"epoch": 3, "args": argparse.Namespace(a=1), "m": {"a": 1}}, tmp_path / "w.pth")
    with pytest.raises(
        RfatlasError, match=r"no named tensors, only epoch \(int\), args .*, m \(dict"
    ):
        weight_files.read_tensors(tmp_path / "w.pth")


# ---- what is refused


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
        ("weights.onnx", b"x", "it begins with b'x', unlike safetensors"),
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
