"""Where photographs come from: a listing of files and labels, made without decoding anything.

The graph of jobs needs to know how many images there are, and bad input should be refused before
any job starts; so this module is cheap and imports neither torch nor h5py. The packing job
(`rfatlas.images.images`) uses the same listing to read the files. What each source
(`datasets.<name>.source` in the config) reads is told in the module of its class.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rfatlas.errors import RfatlasError, printable
from rfatlas.sources.archives import ImagenetTar
from rfatlas.sources.folders import Folders
from rfatlas.sources.huggingface import HuggingFace
from rfatlas.sources.imagenet import ImagenetVal
from rfatlas.sources.listing import Listing, chosen, limited, subset_size
from rfatlas.sources.lists import List, Scenes
from rfatlas.sources.shards import WebDataset
from rfatlas.sources.source import FILE_KEYS, Source

SOURCES: dict[str, type[Source]] = {
    "folders": Folders,
    "imagenet_val": ImagenetVal,
    "imagenet_tar": ImagenetTar,
    "list": List,
    "huggingface": HuggingFace,
    "webdataset": WebDataset,
    "scenes": Scenes,
}


def readers(key: str) -> list[str]:
    """Return the names of the sources that read a key of the config."""
    return [name for name, source in SOURCES.items() if key in source.keys]


def unread(dataset: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) of the keys of a data set that are given but that its source does not
    read, and of `path` if it is missing."""
    source = dataset["source"]
    for key, value in given.items():
        if value is not None and readers(key) and source not in readers(key):
            yield (
                key,
                f"has no meaning for source {source}; it belongs to {', '.join(readers(key))}",
            )
    if dataset.get("path") is None and source in readers("path"):
        yield "path", f"missing; source {source} needs it"


def unfit(dataset: Mapping[str, Any], base: str | Path = ".") -> Iterator[tuple[str, str]]:
    """Yield (key, problem) of the files of a data set that are not there, or of another kind."""
    source = SOURCES[dataset["source"]]
    for key in FILE_KEYS:
        if dataset.get(key) is None or key not in source.keys:
            continue
        file = Path(base, os.path.expanduser(dataset[key]))
        is_folder = key == "path" and source.is_folder
        wanted = {True: "folder", False: "file", None: "file or folder"}[is_folder]
        there = {True: os.path.isdir, False: os.path.isfile, None: os.path.exists}[is_folder]
        if not os.path.exists(file):
            yield key, f"no such {wanted}"
        elif not there(file):
            yield key, f"not a {wanted}, as source {dataset['source']} needs"


def list_images(
    dataset: Mapping[str, Any],
    base: str | Path = ".",
    key: str = "dataset",
    classes: Collection[int] = (),
) -> Listing:
    """List the images of one entry of `datasets` in the config, with limit and subset applied.

    `base` is the folder that relative paths of the config start from, `key` the entry's place in
    the config for messages (`datasets.photos`), `classes` the numbers of classes of the networks
    that look at the images, on which labels may depend. For source `scenes`, `path` is the
    labels.csv of the rule scenes.

    Raises RfatlasError, naming the key, the value and what would be right, when a path is missing,
    nothing is found, a label is not an integer, labels and images do not match, a file is listed
    twice, or the limit or subset does not fit.
    """
    given = {name: dataset.get(name) for name in ("labels", "class_map", "class_names")}
    for problems in (unread(dataset, given), unfit(dataset, base)):
        for name, problem in problems:
            value = "" if dataset.get(name) is None else f"{printable(str(dataset[name]))}: "
            raise RfatlasError(f"{key}.{name}: {value}{problem}")
    try:
        source = SOURCES[dataset["source"]](dataset, base, key, classes)
        return chosen(_listed(source), dataset, key)
    except RfatlasError as error:
        # File names and lines of tables are quoted, whatever they hold.
        raise RfatlasError(printable(str(error))) from error


def _listed(source: Source) -> Listing:
    listing = source.listing()
    if source.class_names is not None:
        listing.class_names = source.given_class_names(listing.labels)
    for what, texts in (("file", listing.names), ("class", listing.class_names)):
        for text in texts:
            if "\0" in text or text.encode(errors="ignore").decode() != text:
                raise RfatlasError(
                    f"{source.key}: the {what} name {text!r} is not valid UTF-8, or holds a zero "
                    "byte; rename it"
                )
    return listing


def count_scenes(dataset: Mapping[str, Any], key: str) -> int:
    """Return how many images `list_images` gives of scenes, before they are drawn. Raises
    RfatlasError like `list_images`."""
    return subset_size(dataset, limited(dataset, dataset["count"]), key)


def input_files(dataset: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return the files that tell where the images of `datasets.<name>` are and what they show.

    The keys name inputs of the rule that packs the images. Folders are not among them: there may be
    more in them than a workflow can watch, and `list_images` sees what there is.
    """
    if dataset["source"] == "scenes":
        folder = f"results/scenes/{name}"
        return {"labels": f"{folder}/labels.csv", "drawn": f"{folder}/images"}
    source = SOURCES[dataset["source"]]
    found = {}
    for key in FILE_KEYS:
        if dataset.get(key) is not None and key in source.keys:
            file = Path(os.path.expanduser(dataset[key]))
            if key != "path" or not (source.is_folder or file.is_dir()):
                found["truth" if key == "labels" else key] = str(file)
    return found


def used_keys(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data set's config, sorted, less what is null and what only scenes use."""
    idle = () if dataset["source"] == "scenes" else Scenes.keys
    return {
        key: value
        for key, value in sorted(dataset.items())
        if value is not None and key not in idle
    }
