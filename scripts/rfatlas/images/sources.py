"""Where photographs come from: a listing of files and labels, made without decoding anything.

The graph of jobs needs to know how many images there are, and bad input should be refused before
any job starts; so this module is cheap and imports neither torch nor h5py. The packing job
(`rfatlas.images.images`) uses the same listing to read the files.

Sources (`datasets.<name>.source` in the config):

folders
    `path/<class>/**/image`: labels 0, 1, ... in the sorted order of the folder names, as
    torchvision's ImageFolder. With `class_map`, folder names are WordNet ids and the label is the
    id's rank among all ids of the map, so that a part of ImageNet's classes keeps ImageNet's
    labels. A folder that holds images and no class folders: every label -1 (unknown).
imagenet_val
    a flat folder of ILSVRC2012_val_00000001.JPEG ... with `labels`: the devkit's
    ILSVRC2012_validation_ground_truth.txt and `class_map` (the devkit's meta.mat, or a table
    `ILSVRC2012_ID wnid [name]`), or LOC_val_solution.csv and optionally `class_map`
    (LOC_synset_mapping.txt). The devkit numbers classes in an order of its own; the label used
    here, as in torchvision's models, is the rank of the class's WordNet id among the sorted ids of
    the 1,000 leaf classes.
imagenet_tar
    the same from an uncompressed tar archive, read in place (ILSVRC2012_img_val.tar). Without
    `labels`, an archive of class folders, or of images alone (labels -1).
list
    lines `path label` (the path may hold spaces; # starts a comment line), or a CSV table with the
    columns `file` or `path`, `label` and optionally `class_name`. Label -1 = unknown. Paths are
    relative to the list file.
scenes
    the list that the rule scenes writes.
"""

import csv
import hashlib
import json
import os
import posixpath
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rfatlas.errors import RfatlasError, printable

#: File name endings taken as images in folders and archives: torchvision's, and GIF.
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".pgm",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
)
#: Number of classes of ImageNet's classification task, the leaves of its hierarchy.
IMAGENET_CLASSES = 1000

#: Which of the optional keys each source reads; another one that is set is refused rather than
#: ignored.
_READS = {
    "folders": {"path", "class_map", "class_names"},
    "imagenet_val": {"path", "labels", "class_map", "class_names"},
    "imagenet_tar": {"path", "labels", "class_map", "class_names"},
    "list": {"path", "class_names"},
    "scenes": {"path"},
}
_LABEL = re.compile(r"-1|[0-9]{1,6}")
_INTEGER = re.compile(r"[0-9]{1,6}")
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+", re.IGNORECASE)
_WNID = re.compile(r"n\d{8}")
_CLASS_MAP_LINE = re.compile(r"(?:(\d+)[\s,;]+)?\"?(n\d{8})\"?(?:[\s,;:]+(.*))?")
#: Bytes behind the last member of an archive that must be zero as far as they are there.
_END = 1 << 20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class Listing:
    """The images of a data set in their order, with labels; nothing is decoded.

    names : paths as the source gives them (relative to `root`), unique, valid UTF-8
    labels : int64 (N,), -1 = unknown
    class_names : one name for each label from 0, or empty when the source names none
    root : the folder that the names are relative to, or the archive
    offsets, sizes : int64 (N,), where each image lies in the archive and its bytes; None for files
    """

    source: str
    root: Path
    names: list[str]
    labels: np.ndarray
    class_names: list[str]
    offsets: np.ndarray | None = None
    sizes: np.ndarray | None = None
    _descriptor: int | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def __del__(self):
        if self._descriptor is not None:
            os.close(self._descriptor)

    def locate(self, index: int) -> str:
        """Return the image's place in words, for messages: its path, or `archive: member`."""
        if self.offsets is None:
            return printable(str(self.root / self.names[index]))
        return printable(f"{self.root}: {self.names[index]}")

    def size(self, index: int) -> int:
        """Return the size of the image's file in bytes; OSError if it is not there."""
        if self.sizes is None:
            return os.stat(self.root / self.names[index]).st_size
        return int(self.sizes[index])

    def is_plain(self, index: int) -> bool:
        """Tell whether the image is a file and no pipe, device or folder, which could be read for
        ever; OSError if it is not there."""
        return self.sizes is not None or stat.S_ISREG(
            os.stat(self.root / self.names[index]).st_mode
        )

    def stamp(self, index: int) -> tuple[int, int]:
        """Return (size in bytes, time of change in ns) of the image's file, or of the archive."""
        status = os.stat(self.root if self.offsets is not None else self.root / self.names[index])
        return status.st_size, status.st_mtime_ns

    def open(self, index: int) -> bytes:
        """Return the bytes of the image's file.

        Raises OSError if it cannot be read and RfatlasError if the archive ends before the image
        does.
        """
        if self.offsets is None or self.sizes is None:
            return (self.root / self.names[index]).read_bytes()
        if self._descriptor is None:
            self._descriptor = os.open(self.root, os.O_RDONLY)
        start, left, parts = int(self.offsets[index]), int(self.sizes[index]), []
        while left:
            part = os.pread(self._descriptor, left, start)
            if not part:
                raise RfatlasError(
                    f"{self.locate(index)}: the archive ends inside this image; it was cut short"
                )
            parts.append(part)
            start, left = start + len(part), left - len(part)
        return b"".join(parts)

    def select(self, indices: Sequence[int] | np.ndarray) -> "Listing":
        """Return the listing of these images, in the order given."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Listing(
            self.source,
            self.root,
            [self.names[i] for i in chosen],
            self.labels[chosen],
            self.class_names,
            None if self.offsets is None else self.offsets[chosen],
            None if self.sizes is None else self.sizes[chosen],
        )

    def to_json(self) -> str:
        """Return the listing as JSON text; `from_json` takes it back."""
        return json.dumps(
            {
                "source": self.source,
                "root": str(self.root),
                "names": self.names,
                "labels": self.labels.tolist(),
                "class_names": self.class_names,
                "offsets": None if self.offsets is None else self.offsets.tolist(),
                "sizes": None if self.sizes is None else self.sizes.tolist(),
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> "Listing":
        """Return the listing that `to_json` wrote; ValueError or KeyError if it is not one."""
        data = json.loads(text)

        def integers(values: list[int] | None) -> np.ndarray | None:
            return None if values is None else np.array(values, dtype=np.int64)

        return cls(
            data["source"],
            Path(data["root"]),
            data["names"],
            np.array(data["labels"], dtype=np.int64),
            data["class_names"],
            integers(data["offsets"]),
            integers(data["sizes"]),
        )

    def digest(self) -> str:
        """Return the sha256 (hex) of names, labels, class names and places; not of the content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def list_images(
    dataset: Mapping[str, Any], base: str | Path = ".", key: str = "dataset"
) -> Listing:
    """List the images of one entry of `datasets` in the config, with limit and subset applied.

    `base` is the folder that relative paths of the config start from, `key` the entry's place in
    the config for messages (`datasets.photos`). For source `scenes`, `path` is the labels.csv of
    the rule scenes.

    Raises RfatlasError, naming the key, the value and what would be right, when a path is missing,
    nothing is found, a label is not an integer, labels and images do not match, a file is listed
    twice, or the limit or subset does not fit.
    """
    try:
        return _listed(dataset, base, key)
    except RfatlasError as error:
        # File names and lines of tables are quoted, whatever they hold.
        raise RfatlasError(printable(str(error))) from error


def _listed(dataset: Mapping[str, Any], base: str | Path, key: str) -> Listing:
    source = dataset["source"]
    if source not in _READS:
        raise RfatlasError(f"{key}.source: {source!r}; allowed: {', '.join(sorted(_READS))}")
    for name in ("labels", "class_map", "class_names"):
        if dataset.get(name) is not None and name not in _READS[source]:
            raise RfatlasError(
                f"{key}.{name}: {dataset[name]!r}, but source {source} does not use it; remove it"
            )
    if dataset.get("path") is None:
        raise RfatlasError(f"{key}.path: missing; source {source} needs it")
    paths = {
        name: None if dataset.get(name) is None else Path(base, os.path.expanduser(dataset[name]))
        for name in ("path", "labels", "class_map", "class_names")
    }
    path = paths["path"]
    if source in ("folders", "imagenet_val"):
        if not os.path.isdir(path):
            raise RfatlasError(f"{key}.path: {path}: no such folder")
    elif not os.path.isfile(path):
        raise RfatlasError(f"{key}.path: {path}: no such file")
    for name in ("labels", "class_map", "class_names"):
        if paths[name] is not None and not os.path.isfile(paths[name]):
            raise RfatlasError(f"{key}.{name}: {paths[name]}: no such file")

    if source == "folders":
        listing = _folders(path, paths["class_map"], key)
    elif source == "imagenet_val":
        listing = _imagenet_val(path, paths["labels"], paths["class_map"], key)
    elif source == "imagenet_tar":
        listing = _imagenet_tar(path, paths["labels"], paths["class_map"], key)
    else:
        listing = _list(path, source, key)

    for name in listing.names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise RfatlasError(
                f"{key}.path: the file name {name!r} is not valid UTF-8; rename the file"
            ) from None
    if paths["class_names"] is not None:
        listing.class_names = _class_names(paths["class_names"], listing.labels, key)
    for what, texts in (("file", listing.names), ("class", listing.class_names)):
        for text in texts:
            if "\0" in text:
                raise RfatlasError(f"{key}: the {what} name {text!r} holds a zero byte; rename it")
    return _choose(listing, dataset, key)


def count_images(dataset: Mapping[str, Any], base: str | Path = ".", key: str = "dataset") -> int:
    """Return how many images `list_images` gives; of scenes before they are drawn.

    With `on_bad_image: skip` this is an upper bound of what is packed. Raises RfatlasError like
    `list_images`.
    """
    if dataset["source"] != "scenes":
        return len(list_images(dataset, base, key))
    count = dataset["count"]
    if dataset.get("limit") is not None:
        count = min(count, _positive(dataset["limit"], f"{key}.limit"))
    if dataset.get("subset") is not None:
        count = _subset_size(dataset["subset"], count, key)
    return count


def input_files(dataset: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return the files that tell where the images of `datasets.<name>` are and what they show.

    The keys name inputs of the rule that packs the images. Photographs in folders are not among
    them: there may be more than a workflow can watch.
    """
    if dataset["source"] == "scenes":
        folder = f"results/scenes/{name}"
        return {"labels": f"{folder}/labels.csv", "drawn": f"{folder}/images"}
    keys = {"truth": "labels", "class_map": "class_map", "class_names": "class_names"}
    if dataset["source"] in ("list", "imagenet_tar"):
        keys["path"] = "path"
    return {
        input: str(Path(os.path.expanduser(dataset[key])))
        for input, key in keys.items()
        if dataset.get(key) is not None
    }


def used_keys(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data set's config, sorted, less what is null and what only scenes use."""
    idle = () if dataset["source"] == "scenes" else ("count", "size", "seed")
    return {
        key: value
        for key, value in sorted(dataset.items())
        if value is not None and key not in idle
    }


def stratified(names: Sequence[str], labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return the indices, ascending, of a subset with equally many images of each class.

    Classes with too few images give all they have and the others share the rest; what does not
    divide evenly goes to classes chosen by the seed. Images are drawn by the SHA-256 of seed and
    name, so the draw depends on no library's random stream and on no other class. `labels` int64
    (N,); unknown (-1) counts as one class. Needs 0 < size <= N.
    """
    classes, counts = np.unique(labels, return_counts=True)
    # The largest equal share that does not overshoot: counts below it give everything.
    low, high = 0, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(counts, middle).sum() <= size:
            low = middle
        else:
            high = middle - 1
    quota = np.minimum(counts, low)
    spare = [int(label) for label, count in zip(classes, counts, strict=True) if count > low]
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


def _choose(listing: Listing, dataset: Mapping[str, Any], key: str) -> Listing:
    if dataset.get("limit") is not None:
        limit = _positive(dataset["limit"], f"{key}.limit")
        if limit < len(listing):
            listing = listing.select(range(limit))
    if dataset.get("subset") is not None:
        subset = dataset["subset"]
        size = _subset_size(subset, len(listing), key)
        seed = subset.get("seed", 0)
        listing = listing.select(stratified(listing.names, listing.labels, size, seed))
    return listing


def _positive(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RfatlasError(f"{key}: {value!r}; give a positive integer, or null for all images")
    return value


def _subset_size(subset: Mapping[str, Any], available: int, key: str) -> int:
    size = _positive(subset["size"], f"{key}.subset.size")
    if size > available:
        raise RfatlasError(
            f"{key}.subset.size: {size}, but there are {available} images; give at most {available}"
        )
    return size


def _is_image(name: str) -> bool:
    """Tell whether a relative path is an image by its ending, not hidden nor a macOS shadow."""
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and parts[-1].lower().endswith(IMAGE_SUFFIXES)


def _no_image(path: Path, key: str) -> RfatlasError:
    return RfatlasError(
        f"{key}.path: {path}: contains no images; recognised extensions: "
        + ", ".join(IMAGE_SUFFIXES)
    )


def _walk(root: Path, key: str) -> tuple[list[str], list[str]]:
    """Return (image paths, top-level folders) below `root`; links are followed, no circles."""

    def refuse(error: OSError):
        raise RfatlasError(f"{key}.path: {error.filename}: {error.strerror}") from error

    names, folders, seen = [], [], set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        relative = Path(folder).relative_to(root).as_posix()
        if relative == ".":
            folders = [name for name in subfolders if _is_image(f"{name}/x.png")]
        prefix = "" if relative == "." else relative + "/"
        names += [prefix + name for name in files if _is_image(prefix + name)]
    return names, folders


def _by_class(
    names: Iterable[str], folders: Collection[str], class_map: Path | None, path: Path, key: str
) -> tuple[list[str], np.ndarray, list[str]]:
    """Return (names in order, labels, class names) of class folders, or of images (labels -1).

    The order is that of torchvision's ImageFolder: by class, then folder, then file name.
    """
    names = sorted(names, key=lambda n: (n.split("/")[0], posixpath.dirname(n), n))
    flat = [name for name in names if "/" not in name]
    nested = [name for name in names if "/" in name]
    if not names:
        raise _no_image(path, key)
    if flat and nested:
        raise RfatlasError(
            f"{key}.path: {path}: contains both images ({flat[0]}) and class folders "
            f"({nested[0]}); move the images into class folders, or give a list file"
        )
    if flat:
        return flat, np.full(len(flat), -1, dtype=np.int64), []
    found = sorted({name.split("/")[0] for name in names})
    empty = sorted(set(folders) - set(found))
    if empty:
        raise RfatlasError(
            f"{key}.path: {path}: the class folder {empty[0]!r} contains no images"
            f" ({len(empty)} such); remove it, or fill it: labels follow the sorted folder names"
        )
    if class_map is None:
        rank = {name: label for label, name in enumerate(found)}
        class_names = found
    else:
        rank, class_names, _ = _class_map(class_map, key)
        unknown = [name for name in found if name not in rank]
        if unknown:
            raise RfatlasError(
                f"{key}.class_map: {class_map}: does not contain the class folder {unknown[0]!r}"
                f" ({len(unknown)} such); folder names must be WordNet ids such as n01440764"
            )
    labels = np.array([rank[name.split("/")[0]] for name in names], dtype=np.int64)
    return names, labels, class_names


def _folders(path: Path, class_map: Path | None, key: str) -> Listing:
    names, folders = _walk(path, key)
    return Listing("folders", path, *_by_class(names, folders, class_map, path, key))


def _imagenet_val(path: Path, truth: Path | None, class_map: Path | None, key: str) -> Listing:
    if truth is None:
        raise RfatlasError(
            f"{key}.labels: missing; source imagenet_val needs "
            "ILSVRC2012_validation_ground_truth.txt or LOC_val_solution.csv"
        )
    with os.scandir(path) as entries:
        names = sorted(e.name for e in entries if e.is_file() and _is_image(e.name))
    if not names:
        raise RfatlasError(f"{_no_image(path, key)}; for one folder per class use source: folders")
    labels, class_names = _validation_labels(names, truth, class_map, key)
    return Listing("imagenet_val", path, names, labels, class_names)


def _imagenet_tar(path: Path, truth: Path | None, class_map: Path | None, key: str) -> Listing:
    places, folders = _index_tar(path, key)
    images = {name: place for name, place in places.items() if _is_image(name)}
    if not images:
        raise _no_image(path, key)
    if truth is not None:
        names = sorted(images, key=posixpath.basename)
        bases = [posixpath.basename(name) for name in names]
        labels, class_names = _validation_labels(bases, truth, class_map, key)
    else:
        # An archive of one folder that holds the class folders is an archive of the class folders.
        prefix = ""
        while all(name.removeprefix(prefix).count("/") >= 2 for name in images):
            first = next(iter(images)).removeprefix(prefix).split("/")[0]
            if not all(name.startswith(f"{prefix}{first}/") for name in images):
                break
            prefix += f"{first}/"
        inner = [n.removeprefix(prefix).split("/")[0] for n in folders if n.startswith(prefix)]
        names, labels, class_names = _by_class(
            [name.removeprefix(prefix) for name in images],
            [name for name in inner if name and _is_image(f"{name}/x.png")],
            class_map,
            path,
            key,
        )
        names = [prefix + name for name in names]
    offsets, sizes = np.array([images[name] for name in names], dtype=np.int64).T
    return Listing("imagenet_tar", path, names, labels, class_names, offsets.copy(), sizes.copy())


def _index_tar(path: Path, key: str) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return ({file: (offset, size)}, folder names) of an uncompressed tar archive.

    Reads the headers only. Members that could point outside the archive are refused, although
    nothing is ever unpacked: such an archive is damaged or hostile.
    """
    with path.open("rb") as file:
        start = file.read(6)
    for magic, form in _COMPRESSED.items():
        if start.startswith(magic):
            raise RfatlasError(
                f"{key}.path: {path}: compressed with {form}; decompress it once, only a plain tar "
                "can be read in place"
            )
    total = path.stat().st_size
    places: dict[str, tuple[int, int]] = {}
    folders = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if (
                    member.name.startswith("/")
                    or ".." in member.name.split("/")
                    or not (member.isfile() or member.isdir())
                    or member.issparse()
                ):
                    raise RfatlasError(
                        f"{key}.path: {path}: the member {member.name!r} is a link, a device or a "
                        "sparse file, or points outside the archive; make an archive of plain "
                        "files and folders"
                    )
                name = posixpath.normpath(member.name)
                if member.isdir():
                    folders.append(name)
                    continue
                if name in places:
                    raise RfatlasError(f"{key}.path: {path}: duplicate entry {name!r}")
                if member.size < 0 or member.offset_data + member.size > total:
                    raise tarfile.ReadError(f"{name} reaches past the end of the archive")
                places[name] = (member.offset_data, member.size)
            # tarfile takes a damaged header for the end of the archive.
            with path.open("rb") as file:
                file.seek(archive.offset)
                rest = file.read(_END)
                if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
                    raise tarfile.ReadError(
                        f"byte {archive.offset} is neither a member nor the end"
                    )
    except (
        tarfile.TarError,
        EOFError,
        ValueError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise RfatlasError(
            f"{key}.path: {path}: not a whole tar archive ({error}); fetch it again"
        ) from error
    return places, folders


def _text(path: Path, key: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RfatlasError(f"{key}: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RfatlasError(
            f"{key}: {path}: not a text file in UTF-8 (byte {error.start})"
        ) from error


def _class_map(path: Path, key: str) -> tuple[dict[str, int], list[str], dict[int, str]]:
    """Return ({wnid: label}, class names, {devkit id: wnid}) of a class map; label = wnid's rank.

    Reads the devkit's meta.mat, a table `ILSVRC2012_ID wnid [name]`, or LOC_synset_mapping.txt
    (`wnid name`), which has no devkit ids. Inner nodes of the hierarchy (in the devkit: with
    children, or an id above 1000) are left out. A class is called by the first of its names.
    """
    key = f"{key}.class_map"
    rows = _read_mat(path, key) if path.suffix.lower() == ".mat" else _read_map(path, key)
    ids, words = {}, {}
    for number, wnid, name in rows:
        if wnid in words or number in ids:
            raise RfatlasError(
                f"{key}: {path}: duplicate entry {wnid if wnid in words else number}"
            )
        words[wnid] = name.split(",")[0].strip().strip('"') or wnid
        if number is not None:
            ids[number] = wnid
    if len(words) != IMAGENET_CLASSES:
        raise RfatlasError(
            f"{key}: {path}: holds {len(words)} classes, not ImageNet's {IMAGENET_CLASSES}; with a "
            "part of them, labels would be wrong"
        )
    ranked = sorted(words)
    rank = {wnid: label for label, wnid in enumerate(ranked)}
    return rank, [words[wnid] for wnid in ranked], ids


def _read_mat(path: Path, key: str) -> list[tuple[int | None, str, str]]:
    # scipy's reader dies on some damaged files; a process of its own takes nothing along.
    scripts = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "rfatlas.images.sources", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": scripts},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines and done.returncode > 0 else "reading it crashed"
        raise RfatlasError(
            f"{key}: {path}: not the devkit's meta.mat, whose `synsets` holds ILSVRC2012_ID, WNID, "
            f"words, num_children ({reason})"
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


def _read_map(path: Path, key: str) -> list[tuple[int | None, str, str]]:
    rows = []
    for line, text in enumerate(_text(path, key), 1):
        text = text.strip()
        if not text or text.startswith("#"):
            continue
        match = _CLASS_MAP_LINE.fullmatch(text)
        if match:
            number = None if match[1] is None else int(match[1])
            if number is None or number <= IMAGENET_CLASSES:
                rows.append((number, match[2], match[3] or ""))
        elif line > 1:
            raise RfatlasError(
                f"{key}: {path}: line {line}: {text[:60]!r}; lines must be `ILSVRC2012_ID wnid "
                "[name]` or `wnid name`, with a wnid such as n01440764"
            )
    return rows


def _validation_labels(
    names: Sequence[str], truth: Path, class_map: Path | None, key: str
) -> tuple[np.ndarray, list[str]]:
    """Return (labels, class names) of validation images from either form of the ground truth."""
    lines = [line.strip() for line in _text(truth, f"{key}.labels") if line.strip()]
    if lines and re.sub(r"\s", "", lines[0].lower()) == "imageid,predictionstring":
        return _kaggle_labels(names, truth, lines, class_map, key)
    if not lines or not _INTEGER.fullmatch(lines[0]):
        raise RfatlasError(
            f"{key}.labels: {truth}: starts with {lines[0][:40] if lines else ''!r}; expected one "
            "integer per line (ILSVRC2012_validation_ground_truth.txt) or the header "
            "ImageId,PredictionString (LOC_val_solution.csv)"
        )
    if class_map is None:
        raise RfatlasError(
            f"{key}.class_map: missing; the devkit's numbers in {truth.name} are in an order of "
            "their own, give the devkit's meta.mat (or a table `ILSVRC2012_ID wnid`)"
        )
    rank, class_names, ids = _class_map(class_map, key)
    if not ids:
        raise RfatlasError(
            f"{key}.class_map: {class_map}: has no ILSVRC2012 ids, which {truth.name} needs; "
            "give the devkit's meta.mat (or a table `ILSVRC2012_ID wnid`)"
        )
    truths = []
    for number, text in enumerate(lines, 1):
        if not _INTEGER.fullmatch(text) or int(text) not in ids:
            raise RfatlasError(
                f"{key}.labels: {truth}: line {number}: {text[:40]!r} is not an id of {class_map}"
            )
        truths.append(rank[ids[int(text)]])
    labels = []
    for name in names:
        match = _VALIDATION_NAME.fullmatch(name)
        if not match:
            raise RfatlasError(
                f"{key}.path: {name!r} is not named like ILSVRC2012_val_00000001.JPEG, "
                f"so its line in {truth.name} is unknown; use source: list"
            )
        number = int(match[1])
        if not 1 <= number <= len(truths):
            raise RfatlasError(
                f"{key}.labels: {truth}: has {len(truths)} lines, but there is an image {name}; "
                "give the file that goes with it"
            )
        labels.append(truths[number - 1])
    return np.array(labels, dtype=np.int64), class_names


def _kaggle_labels(
    names: Sequence[str], truth: Path, lines: Sequence[str], class_map: Path | None, key: str
) -> tuple[np.ndarray, list[str]]:
    """Labels from lines `ILSVRC2012_val_00048981,n03995372 85 1 499 272 [more boxes]`."""
    wnids = {}
    for number, line in enumerate(lines[1:], 2):
        row = _csv_row(line, f"{key}.labels: {truth}: line {number}")
        words = row[1].split() if len(row) == 2 else []
        if not words or not _WNID.fullmatch(words[0]):
            raise RfatlasError(
                f"{key}.labels: {truth}: line {number}: {','.join(row)[:60]!r}; expected "
                "`ImageId,wnid x1 y1 x2 y2 ...`"
            )
        if row[0] in wnids:
            raise RfatlasError(f"{key}.labels: {truth}: line {number}: duplicate entry {row[0]}")
        wnids[row[0]] = words[0]
    if class_map is not None:
        rank, class_names, _ = _class_map(class_map, key)
        strange = sorted(set(wnids.values()) - set(rank))
        if strange:
            raise RfatlasError(
                f"{key}.class_map: {class_map}: does not contain {strange[0]} from {truth.name}"
            )
    else:
        class_names = sorted(set(wnids.values()))
        if len(class_names) != IMAGENET_CLASSES:
            raise RfatlasError(
                f"{key}.labels: {truth}: names {len(class_names)} classes, not ImageNet's "
                f"{IMAGENET_CLASSES}, so their labels are unknown; give class_map: "
                "LOC_synset_mapping.txt"
            )
        rank = {wnid: label for label, wnid in enumerate(class_names)}
    for name in names:
        if posixpath.splitext(name)[0] not in wnids:
            raise RfatlasError(f"{key}.labels: {truth}: has no line for the image {name}")
    labels = [rank[wnids[posixpath.splitext(name)[0]]] for name in names]
    return np.array(labels, dtype=np.int64), class_names


def _list(path: Path, source: str, key: str) -> Listing:
    lines = _text(path, f"{key}.path")
    content = [
        (number, line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not content:
        raise RfatlasError(f"{key}.path: {path}: lists no image; lines must be `path label`")
    header = [column.strip().lower() for column in content[0][1].split(",")]
    if header[0] in ("file", "path") or ("label" in header and len(header) > 1):
        rows = _csv_rows(content, header, path, key)
    else:
        rows = [(number, *_plain_row(number, line, path, key)) for number, line in content]
    if not rows:
        raise RfatlasError(f"{key}.path: {path}: lists no image below its header")

    names, labels, words = [], [], {}
    first: dict[str, int] = {}
    for number, name, label, word in rows:
        where = f"{key}.path: {path}: line {number}"
        if not _LABEL.fullmatch(label):
            raise RfatlasError(
                f"{where}: label {label!r} of {name}; give an integer from 0 to 999999, or -1 for "
                "unknown"
            )
        value = int(label)
        normal = os.path.normpath(name)
        if normal in first:
            raise RfatlasError(f"{where}: {name} is listed already in line {first[normal]}")
        first[normal] = number
        if word and words.setdefault(value, word) != word:
            raise RfatlasError(
                f"{where}: label {value} is called {word!r} here and {words[value]!r} above"
            )
        names.append(name)
        labels.append(value)
    _check_exist(names, path, key)
    array = np.array(labels, dtype=np.int64)
    known = [label for label in words if label >= 0]
    class_names = (
        [words.get(label, str(label)) for label in range(int(array.max()) + 1)] if known else []
    )
    return Listing(source, path.parent, names, array, class_names)


def _plain_row(number: int, line: str, path: Path, key: str) -> tuple[str, str, str]:
    parts = line.strip().rsplit(None, 1)
    if len(parts) != 2:
        raise RfatlasError(
            f"{key}.path: {path}: line {number}: {line.strip()[:60]!r} has no label; write `path "
            "label`, label -1 for unknown"
        )
    return parts[0], parts[1], ""


def _csv_rows(
    content: Sequence[tuple[int, str]], header: Sequence[str], path: Path, key: str
) -> list[tuple[int, str, str, str]]:
    file = next((column for column in ("file", "path") if column in header), None)
    if file is None or "label" not in header:
        raise RfatlasError(
            f"{key}.path: {path}: the header is {','.join(header)!r}; it needs the columns file "
            "(or path) and label"
        )
    rows = []
    for number, line in content[1:]:
        row = _csv_row(line, f"{key}.path: {path}: line {number}")
        if len(row) != len(header):
            raise RfatlasError(
                f"{key}.path: {path}: line {number}: {len(row)} columns, the header has "
                f"{len(header)}"
            )
        values = dict(zip(header, (value.strip() for value in row), strict=True))
        if not values[file]:
            raise RfatlasError(f"{key}.path: {path}: line {number}: the file name is empty")
        rows.append((number, values[file], values["label"], values.get("class_name", "")))
    return rows


def _csv_row(line: str, where: str) -> list[str]:
    try:
        return next(csv.reader([line]))
    except csv.Error as error:
        raise RfatlasError(f"{where}: {line[:60]!r}: no line of a CSV table ({error})") from error


def _check_exist(names: Sequence[str], path: Path, key: str) -> None:
    """Refuse missing files; lists each folder once, as asking for every file is slow on NFS."""
    folders: dict[Path, set[str]] = {}
    missing = []
    for name in names:
        file = path.parent / name
        if file.parent not in folders:
            known = os.listdir(file.parent) if os.path.isdir(file.parent) else ()
            folders[file.parent] = set(known)
        if file.name not in folders[file.parent]:
            missing.append(name)
    if missing:
        raise RfatlasError(
            f"{key}.path: {path}: {missing[0]} is not there ({len(missing)} missing); "
            f"paths are relative to {path.parent}"
        )


def _class_names(path: Path, labels: np.ndarray, key: str) -> list[str]:
    names = [line.strip() for line in _text(path, f"{key}.class_names")]
    while names and not names[-1]:
        names.pop()
    highest = int(labels.max())
    if len(names) <= highest:
        raise RfatlasError(
            f"{key}.class_names: {path}: {len(names)} names, but labels reach {highest}; "
            f"give one line for each label from 0 to {highest}"
        )
    if "" in names:
        raise RfatlasError(f"{key}.class_names: {path}: line {names.index('') + 1} is empty")
    return names


if __name__ == "__main__":
    _print_mat(sys.argv[1])
