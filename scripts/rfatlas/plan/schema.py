"""The schema of the config: its keys, types, bounds, defaults and descriptions, and the words for
what breaks them.

`workflow/schemas/config.schema.yaml` is the one place for all of these but the switches of stages,
which come from the register of stages. `tests/config_readme.py` makes the end of config/README.md
of both.
"""

import copy
import difflib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, reduce
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from rfatlas import stages

ROOT = Path(__file__).resolve().parents[3]

SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"

# YAML 1.1 reads 1e-3 (no dot) as text, and Snakemake hands all of a nested `--config` value over
# as text; people mean the number.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

_WORDS = {"true": ("boolean", True), "false": ("boolean", False), "null": ("null", None)}

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
    if stage.part_of:
        description += f" A part of {stage.part_of}, off where that is off."
    description += f" Left out, as {stage.like}." if stage.like else ""
    # What is switched off with it is not run again.
    reruns = [reader for reader in stages.readers(name) if stages.BY_NAME[reader].like != name]
    reruns = [stage.part_of] if stage.part_of else reruns
    return {
        "description": description,
        "type": "boolean",
        "default": True,
        "x-when": stage.off_when,
        "x-reruns": ", ".join(reruns) or "none",
    }


def listing(what: str, problems: list[str]) -> str:
    """One message for several problems, each on a line of its own."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{what} has {count}:", *(f"  - {problem}" for problem in problems)])


def closest(word: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the allowed word nearest to `word`, or nothing."""
    found = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


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
        bounds = f" above {node['exclusiveMinimum']}" + (f" and at most {high}" if high else "")
    elif low is not None and high is not None:
        bounds = f" from {low} to {high}"
    elif low is not None:
        bounds = f", at least {low},"
    if null:
        return " or ".join(kinds) + bounds + null
    return (" or ".join(kinds) + bounds).rstrip(",")


def dotted(path: Iterable[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_cut(part)}"
    return text.lstrip(".") or "config"


def shown(value: Any) -> str:
    return _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def check_extent(raw: Any, level: int = 0) -> int:
    """How many values a config holds; TypeError for too many or too many levels, before anything
    copies it."""
    if level > _MOST_LEVELS:
        raise TypeError(f"config: nested over {_MOST_LEVELS} levels deep; no key needs that")
    count, children = 1, raw.values() if isinstance(raw, Mapping) else raw
    for child in children if isinstance(raw, Mapping | list | tuple) else ():
        count += check_extent(child, level + 1)
        if count > _MOST_VALUES:
            raise TypeError(
                f"config: holds over {_MOST_VALUES} values; no key needs that many (does an anchor "
                "repeat itself?)"
            )
    return count


def plain(value: Any, node: Mapping[str, Any], path: tuple = ()) -> Any:
    """A copy of dicts, lists and scalars alone, with text as numbers and booleans where the schema
    `node` wants these, and `100.0` as 100; TypeError for what JSON or 64 bits do not hold."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"{dotted((*path, str(key)))}: the name {key!r} is read as "
                    f"{type(key).__name__}, not as text; put it in quotes"
                )
        children = ((str(key), child) for key, child in value.items())
        return {key: plain(child, _child(node, key), (*path, key)) for key, child in children}
    if isinstance(value, list | tuple):
        return [plain(child, _child(node, i), (*path, i)) for i, child in enumerate(value)]
    value = _typed(value, _types(node))
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{dotted(path)}: {value} is not a finite number")
    if isinstance(value, int) and abs(value) > _LARGEST:
        # Python refuses to write out very long integers.
        shown = (
            str(value) if value.bit_length() < 1000 else f"a number of {value.bit_length()} bits"
        )
        raise TypeError(f"{dotted(path)}: {shown} is too large; at most {_LARGEST} is possible")
    if isinstance(value, str) and value.encode(errors="ignore").decode() != value:
        raise TypeError(f"{dotted(path)}: {value!r} is no text (half of a surrogate pair)")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{dotted(path)}: {value} is read as {type(value).__name__}; put it in quotes")


def _types(node: Mapping[str, Any]) -> list[str]:
    types = node.get("type", [])
    types = [types] if isinstance(types, str) else types
    return types or [kind for option in node.get("anyOf", []) for kind in _types(option)]


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


def _typed(value: Any, types: list[str]) -> Any:
    if isinstance(value, str) and types and "string" not in types:
        kind, meaning = _WORDS.get(value, ("", value))
        if kind in types:
            return meaning
        if {"number", "integer"} & set(types) and _NUMBER.fullmatch(value):
            value = float(value) if math.isfinite(float(value)) else value
    if isinstance(value, float) and "integer" in types and value.is_integer():
        return int(value)
    return value


def worded(error: jsonschema.ValidationError) -> Iterator[tuple[tuple, str]]:
    """(path, problem) for each thing that one violation of the schema says."""
    path = tuple(error.absolute_path)
    node = reduce(_child, path, schema())
    if "propertyNames" in error.absolute_schema_path:
        yield (
            (*path, error.instance),
            f"{shown(error.instance)} is no name for this: use " + (node["x-names"]),
        )
    elif error.validator == "additionalProperties":
        known = list(node["properties"])
        for key in error.instance:
            if key not in known:
                yield (
                    (*path, key),
                    f"{shown(error.instance[key])}: unknown key{closest(key, known)}; "
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
            text = f"{text} (the list: {allowed(reduce(_child, path[:-1], schema()))})"
        yield path, f"{shown(error.instance)} is not allowed{hint}; it must be {text}"


def without(config: Any, paths: list[tuple]) -> Any:
    """A copy without the keys at `paths` (a path into a list removes the whole list)."""
    config = copy.deepcopy(config)
    for path in paths:
        names = list(itertools.takewhile(lambda part: not isinstance(part, int), path))
        parent = config
        for name in names[:-1]:
            parent = parent.get(name) if isinstance(parent, dict) else None
        if names and isinstance(parent, dict):
            parent.pop(names[-1], None)
    return config if isinstance(config, dict) else {}


def filled(value: Any, node: Mapping[str, Any]) -> Any:
    """`value` with the defaults of `node` wherever a key is absent."""
    if not isinstance(value, dict):
        return value
    if "properties" in node:
        known = node["properties"].items()
        value = {key: copy.deepcopy(child["default"]) for key, child in known} | value
    return {key: filled(child, _child(node, key)) for key, child in sorted(value.items())}
