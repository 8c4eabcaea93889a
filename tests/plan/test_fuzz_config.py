"""Fuzzed configs: each is refused with the key and the value, or every value of it is as the schema
says and the workflow can be planned with it.

A sound config is changed at random places, which come from the schema, and a file of it at random
bytes.
"""

import copy
import json
import math
import random
import re
from pathlib import Path

import config_readme
import fuzzing
import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError

from rfatlas.plan import config, estimates, preflight, schema

# What stands for <name> in the keys of the schema, by what it is the name of.
NAMES = {
    "runs": ["a", "b"],
    "models": ["net", "r"],
    "datasets": ["photos", "s"],
    "ablation_groups.groups": ["mine"],
    "ablation_groups.groups.mine": ["conv1"],
    "compare.groups": ["both"],
}
SOUND = {
    "device": "cpu",
    "runs": {
        "a": {"model": "net", "dataset": "photos"},
        "b": {"model": "r", "dataset": "photos", "without": ["gratings"]},
    },
    "models": {
        "net": {
            "factory": "net.py:make",
            "weights": "net.pth",
            "kwargs": {"width": 4},
            "layers": ["conv1", "layer1.0"],
            "input": {"resize": 36, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
        },
        "r": {"factory": "torchvision.models.resnet18", "weights": "random:3"},
    },
    "datasets": {
        "photos": {"source": "folders", "path": "photos", "subset": {"size": 12}},
        "s": {"source": "scenes", "count": 50, "size": 32, "seed": 1},
    },
    "activations": {"top_k": 5, "keep_maps": ["conv1"]},
    "ablation": {"layers": ["conv1"], "precision": {"delta_top1": 0.01}},
    "ablation_groups": {"groups": {"mine": {"conv1": [0, 3]}}},
    "preferred_stimulus": {"channels": {"sample": 4, "all_up_to": "conv1"}},
    "compare": {"groups": {"both": ["a", "b"]}},
}
DESCRIPTION = {
    "parameters": 1000,
    "input": {"resize": 36, "crop": 32, "mean": [0.5] * 3, "std": [0.2] * 3},
    "n_classes": 2,
    "gflops": 0.1,
    "modules": ["conv1", "layer1.0", "fc"],
    "default_layers": ["conv1", "layer1.0"],
    "layers": [
        {
            "name": name,
            "channels": 4,
            "height": 16,
            "width": 16,
            "rectified": True,
            "size": 7,
            "stride": 2,
            "start": [0.5, 0.5],
            "rf_kind": "exact",
            "probed": [],
            "gflops": 0.05,
        }
        for name in ("conv1", "layer1.0")
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that holds what the sound config names."""
    folder = tmp_path_factory.mktemp("configs") / "inside"
    for i in range(12):
        file = folder / "photos" / "xy"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    (folder / "net.pth").touch()
    (folder / "net.py").touch()
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    """Tests run in that folder, and the networks need not be built."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(
        preflight, "describe", lambda models, cache: ({name: DESCRIPTION for name in models}, [])
    )
    before = set(place.parent.rglob("*"))
    yield
    new = set(place.parent.rglob("*")) - before
    assert all(file.is_relative_to(place / ".snakemake") for file in new), "nothing was written"


# ---- strategies

ODD_TEXT = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(), max_size=8),
    st.sampled_from(
        [
            "",
            " ",
            "a\n",
            "a\nb",
            "\x1b[31mred",
            "nul\0",
            "\ud800",
            "../outside",
            "a/../../b",
            "/etc/passwd",
            "~",
            "~nobody_of_that_name/net.pth",
            "..",
            ".",
            "con",
            "images",
            "figures",
            "a" * 65,
            "a" * 5000,
            "{run}",
            "a b",
            "naïve",
            "é́́",
            "\u202ertl",
            "1e400",
            "-1e999",
            "nan",
            "1e30",
            "null",
            "true",
            "*",
            "$HOME",
            "%s",
            "net.pth\n",
            "cpu\n",
            "random:99999999999999",
            "file:///dev/zero",
            "https://x.org/../net.pth",
            "x" * 300 + ".pth",
            "x" * 300 + ".py:make",
        ]
    ),
)
ODD_NUMBER = st.one_of(
    st.integers(-10, 10),
    st.integers(),
    st.floats(),
    st.sampled_from(
        [0, -1, 2**31, 2**63 - 1, 2**63, 10**30, -(10**30), 10**400, 1e300, 1e-320, -0.0]
    ),
)
ODD_VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), ODD_NUMBER, ODD_TEXT, st.dates(), st.binary(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(ODD_TEXT, st.integers(), st.none()), inner, max_size=3),
    ),
    max_leaves=6,
)


def sound_value(node):
    """Values of about the kind that a key takes, within its bounds and just outside."""
    kinds = node.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    choices = [st.just(node["default"])]
    if "enum" in node:
        choices.append(st.sampled_from(node["enum"]))
    if "null" in kinds:
        choices.append(st.none())
    if "boolean" in kinds:
        choices.append(st.booleans())
    if {"integer", "number"} & set(kinds):
        low = node.get("minimum", node.get("exclusiveMinimum", 0))
        high = node.get("maximum", low + 1000)
        choices.append(st.integers(math.floor(low) - 1, math.ceil(high) + 1))
        if "number" in kinds:
            choices.append(st.floats(low, high))
    if "array" in kinds:
        item = node.get("items", {})
        inner = st.sampled_from(item["enum"]) if "enum" in item else st.integers(0, 4)
        if item.get("type") == "string" and "enum" not in item:
            inner = st.sampled_from(["conv1", "layer1.0", "fc", "a", "b"])
        choices.append(st.lists(inner, max_size=4))
    if "string" in kinds and "enum" not in node:
        choices.append(st.sampled_from(["net", "r", "photos", "s", "conv1", "auto", "net.py"]))
    return st.one_of(choices)


def concrete(key: str) -> list[tuple[str, ...]]:
    """The places in the sound config that a key of the schema stands for."""
    places = [()]
    for part in key.split("."):
        if part == "<name>":
            places = [(*place, name) for place in places for name in NAMES[".".join(place)]]
        else:
            places = [(*place, part) for place in places]
    return places


NODES = {place: node for key, node in config_readme.keys() for place in concrete(key)}


@st.composite
def change(draw):
    """(place, value): `...` takes the key away."""
    place = draw(st.sampled_from(sorted(NODES)))
    what = draw(st.sampled_from(["sound", "sound", "odd", "odd", "gone", "extra", "renamed"]))
    if what == "sound":
        return place, draw(sound_value(NODES[place]))
    if what == "odd":
        return place, draw(ODD_VALUE)
    if what == "gone":
        return place, ...
    name = draw(ODD_TEXT) if what == "extra" else place[-1][:-1] + draw(st.sampled_from("xyz_ /"))
    return (*place[:-1], name), draw(ODD_VALUE)


def changed(sound, changes):
    """A copy of a config with changes made; those whose place is gone are left out."""
    raw = copy.deepcopy(sound)
    for place, value in changes:
        node = raw
        for part in place[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            continue
        if value is ...:
            node.pop(place[-1], None)
        else:
            node[place[-1]] = copy.deepcopy(value)
    return raw


# ---- what must hold


def check_usable(loaded):
    """The config is what the schema says, its names are safe, and a run of it can be planned."""
    jsonschema.Draft202012Validator(schema.schema()).validate(loaded)
    text = json.dumps(loaded, allow_nan=False)
    assert json.loads(text) == loaded
    names = [*loaded["runs"], *loaded["models"], *loaded["datasets"], *loaded["compare"]["groups"]]
    for name in (*names, *loaded["ablation_groups"]["groups"]):
        assert name.isascii() and re.fullmatch(r"[\w-]+", name) and len(name) <= 64
        assert (Path("results") / name / "x").resolve().is_relative_to(Path("results").resolve())
    assert not set(loaded["runs"]) & {"images", "scenes", "train_demo", "figures", "compare"}
    assert re.fullmatch("auto|cpu|cuda(:[0-9]+)?", loaded["device"])
    plan = preflight.prepare(loaded, loaded, Path(".snakemake"))
    layers = {
        run: [
            layer
            for layer in ("conv1", "layer1.0")
            if layer in loaded["models"][entry["model"]]["layers"]
            or loaded["models"][entry["model"]]["layers"] == "default"
        ]
        for run, entry in loaded["runs"].items()
    }
    budget = estimates.Budget(plan, layers, cores=2)
    assert all(budget.minutes("activations", run) >= 10 for run in layers)


def check_named(message, place, value):
    """The message names the place that was changed, or what the change made wrong."""
    name = fuzzing.printable(str(place[-1]))
    shown = fuzzing.printable(json.dumps(value, ensure_ascii=False, default=str))[:60]
    assert name in message or shown in message or place[-2:-1] and place[-2] in message, message


@given(change())
def test_one_change_is_refused_by_name_or_taken(one):
    place, value = one
    with fuzzing.trying("config, one change") as fate:
        check_usable(config.load(changed(SOUND, [one])))
    if fate.refused:
        check_named(fate.message, place, None if value is ... else value)


@given(st.lists(change(), min_size=2, max_size=6))
def test_many_changes_are_refused_or_taken(changes):
    with fuzzing.trying("config, many changes"):
        check_usable(config.load(changed(SOUND, changes)))


@given(ODD_VALUE)
def test_something_else_in_place_of_a_config_is_refused(value):
    with fuzzing.trying("config, something else") as fate:
        check_usable(config.load({"runs": value} if not isinstance(value, dict) else value))
    assert fate.refused


# ---- files


def check_file_of(data: bytes, folder: Path, kind: str) -> None:
    """Try a file as the workflow does: Snakemake reads it, then `check_file` looks at it, then its
    content is loaded. What Snakemake cannot read it refuses in words of its own."""
    file = folder / "config.yaml"
    file.write_bytes(data)
    with fuzzing.trying(kind) as alone:
        config.check_file(file)
    if alone.refused:
        return
    try:
        raw = load_configfile(file)
    except (WorkflowError, ValueError, TypeError, AttributeError, RecursionError):
        return
    with fuzzing.trying(kind):
        check_usable(config.load(raw))


BYTES = st.one_of(
    st.binary(min_size=1, max_size=4),
    st.sampled_from(
        [
            *(b"\t", b"&a ", b"*a", b"<<: *a\n", b"- ", b": ", b"{", b"]", b"|\n", b"? ", b"---\n"),
            *(b"!!python/none ", b"!!binary ", b"2026-99-99", b".inf", b"0x10", b"'", b'"\\ud800"'),
            *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"# \xc3", b"\xc2\x85", b"\xe2\x80\xa8"),
        ]
    ),
)


@given(st.lists(st.tuples(st.integers(0, 2000), st.booleans(), BYTES), min_size=1, max_size=4))
def test_damaged_files_are_refused_or_taken(tmp_path_factory, damages):
    data = yaml.safe_dump(SOUND).encode()
    for at, inserts, piece in damages:
        at %= len(data)
        data = data[:at] + piece + data[at if inserts else at + len(piece) :]
    folder = tmp_path_factory.getbasetemp()
    check_file_of(data, folder, "config file, damaged")


@given(st.randoms(use_true_random=False))
def test_shuffled_lines_are_refused_or_taken(tmp_path_factory, random: random.Random):
    lines = yaml.safe_dump(SOUND).splitlines(keepends=True)
    for _ in range(random.randrange(1, 5)):
        i, j = random.randrange(len(lines)), random.randrange(len(lines))
        lines[i:i] = [lines[j]] if random.random() < 0.5 else []
        lines[i], lines[j] = lines[j], lines[i]
    check_file_of("".join(lines).encode(), tmp_path_factory.getbasetemp(), "config file, lines")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB + "runs: *a11\n", "over 100000 values"),
        (BOMB.replace("[", "{k: [").replace("]\n", "]}\n") + "runs: *a11\n", "over 100000 values"),
        ("runs: &r\n  a: *r\n", "over 32 levels"),
        ("runs: &r [*r, *r]\n", "over 100000 values|over 32 levels"),
        ("runs: " + "[" * 200 + "]" * 200 + "\n", "over 32 levels|nested too deeply"),
        ("runs: " + "{a: " * 5000 + "1" + "}" * 5000 + "\n", "nested too deeply"),
        ("runs: {a: 1}\nruns: {b: 2}\n", "runs: duplicate key, in lines 1 and 2"),
        ("runs: {a: {model: net, model: r, dataset: s}}\n", "runs.a.model: duplicate key"),
        ("? [a, b]\n: 1\n", None),
        ("runs: {1: {model: net, dataset: photos}}\n", "put it in quotes"),
        ("runs: {null: {model: net, dataset: photos}}\n", "put it in quotes"),
        (f"activations: {{top_k: {'9' * 400}}}\n", "a number of 1329 bits is too large"),
        ("a: \xe9\n", "not a text file in UTF-8"),
        ("[]", None),
        ("", None),
    ],
    ids=range(15),
)
def test_hostile_yaml_is_refused(tmp_path, text, said):
    file = tmp_path / "config.yaml"
    file.write_bytes(text.encode("latin-1"))
    with fuzzing.trying("config file, hostile") as fate:
        config.check_file(file)
        config.load(yaml.safe_load(text) if said else {})
    assert fate.refused and re.search(said or "missing", fate.message)
