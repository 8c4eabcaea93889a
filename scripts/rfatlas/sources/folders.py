"""Source `folders`: `path/<class>/**/image`.

Labels are 0, 1, ... in the sorted order of the folder names, as torchvision's ImageFolder. With
`class_map`, folder names are WordNet ids and the label is the id's rank among all ids of the map,
so that a part of ImageNet's classes keeps ImageNet's labels. A folder that holds images and no
class folders: every label -1 (unknown).
"""

import os
import posixpath
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from rfatlas.sources import imagenet
from rfatlas.sources.listing import Listing
from rfatlas.sources.source import Source, is_image


class Folders(Source):
    """One folder per class, or images alone."""

    keys = ("path", "class_map", "class_names")
    is_folder = True
    inputs = {"class_map": "class_map", "class_names": "class_names"}

    def listing(self) -> Listing:
        """List the images; RfatlasError, naming key, value and what would be right."""
        return Listing(self.name, self.path, *by_class(self, *self._walk()))

    def _walk(self) -> tuple[list[str], list[str]]:
        """Return (image paths, top-level folders); links are followed, no circles."""

        def refuse(error: OSError):
            raise self.wrong(f"{error.filename}: {error.strerror}") from error

        names, folders, seen = [], [], set()
        for folder, subfolders, files in os.walk(self.path, onerror=refuse, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            relative = Path(folder).relative_to(self.path).as_posix()
            if relative == ".":
                folders = [name for name in subfolders if is_image(f"{name}/x.png")]
            prefix = "" if relative == "." else relative + "/"
            names += [prefix + name for name in files if is_image(prefix + name)]
        return names, folders


def by_class(
    source: Source, names: Iterable[str], folders: Collection[str]
) -> tuple[list[str], np.ndarray, list[str]]:
    """Return (names in order, labels, class names) of class folders, or of images (labels -1).

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
        return flat, np.full(len(flat), -1, dtype=np.int64), []
    found = sorted({name.split("/")[0] for name in names})
    empty = sorted(set(folders) - set(found))
    if empty:
        raise source.wrong(
            f"the class folder {empty[0]!r} contains no images"
            f" ({len(empty)} such); remove it, or fill it: labels follow the sorted folder names"
        )
    if source.class_map is None:
        rank, class_names = {name: label for label, name in enumerate(found)}, found
    else:
        rank, class_names, _ = imagenet.read_class_map(source)
        unknown = [name for name in found if name not in rank]
        if unknown:
            raise source.wrong(
                f"does not contain the class folder {unknown[0]!r} ({len(unknown)} such); folder "
                "names must be WordNet ids such as n01440764",
                "class_map",
            )
    labels = np.array([rank[name.split("/")[0]] for name in names], dtype=np.int64)
    return names, labels, class_names
