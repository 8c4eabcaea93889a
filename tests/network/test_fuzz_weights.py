"""Fuzzed checkpoints: each is refused with a clear line, or the network holds exactly the weights
that were planted. Code in them never runs, and memory stays bounded.
"""

import argparse
import io
import json
import os
import pickle
import resource
import struct
import warnings
import zipfile
from pathlib import Path

import fuzzing
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from rfatlas.network import weight_files

MEGABYTE = 1 << 20


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)
    ).eval()


SOUND = network().state_dict()
TRACE = "rfatlas-code-ran"


def loaded(path: Path, kind: str):
    """The network with the weights of a file (None if they are refused), and how that went."""
    net = None
    with fuzzing.trying(kind) as fate, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = network()
        for tensor in net.state_dict().values():
            tensor.zero_()
        weight_files.load_tensors(net, weight_files.read_tensors(path), str(path))
        for tensor in net.state_dict().values():
            assert torch.isfinite(tensor).all()
    if fate.refused:
        assert str(path) in fate.message
        net = None
    assert not (path.parent / TRACE).exists() and not Path(TRACE).exists(), "code ran"
    return net, fate


def same(net: nn.Module, tensors) -> bool:
    state = net.state_dict()
    return all(torch.equal(state[name], tensors[name].to(state[name].dtype)) for name in state)


def as_npz(tensors) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()})
    return file.getvalue()


def as_pickle(content, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


FILES = {
    "w.safetensors": save(SOUND),
    "w.npz": as_npz(SOUND),
    "w.pth": as_pickle(SOUND),
    "w.pt": as_pickle({"state_dict": {f"module.{k}": v for k, v in SOUND.items()}, "epoch": 3}),
    "old.pth": as_pickle(SOUND, legacy=True),
    "args.pth": as_pickle(
        {"args": argparse.Namespace(lr=np.float64(0.1)), "net": SOUND, "history": np.arange(3)}
    ),
}


@pytest.mark.parametrize("name", FILES)
@given(damage=fuzzing.DAMAGE)
def test_damaged_files(walled, name, damage):
    (walled / name).write_bytes(fuzzing.damaged(FILES[name], damage))
    net, _ = loaded(walled / name, f"weights, damaged {name}")
    if damage[0] == "none":
        assert same(net, SOUND)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pt", ".th"])
@given(data=st.one_of(st.binary(max_size=200), st.binary().map(lambda b: b"PK\x03\x04" + b)))
def test_random_bytes(walled, suffix, data):
    file = walled / f"random{suffix}"
    file.write_bytes(data)
    net, _ = loaded(file, f"weights, random {suffix}")
    assert net is None


# ---- tensors that do not fit

KINDS = [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8, torch.int64]
KINDS += [torch.bool, torch.complex64, torch.uint8, torch.uint16]
NAME = st.one_of(
    st.sampled_from(["0.weight", "1.running_var", "3.bias", "module.", "", "a\nb", "x" * 9000]),
    st.sampled_from(["\x1b[2J", "../x", "0.weight\0", "é", "state_dict", "__class__"]),
    st.text(max_size=6),
)


@st.composite
def strange(draw):
    """A tensor, or something else, in place of a weight."""
    tensor = draw(st.sampled_from(list(SOUND.values())))
    how = draw(
        st.sampled_from(
            "kind shape nan inf huge sparse meta empty scalar repeated parameter other".split()
        )
    )
    if how == "kind":
        return tensor.to(draw(st.sampled_from(KINDS)))
    if how == "shape":
        return tensor.reshape(-1)[: draw(st.integers(0, 3))]
    if how in ("nan", "inf", "huge"):
        value = {"nan": torch.nan, "inf": torch.inf, "huge": 1e300}[how]
        return torch.full(tensor.shape, value, dtype=torch.float64)
    if how == "sparse":
        return tensor.float().reshape(1, -1).to_sparse()
    if how == "meta":
        return torch.zeros(tensor.shape, device="meta")
    if how == "empty":
        return torch.zeros(0, 4)
    if how == "scalar":
        return torch.tensor(1.0)
    if how == "repeated":
        return torch.zeros(1).expand(10**7, 10**7)
    if how == "parameter":
        return nn.Parameter(tensor.float())
    return draw(st.sampled_from([None, 3, "text", [1.0], {"a": 1}, np.float64(2.0)]))


@given(
    st.dictionaries(st.one_of(st.sampled_from(list(SOUND)), NAME), strange(), max_size=3),
    st.sets(st.sampled_from(list(SOUND)), max_size=2),
    st.sampled_from(["", "module.", "_orig_mod.", "net."]),
    st.sampled_from([None, "state_dict", "model_state_dict", "model", "net", "weights", 5]),
    st.booleans(),
)
def test_state_dicts(walled, changes, gone, prefix, nest, legacy):
    content = {name: tensor for name, tensor in SOUND.items() if name not in gone} | changes
    content = {f"{prefix}{name}": tensor for name, tensor in content.items()}
    content = {nest: content} if nest is not None else content
    if nest == 5:
        content = {5: torch.zeros(1), **content[5]}
    file = walled / "state.pth"
    try:
        file.write_bytes(as_pickle(content, legacy))
    except (RuntimeError, NotImplementedError):  # no way to save such a tensor in this form
        return
    net, _ = loaded(file, "weights, state dict")
    if net is not None:
        assert not {name for name in gone - set(changes) if "num_batches" not in name}


WORDS = st.sampled_from("module _orig_mod model net backbone encoder_q 0 state_dict ema".split())


@given(st.lists(WORDS, max_size=4), st.lists(WORDS, max_size=3), st.booleans(), st.data())
def test_weights_below_any_keys_and_prefixes(walled, prefix, keys, legacy, data):
    """With or without others beside them, the weights are those that were planted."""
    content = {".".join([*prefix, name]): tensor for name, tensor in SOUND.items()}
    for key in reversed(keys):
        content = {key: content}
        if data.draw(st.booleans()):
            content[f"{key}_of"] = {"state": {0: {"momentum": torch.ones(4)}}, "epoch": 3}
    file = walled / "prefixed.bin"
    file.write_bytes(as_pickle(content, legacy))
    net, _ = loaded(file, "weights, prefixes")
    assert same(net, SOUND)


# ---- code


class Runs:
    """Unpickled in the usual way, this calls a function."""

    def __init__(self, call, *arguments):
        self.call = (call, arguments)

    def __reduce__(self):
        return self.call


def code(walled: Path):
    trace = str(walled / TRACE)
    return [
        Runs(open, trace, "w"),
        Runs(os.mkdir, trace),
        Runs(os.system, f"touch '{trace}'"),
        Runs(eval, f"open({trace!r}, 'w')"),
        Runs(exec, f"open({trace!r}, 'w')"),
        Runs(getattr, 5, "real"),
        Runs(torch.save, SOUND, trace),
        Runs(np.save, trace, 1),
        Runs(Path(trace).touch),
        Runs(torch.nn.Linear, 3, 3),
        Runs(torch.hub.load, "a", "b"),
        Runs(np.ndarray.tofile, np.zeros(3), trace),
        Runs(np.ndarray, (1 << 30,), "O"),
    ]


@given(st.integers(0, 12), st.sampled_from(["alone", "beside", "nested", "key"]), st.booleans())
def test_code_never_runs(walled, which, where, raw):
    bomb = code(walled)[which]
    content = {
        "alone": bomb,
        "beside": {**SOUND, "extra": bomb},
        "nested": {"state_dict": SOUND, "optimizer": [{"hook": bomb}]},
        "key": {"state_dict": {**SOUND, ("a", 1): bomb}},
    }[where]
    file = walled / "code.pth"
    file.write_bytes(pickle.dumps(content) if raw else as_pickle(content))
    net, fate = loaded(file, "weights, code")
    assert net is None and "save its state_dict alone" in fate.message


OPCODES = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from(
        [
            *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"R", b"(", b"t", b"o", b"i", b"\x93", b"b"),
            *(b"\x81", b"\x92", b"Q", b"P0\n", b"\x8e" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f"),
            *(
                b"\x94",
                b"r\xff\xff\xff\xff",
                b"ctorch\nload\n",
                b"cnumpy\nload\n",
                b"0",
                b"2",
                b".",
            ),
            b"S'touch " + TRACE.encode() + b"'\n",
        ]
    ),
)


def pickled() -> bytes:
    with zipfile.ZipFile(io.BytesIO(FILES["w.pth"])) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return archive.read(name)


def repacked(name: str, content: bytes, ending: str = "data.pkl") -> bytes:
    """A file of FILES with one record exchanged."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(FILES[name])) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            data = content if info.filename.endswith(ending) else old.read(info)
            new.writestr(info.filename, data)
    return file.getvalue()


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), OPCODES), min_size=1, max_size=4))
def test_odd_pickles(walled, damages):
    data = pickled()
    for where, inserts, piece in damages:
        at = int(where * len(data))
        data = data[:at] + piece + data[at if inserts else at + len(piece) :]
    (walled / "odd.pth").write_bytes(repacked("w.pth", data))
    loaded(walled / "odd.pth", "weights, odd pickle")


# ---- lies about sizes


def header(changes) -> bytes:
    """The sound .safetensors file with changes to its header."""
    data = FILES["w.safetensors"]
    length = struct.unpack("<Q", data[:8])[0]
    table = json.loads(data[8 : 8 + length])
    for name, entry in changes.items():
        table[name] = {**table.get(name, {}), **entry}
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F64", "F16", "I8", "BOOL", "U64", "F8_E4M3", "X", "", 3, None]),
        "shape": st.lists(st.sampled_from([0, 1, 3, 4, -1, 2**31, 2**63, "x"]), max_size=4),
        "data_offsets": st.lists(st.sampled_from([0, 4, 16, 432, -1, 2**40, 2**64]), max_size=3),
    },
)


@given(st.dictionaries(st.one_of(st.sampled_from(list(SOUND)), NAME), ENTRY, min_size=1))
def test_lying_headers_of_safetensors(walled, changes):
    (walled / "lies.safetensors").write_bytes(header(changes))
    net, _ = loaded(walled / "lies.safetensors", "weights, lying header")
    if net is not None:
        assert all(net.state_dict()[name].shape == SOUND[name].shape for name in SOUND)


def npy(text: str, data: bytes = b"\0" * 48) -> bytes:
    body = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body + data


def archive(records: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name, data in records.items():
            new.writestr(name, data)
    return file.getvalue()


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """Small files that claim to be large, or are when they are unpacked."""
    shape = 50 * MEGABYTE
    zeros = npy(
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape},)}}", bytes(4 * shape)
    )
    files = {"zeros.npz": archive({"0.weight.npy": zeros})}
    head = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
    for number, (kind, shape) in enumerate(
        [("<f4", (10**12,)), ("<f4", (2**62, 4)), ("|O", (3,)), ("|V0", (10**15,)), ("<f4", (-1,))]
    ):
        name = f"claim{number}.npz"
        files[name] = repacked("w.npz", npy(head % (kind, shape)), "0.weight.npy")
    files["length.safetensors"] = struct.pack("<Q", 2**63) + b"{}"
    files["gigabytes.safetensors"] = struct.pack("<Q", 2**32) + b"{}"
    # A storage that claims more numbers than its record holds.
    number = pickled().replace(b"Kl", b"J\x00\x00\x00\x10", 1)
    files["storage.pth"] = repacked("w.pth", number)
    records = {f"archive/data/{number}": bytes(30 * MEGABYTE) for number in range(7)}
    head = {"archive/data.pkl": pickled(), "archive/version": b"3\n"}
    files["records.pth"] = archive({**head, "archive/byteorder": b"little", **records})
    return files


BOMBS = [
    *(f"claim{number}.npz" for number in range(5)),
    *("zeros.npz", "length.safetensors", "gigabytes.safetensors", "storage.pth", "records.pth"),
]


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_fill_no_memory(walled, bombs, name):
    (walled / name).write_bytes(bombs[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    net, fate = loaded(walled / name, "weights, bombs")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert net is None and grown < 100 * 1024, f"{grown} kB more"
    if name in ("zeros.npz", "records.pth"):
        assert "would expand to" in fate.message
