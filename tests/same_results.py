"""Whether two runs ended with the same results: every table, HDF5 file and JSON file of both.

`python tests/same_results.py FOLDER OTHER` prints what differs; the folders hold `results/`.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

#: Attributes of HDF5 files that tell how a file was made and not what is in it: the device, and
#: identities of inputs, which follow from the attributes of those inputs.
MAY_DIFFER = frozenset({"device", "created_from"})


def differences(
    folder_a: str | Path,
    folder_b: str | Path,
    tolerance: float = 1e-5,
    may_differ: frozenset[str] = MAY_DIFFER,
) -> list[str]:
    """Compare all results/**/*.csv, .h5 and .json of two folders; return a line per difference.

    Two numbers are the same if they differ by at most `tolerance` times the larger of both or times
    the root mean square of the numbers other than zero of their column or data set. NaN equals NaN,
    infinity itself. Integers, flags and text must be equal; of absolute paths the last part.
    Attributes of HDF5 files named in `may_differ` are left out. Pictures and pages are not
    compared: they are drawn from these files. Raises ValueError for a folder without any results.
    """
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        ".csv": _table,
        ".h5": lambda path: _hdf5(path, may_differ),
        ".json": _json,
    }
    found = [
        {
            path.relative_to(folder): path
            for path in Path(folder).glob("results/**/*")
            if path.suffix in readers and path.is_file()
        }
        for folder in (folder_a, folder_b)
    ]
    for folder, files in zip((folder_a, folder_b), found, strict=True):
        if not files:
            raise ValueError(f"{folder}: no results (results/**/*.csv, .h5 or .json) to compare")
    lines = []
    for name in sorted(found[0].keys() | found[1].keys()):
        if absent := [
            str(f)
            for f, files in zip((folder_a, folder_b), found, strict=True)
            if name not in files
        ]:
            lines.append(f"{name}: missing in {absent[0]}")
            continue
        a, b = (readers[name.suffix](files[name]) for files in found)
        lines += [f"{name}: {line}" for line in _compare(a, b, tolerance)]
    return lines


def _table(path: Path) -> dict[str, Any]:
    """The columns of a table by name, and their order."""
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    columns = {f"column {name}": column.to_numpy() for name, column in table.items()}
    return {"columns": list(table.columns), **columns}


def _hdf5(path: Path, may_differ: frozenset[str]) -> dict[str, Any]:
    """The data sets and attributes of a file by name."""
    values: dict[str, Any] = {}

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        values.update(
            {
                f"attribute {key} of {name or '/'}": np.asarray(value)
                for key, value in item.attrs.items()
                if key not in may_differ
            }
        )
        if isinstance(item, h5py.Dataset):
            text = h5py.check_string_dtype(item.dtype)
            values[f"data set {name}"] = item.asstr()[()] if text else item[()]

    with h5py.File(path, "r") as file:
        note("", file)
        file.visititems(note)
    return values


def _json(path: Path) -> dict[str, Any]:
    """The leaves of a JSON file by their place; those of all elements of a list are one column."""
    found: dict[str, list[Any]] = {}

    def note(value: Any, place: str) -> None:
        if isinstance(value, dict) and value:
            for key, below in value.items():
                note(below, f"{place}/{key}")
        elif isinstance(value, list) and value:
            for below in value:
                note(below, f"{place}/*")
        else:
            found.setdefault(place or "/", []).append(value)

    note(json.loads(path.read_text(encoding="utf-8")), "")
    return {place: _column(values) for place, values in found.items()}


def _column(values: list[Any]) -> np.ndarray:
    """Leaves as an array: of numbers where null, for NaN, is all that stands among them."""
    kinds = {type(value) for value in values}
    if kinds & {int, float} and kinds <= {int, float, type(None)}:
        return np.array([np.nan if value is None else value for value in values])
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _compare(a: dict[str, Any], b: dict[str, Any], tolerance: float) -> Iterator[str]:
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            yield f"{name}: only in the {'first' if name in a else 'second'}"
            continue
        x, y = np.asarray(a[name]), np.asarray(b[name])
        if x.shape != y.shape:
            yield f"{name}: shape {x.shape} and {y.shape}"
            continue
        wrong = np.flatnonzero(~_same(x.ravel(), y.ravel(), tolerance))
        if wrong.size:
            first = wrong[0]
            where = f" at {tuple(map(int, np.unravel_index(first, x.shape)))}" if x.ndim else ""
            yield (
                f"{name}: {wrong.size} of {x.size} differ, first{where}: "
                f"{x.ravel()[first]!s} and {y.ravel()[first]!s}"
            )


def _alike(p: Any, q: Any) -> bool:
    """Whether two values are the same, of absolute paths the name of the file."""
    if isinstance(p, str) and isinstance(q, str) and p.startswith("/") and q.startswith("/"):
        return Path(p).name == Path(q).name
    return p == q or (p != p and q != q)


def _same(x: np.ndarray, y: np.ndarray, tolerance: float) -> np.ndarray:
    """Which elements of two flat arrays are the same."""
    if not all(np.issubdtype(values.dtype, np.number) for values in (x, y)):
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        return np.array([_alike(p, q) for p, q in pairs], dtype=bool)
    if all(np.issubdtype(values.dtype, np.integer) for values in (x, y)):
        return x == y
    x, y = x.astype(float), y.astype(float)
    sizes = np.abs(np.concatenate([x, y]))
    counted = sizes[np.isfinite(sizes) & (sizes > 0)]
    scale = np.sqrt(np.mean(counted**2)) if counted.size else 0.0
    with np.errstate(invalid="ignore"):
        close = np.abs(x - y) <= tolerance * np.maximum(np.maximum(np.abs(x), np.abs(y)), scale)
    # Infinity less infinity is no number, and infinity is close to everything by its own size.
    finite = np.isfinite(x) & np.isfinite(y)
    return np.where(finite, close, (x == y) | (np.isnan(x) & np.isnan(y)))


if __name__ == "__main__":
    found = differences(*sys.argv[1:3])
    print("\n".join(found) if found else "the same results")
    sys.exit(bool(found))
