"""docs/files.md against the HDF5 files of a finished run."""

import os
import re
from pathlib import Path

import h5py
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")


def rows(section: str) -> list[tuple[str, str, str]]:
    """Name, shape and dtype of each dataset and attribute in a section of the page."""
    found = []
    for line in re.findall(r"^\| `.*", section, flags=re.MULTILINE):
        names, shape, dtype = ([cell.strip() for cell in line.split("|")[1:4]] + [""] * 2)[:3]
        names = re.findall(r"`([^`]+)`", names)
        shapes = re.findall(r"\([^)]*\)", shape) or [""]
        shapes = shapes if len(shapes) == len(names) else shapes * len(names)
        found += [(name, one, dtype) for name, one in zip(names, shapes, strict=True)]
    return found


COMMON, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
FILES = {re.match("`(.*)`", section)[1]: rows(section) for section in SECTIONS}
COMMON_NAMES = {name.removeprefix("@") for name, _, _ in rows(COMMON)}


@pytest.fixture(scope="module")
def results() -> Path:
    named = os.environ.get("RFATLAS_REFERENCE")
    if not named:
        pytest.skip("RFATLAS_REFERENCE names no folder with a finished run")
    return Path(named)


def contents(path: Path) -> dict[str, tuple[str, int]]:
    """Dtype and number of dimensions of each dataset of a file, and ("", 0) of each attribute that
    not every file has."""
    found = {}

    def add(name: str, node: h5py.HLObject) -> None:
        if isinstance(node, h5py.Dataset):
            text = h5py.check_string_dtype(node.dtype)
            found[name] = "text" if text else str(node.dtype), node.ndim
        found.update({f"{name}@{key}": ("", 0) for key in node.attrs})

    with h5py.File(path, "r") as file:
        assert set(file.attrs) >= COMMON_NAMES, path
        add("", file)
        file.visititems(add)
    return {
        name: kind for name, kind in found.items() if name.removeprefix("@") not in COMMON_NAMES
    }


def documented(name: str, page: list[tuple[str, str, str]]) -> tuple[str, str, str] | None:
    """The row that describes a dataset or attribute; one that names it in full comes first."""
    for row in sorted(page, key=lambda row: row[0].count("<")):
        if re.fullmatch(re.sub("<[^>]*>", "[^/@]+", row[0].replace(".", r"\.")), name):
            return row
    return None


@pytest.mark.parametrize("pattern", FILES)
def test_every_dataset_is_documented_and_no_other(results, pattern):
    paths = sorted(results.glob(re.sub("<[^>]*>", "*", pattern)))
    assert paths
    seen = set()
    for path in paths:
        for name, (dtype, dimensions) in contents(path).items():
            row = documented(name, FILES[pattern])
            assert row, f"{path}: {name} is not in docs/files.md"
            seen.add(row[0])
            if "@" not in name:
                assert (dtype, dimensions) == (row[2], len(re.findall(r"[^(),]+", row[1]))), name
    assert seen == {name for name, _, _ in FILES[pattern]}


def test_every_hdf5_file_is_documented(results):
    described = {path for one in FILES for path in results.glob(re.sub("<[^>]*>", "*", one))}
    assert described == set(results.glob("results/**/*.h5"))
