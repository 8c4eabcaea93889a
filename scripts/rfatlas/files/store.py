"""HDF5 files with provenance, written whole or not at all, and progress that survives SIGKILL.

Every result file carries the attributes that docs/files.md lists; `complete` is written last.
`identity` hashes these attributes: since each file names the identities of its inputs, the hash
addresses the content through the whole chain. Arrays of numbers carry HDF5's own checksums
(Fletcher-32), less those that are written in place and mapped to memory.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from rfatlas import __version__
from rfatlas.errors import RfatlasError
from rfatlas.files import disk, versions

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("rfatlas")


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
    """Yield a new HDF5 file that appears at `path` only when the block ends without an error.

    Raises RfatlasError, naming the file, if the disk is full.
    """
    with disk.whole(path) as temporary:
        with written(temporary, new=True, name=path) as file:
            file.attrs.update(attrs)
            yield file
            file.attrs["complete"] = True
        disk.sync(temporary)


_CHUNK_BYTES = 1 << 16


class _Missing(RfatlasError, KeyError):
    """A dataset that a file should have; h5py expects a KeyError in places."""

    __str__ = Exception.__str__


class _Group(h5py.Group):
    """A group whose arrays of numbers get checksums of their chunks, and which says what it lacks
    with the name of the file."""

    def __getitem__(self, name: Any) -> Any:
        try:
            found = super().__getitem__(name)
        except KeyError as error:
            raise _Missing(
                f"{self.file.filename}: no dataset {f'{self.name}/{name}'.lstrip('/')!r}; another "
                "version of rfatlas may have written it, or it was changed: delete it and rerun"
            ) from error
        return _Group(found.id) if type(found) is h5py.Group else found

    def create_group(self, name: str, track_order: bool | None = None) -> h5py.Group:
        return _Group(super().create_group(name, track_order).id)

    def create_dataset(
        self, name: str | None, shape: Any = None, dtype: Any = None, data: Any = None, **options
    ) -> h5py.Dataset:
        found = np.dtype(dtype) if dtype is not None else np.asarray(data).dtype
        rows = np.shape(data) if shape is None else shape
        if found.kind in "biufc" and rows and np.prod(rows):
            # As many rows to a chunk as make 64 kB: they are read one by one.
            length, *rest = (rows,) if isinstance(rows, int) else rows
            fitting = _CHUNK_BYTES // (found.itemsize * int(np.prod(rest)))
            options = {
                "chunks": (min(length, max(1, fitting)), *rest),
                "fletcher32": True,
            } | options
        return super().create_dataset(name, shape, dtype, data, **options)


class _File(_Group, h5py.File):
    """A result file: arrays get checksums as they are written, and damage is told with its name."""

    def __exit__(self, *exception: Any) -> None:
        error = exception[1]
        # What h5py finds wrong, not the system.
        damaged = isinstance(error, OSError) and error.errno is None and _is_damaged(self)
        path = self.filename
        super().__exit__(*exception)
        if damaged:
            raise _damaged(path, error) from error


def _is_damaged(file: h5py.File) -> bool:
    """Whether something in a file cannot be read."""

    def read(_: str, node: h5py.HLObject) -> None:
        if isinstance(node, h5py.Dataset):
            for part in node.iter_chunks() if node.chunks else ():
                node[part]

    try:
        file.visititems(read)
    except (OSError, RuntimeError, KeyError, ValueError):
        return True
    return False


def _damaged(path: str | Path, error: Exception) -> RfatlasError:
    return RfatlasError(
        f"{path}: not a readable HDF5 file, probably truncated or damaged ({error}); "
        "delete it and rerun"
    )


@contextlib.contextmanager
def written(
    path: str | Path, new: bool, name: str | Path = "", libver: str | None = None
) -> Iterator[h5py.File]:
    """Yield an HDF5 file to write (`new`) or to change; it is closed afterwards.

    Raises RfatlasError, naming `name` (default: the file), if the disk is full.
    """
    with disk.Writer(path, "w+" if new else "r+") as writer:
        try:
            with _File(writer, "w" if new else "r+", libver=libver) as file:
                yield file
        finally:
            if writer.error is not None:
                raise disk.failed(name or path, writer.error, writer.needed) from writer.error


def open(path: str | Path, stage: str | None = None) -> h5py.File:
    """Open a finished result file for reading, in a `with` statement.

    Raises RfatlasError, naming the file, if it is missing, truncated or not HDF5, unfinished, or of
    another stage; the `with` statement does where an array is damaged.
    """
    if not Path(path).is_file():
        raise RfatlasError(f"{path}: no such file; run the stage {stage or 'that writes it'} first")
    try:
        file = _File(path, "r")
    except OSError as error:
        raise _damaged(path, error) from error
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


def ranges(paths: Iterable[str | Path], stage: str) -> Iterator[h5py.File]:
    """Yield the open files of consecutive ranges [`start`, `stop`) of `total`, in order.

    Raises RfatlasError if a range is missing, out of order or overlaps, or if the files were made
    from different images, weights or settings.
    """
    expected, total, whole, path = 0, 0, {}, None
    for path in paths:
        with open(path, stage) as file:
            start, stop, total = (int(file.attrs[key]) for key in ("start", "stop", "total"))
            made = {key: file.attrs[key] for key in _PROVENANCE if key in file.attrs}
            made["config"] = json.loads(made["config"])
            made["config"].pop("range", None)
            whole = whole or made
            if differing := [key for key in whole if whole[key] != made[key]]:
                raise RfatlasError(
                    f"{path}: its {', '.join(differing)} differ(s) from that of the ranges before; "
                    "all must come from the same images, weights and settings: delete and rerun"
                )
            if start != expected:
                raise RfatlasError(
                    f"{path}: starts at {start}, expected {expected}; ranges must be given in "
                    "order, without gap or overlap"
                )
            expected = stop
            yield file
    if expected != total:
        raise RfatlasError(
            f"{path}: the ranges end at {expected}, expected {total}; a range is missing"
        )


#: Seconds to wait for a process that still works at the same output.
LOCK_WAIT_S = 30.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def _lock(folder: Path, wait_s: float) -> int:
    """Make `folder` this process's own until it ends or closes the descriptor that is returned, of
    the file `<folder>.lock`. A process may lock what it has locked already."""
    path, deadline = Path(f"{folder}.lock"), time.monotonic() + wait_s
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one before may have removed the file between the two lines.
            if os.fstat(descriptor).st_nlink:
                break
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace")
                raise RfatlasError(
                    f"{folder}: {holder or 'another process'} is still working at this output, "
                    "left over from a run that was killed or started twice; wait until it ends, or "
                    "end it, then give the same command again"
                ) from None
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("%s: this file system has no locks; do not start two runs here", folder)
            break
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)
    return descriptor


#: Progress is put on record after so many seconds, or so many times what that costs if it is more.
SAVE_EVERY_S = 10.0
SAVE_COSTS = 20


class Partial:
    """Progress of one output, kept next to it in the undeclared folder `<output>.partial`.

    Snakemake does not know the folder, so it survives a killed or failed job. Records are written
    atomically. A folder with another fingerprint (params, stage version, weights, image list) is
    wiped: it belongs to another question. One process at a time has the folder: jobs of a run that
    was killed may live on for a while.

    Raises RfatlasError if another process has it and keeps it for LOCK_WAIT_S.
    """

    def __init__(self, output: str | Path, fingerprint: Mapping[str, Any]):
        self.folder = Path(f"{output}.partial")
        self._lock = _lock(self.folder, LOCK_WAIT_S)
        wanted = json.dumps(fingerprint, sort_keys=True, default=str)
        stamp = self.folder / "fingerprint.json"
        if not stamp.is_file() or stamp.read_text() != wanted:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir()
            with disk.text(stamp) as file:
                file.write(wanted)
        for leftover in self.folder.glob("*.npz.tmp"):
            leftover.unlink()
        self._since, self._cost = time.monotonic(), 0.0
        if records := self.names():
            log.info("resuming: %s holds %d records", self.folder, len(records))

    def names(self) -> list[str]:
        """Return the names of the finished records, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.npz"))

    @property
    def due(self) -> bool:
        """Whether it is time for another record."""
        return time.monotonic() - self._since > max(SAVE_EVERY_S, SAVE_COSTS * self._cost)

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one record; it exists afterwards completely or not at all."""
        begun = time.monotonic()
        path = self.folder / f"{name}.npz"
        try:
            with disk.whole(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            size = sum(np.asarray(array).nbytes for array in arrays.values())
            raise disk.failed(path, error, size) from error
        self._since = time.monotonic()
        self._cost = self._since - begun

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
        Path(f"{self.folder}.lock").unlink(missing_ok=True)
        os.close(self._lock)


class Steps:
    """The results of the steps of a job, put on record now and then: killed, it goes on from there.

    The steps must come in the same order each time; each is a mapping of names to arrays.
    """

    def __init__(self, partial: Partial):
        self._partial = partial
        self._recorded = self._records()
        self._next = next(self._recorded, None)
        self._unsaved: dict[str, np.ndarray] = {}

    def take(
        self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """Return the step of this name: the one on record, or what `compute` returns."""
        if self._next and self._next[0] == name:
            found = self._next[1]
            self._next = next(self._recorded, None)
            return found
        found = compute()
        self._unsaved |= {f"{name}/{key}": array for key, array in found.items()}
        if self._partial.due:
            self.save()
        return found

    def save(self) -> None:
        """Put on record what is not there yet."""
        if self._unsaved:
            self._partial.save(f"{len(self._partial.names()):06d}", self._unsaved)
            self._unsaved = {}

    def all(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield all steps so far, in their order."""
        self.save()
        return (found for _, found in self._records())

    def _records(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for record in self._partial.names():
            steps: dict[str, dict[str, np.ndarray]] = {}
            for key, array in self._partial.load(record).items():
                step, _, name = key.rpartition("/")
                steps.setdefault(step, {})[name] = array
            yield from steps.items()


def fill(file: h5py.File, rows: int, parts: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write datasets (rows, ...) from parts of them, one after the other, by name."""
    first = 0
    for part in parts:
        for name, values in part.items():
            if name not in file:
                file.create_dataset(name, (rows, *values.shape[1:]), values.dtype)
            file[name][first : first + len(values)] = values
        first += len(values)


class Rows:
    """The dataset `name` of a new file, in one piece: its rows are written beside HDF5, by any
    process, without touching the file's metadata."""

    def __init__(
        self, path: str | Path, name: str, shape: tuple[int, ...], dtype: Any, libver: str | None
    ):
        self._path, self._dtype = Path(path), np.dtype(dtype)
        self._row_bytes = self._dtype.itemsize * int(np.prod(shape[1:]))
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        options = {"chunks": None, "fletcher32": None, "fill_time": "never", "dcpl": early}
        with written(path, new=True, libver=libver) as file:
            dataset = file.create_dataset(name, shape, self._dtype, **options)
            self._offset = dataset.id.get_offset()
        self._file = self._path.open("r+b", buffering=0)

    def write(self, row: int, values: np.ndarray) -> None:
        """Write `values` (n, ...) to the rows `row` to `row + n - 1`; RfatlasError when the disk is
        full."""
        values = np.ascontiguousarray(values, self._dtype)
        at = self._offset + row * self._row_bytes
        remaining = memoryview(values).cast("B")
        try:
            while remaining:
                count = os.pwrite(self._file.fileno(), remaining, at)
                remaining, at = remaining[count:], at + count
        except OSError as error:
            raise disk.failed(self._path, error, len(remaining)) from error


def array(dataset: h5py.Dataset) -> Any:
    """Return a dataset for random reading: a read-only memory map of its rows if it is in one
    piece, else the dataset itself."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype.hasobject:
        return dataset
    return np.memmap(dataset.file.filename, dataset.dtype, "r", offset, dataset.shape)


def aligned(stored: Any, have: Any, chosen: np.ndarray) -> np.ndarray:
    """Return the fields float32 (n, ...) of chosen channels (n,); NaN for those that `have` lacks.

    `stored` has a row for every channel of `have`.
    """
    fields = np.full((len(chosen), *stored.shape[1:]), np.nan, np.float32)
    rows = {channel: row for row, channel in enumerate(have[:].tolist())}
    for field, channel in zip(fields, chosen.tolist(), strict=True):
        if channel in rows:
            field[:] = stored[rows[channel]]
    return fields


def write_table(table: "pd.DataFrame", path: str | Path) -> None:
    """Write a table as CSV, whole or not at all; numbers with 9 significant digits, NaN as an empty
    field. Raises RfatlasError, naming the file, if the disk is full."""
    with disk.text(path) as file:
        table.to_csv(file, index=False, float_format="%.9g", lineterminator="\n")


def write_tables(tables: Mapping[str, "pd.DataFrame"], paths: Any) -> None:
    """Write each table to the path that is the attribute of its name (`snakemake.output`)."""
    for name, table in tables.items():
        write_table(table, getattr(paths, name))
        log.info("%s: %d rows", name, len(table))


def read_table(path: str | Path) -> "pd.DataFrame":
    """Read a table that `write_table` wrote; only an empty field is missing.

    Raises RfatlasError, naming the file, if it is missing or no table.
    """
    # Jobs that read no table do not wait for pandas.
    import pandas as pd

    try:
        names = dict.fromkeys(("layer", "other_layer"), str)
        return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=names)
    except (OSError, ValueError) as error:
        raise RfatlasError(f"{path}: not a readable table ({error})") from error
