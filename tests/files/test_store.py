"""Result files appear whole or not at all, name what is wrong with them, and progress survives
kills."""

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from rfatlas.errors import RfatlasError
from rfatlas.files import store

ATTRS = store.provenance("images", {"b": 1, "a": [2]}, "w" * 64, {"list": "x"}, "cpu")


def test_file_appears_only_when_complete(tmp_path):
    path = tmp_path / "deep" / "a.h5"
    with store.create(path, ATTRS) as file:
        file["x"] = np.arange(3)
        assert not path.exists()
    with store.open(path, "images") as file:
        assert file["x"][:].tolist() == [0, 1, 2]
        assert file.attrs["complete"] and file.attrs["config"] == '{"a": [2], "b": 1}'
    with pytest.raises(KeyboardInterrupt), store.create(tmp_path / "b.h5", ATTRS):
        raise KeyboardInterrupt
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]


def test_bad_files_are_named(tmp_path):
    with pytest.raises(RfatlasError, match=r"none\.h5: no such file; run the stage images"):
        store.open(tmp_path / "none.h5", "images")
    path = tmp_path / "a.h5"
    with store.create(path, ATTRS) as file:
        file["x"] = np.zeros(10000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RfatlasError, match=r"a\.h5: not a readable HDF5 file"):
        store.open(path)
    path.write_bytes(whole)
    with pytest.raises(RfatlasError, match="written by stage 'images', expected 'activations'"):
        store.open(path, "activations")
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
    with pytest.raises(RfatlasError, match=r"a\.h5: was never finished"):
        store.open(path)


def test_identity_follows_what_made_the_file(tmp_path):
    identities = []
    for i, attrs in enumerate(
        (ATTRS, ATTRS, {**ATTRS, "weights_sha256": "v"}, {**ATTRS, "created_from": "{}"})
    ):
        with store.create(tmp_path / f"{i}.h5", attrs) as file:
            file["x"] = i
        identities.append(store.identity(tmp_path / f"{i}.h5"))
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


def test_partial_resumes_the_same_question_only(tmp_path):
    output = tmp_path / "out.h5"
    partial = store.Partial(output, {"k": 1})
    partial.save("b", {"x": np.arange(4)})
    partial.save("a", {"x": np.ones(2)})
    (partial.folder / "c.npz.tmp").write_bytes(b"half")
    again = store.Partial(output, {"k": 1})
    assert again.names() == ["a", "b"]
    assert again.load("b")["x"].tolist() == [0, 1, 2, 3]
    assert not (partial.folder / "c.npz.tmp").exists()
    (partial.folder / "a.npz").write_bytes(b"PK damaged")
    with pytest.raises(RfatlasError, match=r"a\.npz: damaged progress record"):
        again.load("a")
    assert store.Partial(output, {"k": 2}).names() == []
    store.Partial(output, {"k": 2}).finish()
    assert not list(tmp_path.iterdir())


def test_steps_on_record_are_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SAVE_COSTS", 0)
    done = []

    def run(every_s, count):
        """Do steps up to one that fails; return what they gave."""
        monkeypatch.setattr(store, "SAVE_EVERY_S", every_s)
        steps, found = store.Steps(store.Partial(tmp_path / "out.h5", {})), []
        for number in range(count):

            def compute(number=number):
                if number == 4:
                    raise KeyboardInterrupt
                done.append(number)
                return {"x": np.full(2, number), "y": np.ones(1)}

            with contextlib.suppress(KeyboardInterrupt):
                found.append(steps.take(f"a/{number}", compute)["x"].tolist())
        return steps, found

    _, found = run(3600.0, 3)
    assert found == [[0, 0], [1, 1], [2, 2]] and done == [0, 1, 2]
    assert not list((tmp_path / "out.h5.partial").glob("*.npz")), "nothing is due yet"
    done.clear()
    steps, _ = run(3600.0, 2)
    steps.save()
    assert len(list((tmp_path / "out.h5.partial").glob("*.npz"))) == 1, "two steps, one record"
    run(0.0, 5)
    assert done == [0, 1, 2, 3]
    steps, found = run(0.0, 4)
    assert done == [0, 1, 2, 3] and found[3] == [3, 3]
    assert [step["x"].tolist() for step in steps.all()] == found


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from rfatlas.files import store
partial = store.Partial(sys.argv[2], {"k": 1})
partial.save("a", {})
print("held", flush=True)
time.sleep(60)
"""


def test_two_processes_never_share_progress(tmp_path, monkeypatch):
    output = tmp_path / "out.h5"
    scripts = Path(store.__file__).parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, scripts, output], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        monkeypatch.setattr(store, "LOCK_WAIT_S", 0.5)
        message = rf"out\.h5\.partial: process {holder.pid} of .* is still working at this output"
        # Another question must not wipe it either.
        for fingerprint in ({"k": 1}, {"k": 2}):
            with pytest.raises(RfatlasError, match=message):
                store.Partial(output, fingerprint)
        assert (tmp_path / "out.h5.partial" / "a.npz").exists()
        monkeypatch.setattr(store, "LOCK_WAIT_S", 20)
        holder.kill()
        assert store.Partial(output, {"k": 1}).names() == ["a"], "a dead process holds nothing"
    finally:
        holder.kill()
        holder.wait()


def test_parts_one_after_the_other_fill_a_file(tmp_path):
    parts = [{"a": np.arange(6).reshape(2, 3), "b/c": np.ones(2, np.float32)}]
    parts.append({name: 2 * values[:1] for name, values in parts[0].items()})
    with store.create(tmp_path / "x.h5", ATTRS) as file:
        store.fill(file, 3, iter(parts))
    with store.open(tmp_path / "x.h5") as file:
        assert file["a"][:].tolist() == [[0, 1, 2], [3, 4, 5], [0, 2, 4]]
        assert file["b/c"].dtype == np.float32 and file["b/c"][:].tolist() == [1, 1, 2]


def test_rows_read_back_and_the_file_is_always_valid(tmp_path):
    path = tmp_path / "rows.h5"
    rows = store.Rows(path, "a", (5, 2, 3), np.float64, None)
    rows.write(3, np.arange(12.0).reshape(2, 2, 3))
    with h5py.File(path) as file:
        assert file["a"].shape == (5, 2, 3), "readable while rows are being written"
    with pytest.raises(RfatlasError, match="was never finished"):
        store.open(path)
    rows.write(0, np.full((1, 2, 3), 4))
    with h5py.File(path) as file:
        assert file["a"][3:].ravel().tolist() == list(range(12))
        assert (file["a"][0] == 4).all()
        mapped = store.array(file["a"])
        assert np.array_equal(mapped, file["a"][:]) and mapped.shape == (5, 2, 3)
        for index in (0, -1, slice(1, 4), slice(None, None, -2), [4, 0], (2, slice(1)), ...):
            assert np.array_equal(mapped[index], file["a"][:][index]), index


def test_full_disk_is_an_error_of_the_write(tmp_path, monkeypatch):
    rows = store.Rows(tmp_path / "rows.h5", "a", (5,), np.int64, None)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RfatlasError, match=r"rows\.h5: no room on the disk.* for 0\.000 MB more"):
        rows.write(0, np.arange(5))


def test_tables_round_trip_to_nine_digits(tmp_path):
    table = pd.DataFrame({"layer": ["a", "b"], "x": [1 / 3, np.nan], "n": [1, 2]})
    store.write_table(table, tmp_path / "t" / "a.csv")
    assert (tmp_path / "t" / "a.csv").read_text() == "layer,x,n\na,0.333333333,1\nb,,2\n"
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["a.csv"]
