"""Results in a notebook: tables as pandas, fields as arrays that are read when they are indexed.

>>> run = rfatlas.open("results/demo")
>>> run.channels.query("layer == 'conv1' and inactive")
>>> run["receptive_fields/conv1"]["mean_gradient"][3]

No file stays open between two accesses, so a run may be looked at while the workflow goes on.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.plan import schema


class Field:
    """A dataset of a result file, read when it is indexed or turned into an array."""

    def __init__(self, path: Path, name: str):
        self._path, self._name = path, name
        with store.open(path) as file:
            dataset = file[name]
            self.shape: tuple[int, ...] = dataset.shape
            self.dtype: np.dtype = dataset.dtype

    def __getitem__(self, index: Any) -> Any:
        """Return the part of the dataset that a NumPy index names; only that part is read."""
        with store.open(self._path) as file:
            dataset = file[self._name]
            text = h5py.check_string_dtype(dataset.dtype) is not None
            return (dataset.asstr() if text else dataset)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[()], dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{self._path.name}: {self._name} {self.shape} {self.dtype}>"


class Fields(Mapping):
    """The datasets of one result file by name (`group/name` for those in groups), and its
    attributes (`attrs`, a dict)."""

    def __init__(self, path: Path):
        self._path = path
        found: dict[str, Any] = {}
        with store.open(path) as file:
            self.attrs: dict[str, Any] = dict(file.attrs)
            file.visititems(found.__setitem__)
            self._names = [name for name in found if isinstance(found[name], h5py.Dataset)]

    def __getitem__(self, name: str) -> Field:
        if name not in self._names:
            raise KeyError(f"{self._path}: no dataset {name!r}{schema.closest(name, self._names)}")
        return Field(self._path, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<{self._path}: {', '.join(self._names)}>"


class Run(Mapping):
    """The results of one run: `run["<stage>/<layer>"]` gives the fields of that file,
    `run["activations"]` those of activations.h5, and so on; iterating lists what there is. `path`
    is `results/<run>`; RfatlasError if it holds no run.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "model.json").is_file():
            raise RfatlasError(
                f"{self.path}: no model.json, so this is not a run of rfatlas; "
                "expected results/<run>"
            )

    def __getitem__(self, name: str) -> Fields:
        names = list(self)
        if name not in names:
            raise KeyError(f"{self.path}: no file {name}.h5{schema.closest(name, names)}")
        return Fields(self.path / f"{name}.h5")

    def _names(self, suffix: str) -> list[str]:
        """Return the files of a suffix, less that, in the run's folder and in those within."""
        files = sorted([*self.path.glob(f"*{suffix}"), *self.path.glob(f"*/*{suffix}")])
        names = (path.relative_to(self.path).as_posix().removesuffix(suffix) for path in files)
        return [name for name in names if ".partial/" not in name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names(".h5"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @cached_property
    def model(self) -> dict[str, Any]:
        """What model.json says: layers, input, classes."""
        return json.loads((self.path / "model.json").read_text(encoding="utf-8"))

    @property
    def layers(self) -> list[str]:
        """The names of the layers in the order of the network."""
        return list(dict.fromkeys(self.channels["layer"]))

    @cached_property
    def channels(self) -> pd.DataFrame:
        """channels.csv, one row per channel of every layer (docs/columns.md)."""
        return self.table("channels")

    def table(self, name: str) -> pd.DataFrame:
        """Return `<name>.csv` of the run, e.g. `orientation/selective` (docs/tables.md).

        Raises RfatlasError, naming the tables there are, if it is not among them.
        """
        names = self._names(".csv")
        if name not in names:
            raise RfatlasError(
                f"{self.path}: no table {name!r}{schema.closest(name, names)}; "
                f"there are {', '.join(names) or 'none'}"
            )
        return store.read_table(self.path / f"{name}.csv")

    def __repr__(self) -> str:
        return f"<run {self.path}: {len(self.model['layers'])} layers>"
