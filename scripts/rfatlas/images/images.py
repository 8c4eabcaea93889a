"""Stage images: decode photographs as torchvision's reference pipeline does, into one file.

Decoding is `Image.open(file).convert("RGB")` (the default loader of torchvision's data sets),
`Resize(resize)` and `CenterCrop(crop)` of torchvision.transforms on PIL images, bit for bit;
torchvision itself is not imported. Hence, as there:

* the EXIF orientation is not applied; of an animation the first frame counts; transparency is
  dropped, not blended;
* CMYK and palette images are converted by Pillow without colour management;
* grey images of 16 or 32 bits and floating-point images are clipped to 0..255 by Pillow (everything
  above 255 turns white); it is what a network trained and tested through torchvision would be
  shown. They are counted and named in the log, so that they can be rescaled to 8 bits beforehand if
  that is not wanted. 16-bit RGB images keep their upper 8 bits.

Only formats that Pillow decodes by itself are opened (`FORMATS`); some others would start external
programs. Images larger than `MAX_PIXELS`, decoded or resized, and files larger than `MAX_BYTES`
count as bad images: small files can be made to fill the memory.

The file is laid out at once, its rows are written in place by worker processes, and a journal
beside it tells which are done: a killed job resumes with the rest, and memory does not grow with
the number of images.
"""

import contextlib
import csv
import hashlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from rfatlas.errors import RfatlasError, printable
from rfatlas.files import disk, jobs, store, versions
from rfatlas.images.sources import Listing

log = logging.getLogger("rfatlas")

#: Formats that are opened, whatever the file's ending.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
#: Largest image, as stored and as resized, in pixels. 100 megapixels take 0.4 GB in Pillow;
#: ImageNet's largest has 61.
MAX_PIXELS = 100_000_000
#: Largest file in bytes.
MAX_BYTES = 1 << 29
#: Images per task of a worker: enough to make the exchange between processes negligible.
CHUNK = 16
#: Seconds between two entries into the journal; a killed job loses about this much work.
JOURNAL_S = 2.0


class BadImage(Exception):
    """A file that cannot be turned into an image; the message gives the reason, not the name."""


def decode(data: bytes, resize: int, crop: int) -> Image.Image:
    """Decode one image file to RGB: shorter side `resize` pixels, central `crop` x `crop` of it.

    Bit-equal to torchvision.transforms v1 on PIL images: the longer side is int(resize * long /
    short), the corner of the crop is round((side - crop) / 2) with halves to even, and a side
    shorter than `crop` is padded with zeros, the odd pixel at the end.

    Raises BadImage if the bytes are no readable image or the image is too large.
    """
    return _decode(data, resize, crop)[0]


def _decode(data: bytes, resize: int, crop: int) -> tuple[Image.Image, bool]:
    """Return (image, whether its grey values were wider than 8 bits)."""
    if not data:
        raise BadImage("the file is empty")
    try:
        # Size warnings are pointless: MAX_PIXELS is checked here. Pillow's own error at twice its
        # limit becomes a BadImage.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            _check_pixels(width, height, "has")
            short, long = min(width, height), max(width, height)
            new_long = int(resize * long / short)
            new_size = (resize, new_long) if width <= height else (new_long, resize)
            _check_pixels(*new_size, "would be resized to")
            wide = image.mode.startswith(("I", "F"))
            image.load()
            if image.mode == "F":
                _check_finite(image)
            if image.mode != "RGB":
                image = image.convert("RGB")
    except Image.UnidentifiedImageError:
        raise BadImage(f"not an image in a format that is read ({', '.join(FORMATS)})") from None
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        raise BadImage(printable(str(error), 300) or type(error).__name__) from error
    # Whole, then cut: the order in which Pillow resamples rows and columns depends on the sizes, so
    # resampling only what the crop keeps would round differently.
    image = image.resize(new_size, Image.Resampling.BILINEAR)
    left, top = (_corner(side, crop) for side in image.size)
    return image.crop((left, top, left + crop, top + crop)), wide


def _check_finite(image: Image.Image) -> None:
    values = np.asarray(image)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise BadImage(
            f"{len(bad)} of its {values.size} values are NaN or infinite, the first "
            f"({values[row, column]}) in row {row}, column {column}"
        )


def _check_pixels(width: int, height: int, verb: str) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{verb} {width} x {height} pixels, at most {MAX_PIXELS} are allowed")


def _corner(side: int, crop: int) -> int:
    return int(round((side - crop) / 2.0)) if side >= crop else -((crop - side) // 2)


@dataclass(frozen=True)
class Done:
    """What became of one image.

    stamp : size and time of change of its file or archive (Listing.stamp)
    reason : why it is bad, or None
    wide : its grey values had more than 8 bits
    """

    index: int
    sha256: str
    stamp: tuple[int, int]
    reason: str | None
    wide: bool


def pack(
    listing: Listing,
    output: str | Path,
    resize: int,
    crop: int,
    *,
    workers: int = 1,
    on_bad_image: str = "stop",
    bad_table: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    created_from: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Decode the images of a listing and write them to `output` (docs/files.md).

    `workers` processes decode. `on_bad_image` is `stop` (the first file that cannot be decoded
    raises RfatlasError) or `skip` (it is left out and listed in `bad_table`, a CSV with columns
    file, reason, written in either case when given). `config` and `created_from` go into the
    provenance. Returns the counts `packed` and `skipped`.

    Progress is kept in `<output>.partial`: called again with the same listing, sizes and stage
    version after any kind of death, the remaining images are decoded, and those whose files changed
    meanwhile. `output` appears only when whole.

    Raises RfatlasError if an image is bad (`stop`), no image is left, a file cannot be read, the
    disk is too small, or a worker dies.
    """
    if on_bad_image not in ("stop", "skip"):
        raise RfatlasError(f"on_bad_image: {on_bad_image!r}; give stop or skip")
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    fingerprint = {
        "stage": "images",
        "version": versions.stage("images"),
        "resize": resize,
        "crop": crop,
        "listing": listing.digest(),
    }
    partial = store.Partial(output, fingerprint)
    rows = _Rows(partial.folder, listing, crop)
    try:
        left = rows.todo(keep_bad=on_bad_image == "skip")
        if left:
            _decode_all(listing, rows, left, resize, crop, workers, on_bad_image)
    finally:
        rows.close()
    if not rows.good.any():
        raise RfatlasError(
            f"{listing.root}: none of the {len(listing)} images could be decoded; the first: "
            f"{listing.locate(0)}: {next(rows.bad())[1]}"
        )
    if rows.wide:
        log.warning(
            "%d images hold more than 8 bits per grey value, clipped to 255 as by torchvision's "
            "loader; the first: %s",
            len(rows.wide),
            listing.locate(min(rows.wide)),
        )
    packed = int(rows.good.sum())
    # Scenes are drawn by the workflow, in a place that a storage gives another name in each job.
    place = "" if listing.source == "scenes" else f": {listing.root}"
    attrs = store.provenance("images", config or {}, created_from=created_from) | {
        "class_names": np.array(listing.class_names, dtype=h5py.string_dtype()),
        "resize": resize,
        "crop": crop,
        "source": f"{listing.source}{place}",
        "sha256": rows.digest(),
        "skipped": len(listing) - packed,
    }
    if bad_table is not None:
        _write_bad(Path(bad_table), ((listing.names[i], reason) for i, reason in rows.bad()))
    finished = _finish(rows, listing, attrs)
    os.replace(finished, output)
    partial.finish()
    return {"packed": packed, "skipped": len(listing) - packed}


class _Rows:
    """The unfinished file and its journal.

    `images.h5` is made with its dataset in one piece at a known place, then closed; from then on
    rows are written straight to the disk, so that nothing in the file's structure can be torn by a
    sudden death. A copy of the file's head (`head.bin`) puts that structure back when a job died
    later, while labels and attributes were added behind the rows. The journal names a row only
    after its bytes have been handed to the disk.
    """

    def __init__(self, folder: Path, listing: Listing, crop: int):
        self.folder = folder
        self.path = folder / "images.h5"
        self.listing = listing
        self.shape = (len(listing), crop, crop, 3)
        self.row_bytes = crop * crop * 3
        self.known = np.zeros(len(listing), dtype=bool)
        self.good = np.zeros(len(listing), dtype=bool)
        self.digests = np.zeros((len(listing), 32), dtype=np.uint8)
        self.reasons: dict[int, str] = {}
        self.wide: set[int] = set()
        self.offset = self._lay_out()
        self._data = os.open(self.path, os.O_WRONLY)
        self._journal = self._read_journal()
        self._waiting: list[Done] = []
        self._written = time.monotonic()
        # The disk may take a second to confirm; the workers get their tasks meanwhile.
        self._recorder = ThreadPoolExecutor(1)
        self._recording: Future | None = None

    def _lay_out(self) -> int:
        """Return the byte offset of the rows, making the file or bringing back its structure."""
        data_bytes = self.shape[0] * self.row_bytes
        head = self.folder / "head.bin"
        if head.exists() and self.path.exists():
            _check_disk(self.folder, data_bytes - self.path.stat().st_blocks * 512)
            content = head.read_bytes()
            with self.path.open("r+b") as file:
                file.write(content)
                file.truncate(len(content) + data_bytes)
            return len(content)
        _check_disk(self.folder, data_bytes)
        head.unlink(missing_ok=True)
        offset = _create(self.path, self.shape)
        (self.folder / "journal.jsonl").write_bytes(b"")
        temporary = head.with_suffix(".tmp")
        with self.path.open("rb") as file:
            temporary.write_bytes(file.read(offset))
        os.replace(temporary, head)
        return offset

    def _read_journal(self) -> io.BufferedWriter:
        """Take over the journal's whole lines, cut off a torn end, and return it for appending."""
        path = self.folder / "journal.jsonl"
        whole, stale = 0, 0
        with path.open("rb") as file:
            for line in file:
                try:
                    index, digest, stamp, reason, wide = json.loads(line)
                except ValueError:
                    break
                whole += len(line)
                try:
                    current = self.listing.stamp(index)
                except OSError:
                    current = None
                if current == tuple(stamp):
                    self._take(Done(index, digest, current, reason, wide))
                else:
                    self._forget(index)
                    stale += 1
        if stale:
            log.info("%d images changed since they were decoded; decoding them again", stale)
        journal = path.open("r+b")
        journal.truncate(whole)
        journal.seek(whole)
        return journal

    def _take(self, done: Done) -> None:
        self._forget(done.index)
        self.known[done.index] = True
        self.good[done.index] = done.reason is None
        self.digests[done.index] = np.frombuffer(bytes.fromhex(done.sha256), dtype=np.uint8)
        if done.reason is not None:
            self.reasons[done.index] = done.reason
        if done.wide:
            self.wide.add(done.index)

    def _forget(self, index: int) -> None:
        self.known[index] = self.good[index] = False
        self.reasons.pop(index, None)
        self.wide.discard(index)

    def todo(self, keep_bad: bool) -> list[int]:
        """Return the indices still to decode; those found bad are among them unless `keep_bad`."""
        if not keep_bad:
            for index in list(self.reasons):
                self._forget(index)
        left = np.flatnonzero(~self.known).tolist()
        if len(left) < len(self.listing):
            log.info(
                "resuming: %d of %d images are done",
                len(self.listing) - len(left),
                len(self.listing),
            )
        return left

    def add(self, results: Sequence[Done]) -> None:
        """Note finished images; they are on record a few seconds later, or at `close`."""
        for done in results:
            self._take(done)
        self._waiting += results
        due = time.monotonic() - self._written >= JOURNAL_S
        if due and (self._recording is None or self._recording.done()):
            self._start_recording()

    def _start_recording(self) -> None:
        if self._recording is not None:
            self._recording.result()
        self._recording = self._recorder.submit(self._record, self._waiting)
        self._waiting = []
        self._written = time.monotonic()

    def _record(self, results: Sequence[Done]) -> None:
        """Put images on record: their bytes first, the journal after."""
        try:
            os.fsync(self._data)
            for done in results:
                entry = [done.index, done.sha256, done.stamp, done.reason, done.wide]
                self._journal.write(json.dumps(entry).encode() + b"\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise disk.failed(self.folder / "journal.jsonl", error) from error

    def close(self) -> None:
        """Put everything noted on record; the rows can then no longer be added to."""
        try:
            self._start_recording()
            self._recording.result()
        finally:
            self._recorder.shutdown()
            os.close(self._data)
            # A line that finds no room is torn and read as such; the reason is told already.
            with contextlib.suppress(OSError):
                self._journal.close()

    def bad(self) -> Iterator[tuple[int, str]]:
        """Yield (index, reason) of the images that could not be decoded, in order."""
        return iter(sorted(self.reasons.items()))

    def digest(self) -> str:
        """Return the sha256 (hex) of the hex digests of the packed files, one a line, in order."""
        total = hashlib.sha256()
        for index in np.flatnonzero(self.good):
            total.update(self.digests[index].tobytes().hex().encode() + b"\n")
        return total.hexdigest()


def _create(path: Path, shape: tuple[int, ...]) -> int:
    """Make an HDF5 file with the dataset `images` in one piece, unset; return its byte offset.

    The rows end the file. The format of HDF5 1.8 is asked for, since older ones hold at most 4,000
    class names in an attribute.
    """
    with store.written(path, new=True, libver="v108") as file:
        offset = store.contiguous(file, "images", shape, np.uint8)
    if path.stat().st_size != offset + int(np.prod(shape, dtype=np.int64)):
        raise RuntimeError(
            f"{path}: HDF5 laid the file out in a way that rows cannot be written to"
        )
    return offset


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RfatlasError(
            f"{folder.parent}: the packed images need {needed / 1e9:.1f} GB more, but the disk has "
            f"{free / 1e9:.1f} GB free; make room, or use limit or subset"
        )


# What a worker process needs for its tasks; set once in each by `_start_worker`.
_work: Callable[[Sequence[int]], list[Done]] | None = None


def _start_worker(
    listing: Listing, rows: _Rows, resize: int, crop: int, parent: int, under_way, started
) -> None:
    """Prepare a worker: `under_way` tells the image in hand, `started` counts the workers."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    descriptor = os.open(rows.path, os.O_WRONLY)
    with started:
        slot = started.value
        started.value += 1

    def work(indices: Sequence[int]) -> list[Done]:
        results = []
        for index in indices:
            under_way[slot] = index
            offset = rows.offset + index * rows.row_bytes
            results.append(_one(listing, index, descriptor, offset, resize, crop, rows.path))
        under_way[slot] = -1
        return results

    _work = work
    jobs.end_with_parent(parent)


def _run(indices: Sequence[int]) -> list[Done]:
    return _work(indices)


def _one(
    listing: Listing,
    index: int,
    descriptor: int,
    offset: int,
    resize: int,
    crop: int,
    path: Path,
) -> Done:
    """Decode one image and write it into its row of the file at `path`, open as `descriptor`."""
    try:
        stamp = listing.stamp(index)
        size = listing.size(index)
        if not listing.is_plain(index):
            reason = "no file but a pipe, a device or a folder"
            return Done(index, "0" * 64, stamp, reason, False)
        if size > MAX_BYTES:
            reason = f"the file has {size} bytes, at most {MAX_BYTES} are allowed"
            return Done(index, "0" * 64, stamp, reason, False)
        data = listing.open(index)
    except OSError as error:
        raise RfatlasError(f"{listing.locate(index)}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    try:
        image, wide = _decode(data, resize, crop)
    except BadImage as error:
        return Done(index, digest, stamp, str(error), False)
    except MemoryError:
        raise RfatlasError(f"{listing.locate(index)}: out of memory; use fewer threads") from None
    row = memoryview(image.tobytes())
    try:
        while row:
            written = os.pwrite(descriptor, row, offset)
            row, offset = row[written:], offset + written
    except OSError as error:
        raise disk.failed(path, error, len(row)) from error
    return Done(index, digest, stamp, None, wide)


def _decode_all(
    listing: Listing,
    rows: _Rows,
    left: Sequence[int],
    resize: int,
    crop: int,
    workers: int,
    on_bad_image: str,
) -> None:
    """Decode the images `left` in worker processes, with a bounded number of tasks under way."""
    chunks = (left[i : i + CHUNK] for i in range(0, len(left), CHUNK))
    workers = max(1, min(workers, -(-len(left) // CHUNK)))
    # Forked, since other ways run the calling script again in each worker; safe, since no thread
    # runs yet but that of `rfatlas.files.jobs`, which sleeps.
    context = multiprocessing.get_context("fork")
    under_way, started = context.RawArray("q", [-1] * workers), context.Value("i", 0)
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(listing, rows, resize, crop, os.getpid(), under_way, started),
    )
    running: set[Future] = set()
    try:
        for chunk in chunks:
            running.add(pool.submit(_run, chunk))
            if len(running) == 2 * workers:
                break
        with jobs.progress(
            total=len(listing), initial=len(listing) - len(left), desc="decoding"
        ) as bar:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    chunk = next(chunks, None)
                    if chunk is not None:
                        running.add(pool.submit(_run, chunk))
                    results = future.result()
                    if on_bad_image == "stop":
                        _refuse_bad(listing, rows, results)
                    rows.add(results)
                    bar.update(len(results))
    except BrokenProcessPool as error:
        suspects = ", ".join(listing.locate(index) for index in under_way if index >= 0)
        raise RfatlasError(
            f"a worker process that decodes images died at one of these: {suspects or 'none'}; "
            "perhaps for lack of memory (use fewer threads). What is decoded is kept, run again to "
            "go on"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _refuse_bad(listing: Listing, rows: _Rows, results: Sequence[Done]) -> None:
    bad = [done for done in results if done.reason is not None]
    if bad:
        rows.add([done for done in results if done.reason is None])
        raise RfatlasError(
            f"{listing.locate(bad[0].index)}: cannot be decoded: {bad[0].reason}; "
            "repair or remove the file, or set on_bad_image: skip"
        )


def _write_bad(path: Path, entries: Iterator[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.text(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "reason"])
        table.writerows(entries)


def mean_image(images: Any, chunk: int = 256) -> np.ndarray:
    """Return the mean (H, W, 3), code values in 0..1, of images uint8 (N, H, W, 3), read in
    pieces."""
    total = np.zeros(images.shape[1:], np.int64)
    for first in range(0, len(images), chunk):
        total += images[first : first + chunk].sum(axis=0, dtype=np.int64)
    return total / (255 * len(images))


def _finish(rows: _Rows, listing: Listing, attrs: Mapping[str, Any]) -> Path:
    """Add the mean image, labels, names and attributes, leave skipped rows out; return the file's
    path."""
    good = np.flatnonzero(rows.good)
    path = rows.path if len(good) == len(listing) else _close_up(rows, good)
    with store.written(path, new=False, libver="v108") as file:
        # Once, for all the jobs that show it.
        file["mean"] = mean_image(file["images"])
        file["labels"] = listing.labels[good]
        names = [listing.names[i] for i in good]
        file.create_dataset("names", data=names, dtype=h5py.string_dtype())
        file.attrs.update(attrs)
        file.attrs["complete"] = True
    disk.sync(path)
    return path


def _close_up(rows: _Rows, good: np.ndarray) -> Path:
    """Copy the good rows, one at a time, into a new file without gaps."""
    path = rows.folder / "packed.h5"
    path.unlink(missing_ok=True)
    _check_disk(rows.folder, len(good) * rows.row_bytes)
    offset = _create(path, (len(good), *rows.shape[1:]))
    with rows.path.open("rb") as source, path.open("r+b") as target:
        target.seek(offset)
        for index in good:
            source.seek(rows.offset + int(index) * rows.row_bytes)
            target.write(source.read(rows.row_bytes))
    return path
