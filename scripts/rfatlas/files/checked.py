"""Files for h5py of which every byte is checked when it is read, and writing that a full disk does
not crash.

HDF5 has checksums for chunked data alone: none for data in one piece (the packed images), strings
or attributes. So a finished file is sealed: behind its end stands a table with the CRC-32 of each
of its blocks, which HDF5 and its other programs ignore. `Reader` compares the blocks that are
asked for, each once, so that one job can read its part of a file of any size. A file without the
table (of an older version, or changed by another program) is read unchecked.
"""

import contextlib
import errno
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from rfatlas.errors import RfatlasError

#: Bytes of a block: a compromise between the table's size and what a single row makes us read.
BLOCK = 1 << 18

#: Bytes of a memory map that a process holds at most, but for what one access reads.
RESIDENT_BYTES = 1 << 26
# What the system maps with a page that is asked for, if it has it already.
_AROUND = 1 << 16

_MAGIC = b"rfatlas checksums"
# Bytes of the content, bytes of a block; then the CRC-32 of all before, and the magic. An odd
# number of bytes: no flip of one bit in the length that HDF5 keeps can hide them.
_HEAD, _FOOT = struct.Struct("<QI"), struct.Struct("<I17s")
_HDF5 = b"\x89HDF\r\n\x1a\n"
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
def text(path: str | Path) -> Iterator[TextIO]:
    """Yield a text file (UTF-8, for the module csv, too) that appears at `path` whole or not at
    all."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise failed(path, error) from error


def seal(path: str | Path) -> None:
    """Append the checksums to a finished file, and hand all of it to the disk.

    Raises RfatlasError if that fails, on a full disk for one.
    """
    try:
        with open(path, "r+b") as file:
            sums = []
            while block := file.read(BLOCK):
                sums.append(zlib.crc32(block))
            table = np.array(sums, "<u4").tobytes() + _HEAD.pack(file.tell(), BLOCK)
            file.write(table + _FOOT.pack(zlib.crc32(table), _MAGIC))
            file.flush()
            # A network's file system may tell only now that it is full.
            os.fsync(file.fileno())
    except OSError as error:
        raise failed(path, error) from error


def unseal(path: str | Path) -> None:
    """Take the checksums, or what was written of them, off a file that is going to be changed."""
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.truncate(min(size, _end(file.fileno(), size)))


def _checksums(descriptor: int, path: str | Path) -> tuple[int, int, np.ndarray] | None:
    """Return (bytes of the content, bytes of a block, CRC-32 of each block), None if unsealed."""
    size = os.fstat(descriptor).st_size
    tail = _HEAD.size + _FOOT.size
    foot = os.pread(descriptor, tail, max(size - tail, 0))
    if len(foot) == tail and foot.endswith(_MAGIC):
        content, block = _HEAD.unpack_from(foot)
        total, _ = _FOOT.unpack_from(foot, _HEAD.size)
        count = -(-content // block) if block else 0
        if content + 4 * count + tail == size:
            table = os.pread(descriptor, 4 * count, content)
            if zlib.crc32(table + foot[: _HEAD.size]) == total:
                return content, block, np.frombuffer(table, "<u4")
    elif size <= _end(descriptor, size):
        return None
    raise RfatlasError(
        f"{path}: truncated or damaged: what stands behind its end are not its checksums; delete "
        "it and rerun"
    )


def _end(descriptor: int, size: int) -> int:
    """Return where an HDF5 file ends by its own account; `size` if it does not look like one."""
    head = os.pread(descriptor, 48, 0)
    place = {0: 40, 2: 28, 3: 28}.get(head[8]) if len(head) == 48 else None
    if not head.startswith(_HDF5) or place is None:
        return size
    return int.from_bytes(head[place : place + 8], "little")


class _File:
    """What h5py asks of a file object that it works on."""

    def __init__(self, path: str | Path, flags: int):
        self._path = str(path)
        self._descriptor = os.open(path, flags, 0o666)
        self._at = 0

    def __repr__(self) -> str:
        # h5py takes this for the file's name, and is able to keep ASCII only.
        return self._path if self._path.isascii() else f"/dev/fd/{self._descriptor}"

    def __del__(self):
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, count: int) -> bytes:
        """Return the next bytes, at most `count`."""
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(buffer)])

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what comes next; return the number of bytes."""
        count = os.preadv(self._descriptor, [buffer], self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte; return its number."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence, self._size())
        return self._at

    def tell(self) -> int:
        """Return the number of the next byte."""
        return self._at

    def flush(self) -> None:
        """Do nothing: nothing is held back."""


class Reader(_File):
    """A finished file, of which each block is compared with its checksum at the first reading.

    Raises RfatlasError, naming the file, here or in any reading if it is damaged.
    """

    def __init__(self, path: str | Path):
        super().__init__(path, os.O_RDONLY)
        found = _checksums(self._descriptor, path)
        self._content, self._block, self._sums = found or (super()._size(), 0, None)
        self._unseen = np.ones(0 if found is None else len(found[2]), bool)

    def _size(self) -> int:
        return self._content

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what comes next, checked; return the number of bytes."""
        count = super().readinto(buffer)
        self.check(self._at - count, self._at)
        return count

    def check(self, start: int, stop: int) -> None:
        """Compare the blocks of the bytes [start, stop) with their checksums."""
        if self._sums is None:
            return
        first = start // self._block
        part = self._unseen[first : -(-stop // self._block)]
        for number in first + np.flatnonzero(part):
            begin = int(number) * self._block
            count = min(self._block, self._content - begin)
            block = os.pread(self._descriptor, count, begin)
            if zlib.crc32(block) != self._sums[number]:
                raise RfatlasError(
                    f"{self._path}: damaged: the bytes {begin} to {begin + count - 1} are not "
                    "those that were written; delete it and rerun"
                )
            self._unseen[number] = False


class Writer(_File):
    """A file that h5py writes or changes.

    HDF5 crashes, sometimes minutes later, if a disk is full while it closes a file. So only the
    first failure is raised, and none once `closing` is set; what follows is dropped, since the
    file is lost anyway. `error` keeps the failure, `needed` the bytes that found no room.
    """

    def __init__(self, path: str | Path, new: bool):
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if new else 0)
        super().__init__(path, flags)
        self.closing, self.needed = False, 0
        self.error: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what comes next, zeros for what was never written."""
        view = memoryview(buffer).cast("B")
        count = super().readinto(view)
        view[count:] = bytes(len(view) - count)
        self._at += len(view) - count
        return len(view)

    def write(self, data: Any) -> int:
        """Write the bytes; return their number."""
        view = memoryview(data).cast("B")
        self._at += len(view)
        while view and self.error is None:
            try:
                view = view[os.pwrite(self._descriptor, view, self._at - len(view)) :]
            except OSError as error:
                self.needed = len(view)
                self._fail(error)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file."""
        size = self._at if size is None else size
        try:
            if self.error is None:
                os.ftruncate(self._descriptor, size)
        except OSError as error:
            self._fail(error)
        return size

    def _fail(self, error: OSError) -> None:
        self.error = error
        if not self.closing:
            raise error


class Rows:
    """A dataset in one piece for random reading: as a read-only memory map of its rows, checked.

    What is read stays in the memory of the system as long as that has room, but in that of the
    process up to `RESIDENT_BYTES` only: a file of any size can be gone through.
    """

    def __init__(self, path: str | Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]):
        self._reader, self._offset, self._resident = Reader(path), offset, 0
        self._map = np.memmap(path, dtype, "r", offset, shape)
        self.dtype, self.shape, self.ndim = self._map.dtype, shape, len(shape)
        self._row_bytes = self._map[:1].nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype, copy=copy)

    def __getitem__(self, index: Any) -> np.ndarray:
        first = index[0] if isinstance(index, tuple) and index else index
        if isinstance(first, (int, np.integer, np.ndarray, list)):
            rows = np.unique(np.arange(len(self))[first])
        elif isinstance(first, slice):
            rows = np.arange(len(self))[first]
            rows = rows[[0, -1]] if len(rows) and abs(first.step or 1) == 1 else rows
            rows = np.arange(rows.min(), rows.max() + 1) if len(rows) else rows
        else:
            rows = np.arange(len(self))
        coming = 0
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            if len(run):
                start, stop = (int(row) * self._row_bytes for row in (run[0], run[-1] + 1))
                self._reader.check(self._offset + start, self._offset + stop)
                coming += stop - start + _AROUND
        self._release(coming)
        return self._map[index]

    def _release(self, coming: int) -> None:
        """Let go of the pages that were read, if with so many bytes more they are too many; whoever
        still looks at them finds them again."""
        if self._resident and self._resident + coming > RESIDENT_BYTES:
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map._mmap.madvise(mmap.MADV_DONTNEED)
            self._resident = 0
        self._resident += coming
