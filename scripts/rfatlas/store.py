"""HDF5 files with provenance, written whole or not at all, and progress that survives SIGKILL.

Every result file carries the attributes of design.md section 4; `complete` is written last.
`identity` hashes these attributes: since each file names the identities of its inputs, the hash
addresses the content through the whole chain.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from rfatlas import __version__, versions
from rfatlas.errors import RfatlasError

if TYPE_CHECKING:
    import pandas as pd


def provenance(
    stage: str,
    config: Mapping[str, Any],
    weights_sha256: str = "",
    created_from: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the attributes that every result file carries.

    `config` holds the parameters of the stage (JSON-serialisable), `created_from` maps each input
    to its identity.
    """
    return {
        "rfatlas_version": __version__,
        "stage": stage,
        "stage_version": versions.stage(stage),
        "config": json.dumps(config, sort_keys=True),
        "weights_sha256": weights_sha256,
        "created_from": json.dumps(dict(created_from or {}), sort_keys=True),
        "device": device,
    }


@contextlib.contextmanager
def create(path: str | Path, attrs: Mapping[str, Any]) -> Iterator[h5py.File]:
    """Yield a new HDF5 file that appears at `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs.update(attrs)
            yield file
            file.attrs["complete"] = True
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open(path: str | Path, stage: str | None = None) -> h5py.File:
    """Open a finished result file for reading.

    Raises RfatlasError, naming the file, if it is missing, truncated or not HDF5, unfinished, or of
    another stage.
    """
    if not Path(path).is_file():
        raise RfatlasError(f"{path}: no such file; run the stage {stage or 'that writes it'} first")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise RfatlasError(
            f"{path}: not a readable HDF5 file, probably truncated or damaged ({error}); "
            "delete it and rerun"
        ) from error
    found = file.attrs.get("stage")
    problem = None
    if not file.attrs.get("complete", False):
        problem = "was never finished (attribute `complete` is missing); delete it and rerun"
    elif stage is not None and found != stage:
        problem = f"was written by stage {found!r}, expected {stage!r}"
    if problem:
        file.close()
        raise RfatlasError(f"{path}: {problem}")
    return file


_PROVENANCE = ("stage", "stage_version", "config", "weights_sha256", "created_from", "sha256")


def identity(path: str | Path) -> str:
    """Return the sha256 (hex) of a finished file's provenance: what made it, from what."""
    with open(path) as file:
        attrs = {key: str(file.attrs[key]) for key in _PROVENANCE if key in file.attrs}
    return hashlib.sha256(json.dumps(attrs, sort_keys=True).encode()).hexdigest()


class Partial:
    """Progress of one output, kept beside it in the undeclared folder `<output>.partial`.

    Snakemake does not know the folder, so it survives a killed or failed job. Records are written
    atomically. A folder with another fingerprint (params, stage version, weights, image list) is
    wiped: it belongs to another question.
    """

    def __init__(self, output: str | Path, fingerprint: Mapping[str, Any]):
        self.folder = Path(f"{output}.partial")
        wanted = json.dumps(fingerprint, sort_keys=True, default=str)
        stamp = self.folder / "fingerprint.json"
        if self.folder.exists() and (not stamp.is_file() or stamp.read_text() != wanted):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not stamp.exists():
            temporary = stamp.with_suffix(".tmp")
            temporary.write_text(wanted)
            os.replace(temporary, stamp)
        for leftover in self.folder.glob("*.npz.tmp"):
            leftover.unlink()

    def names(self) -> list[str]:
        """Return the names of the finished records, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.npz"))

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one record; it exists afterwards completely or not at all."""
        path = self.folder / f"{name}.npz"
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of one record; raises RfatlasError if the file is damaged."""
        path = self.folder / f"{name}.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise RfatlasError(
                f"{path}: damaged progress record ({error}); delete {self.folder} and rerun"
            ) from error

    def finish(self) -> None:
        """Remove the folder; call it when the output is in place."""
        shutil.rmtree(self.folder)


#: What a stage leaves in the `.partial` folder of `<layer>.h5` once the layer is finished.
FIELDS, TABLE = "fields.h5", "table.csv"


def publish(output: str | Path) -> None:
    """Move FIELDS from the folder `<output>.partial` to `output` (.h5), and TABLE beside it (.csv).

    Apart from the work itself, so that a job of several layers moves them all at its end: Snakemake
    removes the outputs of a killed job, and knows nothing of the `.partial` folders.
    """
    folder = Path(f"{output}.partial")
    os.replace(folder / FIELDS, output)
    os.replace(folder / TABLE, Path(output).with_suffix(".csv"))
    shutil.rmtree(folder)


def contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> int:
    """Make a dataset in one piece, allocated but unset; return its byte offset in the file.

    Its rows can be written beside HDF5 once the file is closed, without touching any metadata.
    """
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(file.id, name.encode(), kind, space, layout).get_offset()


class Allocated:
    """A result file of fixed layout whose rows are written beside HDF5: a kill cannot damage it.

    The file is made with all its datasets and attributes, and `complete` false; from then on only
    rows change, and `publish` in the end. An existing file of that name is continued.
    """

    def __init__(
        self,
        path: str | Path,
        datasets: Mapping[str, tuple[tuple[int, ...], Any]],
        attrs: Mapping[str, Any],
    ):
        self._path = Path(path)
        if not self._path.exists():
            temporary = self._path.with_name(self._path.name + ".tmp")
            with h5py.File(temporary, "w") as file:
                file.attrs.update(attrs)
                file.attrs["complete"] = False
                for name, (shape, dtype) in datasets.items():
                    contiguous(file, name, shape, dtype)
            os.replace(temporary, self._path)
        self._rows: dict[str, tuple[int, np.dtype, tuple[int, ...]]] = {}
        with h5py.File(self._path, "r") as file:
            for name in datasets:
                dataset = file[name]
                self._rows[name] = (dataset.id.get_offset(), dataset.dtype, dataset.shape[1:])
        self._descriptor = os.open(self._path, os.O_RDWR)

    def write(self, name: str, row: int, values: np.ndarray) -> None:
        """Write `values` (n, ...) to the rows `row` to `row + n - 1` of dataset `name`.

        Raises OSError (ENOSPC) when the disk is full, ValueError if the shape of a row is another.
        """
        offset, dtype, shape = self._rows[name]
        values = np.ascontiguousarray(values, dtype)
        if values.shape[1:] != shape:
            raise ValueError(f"{name}: rows of shape {values.shape[1:]}, expected {shape}")
        at = offset + row * dtype.itemsize * int(np.prod(shape))
        remaining = memoryview(values).cast("B")
        while remaining:
            written = os.pwrite(self._descriptor, remaining, at)
            remaining, at = remaining[written:], at + written

    def complete(self) -> None:
        """Flush the rows and mark the file complete; nothing can be written afterwards."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        with h5py.File(self._path, "r+") as file:
            # Overwrites one value in place, so that even this leaves the file readable if killed.
            file.attrs.modify("complete", True)


def array(dataset: h5py.Dataset) -> Any:
    """Return a dataset for random reading: a read-only memory map if it is contiguous, else the
    dataset itself."""
    offset = dataset.id.get_offset()
    if offset is None:
        return dataset
    return np.memmap(dataset.file.filename, dataset.dtype, "r", offset, dataset.shape)


def write_table(table: "pd.DataFrame", path: str | Path) -> None:
    """Write a table as CSV, whole or not at all; numbers with 9 significant digits, NaN as an empty
    field."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    table.to_csv(temporary, index=False, float_format="%.9g", lineterminator="\n")
    os.replace(temporary, path)


def read_table(path: str | Path) -> "pd.DataFrame":
    """Read a table that `write_table` wrote; only an empty field is missing.

    Raises RfatlasError, naming the file, if it is missing or no table.
    """
    # Jobs that read no table do not wait for pandas.
    import pandas as pd

    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"layer": str})
    except (OSError, ValueError) as error:
        raise RfatlasError(f"{path}: not a readable table ({error})") from error
