"""Source `imagenet_val`, and how ImageNet numbers its classes.

A flat folder of ILSVRC2012_val_00000001.JPEG ... with `labels`: the devkit's
ILSVRC2012_validation_ground_truth.txt and `class_map` (the devkit's meta.mat, or a table
`ILSVRC2012_ID wnid [name]`), or LOC_val_solution.csv and optionally `class_map`
(LOC_synset_mapping.txt). The devkit numbers classes in an order of its own; the label used here, as
in torchvision's models, is the rank of the class's WordNet id among the sorted ids of the 1,000
leaf classes.
"""

import json
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rfatlas.errors import RfatlasError
from rfatlas.sources.listing import Listing
from rfatlas.sources.source import Source, csv_row, is_image

#: Number of classes of ImageNet's classification task, the leaves of its hierarchy.
CLASSES = 1000

#: A label as text, and the WordNet id of a class.
INTEGER = re.compile(r"[0-9]{1,6}")
WNID = re.compile(r"n\d{8}")
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+", re.IGNORECASE)
_CLASS_MAP_LINE = re.compile(r"(?:(\d+)[\s,;]+)?\"?(n\d{8})\"?(?:[\s,;:]+(.*))?")


class ImagenetVal(Source):
    """The folder of ImageNet's validation images, with their ground truth."""

    keys = ("path", "labels", "class_map", "class_names")
    is_folder = True

    def listing(self) -> Listing:
        if self.labels is None:
            raise RfatlasError(
                f"{self.key}.labels: missing; source imagenet_val needs "
                "ILSVRC2012_validation_ground_truth.txt or LOC_val_solution.csv"
            )
        with os.scandir(self.path) as entries:
            names = sorted(e.name for e in entries if e.is_file() and is_image(e.name))
        if not names:
            raise RfatlasError(f"{self.no_image()}; for one folder per class use source: folders")
        return Listing(self.name, self.path, names, *labelled(self, names))


def read_class_map(source: Source) -> tuple[dict[str, int], list[str], dict[int, str]]:
    """Return ({wnid: label}, class names, {devkit id: wnid}) of a class map; label = wnid's rank.

    Reads the devkit's meta.mat, a table `ILSVRC2012_ID wnid [name]`, or LOC_synset_mapping.txt
    (`wnid name`), which has no devkit ids. Inner nodes of the hierarchy (in the devkit: with
    children, or an id above 1000) are left out. A class is called by the first of its names.
    """
    is_mat = source.class_map.suffix.lower() == ".mat"
    ids, words = {}, {}
    for number, wnid, name in _read_mat(source) if is_mat else _read_map(source):
        if wnid in words or number in ids:
            entry = wnid if wnid in words else number
            raise source.wrong(f"duplicate entry {entry}", "class_map")
        words[wnid] = name.split(",")[0].strip().strip('"') or wnid
        if number is not None:
            ids[number] = wnid
    if len(words) != CLASSES:
        raise source.wrong(
            f"holds {len(words)} classes, not ImageNet's {CLASSES}; with a part of them, labels "
            "would be wrong",
            "class_map",
        )
    ranked = sorted(words)
    rank = {wnid: label for label, wnid in enumerate(ranked)}
    return rank, [words[wnid] for wnid in ranked], ids


def _read_mat(source: Source) -> list[tuple[int | None, str, str]]:
    # scipy's reader dies on some damaged files; a process of its own takes nothing along.
    scripts = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "rfatlas.sources.imagenet", str(source.class_map)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": scripts},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines and done.returncode > 0 else "reading it crashed"
        raise source.wrong(
            "not the devkit's meta.mat, whose `synsets` holds ILSVRC2012_ID, WNID, words, "
            f"num_children ({reason})",
            "class_map",
        )
    return [tuple(row) for row in json.loads(done.stdout)]


def _print_mat(path: str) -> None:
    """Print the leaf classes of the devkit's meta.mat as JSON: rows of id, wnid, words."""
    # Imported here: only this form needs scipy, and it takes a good part of a second.
    import scipy.io

    table = np.atleast_1d(scipy.io.loadmat(path, squeeze_me=True)["synsets"])
    columns = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    rows = [
        (int(number), str(wnid), str(words))
        for number, wnid, words, children in zip(*(table[c] for c in columns), strict=True)
        if children == 0
    ]
    json.dump(rows, sys.stdout)


def _read_map(source: Source) -> list[tuple[int | None, str, str]]:
    rows = []
    for line, text in enumerate(source.lines("class_map"), 1):
        text = text.strip()
        if not text or text.startswith("#"):
            continue
        match = _CLASS_MAP_LINE.fullmatch(text)
        if match:
            number = None if match[1] is None else int(match[1])
            if number is None or number <= CLASSES:
                rows.append((number, match[2], match[3] or ""))
        elif line > 1:
            raise source.wrong(
                f"line {line}: {text[:60]!r}; lines must be `ILSVRC2012_ID wnid [name]` or "
                "`wnid name`, with a wnid such as n01440764",
                "class_map",
            )
    return rows


def labelled(source: Source, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return (labels, class names) of validation images from either form of the ground truth."""
    lines = [line.strip() for line in source.lines("labels") if line.strip()]
    first = lines[0] if lines else ""
    if re.sub(r"\s", "", first.lower()) == "imageid,predictionstring":
        return _by_kaggle(source, names, lines[1:])
    if INTEGER.fullmatch(first):
        return _by_devkit(source, names, lines)
    raise source.wrong(
        f"starts with {first[:40]!r}; expected one integer per line "
        "(ILSVRC2012_validation_ground_truth.txt) or the header ImageId,PredictionString "
        "(LOC_val_solution.csv)",
        "labels",
    )


def _by_devkit(
    source: Source, names: Sequence[str], lines: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Labels from lines with the number of a class each, in the order of the images' numbers."""
    truth = source.labels.name
    wanted = "give the devkit's meta.mat (or a table `ILSVRC2012_ID wnid`)"
    if source.class_map is None:
        raise RfatlasError(
            f"{source.key}.class_map: missing; the devkit's numbers in {truth} are in an order of "
            f"their own, {wanted}"
        )
    rank, class_names, ids = read_class_map(source)
    if not ids:
        raise source.wrong(f"has no ILSVRC2012 ids, which {truth} needs; {wanted}", "class_map")
    truths = []
    for number, text in enumerate(lines, 1):
        if not INTEGER.fullmatch(text) or int(text) not in ids:
            raise source.wrong(
                f"line {number}: {text[:40]!r} is not an id of {source.class_map}", "labels"
            )
        truths.append(rank[ids[int(text)]])
    labels = []
    for name in names:
        match = _VALIDATION_NAME.fullmatch(name)
        if not match:
            raise RfatlasError(
                f"{source.key}.path: {name!r} is not named like ILSVRC2012_val_00000001.JPEG, "
                f"so its line in {truth} is unknown; use source: list"
            )
        number = int(match[1])
        if not 1 <= number <= len(truths):
            raise source.wrong(
                f"has {len(truths)} lines, but there is an image {name}; give the file that goes "
                "with it",
                "labels",
            )
        labels.append(truths[number - 1])
    return np.array(labels, dtype=np.int64), class_names


def _by_kaggle(
    source: Source, names: Sequence[str], lines: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Labels from lines `ILSVRC2012_val_00048981,n03995372 85 1 499 272 [more boxes]`."""
    wnids = {}
    for number, line in enumerate(lines, 2):
        row = csv_row(line, f"{source.key}.labels: {source.labels}: line {number}")
        words = row[1].split() if len(row) == 2 else []
        if not words or not WNID.fullmatch(words[0]):
            raise source.wrong(
                f"line {number}: {','.join(row)[:60]!r}; expected `ImageId,wnid x1 y1 x2 y2 ...`",
                "labels",
            )
        if row[0] in wnids:
            raise source.wrong(f"line {number}: duplicate entry {row[0]}", "labels")
        wnids[row[0]] = words[0]
    if source.class_map is not None:
        rank, class_names, _ = read_class_map(source)
        strange = sorted(set(wnids.values()) - set(rank))
        if strange:
            raise source.wrong(
                f"does not contain {strange[0]} from {source.labels.name}", "class_map"
            )
    else:
        class_names = sorted(set(wnids.values()))
        if len(class_names) != CLASSES:
            raise source.wrong(
                f"names {len(class_names)} classes, not ImageNet's {CLASSES}, so their labels are "
                "unknown; give class_map: LOC_synset_mapping.txt",
                "labels",
            )
        rank = {wnid: label for label, wnid in enumerate(class_names)}
    stems = [posixpath.splitext(name)[0] for name in names]
    for name, stem in zip(names, stems, strict=True):
        if stem not in wnids:
            raise source.wrong(f"has no line for the image {name}", "labels")
    return np.array([rank[wnids[stem]] for stem in stems], dtype=np.int64), class_names


if __name__ == "__main__":
    _print_mat(sys.argv[1])
