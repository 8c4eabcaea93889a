"""What all sources of photographs have in common."""

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rfatlas.errors import RfatlasError
from rfatlas.sources.listing import Listing

#: File name endings taken as images in folders and archives: torchvision's, GIF, and other names
#: of JPEG.
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jpe",
    ".png",
    ".ppm",
    ".pgm",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
)
#: The keys of the config that name files.
FILE_KEYS = ("path", "labels", "class_map", "class_names")


class Source:
    """A form in which people have photographs.

    Made from an entry of `datasets` in the config, whose relative paths start from `base`; `key` is
    the entry's place in the config, for messages (`datasets.photos`); `classes` are the numbers of
    classes of the networks that look at it.
    """

    #: The keys of the config that it reads, besides those that choose among the images.
    keys: ClassVar[tuple[str, ...]] = ("path", "class_names")
    #: Whether `path` is a folder; None where it may be either.
    is_folder: ClassVar[bool | None] = False
    #: Whether labels may depend on the numbers of classes.
    asks_classes: ClassVar[bool] = False

    def __init__(
        self,
        dataset: Mapping[str, Any],
        base: str | Path = ".",
        key: str = "dataset",
        classes: Collection[int] = (),
    ):
        self.name, self.key, self.classes = dataset["source"], key, classes
        self.split = dataset.get("split")
        self.path, self.labels, self.class_map, self.class_names = (
            None if dataset.get(name) is None else Path(base, os.path.expanduser(dataset[name]))
            for name in FILE_KEYS
        )

    def listing(self) -> Listing:
        """List the images; RfatlasError, naming key, value and what would be right."""
        raise NotImplementedError

    def wrong(self, problem: str, key: str = "path") -> RfatlasError:
        """Return the error for what is wrong with the file that `key` names."""
        return RfatlasError(f"{self.key}.{key}: {getattr(self, key)}: {problem}")

    def lines(self, key: str) -> list[str]:
        """Return the lines of the text file that `key` names."""
        try:
            return getattr(self, key).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise self.wrong(f"{error.strerror}", key) from error
        except UnicodeDecodeError as error:
            raise self.wrong(f"not a text file in UTF-8 (byte {error.start})", key) from error

    def no_image(self) -> RfatlasError:
        """Return the error for a folder or archive without images."""
        return self.wrong("contains no images; recognised extensions: " + ", ".join(IMAGE_SUFFIXES))

    def listed_class_names(self) -> list[str]:
        """Return the names of the classes, one for each label from 0, from the user's file."""
        names = [line.strip() for line in self.lines("class_names")]
        while names and not names[-1]:
            names.pop()
        if "" in names:
            raise self.wrong(f"line {names.index('') + 1} is empty", "class_names")
        return names

    def given_class_names(self, labels: np.ndarray) -> list[str]:
        """Return the names of the classes of the user's file, as many as the labels need."""
        names, highest = self.listed_class_names(), int(labels.max())
        if len(names) <= highest:
            raise self.wrong(
                f"{len(names)} names, but labels reach {highest}; "
                f"give one line for each label from 0 to {highest}",
                "class_names",
            )
        return names


def is_image(name: str) -> bool:
    """Tell whether a relative path is an image by its ending, not hidden nor a macOS shadow."""
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and parts[-1].lower().endswith(IMAGE_SUFFIXES)


def left_out(names: Iterable[str]) -> list[str]:
    """Return a note, or none, on files that are no image by their ending."""
    endings = Counter(
        posixpath.splitext(name)[1].lower() or "no ending"
        for name in names
        if not is_image(name) and is_image(f"{name}.png")
    )
    if not endings:
        return []
    most = sorted(endings.items(), key=lambda one: (-one[1], one[0]))[:5]
    listed = ", ".join(f"{ending} {count}" for ending, count in most)
    return [f"{endings.total()} files of other endings are left out ({listed})"]


def csv_row(line: str, where: str, separator: str = ",") -> list[str]:
    """Return the fields of one line of a CSV table; RfatlasError, starting with `where`."""
    try:
        return next(csv.reader([line], delimiter=separator))
    except csv.Error as error:
        raise RfatlasError(f"{where}: {line[:60]!r}: no line of a CSV table ({error})") from error
