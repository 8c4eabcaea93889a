"""Damaged files are refused or read as they were written; full disks are told in one line."""

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import disks
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import nn

from rfatlas.errors import RfatlasError
from rfatlas.files import checked, store
from rfatlas.images import images, sources
from rfatlas.network import model

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
    file = store.Allocated(path, {"a": ((50, 4), np.float32), "b": ((50,), np.int16)}, ATTRS)
    file.write("a", 0, np.random.default_rng(2).normal(size=(50, 4)))
    file.write("b", 0, np.arange(50))
    file.complete()


def packed(path):
    random = np.random.default_rng(3)
    for i in range(6):
        file = path.parent / "photos" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file)
    listing = sources.list_images({"source": "folders", "path": str(path.parent / "photos")})
    images.pack(listing, path, 16, 16)


def weights(path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    given = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"factory": f"{path.parent / 'net.py'}:make", "weights": "random:1"}
    (path.parent / "net.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
    )
    model.save(network, path, config, given)


def record(path):
    partial = store.Partial(path.with_suffix(""), {})
    partial.save("a", {"x": np.random.default_rng(4).normal(size=300), "y": np.arange(3)})
    shutil.copy(partial.folder / "a.npz", path)


def read_hdf5(path, stage=None):
    """All that a file holds, as nested text and bytes."""
    found = {}
    with store.open(path, stage) as file:

        def visit(name, node):
            found[name, "attrs"] = {key: np.asarray(v).tolist() for key, v in node.attrs.items()}
            if isinstance(node, h5py.Dataset):
                found[name] = node.dtype.str, node.shape, np.asarray(node[()]).tolist()
                if node.id.get_offset() is not None:
                    mapped = store.array(node) if node.ndim else None
                    assert mapped is None or np.asarray(mapped[:]).tolist() == found[name][2]

        visit("/", file)
        file.visititems(visit)
    return found


def read_weights(path):
    network = model.load(path)
    return network.description, network.weights_sha256, model.digest(network.module)


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


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_refused_or_changes_nothing(name, tmp_path, record_property):
    make, read = KINDS[name]
    make(tmp_path / name)
    refused, same = flips(tmp_path / name, read, FLIPS)
    record_property("refused", refused)
    print(f"{name}: {refused} of {FLIPS} flips refused, {same} change nothing")
    # Headers of records in zip files hold bytes that nobody reads.
    assert refused > (0.7 if name == "record.npz" else 0.98) * FLIPS


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
    path.write_bytes(content + b"x")
    with pytest.raises(RfatlasError, match=name):
        read(path)


def test_results_of_a_run_survive_no_flip(tmp_path):
    """Files of all stages of a real run, where one is at hand."""
    if "RFATLAS_REFERENCE" not in os.environ:
        pytest.skip("RFATLAS_REFERENCE names no finished run")
    results = Path(os.environ["RFATLAS_REFERENCE"], "results")
    files = {path.parent.relative_to(results): path for path in sorted(results.rglob("*.h5"))}
    assert len(files) > 8
    for path in files.values():
        copy = tmp_path / path.name
        content = path.read_bytes()
        for bit in np.random.default_rng(6).choice(8 * len(content), 5, replace=False):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << (bit % 8)
            copy.write_bytes(damaged)
            with pytest.raises(RfatlasError, match=path.name):
                read_hdf5(copy)


# ---- reading


def test_only_the_blocks_that_are_read_are_checked(tmp_path):
    path = tmp_path / "long.h5"
    count = 8 * checked.BLOCK
    file = store.Allocated(path, {"a": ((count, 1), np.uint8)}, ATTRS)
    file.write("a", 0, np.arange(count).astype(np.uint8)[:, None])
    file.complete()
    middle = count // 2
    with h5py.File(path) as plain:
        damaged = plain["a"].id.get_offset() + middle
    with path.open("r+b") as raw:
        raw.seek(damaged)
        raw.write(b"\xff")
    with store.open(path) as file:
        mapped = store.array(file["a"])
        assert file["a"][:1000].shape == mapped[:1000].shape
        for index in (slice(5, 4000, 7), [9, count - 1], -3):
            assert np.array_equal(mapped[index], np.arange(count)[index, None] % 256)
        message = r"long\.h5: damaged: the bytes \d+ to \d+ are not those .*delete it and rerun"
        for index in (middle, [0, middle + 5], slice(None, None, -2), ...):
            with pytest.raises(RfatlasError, match=message):
                mapped[index]
        with pytest.raises(RfatlasError, match=message):
            file["a"][middle - 10 : middle + 10]


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from rfatlas.files import store
with store.open(sys.argv[2]) as file:
    rows = store.array(file["rows"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept, total = rows[0], 0
    for start in range(0, len(rows), 50):
        total += int(rows[start : start + 50, ::4096].sum(dtype=np.int64))
    for row in np.random.default_rng(0).permutation(len(rows)):
        total += int(rows[row, ::4096].sum(dtype=np.int64)) + int(rows[[row]][0, 5])
    assert (kept == 3).all() and total == len(rows) * (2 * 3 * len(kept[::4096]) + 3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_rows_that_are_read(tmp_path):
    path, megabyte = tmp_path / "rows.h5", 1 << 20
    with store.create(path, ATTRS) as file:
        data = file.create_dataset("rows", (300, megabyte), np.uint8)
        for row in range(300):
            data[row] = np.full(megabyte, 3, np.uint8)
    command = [sys.executable, "-c", MEMORY, str(SCRIPTS), str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) / 1024 < checked.RESIDENT_BYTES / megabyte + 60


def test_the_table_holds_the_crc_of_each_block(tmp_path):
    """Compared with zlib on the file's bytes: a table that another program can check, too."""
    path = tmp_path / "a.h5"
    with store.create(path, ATTRS) as file:
        file["x"] = np.random.default_rng(0).normal(size=(2 * checked.BLOCK + 5) // 8)
    content = path.read_bytes()
    size = int.from_bytes(content[-33:-25], "little")
    blocks = [content[:size][i : i + checked.BLOCK] for i in range(0, size, checked.BLOCK)]
    assert len(blocks) == 3
    assert np.frombuffer(content[size:-33], "<u4").tolist() == list(map(zlib.crc32, blocks))
    assert content.endswith(b"rfatlas checksums")


def test_files_without_checksums_are_read(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs.update(ATTRS | {"complete": True})
        file["x"] = np.arange(4)
    assert read_hdf5(tmp_path / "old.h5")["x"][2] == [0, 1, 2, 3]


def test_paths_beyond_ascii(tmp_path):
    path = tmp_path / "größe" / "ü.h5"
    rows(path.parent.mkdir() or path)
    with store.open(path) as file:
        assert store.array(file["b"])[-1] == 49
        assert store.identity(file.filename) == store.identity(path)


def test_a_file_that_is_changed_loses_its_checksums_and_no_more(tmp_path):
    path = tmp_path / "rows.h5"
    rows(path)
    before = read_hdf5(path)
    # A job killed while it was sealing.
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)
    with store.written(path, new=False) as file:
        assert file["b"][:].tolist() == list(range(50))
        file["a"][3] = 1
    found = read_hdf5(path)
    assert found["a"] != before["a"] and found["b"] == before["b"]
    checked.seal(path)
    assert read_hdf5(path) == found


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
    file = store.Allocated(path, {"x": ((400_000,), np.float64)}, ATTRS)
    file.write("x", 0, np.ones(400_000))


def network(path):
    given = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
    model.save(nn.Linear(1000, 1000), path, {"factory": "f", "weights": "random:1"}, given)


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
        assert left <= {"lock", "fingerprint.json"}
    # After room is made all goes on.
    disks.resize(small_disk, "64m")
    write(small_disk / "result")


def test_the_checksums_find_no_room(small_disk, monkeypatch):
    monkeypatch.setattr(checked, "BLOCK", 64)
    path = small_disk / "a.h5"
    with pytest.raises(RfatlasError, match=r"a\.h5.*: no room on the disk"):
        with store.create(path, ATTRS) as file:
            file["x"] = np.ones(100_000)
            file.flush()
            (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    assert not path.exists() and not list(small_disk.glob("a.h5*"))


def test_packing_images_goes_on_after_room_is_made(small_disk, tmp_path):
    random = np.random.default_rng(3)
    for i in range(60):
        file = tmp_path / "photos" / "a" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (120, 120, 3), dtype=np.uint8)).save(file)
    listing = sources.list_images({"source": "folders", "path": str(tmp_path / "photos")})
    output = small_disk / "packed.h5"
    with pytest.raises(RfatlasError, match=r"packed images need .* GB more, but the disk has"):
        images.pack(listing, output, 120, 120)
    shutil.rmtree(f"{output}.partial")
    plain = images._check_disk
    images._check_disk = lambda folder, needed: None
    try:
        with pytest.raises(RfatlasError, match=r"packed\.h5.*: no room on the disk"):
            images.pack(listing, output, 120, 120)
    finally:
        images._check_disk = plain
    assert not output.exists()
    disks.resize(small_disk, "64m")
    assert images.pack(listing, output, 120, 120) == {"packed": 60, "skipped": 0}
    images.pack(listing, tmp_path / "whole.h5", 120, 120)
    assert read_hdf5(output)["images"] == read_hdf5(tmp_path / "whole.h5")["images"]
