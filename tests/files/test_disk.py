"""Damaged files are refused where HDF5 can tell; full disks are told in one line."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import disks
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import nn

from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.images import images
from rfatlas.network import model, weight_files
from rfatlas.sources import catalogue

ATTRS = store.provenance("activations", {"ä": [1, 2]}, "w" * 64, {"list": "x"}, "cpu")
FLIPS = 200
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


# ---- files of every kind


def mixed(path):
    random = np.random.default_rng(1)
    with store.create(path, ATTRS) as file:
        file["layer/deep/values"] = random.normal(size=(40, 30))
        file["layer/one"] = 7
        file.create_dataset("maps", data=random.integers(0, 9, (30, 20)), chunks=(7, 5))
        file.create_dataset("packed", data=np.zeros((50, 50)), compression="gzip")
        file.create_dataset("names", data=["ä", "b" * 500], dtype=h5py.string_dtype())
        file["layer"].attrs["many"] = np.arange(200.0)


def rows(path):
    rows = store.Rows(path, "a", (50, 4), np.float32, None)
    rows.write(0, np.random.default_rng(2).normal(size=(50, 4)))
    with store.written(path, new=False) as file:
        file.attrs.update(ATTRS, complete=True)


def packed(path):
    random = np.random.default_rng(3)
    for i in range(6):
        file = path.parent / "photos" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file)
    listing = catalogue.list_images({"source": "folders", "path": str(path.parent / "photos")})
    images.pack(listing, path, 16, 16)


def weights(path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    given = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"factory": f"{path.parent / 'net.py'}:make", "weights": "random:1"}
    (path.parent / "net.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
    )
    model.save(network, model.trace(network, given), path, config, given)


def record(path):
    partial = store.Partial(path.with_suffix(""), {})
    partial.save("a", {"x": np.random.default_rng(4).normal(size=300), "y": np.arange(3)})
    shutil.copy(partial.folder / "a.npz", path)


def read_hdf5(path, stage=None):
    """The arrays of a file, as nested lists."""
    found = {}
    with store.open(path, stage) as file:

        def visit(name, node):
            if isinstance(node, h5py.Dataset):
                found[name] = np.asarray(node[()]).tolist()

        file.visititems(visit)
    return found


def read_weights(path):
    network = model.load(path)
    return network.description, network.weights_sha256, weight_files.digest(network.module)


def read_record(path):
    folder = Path(f"{path}.partial")
    folder.mkdir(exist_ok=True)
    partial = store.Partial(path, {})
    shutil.copy(path, partial.folder / "a.npz")
    return {name: array.tolist() for name, array in partial.load("a").items()}


KINDS = {
    "mixed.h5": (mixed, read_hdf5),
    "rows.h5": (rows, read_hdf5),
    "packed.h5": (packed, read_hdf5),
    "model.safetensors": (weights, read_weights),
    "record.npz": (record, read_record),
}


def in_chunks(path):
    """Bytes of a file in which the chunks of the arrays are: [(first, behind the last), ...]."""
    found = []
    with h5py.File(path) as file:

        def visit(_, node):
            if isinstance(node, h5py.Dataset) and node.chunks:
                for i in range(node.id.get_num_chunks()):
                    chunk = node.id.get_chunk_info(i)
                    found.append((chunk.byte_offset, chunk.byte_offset + chunk.size))

        file.visititems(visit)
    return found


def flips(path, read, count, seed=0):
    """Flip single bits of a file, one at a time, and read it; the numbers (refused, the same)."""
    content = path.read_bytes()
    expected = read(path)
    refused = same = 0
    for bit in np.random.default_rng(seed).choice(8 * len(content), count, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            found = read(path)
        except RfatlasError as error:
            assert path.stem in str(error) or "a.npz" in str(error), f"bit {bit}: {error}"
            refused += 1
        else:
            assert found == expected, f"bit {bit} of {path.name} changes what is read"
            same += 1
    path.write_bytes(content)
    assert read(path) == expected
    return refused, same


@pytest.mark.parametrize("name", ["model.safetensors", "record.npz"])
def test_a_flipped_bit_is_refused_or_changes_nothing(name, tmp_path):
    make, read = KINDS[name]
    make(tmp_path / name)
    refused, same = flips(tmp_path / name, read, FLIPS)
    print(f"{name}: {refused} of {FLIPS} flips refused, {same} change nothing")
    # Headers of records in zip files hold bytes that nobody reads.
    assert refused > (0.7 if name == "record.npz" else 0.98) * FLIPS


def test_a_flipped_bit_in_an_array_is_refused(tmp_path):
    """Arrays of a file that is written whole have checksums, in groups too."""
    path = tmp_path / "mixed.h5"
    mixed(path)
    content, places = path.read_bytes(), in_chunks(path)
    assert len(places) > 3
    random = np.random.default_rng(0)
    for start, stop in places:
        for byte in random.integers(start, stop, 8):
            damaged = bytearray(content)
            damaged[byte] ^= 1 << int(random.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(RfatlasError, match=r"mixed\.h5: .*damaged .*delete it and rerun"):
                read_hdf5(path)


def test_arrays_made_in_any_way_have_checksums(tmp_path):
    with store.create(tmp_path / "a.h5", ATTRS) as file:
        file["a"] = np.arange(4)
        file["b/c"] = [[1.5, 2]]
        file.create_group("d").create_group("e")["f"] = np.ones(3, bool)
        file.require_group("g").create_dataset("h", (100_000, 3), np.float32)
        file["scalar"] = 3
        file["empty"] = np.zeros((0, 4))
        file["word"] = "ä"
    with store.open(tmp_path / "a.h5") as file:
        for name in ("a", "b/c", "d/e/f", "g/h"):
            assert file[name].fletcher32, name
        assert file["g/h"].chunks == (5461, 3)
        assert file["scalar"][()] == 3 and file["empty"].shape == (0, 4)
        assert file["word"].asstr()[()] == "ä"


@pytest.mark.parametrize("name", ["mixed.h5", "rows.h5", "packed.h5", "model.safetensors"])
def test_a_cut_file_is_refused(name, tmp_path):
    make, read = KINDS[name]
    path = tmp_path / name
    make(path)
    content = path.read_bytes()
    for size in np.random.default_rng(5).integers(0, len(content), 40):
        path.write_bytes(content[:size])
        with pytest.raises(RfatlasError, match=name):
            read(path)


# ---- reading


def test_paths_beyond_ascii(tmp_path):
    path = tmp_path / "größe" / "ü.h5"
    rows(path.parent.mkdir() or path)
    with store.open(path) as file:
        assert np.array_equal(store.array(file["a"]), file["a"][:])
        assert Path(file.filename) == path


# ---- full disks


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    with disks.small_disk(tmp_path / "disk", "2m") as folder:
        yield folder


def large(path):
    with store.create(path, ATTRS) as file:
        file["x"] = np.ones(400_000)


def many(path):
    with store.create(path, ATTRS) as file:
        for i in range(800):
            file[f"group{i}/x"] = np.ones(500)


def attributes(path):
    with store.create(path, ATTRS) as file:
        for i in range(50):
            file.create_group(str(i)).attrs["x"] = "x" * 50_000


def chunks(path):
    with store.create(path, ATTRS) as file:
        data = file.create_dataset("x", (1000, 500), "f8", chunks=(10, 500))
        for i in range(1000):
            data[i] = i


def table(path):
    store.write_table(pd.DataFrame({"a": np.random.default_rng(0).random(200_000)}), path)


def progress(path):
    store.Partial(path, {}).save("a", {"x": np.ones(400_000)})


def allocated(path):
    store.Rows(path, "x", (400_000,), np.float64, None).write(0, np.ones(400_000))


def network(path):
    given = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
    large = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 7000))
    model.save(
        large, model.trace(large, given), path, {"factory": "f", "weights": "random:1"}, given
    )


WRITERS = (large, many, attributes, chunks, table, progress, allocated, network)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_full_disk_is_told_and_nothing_half_written_counts(small_disk, write):
    message = r"result.*: no room on the disk .* MB are free in .*; make room and give the same"
    with pytest.raises(RfatlasError, match=message):
        write(small_disk / "result")
    if write is allocated:
        with pytest.raises(RfatlasError, match="was never finished"):
            store.open(small_disk / "result")
    else:
        left = {p.name for p in small_disk.rglob("*") if p.is_file()}
        assert left <= {"result.partial.lock", "fingerprint.json"}
    # After room is made all goes on.
    disks.resize(small_disk, "64m")
    write(small_disk / "result")


def test_packing_images_works_after_room_is_made(small_disk, tmp_path, monkeypatch):
    random = np.random.default_rng(3)
    for i in range(60):
        file = tmp_path / "photos" / "a" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (120, 120, 3), dtype=np.uint8)).save(file)
    listing = catalogue.list_images({"source": "folders", "path": str(tmp_path / "photos")})
    output = small_disk / "packed.h5"
    with pytest.raises(RfatlasError, match=r"packed images need .* GB more, but the disk has"):
        images.pack(listing, output, 120, 120)
    monkeypatch.setattr(images.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e18))
    with pytest.raises(RfatlasError, match=r"packed\.h5.*: no room on the disk"):
        images.pack(listing, output, 120, 120)
    assert not output.exists()
    disks.resize(small_disk, "64m")
    assert images.pack(listing, output, 120, 120) == {"packed": 60, "skipped": 0}
    images.pack(listing, tmp_path / "whole.h5", 120, 120)
    assert read_hdf5(output)["images"] == read_hdf5(tmp_path / "whole.h5")["images"]
