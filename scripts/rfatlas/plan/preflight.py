"""What the graph of jobs needs to know before it is built: layers of models, counts of images.

A model must be built to know its layers, and that takes torch. One process of its own describes
all models that are not in the cache yet, and checks their weights while it is there; Snakemake's
process never imports torch. With everything cached, all this takes milliseconds.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rfatlas.errors import RfatlasError, printable
from rfatlas.files import disk, paths, versions
from rfatlas.plan import config as rfatlas_config
from rfatlas.plan import entries, schema
from rfatlas.sources import catalogue

CACHE = Path(".snakemake/rfatlas")


@dataclass(frozen=True)
class Images:
    """Size of one data set.

    `count` images of `mean_bytes` bytes each on disk, with labels up to `top_label` (0 and -1 for
    scenes, which are not drawn yet); `digest` changes when names, labels or the order of the
    images change. `ranked` is the number of classes if their labels are the rank of their names,
    else 0, `featured` the number that the data set says it has; `classes` are those of the
    networks, where labels depend on them; `notes` are lines for the user.
    """

    count: int
    mean_bytes: float
    top_label: int
    digest: str
    ranked: int = 0
    featured: int = 0
    classes: Sequence[int] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """The config together with what it refers to.

    `descriptions` maps models to what `results/<run>/model.json` will hold (less the filter
    norms), and the digests of the user's own files that its factory imports as `imports`; `images`
    maps data sets to their size; both only for what some run uses.
    """

    config: dict[str, Any]
    descriptions: dict[str, dict[str, Any]]
    images: dict[str, Images]
    notes: tuple[str, ...] = ()


def prepare(config: dict[str, Any], given: Mapping[str, Any], cache: Path = CACHE) -> Plan:
    """Describe the models and count the images that the runs of `config` use.

    `config` is from `rfatlas.plan.config.load`, `given` as the user wrote it: what is not in it is
    fitted to the number of images, with a note, instead of refused. The folder `cache` remembers
    models and image lists until their files change. Raises RfatlasError that lists every problem:
    weights that do not fit, layers that a model does not have, data sets without images, K above
    the number of images.
    """
    problems: list[str] = []
    names = entries.used(config, "model")
    descriptions, wrong = describe({name: config["models"][name] for name in names}, cache)
    problems += wrong
    images = {}
    for name in entries.used(config, "dataset"):
        try:
            dataset, classes = config["datasets"][name], _classes(config, descriptions, name)
            images[name] = count_images(dataset, cache, f"datasets.{name}", classes)
        except RfatlasError as error:
            problems.append(str(error))
    notes = [f"datasets.{name}: {note}" for name, found in images.items() for note in found.notes]
    if images:
        most = min(found.count for found in images.values())
        config, more, wrong = rfatlas_config.fit_to_images(config, given, most)
        notes += more
        problems += wrong
    problems += _unfitting(config, descriptions, images)
    if problems:
        raise RfatlasError(schema.listing("the config", problems))
    plan = Plan(config, descriptions, images)
    notes += [f"runs.{run}: {text}" for run in config["runs"] for text in warnings(plan, run)]
    return replace(plan, notes=tuple(notes))


def _classes(
    config: dict[str, Any], descriptions: Mapping[str, dict[str, Any]], dataset: str
) -> tuple[int, ...]:
    """The numbers of classes of the networks that look at a data set, where its labels may depend
    on them."""
    if not catalogue.SOURCES[config["datasets"][dataset]["source"]].asks_classes:
        return ()
    models = {run["model"] for run in config["runs"].values() if run["dataset"] == dataset}
    found = {descriptions.get(model, {}).get("n_classes") for model in models}
    return tuple(sorted(found - {None, 0}))


def warnings(plan: Plan, run: str) -> list[str]:
    """Return what is doubtful about a run's labels, a line each."""
    model, dataset = (plan.config["runs"][run][key] for key in ("model", "dataset"))
    classes, found = plan.descriptions[model]["n_classes"], plan.images[dataset]
    named = found.ranked or found.featured
    if not classes or named in (0, classes):
        return []
    order = "follow the sorted names of the data set's classes" if found.ranked else "are its own"
    return [
        f"the data set {dataset!r} has {named} classes, but the model {model!r} tells {classes} "
        f"apart: labels 0 to {named - 1} {order}, and are wrong unless these are just the model's "
        "first ones; give class_map, or source: list"
    ]


def no_ablation(plan: Plan, run: str) -> str:
    """Return why a run has no predictions to lose, which the stage ablation then leaves out; ""
    where it has."""
    model, dataset = (plan.config["runs"][run][key] for key in ("model", "dataset"))
    if not plan.descriptions[model]["n_classes"]:
        return f"its model {model!r} has no classifier"
    # Scenes always have labels, but they are not drawn yet.
    drawn = plan.config["datasets"][dataset]["source"] == "scenes"
    if not drawn and plan.images[dataset].top_label < 0:
        return f"the images of its data set {dataset!r} have no labels"
    return ""


def describe(
    models: Mapping[str, dict[str, Any]], cache: Path = CACHE
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Descriptions of `models` by name, and the problems of those that have none.

    All that are not in the cache are built in one process:
    `python -m rfatlas.network.model describe`.
    """
    files = {name: cache / "models" / f"{_model_key(model)}.json" for name, model in models.items()}
    descriptions = {name: _read_description(file) for name, file in files.items()}
    missing = {name: models[name] for name, found in descriptions.items() if found is None}
    fresh, problems = _describe_in_process(missing) if missing else ({}, [])
    for name, description in fresh.items():
        _write(files[name], description)
    descriptions |= fresh
    return {name: found for name, found in descriptions.items() if found is not None}, problems


def count_images(
    dataset: dict[str, Any],
    cache: Path = CACHE,
    key: str = "dataset",
    classes: tuple[int, ...] = (),
) -> Images:
    """Number and mean size of the images of a data set; `key` is its place in the config, `classes`
    as `catalogue.list_images` takes them. Raises RfatlasError if the data set cannot be listed or
    has no image.
    """
    if dataset["source"] == "scenes":
        return Images(catalogue.count_scenes(dataset, key), 0.0, -1, _digest(dataset))
    file = cache / "images" / f"{_images_key(dataset, classes)}.json"
    known = _read(file)
    # What comes or goes below the data set's path changes the time of the folder that it is in.
    if known is None or any(_changed(path) != time for path, time in known["watched"].items()):
        found = catalogue.list_images(dataset, key=key, classes=classes)
        # A hundred files, spread evenly, tell the mean well enough for an estimate.
        sample = range(0, len(found), max(1, len(found) // 100))
        try:
            total = sum(found.size(i) for i in sample)
        except OSError as error:
            raise RfatlasError(
                f"{key}.path: {printable(str(error.filename))}: {error.strerror}"
            ) from error
        known = {
            "count": len(found),
            "mean_bytes": total / max(1, len(sample)),
            "top_label": int(found.labels.max()),
            "digest": found.digest(),
            "ranked": found.ranked,
            "featured": found.featured,
            "notes": found.notes,
            "classes": list(classes) if found.mapped else [],
            "watched": {str(path): _changed(path) for path in found.watched},
        }
        _write(file, known)
    del known["watched"]
    return Images(**known)


def _describe_in_process(
    models: dict[str, dict[str, Any]],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "rfatlas.network.model", "describe"],
        input=json.dumps({"models": models}),
        capture_output=True,
        text=True,
    )
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RfatlasError(
            f"the models ({', '.join(models)}) could not be built; the process ended with "
            f"status {done.returncode}:\n{last}"
        ) from None
    return answer.get("descriptions", {}), answer.get("errors", [])


def _unfitting(
    config: dict[str, Any],
    descriptions: dict[str, dict[str, Any]],
    images: dict[str, Images],
) -> list[str]:
    problems = []
    top_k = config["activations"]["top_k"]
    for name, found in images.items():
        if top_k > found.count:
            problems.append(
                f"activations.top_k: {top_k} is not allowed; it must be at most {found.count}, "
                f"the number of images of data set {name!r}"
            )
    for name, run in config["runs"].items():
        classes = descriptions.get(run["model"], {}).get("n_classes")
        found = images.get(run["dataset"])
        if classes and found and found.top_label >= classes:
            problems.append(
                f"runs.{name}: the data set {run['dataset']!r} has a label {found.top_label}, but "
                f"the model {run['model']!r} tells {classes} classes apart; labels from 0 to "
                f"{classes - 1} and -1 (unknown) are allowed"
            )
    analysed: set[str] = set()
    for name, description in descriptions.items():
        maps = [layer["name"] for layer in description["layers"]]
        asked = config["models"][name]["layers"]
        chosen = description["default_layers"] if asked == "default" else asked
        analysed |= set(chosen)
        problems += [
            f"models.{name}.layers: {layer!r} cannot be analysed: files are named by their layer, "
            "and their names must not hold any of / { }; rename the module"
            for layer in chosen
            if layer in maps and set(layer) & set("/{}")
        ]
        if asked == "default" and not description["default_layers"]:
            problems.append(
                f"models.{name}.layers: 'default' finds no convolution in this network; "
                f"layers with channels are: {', '.join(maps[:8]) or 'none'}"
            )
        for i, layer in enumerate([] if asked == "default" else asked):
            reason = "the model has no such layer" + schema.closest(layer, maps)
            if layer in description["modules"]:
                reason = "its output is no map of channels (N, C, H, W)"
            if layer not in maps:
                problems.append(
                    f"models.{name}.layers[{i}]: {layer!r}: {reason}; allowed are "
                    f"{', '.join(description['default_layers'])} and the modules inside them"
                )
    if len(descriptions) == len(entries.used(config, "model")):
        problems += _nowhere(config, analysed)
        problems += _unfitting_channels(config["ablation_groups"], descriptions)
        channels = config["preferred_stimulus"]["channels"]
        last = channels and channels["all_up_to"]
        known = {layer["name"] for one in descriptions.values() for layer in one["layers"]}
        if last and last not in known:
            problems.append(
                f"preferred_stimulus.channels.all_up_to: {last!r} is not a layer of any model"
                f"{schema.closest(last, known)}; analysed are {', '.join(sorted(analysed))}"
            )
    return problems


def _nowhere(config: dict[str, Any], analysed: set[str]) -> list[str]:
    """Layers that a section of the config names and no run analyses."""
    named = {
        f"{section}.{key}[{i}]": layer
        for section, key in (
            ("activations", "keep_maps"),
            ("ablation", "layers"),
            ("ablation", "all_modes_layers"),
            ("ablation_groups", "layers"),
        )
        for i, layer in enumerate(config[section][key] or [])
    }
    for name, layers in config["ablation_groups"]["groups"].items():
        named |= {f"ablation_groups.groups.{name}.{layer}": layer for layer in layers}
    return [
        f"{key}: {layer!r} is not analysed in any run{schema.closest(layer, analysed)}; "
        f"the layers are {', '.join(sorted(analysed))}"
        for key, layer in named.items()
        if layer not in analysed
    ]


def _unfitting_channels(
    settings: dict[str, Any], descriptions: dict[str, dict[str, Any]]
) -> list[str]:
    """Channels in groups of the section `ablation_groups` that a layer lacks."""
    layers = [layer for found in descriptions.values() for layer in found["layers"]]
    layers.sort(key=lambda layer: -layer["channels"])
    # The smallest of a name comes last.
    sizes = {layer["name"]: layer["channels"] for layer in layers}
    return [
        f"ablation_groups.groups.{name}.{layer}: no channel {max(channels)}; the layer has "
        f"{sizes[layer]} channels, 0 to {sizes[layer] - 1}"
        for name, layers in settings["groups"].items()
        for layer, channels in layers.items()
        if channels and max(channels) >= sizes.get(layer, math.inf)
    ]


def _model_key(model: dict[str, Any]) -> str:
    # Which layers are analysed does not change what the model has.
    own = {key: value for key, value in model.items() if key != "layers"}
    parts: list[Any] = [
        own,
        versions.digest("rfatlas.network.model"),
        importlib.metadata.version("torch"),
    ]
    file, path = paths.factory_file(model["factory"]), model["factory"].rpartition(".")[0]
    parts += [_stamp(each) for each in (file, paths.weights_file(model["weights"])) if each]
    if file is None and path.startswith("rfatlas."):
        parts.append(versions.digest(path))
    elif file is None:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(importlib.metadata.version(path.partition(".")[0]))
    return _digest(parts)


def _read_description(file: Path) -> dict[str, Any] | None:
    """The description in `file`; None where there is none, or a file of the factory has changed."""
    found = _read(file)
    with contextlib.suppress(OSError):
        if found and all(disk.sha256(path) == old for path, old in found["imports"].items()):
            return found
    return None


def _images_key(dataset: dict[str, Any], classes: tuple[int, ...]) -> str:
    parts: list[Any] = [dataset, versions.digest("rfatlas.sources.catalogue"), classes]
    files = [dataset[key] for key in catalogue.FILE_KEYS if dataset[key] is not None]
    return _digest(parts + [_stamp(Path(file)) for file in files])


def _changed(path: str | Path) -> int | None:
    """When a file or folder last changed, in ns; None where it is gone."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _stamp(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: Path) -> Any:
    """The JSON in `file`, or None where there is none or only part of one."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def _write(file: Path, content: Any) -> None:
    with disk.text(file) as handle:
        json.dump(content, handle)
