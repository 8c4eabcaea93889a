"""Which label a class has whose name alone is known: of a folder, or in a table."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rfatlas.sources import imagenet
from rfatlas.sources.source import Source

#: Names and WordNet ids of ImageNet's classes.
IMAGENET = Path(__file__).resolve().parents[3] / "resources" / "imagenet_classes.txt"

_LABEL = re.compile(r"-1|[0-9]{1,6}")
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


class Numbering:
    """The labels of classes, from their names.

    By the class map, if one is given. Else names that are all integers below the number of the
    network's classes are the labels themselves; a part of ImageNet's WordNet ids has ImageNet's
    labels where the network has 1,000 classes; all others are ranked, as torchvision's ImageFolder
    does. Raises RfatlasError for a name that the class map lacks.

    labels : {name: label}
    class_names : one name for each label from 0
    facts : `ranked`, `mapped` and `notes` of the listing (`Listing`)
    """

    def __init__(self, source: Source, names: Collection[str]):
        self.facts: dict[str, Any] = {}
        numbers = {int(name) for name in names if imagenet.INTEGER.fullmatch(name)}
        numbered = source.classes and len(numbers) == len(names)
        if source.class_map is not None:
            self._by_map(source, names)
        elif numbered and max(numbers) < min(source.classes):
            self.labels = {name: int(name) for name in names}
            self.class_names = [str(label) for label in range(max(numbers) + 1)]
            note = f"class names are numbers: {len(names)} of them taken as labels"
            self.facts = {"mapped": True, "notes": [note]}
        elif (
            imagenet.CLASSES in source.classes
            and len(names) < imagenet.CLASSES
            and all(imagenet.WNID.fullmatch(name) for name in names)
        ):
            source.class_map = IMAGENET
            self._by_map(source, names)
            note = (
                f"class names are WordNet ids: {len(names)} of ImageNet's {imagenet.CLASSES} "
                "classes, labelled as in ImageNet"
            )
            self.facts = {"mapped": True, "notes": [note]}
        else:
            self.class_names = sorted(names)
            self.labels = {name: label for label, name in enumerate(self.class_names)}
            self.facts = {"ranked": len(names)}
            if numbered:
                note = (
                    f"class names are numbers, but {max(numbers)} is not below the network's "
                    f"{min(source.classes)} classes: they are ranked as text, as torchvision does"
                )
                self.facts |= {"notes": [note]}

    def _by_map(self, source: Source, names: Collection[str]) -> None:
        self.labels, self.class_names, _ = imagenet.read_class_map(source)
        unknown = sorted(set(names) - set(self.labels))
        if unknown:
            raise source.wrong(
                f"does not contain the class {unknown[0]!r} ({len(unknown)} such); class names "
                "must be WordNet ids such as n01440764",
                "class_map",
            )


def labels_of(
    source: Source, given: Sequence[str], places: Sequence[str]
) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """Return (labels int64 (N,), names of classes, `Numbering.facts`) from labels as written.

    Integers from -1 are labels; if none is a number they are names: the lines of `class_names`, or
    as `Numbering` has them. `places` tells in words where each label is, for messages.
    """
    known = set(given)
    if all(label and not _is_number(label) for label in known):
        if source.class_names is None:
            numbering = Numbering(source, known)
            labels, class_names, facts = numbering.labels, numbering.class_names, numbering.facts
        else:
            class_names, facts = source.listed_class_names(), {}
            labels = {name: label for label, name in enumerate(class_names)}
            if unknown := sorted(known - set(labels)):
                raise source.wrong(f"does not contain the class {unknown[0]!r}", "class_names")
        return np.array([labels[label] for label in given], dtype=np.int64), class_names, facts
    for place, label in zip(places, given, strict=True):
        if not _LABEL.fullmatch(label):
            raise source.wrong(
                f"{place}: label {label!r}; give an integer from 0 to 999999, or -1 for unknown "
                "(names of classes only if all labels are names)"
            )
    return np.array([int(label) for label in given], dtype=np.int64), [], {}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_splits(source: Source, names: Collection[str]) -> None:
    """Refuse a folder of `train/` and `val/` that hold the class folders: one is to be chosen."""
    splits = sorted({name.split("/")[0] for name in names})
    if _SPLITS.issuperset(split.lower() for split in splits) and all(
        name.count("/") >= 2 for name in names
    ):
        raise source.wrong(
            f"contains {' and '.join(f'{split}/' for split in splits)} with class folders inside; "
            f"which of them? Give for example path: {source.path / splits[-1]}"
        )
