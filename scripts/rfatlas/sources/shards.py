"""Source `webdataset`: tar archives with `key.jpg`, `key.cls` for each image, read in place.

`path` is an archive or a folder of archives. A sample is what has the same name up to the first dot
behind its last slash. `.cls` holds the label, an integer or the name of a class
(`rfatlas.sources.classes`); without any, labels are unknown (-1).
"""

import posixpath
from pathlib import Path

import numpy as np

from rfatlas.sources import classes
from rfatlas.sources.archives import index_tar
from rfatlas.sources.listing import Listing
from rfatlas.sources.source import Source, is_image

#: Longest label in bytes.
_LONGEST = 200


class WebDataset(Source):
    """Shards of samples."""

    is_folder = None
    asks_classes = True

    def listing(self) -> Listing:
        paths = files_of(self, ".tar")
        names, places, labels = [], [], []
        for shard, path in enumerate(paths):
            for name, (offset, size), label in self._samples(path):
                names.append(name)
                places.append((shard, offset, size))
                labels.append(label)
        if not names:
            raise self.no_image()
        if len(set(names)) < len(names):
            names = [
                f"{paths[shard].name}/{name}"
                for name, (shard, _, _) in zip(names, places, strict=True)
            ]
        unlabelled = [name for name, label in zip(names, labels, strict=True) if label is None]
        if unlabelled and len(unlabelled) < len(names):
            raise self.wrong(
                f"{unlabelled[0]} has no .cls ({len(unlabelled)} such), but others have; give all "
                "images a label, -1 for unknown"
            )
        written = ["-1" if label is None else label for label in labels]
        numbers, class_names, facts = classes.labels_of(self, written, names)
        shard, offsets, sizes = (column.copy() for column in np.array(places, dtype=np.int64).T)
        listing = Listing(self.name, self.path, names, numbers, class_names, offsets, sizes)
        return in_archives(listing, paths, shard, facts)

    def _samples(self, path: Path) -> list[tuple[str, tuple[int, int], str | None]]:
        """Return (name, (offset, size), label or None) of the images of a shard, in its order."""
        places, _ = index_tar(self, path)
        images, texts = {}, {}
        for name, place in places.items():
            folder, base = posixpath.split(name)
            key, _, ending = base.partition(".")
            key = posixpath.join(folder, key)
            if is_image(name):
                if key in images:
                    raise self.wrong(f"{path.name}: {images[key][0]} and {name} are one sample")
                images[key] = name, place
            elif ending == "cls":
                texts[key] = place
        labels = {}
        with path.open("rb") as file:
            for key, (offset, size) in texts.items():
                file.seek(offset)
                labels[key] = file.read(min(size, _LONGEST)).decode(errors="replace").strip()
        return [(name, place, labels.get(key)) for key, (name, place) in images.items()]


def files_of(source: Source, ending: str) -> list[Path]:
    """Return the file that `path` names or, sorted, the files of this ending below the folder."""
    if not source.path.is_dir():
        return [source.path]
    found = sorted(path for path in source.path.rglob(f"*{ending}") if is_image(f"{path.name}.png"))
    if not found:
        raise source.wrong(f"contains no files *{ending}")
    return found


def in_archives(listing: Listing, paths: list[Path], archive: np.ndarray, facts: dict) -> Listing:
    """Complete the listing of images in several archives, `archive` int64 (N,) of `paths`."""
    if paths != [listing.root]:
        listing.archives = [path.relative_to(listing.root).as_posix() for path in paths]
        listing.archive = archive
        listing.watched = sorted({*paths, *(path.parent for path in paths), listing.root})
    for name, value in facts.items():
        setattr(listing, name, value)
    return listing
