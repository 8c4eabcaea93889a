"""Source `folders`: `path/<class>/**/image`, or images alone, whose labels are unknown (-1).

Labels follow from the folders' names (`rfatlas.sources.classes`).
"""

import os
import posixpath
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from rfatlas.sources.classes import Numbering, check_splits
from rfatlas.sources.listing import Listing
from rfatlas.sources.source import Source, is_image, left_out


class Folders(Source):
    """One folder per class, or images alone."""

    keys = ("path", "class_map", "class_names")
    is_folder = True

    asks_classes = True

    def listing(self) -> Listing:
        names, folders, watched = walk(self)
        listing = by_class(self, [name for name in names if is_image(name)], folders)
        listing.notes += left_out(names)
        listing.watched = watched
        return listing


def walk(source: Source) -> tuple[list[str], list[str], list[Path]]:
    """Return (files, top-level folders, all folders) below `path`; links are followed, no
    circles."""

    def refuse(error: OSError):
        raise source.wrong(f"{error.filename}: {error.strerror}") from error

    names, folders, seen = [], [], {}
    for folder, subfolders, files in os.walk(source.path, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen[real] = Path(folder)
        relative = Path(folder).relative_to(source.path).as_posix()
        if relative == ".":
            folders = [name for name in subfolders if is_image(f"{name}/x.png")]
        prefix = "" if relative == "." else relative + "/"
        names += [prefix + name for name in files]
    return names, folders, list(seen.values())


def by_class(source: Source, names: Iterable[str], folders: Collection[str]) -> Listing:
    """Return the listing of class folders, or of images (labels -1), from the paths of the images
    and the top-level folders.

    The order is that of torchvision's ImageFolder: by class, then folder, then file name.
    """
    names = sorted(names, key=lambda n: (n.split("/")[0], posixpath.dirname(n), n))
    flat = [name for name in names if "/" not in name]
    nested = [name for name in names if "/" in name]
    if not names:
        raise source.no_image()
    if flat and nested:
        raise source.wrong(
            f"contains both images ({flat[0]}) and class folders ({nested[0]}); move the images "
            "into class folders, or give a list file"
        )
    if flat:
        return Listing(source.name, source.path, flat, np.full(len(flat), -1, dtype=np.int64), [])
    check_splits(source, names)
    found = sorted({name.split("/")[0] for name in names})
    empty = sorted(set(folders) - set(found))
    if empty:
        raise source.wrong(
            f"the class folder {empty[0]!r} contains no images"
            f" ({len(empty)} such); remove it, or fill it: labels follow the sorted folder names"
        )
    numbering = Numbering(source, found)
    labels = np.array([numbering.labels[name.split("/")[0]] for name in names], dtype=np.int64)
    class_names = numbering.class_names
    return Listing(source.name, source.path, names, labels, class_names, **numbering.facts)
