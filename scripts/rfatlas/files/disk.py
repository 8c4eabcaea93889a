"""Files that appear whole or not at all, and one clear line where a disk is full."""

import contextlib
import errno
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rfatlas.errors import RfatlasError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full."""
    # Libraries in Rust tell it in words only.
    return getattr(error, "errno", None) in _FULL or "No space left on device" in str(error)


def no_room(path: str | Path, needed: int | None = None) -> RfatlasError:
    """Return the error for a disk or a quota that is full, while `needed` more bytes were being
    written to `path`."""
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    wanted = "" if needed is None else f" for {needed / 1e6:.3f} MB more"
    return RfatlasError(
        f"{path}: no room on the disk (or in the quota){wanted}: {free / 1e6:.3f} MB are free in "
        f"{folder}. Nothing half-written counts as done; make room and give the same command "
        "again: it goes on where it stopped"
    )


def failed(path: str | Path, error: OSError, needed: int | None = None) -> RfatlasError:
    """Return the error for a write to `path` that failed."""
    if is_full(error):
        return no_room(path, needed)
    return RfatlasError(f"{path}: cannot be written: {error.strerror or error}")


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield where to write a file that appears at `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def text(path: str | Path) -> Iterator[TextIO]:
    """Yield a text file (UTF-8, for the module csv, too) that appears at `path` whole or not at
    all."""
    try:
        with whole(path) as temporary:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                yield file
    except OSError as error:
        raise failed(path, error) from error


def sync(path: str | Path) -> None:
    """Hand all of a file to the disk: a file system of a network may say only now that it is full.

    Raises RfatlasError if that fails.
    """
    try:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise failed(path, error) from error


def sha256(path: str | Path) -> str:
    """Return the sha256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Writer(io.FileIO):
    """A file for h5py to write, which keeps its first failure in `error` and drops what follows.

    HDF5 must not see the failure: once it could not write its metadata, it crashes when it closes
    the file. `needed` are the bytes that found no room.
    """

    error: OSError | None = None
    needed = 0

    def __repr__(self) -> str:
        # h5py takes this for the file's name, and can keep ASCII only.
        return "output"

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what comes next, zeros for what was never written."""
        view = memoryview(buffer).cast("B")
        count = super().readinto(view)
        view[count:] = bytes(len(view) - count)
        return len(view)

    def write(self, data: Any) -> int:
        """Write the bytes; return their number."""
        view = memoryview(data).cast("B")
        try:
            while view and self.error is None:
                view = view[super().write(view) :]
        except OSError as error:
            self.error, self.needed = error, len(view)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file."""
        try:
            if self.error is None:
                return super().truncate(size)
        except OSError as error:
            self.error = error
        return size or 0
