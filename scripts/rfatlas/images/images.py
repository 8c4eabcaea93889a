"""Stage images: photographs, decoded (`rfatlas.images.decoding`), packed into one file.

The file is laid out at once and its rows are written in place by worker processes: memory does not
grow with the number of images. It appears under its name when it is whole.
"""

import contextlib
import csv
import hashlib
import logging
import mmap
import shutil
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from rfatlas.errors import RfatlasError
from rfatlas.files import disk, jobs, store
from rfatlas.images import decoding, pool
from rfatlas.sources.listing import Listing

log = logging.getLogger("rfatlas")

#: Largest file in bytes; larger ones count as bad images.
MAX_BYTES = 1 << 29
#: Images per task of a worker: enough to make the exchange between processes negligible.
CHUNK = 16
_MOST_TASKS = 4096
_MOST_NAMED = 10
# What becomes of an image, as the workers note it.
_IN_HAND, _DONE = 1, 2


def pack(
    listing: Listing,
    output: str | Path,
    resize: int | tuple[int, int] | None,
    crop: int,
    interpolation: str = "bilinear",
    *,
    workers: int = 1,
    on_bad_image: str = "stop",
    bad_table: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Decode the images of a listing and write them to `output` (docs/files.md).

    `resize`, `crop` and `interpolation` as for `rfatlas.images.decoding.decode`. `workers`
    processes decode. `on_bad_image` is `stop` (files that cannot be decoded raise RfatlasError in
    the end) or `skip` (they are left out and listed in `bad_table`, a CSV with columns file,
    reason, written in either case when given). `config` goes into the provenance. Returns the
    counts `packed` and `skipped`. Grey images of more than 8 bits are counted and named in the log,
    so that they can be rescaled beforehand if clipping is not wanted.

    Raises RfatlasError if images are bad (`stop`), no image is left, a file cannot be read, the
    disk is too small, or a worker dies.
    """
    with disk.whole(output) as temporary:
        # A worker that outlives a killed job for a second has the old file, not this one.
        temporary.unlink(missing_ok=True)
        rows = _layout(temporary, len(listing), crop)
        result = _decode_all(listing, rows, (resize, crop, interpolation), workers)
        _check_result(listing, result, on_bad_image)
        good = np.flatnonzero(result.good)
        if len(good) < len(listing):
            rows = _close_up(temporary, good)
        # A storage gives the place where scenes are drawn another name in each job.
        place = "" if listing.source == "scenes" else f": {listing.root}"
        attrs = store.provenance("images", config or {}) | {
            "class_names": np.array(listing.class_names, dtype=h5py.string_dtype()),
            "resize": 0 if resize is None else resize,
            "crop": crop,
            "interpolation": interpolation,
            "source": f"{listing.source}{place}",
            "sha256": result.sha256.hexdigest(),
            "skipped": len(listing) - len(good),
        }
        _describe(temporary, listing.select(good), attrs)
        if bad_table is not None:
            _write_bad(Path(bad_table), listing, result.reasons)
    return {"packed": len(good), "skipped": len(listing) - len(good)}


@dataclass
class _Result:
    """What became of the images.

    good : bool (N,), whether it could be decoded
    reasons : why not, by index, in order
    wide : indices of images whose grey values had more than 8 bits
    sha256 : of the hex digests of the decoded files, one a line, in order
    """

    good: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    wide: list[int] = field(default_factory=list)
    sha256: Any = field(default_factory=hashlib.sha256)


def _decode_all(listing: Listing, rows: store.Rows, how: tuple, workers: int) -> _Result:
    """Decode the images in worker processes as `how` says, each into its row."""
    count = len(listing)
    size = max(CHUNK, -(-count // _MOST_TASKS))
    tasks = [range(first, min(first + size, count)) for first in range(0, count, size)]
    # Shared with the workers, to tell which images they had in hand when one dies.
    state = mmap.mmap(-1, count)

    def work(indices: range) -> list[tuple[str, str | None, bool]]:
        found = []
        for index in indices:
            state[index] = _IN_HAND
            image, *fate = _one(listing, index, how)
            if image is not None:
                rows.write(index, np.asarray(image)[None])
            state[index] = _DONE
            found.append(fate)
        return found

    result = _Result(np.zeros(count, dtype=bool))
    try:
        with (
            contextlib.closing(pool.in_order(work, tasks, workers)) as done,
            jobs.progress(total=count, desc="decoding") as bar,
        ):
            for task, found in zip(tasks, done, strict=True):
                for index, (digest, reason, wide) in zip(task, found, strict=True):
                    if reason is not None:
                        result.reasons[index] = reason
                        continue
                    result.good[index] = True
                    result.sha256.update(f"{digest}\n".encode())
                    result.wide += [index] if wide else []
                bar.update(len(task))
    except BrokenProcessPool as error:
        suspects = [listing.locate(i) for i in range(count) if state[i] == _IN_HAND]
        raise RfatlasError(
            f"a worker process that decodes images died at one of these: "
            f"{', '.join(suspects) or 'none'}; perhaps for lack of memory (use fewer threads)"
        ) from error
    return result


def _one(
    listing: Listing, index: int, how: tuple
) -> tuple[Image.Image | None, str, str | None, bool]:
    """Return (image, or None; sha256 of the file; why it is bad, or None; whether its grey values
    had more than 8 bits)."""
    try:
        if not listing.is_plain(index):
            return None, "", "no file but a pipe, a device or a folder", False
        size = listing.size(index)
        if size > MAX_BYTES:
            return None, "", f"the file has {size} bytes, at most {MAX_BYTES} are allowed", False
        data = listing.open(index)
    except OSError as error:
        raise RfatlasError(f"{listing.locate(index)}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    try:
        image, wide = decoding.decode(data, *how)
    except decoding.BadImage as error:
        return None, digest, str(error), False
    except MemoryError:
        raise RfatlasError(f"{listing.locate(index)}: out of memory; use fewer threads") from None
    return image, digest, None, wide


def _check_result(listing: Listing, result: _Result, on_bad_image: str) -> None:
    bad = [f"{listing.locate(i)}: cannot be decoded: {why}" for i, why in result.reasons.items()]
    if bad and on_bad_image == "stop":
        more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        raise RfatlasError(
            f"{'; '.join(bad[:_MOST_NAMED])}{more}; repair or remove the file, or set "
            "on_bad_image: skip"
        )
    if not result.good.any():
        raise RfatlasError(
            f"{listing.root}: none of the {len(listing)} images could be decoded; the first: "
            f"{bad[0]}"
        )
    if result.wide:
        log.warning(
            "%d images hold more than 8 bits per grey value, clipped to 255 as by torchvision's "
            "loader; the first: %s",
            len(result.wide),
            listing.locate(result.wide[0]),
        )


def _layout(path: Path, count: int, crop: int) -> store.Rows:
    """Make the file with rows for `count` images, unset."""
    needed, free = count * crop * crop * 3, shutil.disk_usage(path.parent).free
    if needed > free:
        raise RfatlasError(
            f"{path.parent}: the packed images need {needed / 1e9:.1f} GB more, but the disk has "
            f"{free / 1e9:.1f} GB free; make room, or use limit or subset"
        )
    # Older formats than HDF5 1.8's hold at most 4,000 class names in an attribute.
    return store.Rows(path, "images", (count, crop, crop, 3), np.uint8, libver="v108")


def _close_up(path: Path, good: np.ndarray) -> store.Rows:
    """Replace the file by one of the good rows alone, without gaps."""
    with h5py.File(path) as file:
        rows = store.array(file["images"])
    path.unlink()
    closed = _layout(path, len(good), rows.shape[1])
    for place, index in enumerate(good):
        closed.write(place, rows[index : index + 1])
    return closed


def mean_image(images: Any, chunk: int = 256) -> np.ndarray:
    """Return the mean (H, W, 3), code values in 0..1, of images uint8 (N, H, W, 3), read in
    pieces."""
    total = np.zeros(images.shape[1:], np.int64)
    for first in range(0, len(images), chunk):
        total += images[first : first + chunk].sum(axis=0, dtype=np.int64)
    return total / (255 * len(images))


def _describe(path: Path, packed: Listing, attrs: Mapping[str, Any]) -> None:
    """Add the mean image, labels, names and attributes: the file is complete."""
    with store.written(path, new=False, libver="v108") as file:
        # Once, for all the jobs that show it.
        file["mean"] = mean_image(file["images"])
        file["labels"] = packed.labels
        file.create_dataset("names", data=packed.names, dtype=h5py.string_dtype())
        file.attrs.update(attrs, complete=True)
    disk.sync(path)


def _write_bad(path: Path, listing: Listing, reasons: Mapping[int, str]) -> None:
    with disk.text(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "reason"])
        table.writerows((listing.names[index], reason) for index, reason in reasons.items())
