"""The config: read, checked, with defaults filled in and paths resolved.

All problems are reported together, each as `key: value: what is allowed`.

Nothing here imports torch.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from rfatlas import stages
from rfatlas.errors import RfatlasError, printable
from rfatlas.files import paths
from rfatlas.plan.checks import related, related_counts
from rfatlas.plan.schema import (
    ROOT,
    check_extent,
    dotted,
    filled,
    listing,
    plain,
    schema,
    without,
    worded,
)
from rfatlas.sources import catalogue


def load(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every default filled in and its paths resolved.

    Relative paths count from the working directory; one that is not there but in the
    repository (as the demo's weights are when Snakemake runs with --directory) becomes absolute.
    Raises RfatlasError that lists every problem: the key, the value and what is allowed.
    """
    problems, config = check(raw)
    if problems:
        raise RfatlasError(listing("the config", problems))
    return config


def check(raw: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """All problems of a config, and the config with defaults in place of what is wrong."""
    try:
        check_extent(raw)
        value = plain(raw, schema())
    except TypeError as error:
        return [printable(str(error))], {}
    problems, wrong = [], []
    for error in jsonschema.Draft202012Validator(schema()).iter_errors(value):
        for path, problem in worded(error):
            problems.append(f"{dotted(path)}: {problem}")
            wrong.append(path)
    given = without(value, wrong)
    config = _resolved(_fitted(filled(given, schema()), given))
    for path, problem in related(config, given):
        # What follows from a key that is wrong already (or from its default) is no news; the
        # source of a data set decides on all of its other keys.
        causes = [path[:i] for i in range(1, len(path) + 1)] + [(*path[:2], "source")]
        if not any(cause in wrong for cause in causes):
            problems.append(f"{dotted(path)}: {problem}")
    return sorted({printable(problem) for problem in problems}), config


def check_file(path: Path | str) -> None:
    """Refuse a config file with duplicate keys (YAML would silently keep the last one) by a
    RfatlasError that names the file, the key and both lines."""
    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        problems = [f"{path}: {printable(problem)}" for problem in _duplicates(node, set())]
    except OSError as error:
        raise RfatlasError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RfatlasError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = printable(getattr(error, "problem", None) or str(error).splitlines()[0])
        raise RfatlasError(f"{path}: not valid YAML: {where}{problem}") from error
    except RecursionError:
        raise RfatlasError(f"{path}: nested too deeply for a config") from None
    if problems:
        raise RfatlasError(listing("the config", problems))


def _fitted(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Defaults that depend on what was given: none exceeds a smaller number, and no stage that was
    not asked for turns one on that was switched off."""
    fields, figures = config["receptive_fields"], config["figures"]
    if "keep" not in (given.get("receptive_fields") or {}):
        fields["keep"] = min(fields["keep"], fields["top_k"] or config["activations"]["top_k"])
    switches = config["stages"]
    for stage in stages.STAGES:
        if stage.like and stage.name not in (given.get("stages") or {}):
            switches[stage.name] = switches[stage.like]
    if "patches" not in (given.get("figures") or {}):
        figures["patches"] = min(figures["patches"], fields["keep"])
    return config


def fit_to_images(
    config: dict[str, Any], given: Mapping[str, Any], count: int
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Lower `activations.top_k`, where the user did not write it in `given`, and what depends on it
    to the number of images.

    Returns the config, notes that say so, and problems with values that the user wrote.
    """
    top_k = config["activations"]["top_k"]
    if top_k <= count or "top_k" in (given.get("activations") or {}):
        return config, [], []
    config = copy.deepcopy(config)
    config["activations"]["top_k"] = count
    config = _fitted(config, given)
    note = f"activations.top_k: {count} instead of the default {top_k}: there are {count} images"
    wrong = [f"{dotted(path)}: {problem}" for path, problem in related_counts(config)]
    return config, [note], wrong


def _found(path: str) -> str:
    """`path` itself if it exists, its place in the repository if it exists there."""
    expanded = os.path.expanduser(path)
    # os.path's questions, unlike those of pathlib, answer no also for a name that is too long.
    if not os.path.isabs(expanded) and not os.path.exists(expanded):
        if os.path.exists(ROOT / expanded):
            return str(ROOT / expanded)
    return expanded


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    for model in config["models"].values():
        weights, factory = model["weights"], model["factory"]
        if (file := paths.weights_file(weights)) and not weights.startswith("file:"):
            model["weights"] = _found(str(file))
        if file := paths.factory_file(factory):
            model["factory"] = f"{_found(str(file))}:{factory.rpartition(':')[2]}"
    for dataset in config["datasets"].values():
        for key in catalogue.FILE_KEYS:
            if dataset[key] is not None:
                dataset[key] = _found(dataset[key])
    return config


def _duplicates(node: yaml.Node | None, visited: set[int], path: tuple = ()) -> Iterator[str]:
    # An alias is the node itself: once is enough, and some would go on for ever.
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                yield f"{dotted((*path, name))}: duplicate key, in lines {seen[name]} and {line}"
            seen[name] = line
            yield from _duplicates(value, visited, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            yield from _duplicates(child, visited, (*path, i))
