"""A listing: the images of a data set in their order, with labels; nothing is decoded."""

import bisect
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rfatlas.errors import RfatlasError, printable


def read_piece(path: Path, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset` on; fewer where it ends before."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


@dataclass
class Listing:
    """The images of a data set in their order, with labels.

    names : paths as the source gives them (relative to `root`), unique, valid UTF-8
    labels : int64 (N,), -1 = unknown
    class_names : one name for each label from 0, or empty when the source names none
    root : the folder that the names are relative to, or the archive
    offsets, sizes : int64 (N,), where each image lies in its archive and its bytes; None for files
    archives, archive : paths relative to `root`, and which of them holds each image, int64 (N,);
        None where `root` is the only one
    read : gives the bytes of an image from (archive, offset, size)
    ranked : number of classes whose labels are the rank of their names, else 0
    featured : number of classes that the data set says it has, else 0
    mapped : whether labels follow from names and the number of the networks' classes
    notes : lines for the user on what was taken for what
    watched : folders and files that change when the listing does, besides those that the config
        names
    """

    source: str
    root: Path
    names: list[str]
    labels: np.ndarray
    class_names: list[str]
    offsets: np.ndarray | None = None
    sizes: np.ndarray | None = None
    archives: list[str] | None = None
    archive: np.ndarray | None = None
    read: Callable[[Path, int, int], bytes] = field(default=read_piece, repr=False)
    ranked: int = 0
    featured: int = 0
    mapped: bool = False
    notes: list[str] = field(default_factory=list)
    watched: list[Path] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def _file(self, index: int) -> Path:
        """The file that holds the image: its own, or the archive."""
        if self.offsets is None:
            return self.root / self.names[index]
        return self.root if self.archive is None else self.root / self.archives[self.archive[index]]

    def locate(self, index: int) -> str:
        """Return the image's place in words, for messages: its path, or `archive: member`."""
        inside = "" if self.offsets is None else f": {self.names[index]}"
        return printable(f"{self._file(index)}{inside}")

    def size(self, index: int) -> int:
        """Return the size of the image's file in bytes; OSError if it is not there."""
        return os.stat(self._file(index)).st_size if self.sizes is None else int(self.sizes[index])

    def is_plain(self, index: int) -> bool:
        """Tell whether the image is a file and no pipe, device or folder, which could be read for
        ever; OSError if it is not there."""
        return self.sizes is not None or stat.S_ISREG(os.stat(self._file(index)).st_mode)

    def open(self, index: int) -> bytes:
        """Return the bytes of the image's file.

        Raises OSError if it cannot be read and RfatlasError if the archive ends before the image
        does.
        """
        file = self._file(index)
        if self.offsets is None or self.sizes is None:
            return file.read_bytes()
        content = self.read(file, int(self.offsets[index]), int(self.sizes[index]))
        if self.read is read_piece and len(content) < self.sizes[index]:
            raise RfatlasError(
                f"{self.locate(index)}: the archive ends inside this image; it was cut short"
            )
        return content

    def select(self, indices: Sequence[int] | np.ndarray) -> "Listing":
        """Return the listing of these images, in the order given."""
        chosen = np.asarray(indices, dtype=np.int64)
        columns = {key: getattr(self, key) for key in ("labels", "offsets", "sizes", "archive")}
        parts = {key: column[chosen] for key, column in columns.items() if column is not None}
        return replace(self, names=[self.names[i] for i in chosen], **parts)

    def digest(self) -> str:
        """Return the sha256 (hex) of names, labels, class names and places; not of the content."""
        keys = ["names", "labels", "class_names", "offsets", "sizes"]
        keys += [] if self.archives is None else ["archives", "archive"]
        content = {"source": self.source, "root": str(self.root)}
        content |= {key: getattr(self, key) for key in keys}
        text = json.dumps(content, ensure_ascii=False, default=np.ndarray.tolist)
        return hashlib.sha256(text.encode()).hexdigest()


def chosen(listing: Listing, dataset: Mapping[str, Any], key: str) -> Listing:
    """Return the images that `limit` and `subset` of a data set's config leave.

    Raises RfatlasError if they do not fit the number of images.
    """
    listing = listing.select(range(limited(dataset, len(listing))))
    if dataset.get("subset") is not None:
        size = subset_size(dataset, len(listing), key)
        seed = dataset["subset"].get("seed", 0)
        listing = listing.select(stratified(listing.names, listing.labels, size, seed))
    return listing


def limited(dataset: Mapping[str, Any], available: int) -> int:
    """Return how many of the images `limit` leaves."""
    return min(available, dataset.get("limit") or available)


def subset_size(dataset: Mapping[str, Any], available: int, key: str) -> int:
    """Return how many of the images `subset` leaves; RfatlasError if there are not as many."""
    if dataset.get("subset") is None:
        return available
    size = dataset["subset"]["size"]
    if size > available:
        raise RfatlasError(
            f"{key}.subset.size: {size}, but there are {available} images; give at most {available}"
        )
    return size


def stratified(names: Sequence[str], labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return the indices, ascending, of a subset with equally many images of each class.

    Classes with too few images give all they have and the others share the rest; what does not
    divide evenly goes to classes chosen by the seed. Images are drawn by the SHA-256 of seed and
    name, so the draw depends on no library's random stream and on no other class. `labels` int64
    (N,); unknown (-1) counts as one class. Needs 0 < size <= N.
    """
    classes, counts = np.unique(labels, return_counts=True)
    # The largest equal share that does not overshoot: counts below it give everything.
    shares = range(int(counts.max()) + 1)
    even = bisect.bisect(shares, size, key=lambda share: np.minimum(counts, share).sum()) - 1
    quota = np.minimum(counts, even)
    spare = [int(label) for label, count in zip(classes, counts, strict=True) if count > even]
    spare.sort(key=lambda label: _draw(seed, f"class {label}"))
    extra = set(spare[: size - int(quota.sum())])
    chosen = []
    for label, share in zip(classes, quota, strict=True):
        members = np.flatnonzero(labels == label).tolist()
        members.sort(key=lambda i: _draw(seed, names[i]))
        chosen += members[: int(share) + (int(label) in extra)]
    return np.array(sorted(chosen), dtype=np.int64)


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
