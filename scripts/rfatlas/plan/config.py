"""The config: defaults filled in, and everything that is wrong with it said at once.

The schema in `workflow/schemas/config.schema.yaml` is the one place where keys, types, bounds,
defaults and descriptions stand. This module reads it, adds the checks that relate keys to each
other or to the disk, and words each problem as `key: value: what is allowed`. What only the
network itself can tell (does it have this layer?) is checked in `rfatlas.plan.preflight`.

Nothing here imports torch.
"""

import copy
import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from rfatlas import stages
from rfatlas.errors import RfatlasError, printable

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"

#: Endings by which a `weights:` is a file; anything else without a slash is a torchvision name.
WEIGHT_SUFFIXES = (".pth", ".pt", ".th", ".safetensors", ".npz")

# Keys of a data set that mean something for some sources only.
_SOURCES_OF_KEY = {
    "path": ("folders", "imagenet_val", "imagenet_tar", "list"),
    "labels": ("imagenet_val", "imagenet_tar"),
    "class_map": ("folders", "imagenet_val", "imagenet_tar"),
    "class_names": ("folders", "imagenet_val", "imagenet_tar", "list"),
    "count": ("scenes",),
    "size": ("scenes",),
    "seed": ("scenes",),
}

#: Groups of channels that the columns of channels.csv define.
PROPERTY_GROUPS = ("inactive", "double_opponent", "orientation_selective")

# YAML 1.1 reads 1e-3 (no dot) as text, and Snakemake hands all of a nested `--config` value over
# as text; people mean the number.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WORDS = {"true": ("boolean", True), "false": ("boolean", False), "null": ("null", None)}

# Files that rules name as inputs must not look like patterns.
_WILDCARD = re.compile("[{}]")
_NO_BRACES = "Snakemake takes { and } in a path for a wildcard; rename the file"

# Far beyond what a config needs; a few lines of YAML anchors can make one that fills the memory.
_MOST_VALUES = 100_000
_MOST_LEVELS = 32
# What 64-bit integers of the libraries below hold.
_LARGEST = 2**63 - 1


@cache
def schema() -> dict[str, Any]:
    """The schema as a dict, with the switches of the stages; do not change it."""
    # Every job's process reads it; libyaml, where PyYAML has it, takes a tenth of the time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = yaml.load(SCHEMA.read_text(encoding="utf-8"), Loader=loader)
    runs = found["properties"]["runs"]["additionalProperties"]["properties"]
    runs["without"]["items"]["enum"] = stages.switches()
    found["properties"]["stages"]["properties"] = {
        name: _switch(name) for name in stages.switches()
    }
    return found


def _switch(name: str) -> dict[str, Any]:
    """The schema of the switch of a stage."""
    stage = stages.BY_NAME[name]
    description = stage.meaning[0].upper() + stage.meaning[1:]
    description += "; off, channels.csv lacks its columns." if stage.columns else "."
    description += f" Left out, as {stage.like}." if stage.like else ""
    # What is switched off with it is not run again.
    reruns = [reader for reader in stages.readers(name) if stages.BY_NAME[reader].like != name]
    return {
        "description": description,
        "type": "boolean",
        "default": True,
        "x-when": stage.off_when,
        "x-reruns": ", ".join(reruns) or "none",
    }


def load(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every default filled in and its paths resolved.

    Relative paths count from the working directory; one that is not there but in the
    repository (as the demo's weights are when Snakemake runs with --directory) becomes absolute.

    Parameters
    ----------
    raw
        The config as read from YAML, e.g. Snakemake's `config`.

    Raises
    ------
    RfatlasError
        Listing every problem: the key, the value and what is allowed.
    """
    problems, filled = check(raw)
    if problems:
        raise RfatlasError(listing("the config", problems))
    return filled


def listing(what: str, problems: list[str]) -> str:
    """One message for several problems, each on a line of its own."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{what} has {count}:", *(f"  - {problem}" for problem in problems)])


def check(raw: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """All problems of a config, and the config with defaults in place of what is wrong."""
    try:
        _check_extent(raw)
        typed = _plain(_typed(_plain(raw), schema()))
    except TypeError as error:
        return [printable(str(error))], {}
    problems, wrong = [], []
    for error in jsonschema.Draft202012Validator(schema()).iter_errors(typed):
        for path, problem in _worded(error):
            problems.append(f"{_dotted(path)}: {problem}")
            wrong.append(path)
    given = _without(typed, wrong)
    filled = _resolved(_fitted(_filled(given, schema()), given))
    for path, problem in _related(filled, given):
        # What follows from a key that is wrong already (or from its default) is no news; the
        # source of a data set decides on all of its other keys.
        causes = [path[:i] for i in range(1, len(path) + 1)] + [(*path[:2], "source")]
        if not any(cause in wrong for cause in causes):
            problems.append(f"{_dotted(path)}: {problem}")
    return sorted({printable(problem) for problem in problems}), filled


def check_file(path: Path | str) -> None:
    """Refuse a config file in which a key stands twice (YAML would keep the last one silently).

    Raises
    ------
    RfatlasError
        Naming the file, the key and both lines.
    """
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


def used(config: Mapping[str, Any], kind: str) -> list[str]:
    """Names of the models or data sets (`kind` is "model" or "dataset") that some run uses."""
    return sorted({run[kind] for run in config["runs"].values()})


def stage_on(config: Mapping[str, Any], stage: str, run: str | None = None) -> bool:
    """Whether a stage is part of the plain `snakemake` call; one without a switch always is.

    With `run`: whether that run takes part; it may go `without` stages that others have.
    """
    if followed := stages.BY_NAME[stage].follows:
        return any(stage_on(config, other, run) for other in followed)
    if run is not None and stage in config["runs"][run]["without"]:
        return False
    return config["stages"].get(stage, True)


def twin(config: Mapping[str, Any], run: str) -> str | None:
    """The random twin of a run: the first run by name on the same data set whose model differs in
    its weights alone, and those are `random:SEED`. None where there is none, or for a random run.
    """

    def network(name: str) -> tuple:
        entry = config["models"][config["runs"][name]["model"]]
        return entry["factory"], entry["kwargs"], config["runs"][name]["dataset"]

    def random(name: str) -> bool:
        return config["models"][config["runs"][name]["model"]]["weights"].startswith("random:")

    if random(run):
        return None
    twins = [other for other in config["runs"] if random(other) and network(other) == network(run)]
    return min(twins, default=None)


def stimulus_sample(
    config: Mapping[str, Any], description: Mapping[str, Any], layer: str
) -> int | None:
    """How many channels of a layer the stage preferred_stimulus draws; None for all of them.

    `description` is that of the network, with its layers in order.
    """
    channels = config["preferred_stimulus"]["channels"]
    if channels is None:
        return None
    names = [known["name"] for known in description["layers"]]
    last = channels["all_up_to"]
    whole = last in names and names.index(layer) <= names.index(last)
    return None if whole else channels["sample"]


def local_weights(weights: str) -> Path | None:
    """The file that `weights:` names, or None for a URL, a seed or a torchvision name."""
    if weights.startswith("file:"):
        return Path(re.sub(r"^file:(//)?", "", weights))
    if re.match(r"[a-z]+:", weights):
        return None
    if weights.endswith(WEIGHT_SUFFIXES) or "/" in weights:
        return Path(os.path.expanduser(weights))
    return None


def factory_file(factory: str) -> Path | None:
    """The file of `path/to/file.py:callable`, or None for a dotted path."""
    file, colon, _ = factory.rpartition(":")
    return Path(os.path.expanduser(file)) if colon and file.endswith(".py") else None


def closest(word: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the allowed word nearest to `word`, or nothing."""
    found = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


def keys(node: Mapping[str, Any] | None = None, path: tuple[str, ...] = ()) -> Iterator[tuple]:
    """(dotted key, its schema) of every key; names that the user chooses stand as `<name>`."""
    node = schema() if node is None else node
    for name, child in node.get("properties", {}).items():
        yield ".".join((*path, name)), child
        yield from keys(child, (*path, name))
    children = node.get("additionalProperties")
    if isinstance(children, dict):
        yield from keys(children, (*path, "<name>"))


def document() -> str:
    """The end of `config/README.md`: who reads whom, and a table of the keys of each section."""
    readers: dict[str, list[str]] = {}
    for stage in stages.BY_NAME:
        if found := ", ".join(stages.readers(stage)):
            readers.setdefault(found, []).append(stage)
    lines = ["| stage | is read by |", "|---|---|"]
    lines += [f"| {', '.join(names)} | {found} |" for found, names in readers.items()]
    sections: dict[str, list[str]] = {}
    for key, node in keys():
        section = key.split(".")[0] if "properties" in node or "." in key else "general"
        if "." not in key and node.get("additionalProperties") not in (None, False):
            section = key
        unit = f" Unit: {node['x-unit']}." if "x-unit" in node else ""
        if "x-when" not in node:
            continue
        cells = (
            f"`{key}`",
            f"{node['description'].strip()}{unit}",
            f"`{json.dumps(node['default'])}`",
            node["x-when"],
            node["x-reruns"],
        )
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        sections.setdefault(section, []).append(f"| {row} |")
    head = "| key | meaning | default | change it when | reruns |\n|---|---|---|---|---|"
    order = ["general", *(key for key in schema()["properties"] if key in sections)]
    tables = ["\n".join([f"## {name}", "", head, *sections[name]]) for name in order]
    return "\n\n".join(["\n".join(lines), *tables])


def _check_extent(raw: Any) -> None:
    """TypeError for a config of too many values or levels, before anything copies it."""
    count, left = 0, [(raw, 0)]
    while left:
        value, level = left.pop()
        children: Iterable = ()
        if isinstance(value, Mapping):
            children = value.values()
        elif isinstance(value, list | tuple):
            children = value
        count += 1
        if level > _MOST_LEVELS:
            raise TypeError(f"config: nested over {_MOST_LEVELS} levels deep; no key needs that")
        if count + len(left) + len(children) > _MOST_VALUES:
            raise TypeError(
                f"config: holds over {_MOST_VALUES} values; no key needs that many (does an anchor "
                "repeat itself?)"
            )
        left += [(child, level + 1) for child in children]


def _plain(value: Any, path: tuple = ()) -> Any:
    """A copy of dicts, lists and scalars alone; TypeError for what JSON or 64 bits do not hold."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"{_dotted((*path, str(key)))}: the name {key!r} is read as "
                    f"{type(key).__name__}, not as text; put it in quotes"
                )
        return {str(key): _plain(child, (*path, key)) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child, (*path, i)) for i, child in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{_dotted(path)}: {value} is not a finite number")
    if isinstance(value, int) and abs(value) > _LARGEST:
        # Python refuses to write out very long integers.
        shown = (
            str(value) if value.bit_length() < 1000 else f"a number of {value.bit_length()} bits"
        )
        raise TypeError(f"{_dotted(path)}: {shown} is too large; at most {_LARGEST} is possible")
    if isinstance(value, str) and not _encodes(value):
        raise TypeError(f"{_dotted(path)}: {value!r} is no text (half of a surrogate pair)")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{_dotted(path)}: {value} is read as {type(value).__name__}; put it in quotes")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _types(node: Mapping[str, Any]) -> list[str]:
    types = node.get("type", [])
    return [types] if isinstance(types, str) else types


def _child(node: Mapping[str, Any], key: str | int) -> Mapping[str, Any]:
    if isinstance(key, int):
        items = node.get("items")
        if items is None:
            items = next((o["items"] for o in node.get("anyOf", []) if "items" in o), {})
        return items
    if key in node.get("properties", {}):
        return node["properties"][key]
    extra = node.get("additionalProperties")
    return extra if isinstance(extra, dict) else {}


def _typed(value: Any, node: Mapping[str, Any]) -> Any:
    """Text as numbers and booleans where the schema wants these, and `100.0` as 100."""
    if isinstance(value, dict):
        return {key: _typed(child, _child(node, key)) for key, child in value.items()}
    if isinstance(value, list):
        return [_typed(child, _child(node, i)) for i, child in enumerate(value)]
    types = _types(node)
    if isinstance(value, str) and types and "string" not in types:
        kind, meaning = _WORDS.get(value, ("", value))
        if kind in types:
            return meaning
        if {"number", "integer"} & set(types) and _NUMBER.fullmatch(value):
            value = float(value) if math.isfinite(float(value)) else value
    if isinstance(value, float) and "integer" in types and value.is_integer():
        return int(value)
    return value


def _dotted(path: Iterable[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_cut(part)}"
    return text.lstrip(".") or "config"


def _shown(value: Any) -> str:
    return _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def allowed(node: Mapping[str, Any]) -> str:
    """What a key may be, in words."""
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    types = _types(node)
    null = " or null" if "null" in types else ""
    if "x-allowed" in node:
        return node["x-allowed"] + null
    words = {
        "integer": "an integer",
        "number": "a number",
        "string": "a text",
        "boolean": "true or false",
        "array": "a list",
        "object": "a mapping",
    }
    kinds = [words[kind] for kind in types if kind != "null"]
    low, high = node.get("minimum"), node.get("maximum")
    bounds = ""
    if node.get("exclusiveMinimum") is not None:
        bounds = f" above {node['exclusiveMinimum']}"
    elif low is not None and high is not None:
        bounds = f" from {low} to {high}"
    elif low is not None:
        bounds = f", at least {low},"
    if null:
        return " or ".join(kinds) + bounds + null
    return (" or ".join(kinds) + bounds).rstrip(",")


def _worded(error: jsonschema.ValidationError) -> Iterator[tuple[tuple, str]]:
    """(path, problem) for each thing that one violation of the schema says."""
    path = tuple(error.absolute_path)
    node = schema()
    for key in path:
        node = _child(node, key)
    if "propertyNames" in error.absolute_schema_path:
        yield (
            (*path, error.instance),
            f"{_shown(error.instance)} is no name for this: use " + (node["x-names"]),
        )
    elif error.validator == "additionalProperties":
        known = list(node["properties"])
        for key in error.instance:
            if key not in known:
                yield (
                    (*path, key),
                    f"{_shown(error.instance[key])}: unknown key{closest(key, known)}; "
                    f"allowed are {', '.join(known)}",
                )
    elif error.validator == "required":
        for key in error.validator_value:
            if key not in error.instance:
                yield (*path, key), f"missing; it must be {allowed(_child(node, key))}"
    elif error.validator == "minProperties":
        yield path, "{}: at least one is needed"
    else:
        hint = closest(str(error.instance), map(str, node.get("enum", [])))
        text = allowed(node)
        if isinstance(path[-1] if path else None, int):
            parent = schema()
            for key in path[:-1]:
                parent = _child(parent, key)
            text = f"{text} (the list: {allowed(parent)})"
        yield path, f"{_shown(error.instance)} is not allowed{hint}; it must be {text}"


def _without(config: Any, paths: list[tuple]) -> Any:
    """A copy without the keys at `paths` (a path into a list removes the whole list)."""
    config = copy.deepcopy(config)
    for path in paths:
        names = []
        for part in path:
            if isinstance(part, int):
                break
            names.append(part)
        parent = config
        for name in names[:-1]:
            parent = parent.get(name) if isinstance(parent, dict) else None
        if names and isinstance(parent, dict):
            parent.pop(names[-1], None)
    return config if isinstance(config, dict) else {}


def _filled(value: Any, node: Mapping[str, Any]) -> Any:
    """`value` with the defaults of `node` wherever a key is absent."""
    if not isinstance(value, dict):
        return value
    if "properties" in node:
        keys_present = dict(value)
        for key, child in node["properties"].items():
            keys_present.setdefault(key, copy.deepcopy(child["default"]))
        return {
            key: _filled(child, _child(node, key)) for key, child in sorted(keys_present.items())
        }
    return {key: _filled(child, _child(node, key)) for key, child in sorted(value.items())}


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
        if local_weights(model["weights"]) is not None and not model["weights"].startswith("file:"):
            model["weights"] = _found(model["weights"])
        file = factory_file(model["factory"])
        if file is not None:
            model["factory"] = f"{_found(str(file))}:{model['factory'].rpartition(':')[2]}"
    for dataset in config["datasets"].values():
        for key in ("path", "labels", "class_map", "class_names"):
            if dataset[key] is not None:
                dataset[key] = _found(dataset[key])
    return config


def _related(config: dict[str, Any], given: dict[str, Any]) -> Iterator[tuple[tuple, str]]:
    """Problems between keys, or between a key and the disk: (path, problem)."""
    for name, run in config["runs"].items():
        for kind in ("model", "dataset"):
            known = config[f"{kind}s"]
            if run[kind] not in known:
                yield (
                    ("runs", name, kind),
                    f"{_shown(run[kind])} is not defined{closest(run[kind], known)}; "
                    f"`{kind}s:` defines {', '.join(known) or 'none'}",
                )
    models, datasets = used(config, "model"), used(config, "dataset")
    for name, model in config["models"].items():
        yield from _related_model(("models", name), model, name in models)
    for name, dataset in config["datasets"].items():
        explicit = given.get("datasets", {}).get(name, {})
        yield from _related_dataset(("datasets", name), dataset, explicit, name in datasets)
    yield from _related_counts(config)
    yield from _related_stimuli(config)
    yield from _related_groups(config)
    for name in sorted(set(config["ablation_groups"]["groups"]) & set(PROPERTY_GROUPS)):
        yield (
            ("ablation_groups", "groups", name),
            "this name is taken by the group that channels.csv defines; choose another",
        )


def _related_model(path: tuple, model: dict[str, Any], is_used: bool) -> Iterator:
    weights, shown = model["weights"], _shown(model["weights"])
    where = (*path, "weights")
    if weights.startswith("random") and not re.fullmatch(r"random:\d{1,9}", weights):
        yield where, f"{shown} is not allowed; random weights are random:SEED, e.g. random:0"
    elif weights.startswith("random:") and model["sha256"] is not None:
        yield (
            (*path, "sha256"),
            f"{_shown(model['sha256'])} is not allowed; with random weights it must be null",
        )
    elif weights.startswith("https:") and model["sha256"] is None:
        yield (
            (*path, "sha256"),
            f"null is not allowed with weights {shown}; give the SHA-256 of the file "
            "(64 hexadecimal digits), so that nobody can exchange it",
        )
    elif re.match(r"[a-z]+:", weights) and not weights.startswith(("random:", "https:", "file:")):
        yield where, f"{shown} is not allowed; URLs are https: (with sha256) or file:"
    file = local_weights(weights)
    if file is not None:
        if not str(file).endswith(WEIGHT_SUFFIXES):
            kinds = ", ".join(WEIGHT_SUFFIXES)
            yield where, f"{shown} is not allowed; weights files end in {kinds}"
        elif is_used and not os.path.isfile(file):
            yield where, f"{shown}: no such file{_near(file)}"
        elif is_used and _WILDCARD.search(str(file)):
            yield where, f"{shown} is not allowed; {_NO_BRACES}"
    file = factory_file(model["factory"])
    if file is not None and is_used:
        shown = _shown(model["factory"])
        if not os.path.isfile(file):
            yield (*path, "factory"), f"{shown}: no such file{_near(file)}"
        elif _WILDCARD.search(str(file)):
            yield (*path, "factory"), f"{shown} is not allowed; {_NO_BRACES}"
    size = model["input"]
    if size and size["crop"] and size["resize"] and size["crop"] > size["resize"]:
        yield (
            (*path, "input", "crop"),
            f"{size['crop']} is not allowed; it must be at most resize, which is {size['resize']}",
        )


def _related_dataset(
    path: tuple, dataset: dict[str, Any], explicit: Any, is_used: bool
) -> Iterator:
    source = dataset["source"]
    for key, sources in _SOURCES_OF_KEY.items():
        given = isinstance(explicit, dict) and explicit.get(key) is not None
        if given and source not in sources:
            yield (
                (*path, key),
                f"{_shown(explicit[key])}: has no meaning for source {source}; it belongs to "
                f"{', '.join(sources)}",
            )
    if source != "scenes" and dataset["path"] is None:
        yield (*path, "path"), f"missing; source {source} needs it"
    for key in ("path", "labels", "class_map", "class_names"):
        if dataset[key] is None or not is_used or source not in _SOURCES_OF_KEY[key]:
            continue
        file = Path(dataset[key])
        folder_wanted = key == "path" and source in ("folders", "imagenet_val")
        if not os.path.exists(file):
            kind = "folder" if folder_wanted else "file"
            yield (*path, key), f"{_shown(dataset[key])}: no such {kind}{_near(file)}"
        elif folder_wanted and not file.is_dir():
            yield (*path, key), f"{_shown(dataset[key])}: not a folder, as source {source} needs"
        elif key == "path" and not folder_wanted and not file.is_file():
            yield (*path, key), f"{_shown(dataset[key])}: not a file, as source {source} needs"
        elif not folder_wanted and _WILDCARD.search(str(file)):
            yield (*path, key), f"{_shown(dataset[key])} is not allowed; {_NO_BRACES}"


def _related_counts(config: dict[str, Any]) -> Iterator:
    top_k = config["activations"]["top_k"]
    fields, figures = config["receptive_fields"], config["figures"]
    if fields["top_k"] is not None and fields["top_k"] > top_k:
        yield (
            ("receptive_fields", "top_k"),
            f"{fields['top_k']} is not allowed; it must be at most activations.top_k, "
            f"which is {top_k}",
        )
    elif fields["keep"] > (fields["top_k"] or top_k):
        yield (
            ("receptive_fields", "keep"),
            f"{fields['keep']} is not allowed; it must be at most the number of units per "
            f"channel, {fields['top_k'] or top_k} (receptive_fields.top_k or activations.top_k)",
        )
    elif figures["patches"] > fields["keep"] and (
        config["stages"]["figures"] and config["stages"]["receptive_fields"]
    ):
        yield (
            ("figures", "patches"),
            f"{figures['patches']} is not allowed; it must be at most receptive_fields.keep, "
            f"which is {fields['keep']}",
        )
    parts = config["skip_residual"]["top_k"]
    if parts is not None and parts > (fields["top_k"] or top_k):
        yield (
            ("skip_residual", "top_k"),
            f"{parts} is not allowed; it must be at most the number of units per channel, "
            f"{fields['top_k'] or top_k} (receptive_fields.top_k or activations.top_k)",
        )


def _related_stimuli(config: dict[str, Any]) -> Iterator:
    stimuli = config["preferred_stimulus"]
    if stimuli["jitter"] and stimuli["optimizer"] == "lbfgs":
        yield (
            ("preferred_stimulus", "jitter"),
            f"{stimuli['jitter']} is not allowed with optimizer lbfgs, which needs a function that "
            "stands still; it must be 0, or the optimizer adam",
        )
    gradients = stimuli["gradient_start"] and config["stages"]["receptive_fields"]
    if not stimuli["noise_starts"] and not gradients:
        yield (
            ("preferred_stimulus", "noise_starts"),
            "0 is not allowed without gradient_start and the stage receptive_fields; it must be at "
            "least 1",
        )


def _related_groups(config: dict[str, Any]) -> Iterator:
    runs = config["runs"]
    for name, group in config["compare"]["groups"].items():
        path = ("compare", "groups", name)
        for run in group:
            if run not in runs:
                yield (
                    path,
                    f"{_shown(run)} is not defined{closest(run, runs)}; `runs:` defines "
                    f"{', '.join(runs)}",
                )
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


def _duplicates(node: yaml.Node | None, visited: set[int], path: tuple = ()) -> Iterator[str]:
    # An alias stands for the node itself: once is enough, and some would go on for ever.
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                yield f"{_dotted((*path, name))}: stands twice, in lines {seen[name]} and {line}"
            seen[name] = line
            yield from _duplicates(value, visited, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            yield from _duplicates(child, visited, (*path, i))


if __name__ == "__main__":
    print(document())
