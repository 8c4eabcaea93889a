"""Checks of the config that relate keys to each other or to the disk.

What only the network itself can tell (does it have this layer?) is checked in
`rfatlas.plan.preflight`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rfatlas.files import paths
from rfatlas.plan.entries import used
from rfatlas.plan.schema import closest, shown
from rfatlas.sources import catalogue

# Files that rules name as inputs must not look like patterns.
_WILDCARD = re.compile("[{}]")

_NO_BRACES = "Snakemake takes { and } in a path for a wildcard; rename the file"


def related(config: dict[str, Any], given: dict[str, Any]) -> Iterator[tuple[tuple, str]]:
    """Problems between keys, or between a key and the disk: (path, problem)."""
    for name, run in config["runs"].items():
        for kind in ("model", "dataset"):
            yield from _undefined(("runs", name, kind), run[kind], f"{kind}s", config)
    models, datasets = used(config, "model"), used(config, "dataset")
    for name, model in config["models"].items():
        yield from _related_model(("models", name), model, name in models)
    for name, dataset in config["datasets"].items():
        explicit = given.get("datasets", {}).get(name, {})
        yield from _related_dataset(("datasets", name), dataset, explicit, name in datasets)
    yield from related_counts(config)
    yield from _related_stimuli(config)
    yield from _related_ablation(config)
    yield from _related_groups(config)


def _undefined(path: tuple, name: str, section: str, config: dict[str, Any]) -> Iterator:
    if name not in (known := config[section]):
        defined = f"`{section}:` defines {', '.join(known) or 'none'}"
        yield path, f"{shown(name)} is not defined{closest(name, known)}; {defined}"


def _related_model(path: tuple, model: dict[str, Any], is_used: bool) -> Iterator:
    weights = model["weights"]
    random = weights.startswith("random:")
    for key in ("sha256", "weights_key"):
        if random and model[key] is not None:
            yield (
                (*path, key),
                f"{shown(model[key])} is not allowed; with random weights it must be null",
            )
    if model["kwargs"].get("pretrained") is True:
        yield (
            (*path, "kwargs", "pretrained"),
            "true is not allowed; the weights are those that `weights` names",
        )
    if weights.startswith("https:") and model["sha256"] is None:
        yield (
            (*path, "sha256"),
            f"null is not allowed with weights {shown(weights)}; give the SHA-256 of the file "
            "(64 hexadecimal digits), so that nobody can exchange it",
        )
    files = {
        "weights": paths.weights_file(weights),
        "factory": paths.factory_file(model["factory"]),
    }
    for key, file in files.items() if is_used else ():
        if file is not None and not os.path.isfile(file):
            yield (*path, key), f"{shown(model[key])}: no such file{_near(file)}"
        elif file is not None and _WILDCARD.search(str(file)):
            yield (*path, key), f"{shown(model[key])} is not allowed; {_NO_BRACES}"


def _related_dataset(
    path: tuple, dataset: dict[str, Any], explicit: Any, is_used: bool
) -> Iterator:
    for key, problem in catalogue.unread(dataset, explicit if isinstance(explicit, dict) else {}):
        value = "" if dataset[key] is None else f"{shown(dataset[key])}: "
        yield (*path, key), value + problem
    for key, problem in catalogue.unfit(dataset) if is_used else ():
        hint = _near(Path(dataset[key])) if problem.startswith("no such") else ""
        yield (*path, key), f"{shown(dataset[key])}: {problem}{hint}"
    for key in catalogue.FILE_KEYS if is_used else ():
        if dataset[key] and os.path.isfile(dataset[key]) and _WILDCARD.search(dataset[key]):
            yield (*path, key), f"{shown(dataset[key])} is not allowed; {_NO_BRACES}"


def related_counts(config: dict[str, Any]) -> Iterator[tuple[tuple, str]]:
    """Problems between numbers of units: (path, problem)."""
    fields, figures = config["receptive_fields"], config["figures"]
    top_k, sources = config["activations"]["top_k"], "activations.top_k"
    yield from _at_most(("receptive_fields", "top_k"), fields["top_k"], top_k, sources)
    units = min(fields["top_k"] or top_k, top_k)
    known = "the number of units per channel (receptive_fields.top_k or activations.top_k)"
    yield from _at_most(("receptive_fields", "keep"), fields["keep"], units, known)
    yield from _at_most(("skip_residual", "top_k"), config["skip_residual"]["top_k"], units, known)
    drawn = config["stages"]["figures"] and config["stages"]["receptive_fields"]
    if drawn and fields["keep"] <= units:
        limit = fields["keep"]
        yield from _at_most(
            ("figures", "patches"), figures["patches"], limit, "receptive_fields.keep"
        )


def _at_most(path: tuple, value: int | None, limit: int, name: str) -> Iterator:
    if value is not None and value > limit:
        yield path, f"{value} is not allowed; it must be at most {name}, which is {limit}"


def _related_stimuli(config: dict[str, Any]) -> Iterator:
    stimuli = config["preferred_stimulus"]
    if stimuli["jitter"] and stimuli["optimizer"] == "lbfgs":
        yield (
            ("preferred_stimulus", "jitter"),
            f"{stimuli['jitter']} is not allowed with optimizer lbfgs, which needs a function that "
            "does not change; it must be 0, or the optimizer adam",
        )
    gradients = stimuli["gradient_start"] and config["stages"]["receptive_fields"]
    if not stimuli["noise_starts"] and not gradients:
        yield (
            ("preferred_stimulus", "noise_starts"),
            "0 is not allowed without gradient_start and the stage receptive_fields; it must be at "
            "least 1",
        )


def _related_ablation(config: dict[str, Any]) -> Iterator:
    precision = config["ablation"]["precision"]
    if precision and precision["delta_loss"] is precision["delta_top1"] is None:
        yield (
            ("ablation", "precision"),
            "asks for no width; give delta_loss, delta_top1 or both, or null for no precision",
        )


def _related_groups(config: dict[str, Any]) -> Iterator:
    runs = config["runs"]
    for name, group in config["compare"]["groups"].items():
        path = ("compare", "groups", name)
        for run in group:
            yield from _undefined(path, run, "runs", config)
        datasets = {run: runs[run]["dataset"] for run in group if run in runs}
        if len(set(datasets.values())) > 1:
            listed = ", ".join(f"{run} on {dataset}" for run, dataset in datasets.items())
            yield path, f"{listed}: not comparable; the runs of a group must share a data set"


def _near(file: Path) -> str:
    """A hint to what is there instead: a neighbour of similar name, or the missing folder."""
    folder = file.parent
    if not os.path.isdir(folder):
        return f" (nor a folder {folder})"
    names = sorted(os.listdir(folder))[:1000]
    return closest(file.name, names) or f" in {folder.resolve()}"
