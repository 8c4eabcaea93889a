"""Comparison of two runs: planted differences are found and named, and nothing else is."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from same_results import differences

TABLE = "results/run/channels.csv"
FIELDS = "results/run/gratings/conv1.h5"
FINDINGS = "results/run/findings.json"


@pytest.fixture
def two(tmp_path):
    """A folder with one file of each kind, and a copy of it."""
    first, second = tmp_path / "a", tmp_path / "b"
    (first / FIELDS).parent.mkdir(parents=True)
    table = {
        "layer": ["conv1", "conv1", "fc"],
        "channel": [0, 1, 2],
        "osi": [0.5, np.nan, 2e-3],
        "flag": [True, False, True],
        "class": ["opponent", "", "NA"],
    }
    pd.DataFrame(table).to_csv(first / TABLE, index=False)
    with h5py.File(first / FIELDS, "w") as file:
        file.attrs["stage"] = "gratings"
        file.attrs["device"] = "cpu"
        file["group/fit"] = np.array([[1e-3, np.nan, np.inf], [0, -2e-3, 4e-3]], np.float32)
        file["names"] = ["a", "b"]
        file["top_image"] = np.array([3, 7])
    claims = [
        {"sentence": "two of ten", "share": 0.2, "missing": None},
        {"sentence": "none", "share": 0.0, "missing": "gone"},
    ]
    content = {"claims": claims, "rows": {}, "sizes": [4], "weights": "/a/x.pt"}
    (first / FINDINGS).write_text(json.dumps(content))
    shutil.copytree(first, second)
    return first, second


def edit_table(folder, row, column, value):
    table = pd.read_csv(folder / TABLE, keep_default_na=False, na_values=[""])
    table.loc[row, column] = value
    table.to_csv(folder / TABLE, index=False)


def edit_field(folder, name, index, value):
    with h5py.File(folder / FIELDS, "r+") as file:
        file[name][index] = value


def test_copies_are_the_same_also_what_is_not_a_number(two):
    assert differences(*two) == []


def test_other_files_are_not_compared(two):
    (two[0] / "results/run/figure.png").write_bytes(b"x")
    (two[0] / "benchmarks").mkdir()
    (two[0] / "benchmarks/a.csv").write_text("s\n1.0\n")
    assert differences(*two) == []


@pytest.mark.parametrize("name", [TABLE, FIELDS, FINDINGS])
def test_a_missing_file_is_named(two, name):
    (two[1] / name).unlink()
    assert differences(*two) == [f"{name}: missing in {two[1]}"]
    assert differences(*two[::-1]) == [f"{name}: missing in {two[1]}"]


@pytest.mark.parametrize(
    ("row", "column", "value", "told"),
    [
        (0, "osi", 0.50002, "column osi: 1 of 3 differ, first at (0,): 0.5 and 0.50002"),
        # Beside larger numbers a small one may be as far off as they may.
        (2, "osi", 2.02e-3, "column osi: 1 of 3 differ, first at (2,): 0.002 and 0.00202"),
        (1, "osi", 0.0, "column osi: 1 of 3 differ, first at (1,): nan and 0.0"),
        (1, "channel", 3, "column channel: 1 of 3 differ, first at (1,): 1 and 3"),
        (1, "flag", True, "column flag: 1 of 3 differ, first at (1,): False and True"),
        (2, "class", "N", "column class: 1 of 3 differ, first at (2,): NA and N"),
    ],
)
def test_a_cell_of_a_table(two, row, column, value, told):
    edit_table(two[1], row, column, value)
    assert differences(*two) == [f"{TABLE}: {told}"]


def test_numbers_may_differ_by_the_tolerance(two):
    edit_table(two[1], 0, "osi", 0.500004)
    edit_table(two[1], 2, "osi", 2.003e-3)
    edit_field(two[1], "group/fit", (1, 2), 4e-3 * (1 + 5e-6))
    assert differences(*two) == []
    assert len(differences(*two, tolerance=1e-7)) == 2


def test_columns_and_rows(two):
    table = pd.read_csv(two[1] / TABLE, keep_default_na=False, na_values=[""])
    table.drop(columns="flag").to_csv(two[1] / TABLE, index=False)
    lines = differences(*two)
    assert f"{TABLE}: column flag: only in the first" in lines
    table[["channel", "layer", "osi", "flag", "class"]].to_csv(two[1] / TABLE, index=False)
    (line,) = differences(*two)
    assert "columns: 2 of 5 differ, first at (0,): layer and channel" in line
    table[:2].to_csv(two[1] / TABLE, index=False)
    assert f"{TABLE}: column osi: shape (3,) and (2,)" in differences(*two)


@pytest.mark.parametrize(
    ("name", "index", "value", "place"),
    [
        ("group/fit", (1, 1), -2.001e-3, "(1, 1)"),
        ("group/fit", (1, 0), 1e-6, "(1, 0)"),
        ("group/fit", (0, 2), 1.0, "(0, 2)"),
        ("group/fit", (0, 2), -np.inf, "(0, 2)"),
        ("group/fit", (0, 1), 1e-3, "(0, 1)"),
        ("names", 1, "c", "(1,)"),
        ("top_image", 0, 4, "(0,)"),
    ],
)
def test_an_element_of_a_data_set(two, name, index, value, place):
    edit_field(two[1], name, index, value)
    (line,) = differences(*two)
    assert line.startswith(f"{FIELDS}: data set {name}: 1 of ") and f"first at {place}: " in line


def test_attributes_but_for_those_that_tell_how_a_file_was_made(two):
    with h5py.File(two[1] / FIELDS, "r+") as file:
        file.attrs["device"] = "cuda:0"
        assert differences(*two) == []
        file.attrs["stage"] = "color"
        file["group"].attrs["more"] = 1
    assert differences(*two) == [
        f"{FIELDS}: attribute more of group: only in the second",
        f"{FIELDS}: attribute stage of /: 1 of 1 differ, first: gratings and color",
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0.2", "0.20001", "/claims/*/share: 1 of 2 differ, first at (0,): 0.2 and 0.20001"),
        (
            "two of ten",
            "one of ten",
            "/claims/*/sentence: 1 of 2 differ, first at (0,): two of ten",
        ),
        ("null", "0", "/claims/*/missing: 1 of 2 differ, first at (0,): None and 0"),
        ("{}", '{"a": 1}', "/rows: only in the first"),
        ("[4]", "[4, 5]", "/sizes/*: shape (1,) and (2,)"),
        ("/a/x.pt", "/b/y.pt", "/weights: 1 of 1 differ, first at (0,): /a/x.pt and /b/y.pt"),
    ],
)
def test_a_leaf_of_json(two, old, new, told):
    path = two[1] / FINDINGS
    path.write_text(path.read_text().replace(old, new, 1))
    lines = differences(*two)
    assert lines and any(line.startswith(f"{FINDINGS}: {told}") for line in lines)


def test_of_a_path_its_last_part_counts(two):
    path = two[1] / FINDINGS
    path.write_text(path.read_text().replace("/a/x.pt", "/b/c/x.pt"))
    assert differences(*two) == []


def test_numbers_of_a_list_in_json_are_a_column(two):
    for folder, share in zip(two, (1e-6, 1.5e-6), strict=True):
        (folder / FINDINGS).write_text(
            json.dumps({"rows": [{"s": 0.1}, {"s": share}, {"s": None}]})
        )
    assert differences(*two) == []
    assert len(differences(*two, tolerance=1e-7)) == 1


def test_a_folder_without_results_equals_nothing(two, tmp_path):
    empty = tmp_path / "empty"
    (empty / "results").mkdir(parents=True)
    for pair in ((two[0], empty), (empty, two[1]), (empty, tmp_path / "absent")):
        with pytest.raises(ValueError, match=r"(empty|absent): no results .* to compare"):
            differences(*pair)
