"""Source `huggingface`: data sets as the library `datasets` keeps them.

`path` is a Parquet file or a folder of them (as of imagenet-1k: a column of images with `bytes` and
`path`, and `label`), read in place; or a folder with metadata.csv or metadata.jsonl, whose rows
name files (`file_name`) and may have a `label`. Of several splits, `split` names the one to take.
Names of classes come from the features that the library writes into Parquet files.
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rfatlas.errors import RfatlasError
from rfatlas.sources import classes
from rfatlas.sources.listing import Listing
from rfatlas.sources.lists import List
from rfatlas.sources.shards import files_of, in_archives

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_METADATA = ("metadata.csv", "metadata.jsonl")
# What pyarrow raises on damaged files.
_DAMAGE = (OSError, ValueError, NotImplementedError, IndexError, KeyError)


class HuggingFace(List):
    """Parquet files, or a table beside its images."""

    keys = ("path", "split", "class_names")
    is_folder = None
    may_lack_labels = True

    def listing(self) -> Listing:
        if not self.path.is_dir():
            return self._parquet([self.path])
        tables = [self.path / name for name in _METADATA if (self.path / name).is_file()]
        tables = tables or sorted(p for name in _METADATA for p in self.path.glob(f"*/{name}"))
        if not tables:
            # As in validation-00000-of-00014.parquet.
            files = files_of(self, ".parquet")
            return self._parquet(self._of_split(files, lambda path: path.name.split("-")[0]))
        folder = self.path
        (self.path,) = self._of_split(tables, lambda path: path.parent.name)
        listing = (
            super().listing() if self.path.suffix == ".csv" else self.from_rows(self._json_rows())
        )
        listing.watched = [folder, self.path]
        return listing

    def _of_split(self, paths: Sequence[Path], split_of: Callable[[Path], str]) -> list[Path]:
        """Return the paths of the split that is wanted, or of the only one."""
        splits = sorted({split_of(path) for path in paths})
        if self.split is None and len(splits) > 1:
            raise self.wrong(f"contains the splits {', '.join(splits)}; give split, one of them")
        found = [path for path in paths if split_of(path) == self.split or len(splits) == 1]
        if not found:
            raise RfatlasError(
                f"{self.key}.split: {self.split!r} is not there; {self.path} has "
                f"{', '.join(splits)}"
            )
        return found

    def _json_rows(self) -> list[tuple[int, str, str, str]]:
        rows = []
        for number, line in enumerate(self.lines("path"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows.append((number, row["file_name"], str(row.get("label", -1)), ""))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise self.wrong(
                    f"line {number}: {line[:60]!r}; each line must be JSON with file_name and, "
                    "if there are any, label"
                ) from None
        if not rows:
            raise self.wrong("lists no image")
        return rows

    def _parquet(self, paths: Sequence[Path]) -> Listing:
        """List the images of Parquet files, of which labels and names alone are read."""
        names, labels, shards, rows, sizes = [], [], [], [], []
        class_names: list[str] = []
        for shard, path in enumerate(paths):
            try:
                file, image, label = _opened(path, *_stamp(path))
                columns = [f"{image}.path"] + ([label] if label else [])
                table = file.read(columns=columns, use_threads=False)
                inner = [row["path"] if row else None for row in table.column(image).to_pylist()]
                given = table.column(label).to_pylist() if label else [-1] * len(inner)
            except _DAMAGE as error:
                raise self.wrong(f"{path.name}: {_damaged(error)}") from error
            names += [name or f"{path.stem}/{row}" for row, name in enumerate(inner)]
            labels += given
            shards += [shard] * len(inner)
            rows += range(len(inner))
            sizes += _sizes(file)
            class_names = _class_names(file, label) or class_names
        if not names:
            raise self.no_image()
        if len(set(names)) < len(names):
            names = [f"{paths[shard].stem}/{row}" for shard, row in zip(shards, rows, strict=True)]
        written = ["-1" if label is None else str(label) for label in labels]
        numbers, named, facts = classes.labels_of(self, written, names)
        facts |= {"featured": len(class_names)}
        offsets, sizes, archive = (np.array(c, dtype=np.int64) for c in (rows, sizes, shards))
        listing = Listing(
            self.name, self.path, names, numbers, class_names or named, offsets, sizes
        )
        listing.read = read_row
        return in_archives(listing, list(paths), archive, facts)


def _stamp(path: Path) -> tuple[int, int, int]:
    """What an open file is kept for: a process, and the file as it is now."""
    status = os.stat(path)
    return os.getpid(), status.st_size, status.st_mtime_ns


def _damaged(error: Exception) -> str:
    return f"not a readable Parquet file of images ({str(error).splitlines()[0]})"


@functools.lru_cache(64)
def _opened(path: Path, *stamp: int) -> "tuple[pyarrow.parquet.ParquetFile, str, str]":
    """Return the file, its column of images and its column of labels, or ""."""
    # Imported here: only this source needs it.
    import pyarrow
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    images = [
        field.name
        for field in file.schema_arrow
        if pyarrow.types.is_struct(field.type)
        and {"bytes", "path"} <= {field.type.field(i).name for i in range(field.type.num_fields)}
    ]
    if len(images) != 1:
        raise ValueError(f"{len(images)} columns of images (`bytes`, `path`); it must have one")
    return file, images[0], "label" if "label" in file.schema_arrow.names else ""


def _sizes(file: "pyarrow.parquet.ParquetFile") -> list[int]:
    """Bytes of each row, as the mean over its row group: the lengths themselves are not listed."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    return [one.total_byte_size // one.num_rows for one in groups for _ in range(one.num_rows)]


def _class_names(file: "pyarrow.parquet.ParquetFile", label: str) -> list[str]:
    """The names of the classes that the library `datasets` wrote, or none."""
    try:
        features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def read_row(path: Path, row: int, size: int = 0) -> bytes:
    """Return the bytes of the image in a row of a Parquet file; none where the row has none."""
    try:
        stamp = _stamp(path)
        file, image, _ = _opened(path, *stamp)
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if row < count:
                return _row_group(path, group, image, *stamp)[row].as_py()["bytes"] or b""
            row -= count
    except _DAMAGE as error:
        raise RfatlasError(f"{path}: {_damaged(error)}; fetch it again") from error
    raise RfatlasError(f"{path}: row {row} is not there any more; give the same command again")


@functools.lru_cache(1)
def _row_group(path: Path, group: int, image: str, *stamp: int) -> "pyarrow.Array":
    file, _, _ = _opened(path, *stamp)
    table = file.read_row_group(group, columns=[f"{image}.bytes"], use_threads=False)
    return table.column(image).combine_chunks()
