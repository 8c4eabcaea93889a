"""Notebook use: lazy access to the files of a run, and the examples of docs/notebook.md."""

import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from synthetic import Run

import rfatlas
from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.tables import channels

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An invented run with its table of channels, as results/demo."""
    place = tmp_path_factory.mktemp("notebook")
    invented = Run()
    folder = invented.write(place / "results" / "demo")
    table = channels.build(
        folder / "activations.h5",
        folder / "model.json",
        folder / "images.h5",
        [layer.name for layer in invented.layers],
        [],
        0.1,
        1e-3,
        0.5,
    )
    store.write_table(table, folder / "channels.csv")
    return folder


def test_arrays_equal_those_that_h5py_reads(folder):
    run = rfatlas.open(folder)
    with h5py.File(folder / "receptive_fields" / "conv1.h5") as file:
        fields = run["receptive_fields/conv1"]
        assert sorted(fields) == sorted(file)
        for name in file:
            assert fields[name].shape == file[name].shape
            np.testing.assert_array_equal(np.asarray(fields[name]), file[name][()])
        np.testing.assert_array_equal(fields["patch"][2, :1], file["patch"][2, :1])
        assert fields.attrs["size"] == file.attrs["size"]


def test_datasets_in_groups_and_texts(folder):
    run = rfatlas.open(folder)
    with h5py.File(folder / "activations.h5") as file:
        wanted = file["layer1.0/mean"][:]
    np.testing.assert_array_equal(run["activations"]["layer1.0/mean"][:], wanted)
    assert run["images"]["names"][3] == "3.png"


def test_no_file_stays_open(folder):
    run = rfatlas.open(folder)
    field = run["receptive_fields/conv1"]["gradient"]
    field[0]
    with h5py.File(folder / "receptive_fields" / "conv1.h5", "r+") as file:
        value = file["gradient"][0, 0, 0, 0, 0]
        file["gradient"][0, 0, 0, 0, 0] = 7
    assert field[0][0, 0, 0, 0] == 7
    with h5py.File(folder / "receptive_fields" / "conv1.h5", "r+") as file:
        file["gradient"][0, 0, 0, 0, 0] = value


def test_a_part_is_read_alone(folder, monkeypatch):
    asked = []
    plain = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, key: asked.append(key) or plain(self, key)
    )
    rfatlas.open(folder)["receptive_fields/conv1"]["gradient"][4]
    assert asked == [4]


def test_tables(folder):
    run = rfatlas.open(folder)
    assert run.layers == ["conv1", "layer1.0", "layer2.0"]
    pd.testing.assert_frame_equal(run.channels, store.read_table(folder / "channels.csv"))
    with pytest.raises(RfatlasError, match=r"no table 'chanels' \(did you mean 'channels'"):
        run.table("chanels")


def test_files_and_names(folder):
    run = rfatlas.open(str(folder))
    assert list(run) == [
        "activations",
        "images",
        "receptive_fields/conv1",
        "receptive_fields/layer1.0",
        "receptive_fields/layer2.0",
    ]
    assert len(run) == 5
    with pytest.raises(KeyError, match="did you mean 'receptive_fields/conv1'"):
        run["receptive_field/conv1"]
    with pytest.raises(KeyError, match="did you mean 'mean_gradient'"):
        run["receptive_fields/conv1"]["mean_gradients"]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(RfatlasError, match=f"{tmp_path}: no model.json"):
        rfatlas.open(tmp_path)


def test_progress_of_a_running_job_is_no_result(folder):
    store.Partial(folder / "gratings.h5", {}).save("a", {"x": np.zeros(1)})
    (folder / "gratings.h5.partial" / "fields.h5").write_bytes(b"")
    assert not any("gratings" in name for name in rfatlas.open(folder))


def test_the_examples_of_the_docs_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parents[1])
    text = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 3
    namespace = {}
    outputs = []
    for example in examples:
        exec(example, namespace)
        outputs.append(capsys.readouterr().out)
    table = pd.read_csv(folder / "channels.csv")
    best = table[table["layer"] == "conv1"].nlargest(1, "activation_max")["channel"].item()
    assert str(best) in outputs[0]
    assert outputs[1].split() == "7 (9, 7, 7, 3) (3, 7, 7)".split()
    assert len(outputs[2].strip("[] \n").split()) == 12
