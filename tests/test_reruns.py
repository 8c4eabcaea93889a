"""What reruns when a key of the config changes: the table of config/README.md against rehearsals of
every key in a finished folder; and what each named target needs.

The graph of stages is written down here once more, as the documentation has it, so that neither the
rules nor the schema are their own judges.
"""

import copy
import hashlib
import os
import re
from pathlib import Path

import config_readme
import numpy as np
import pytest
import rehearsals
import torch
import yaml
from PIL import Image
from standins import imagenet
from test_workflow import NET

from rfatlas.plan import config, schema

pytestmark = pytest.mark.workflow

# stage: the stages that read what it writes. Those that read channels.csv follow it whatever
# columns changed.
READERS = {
    "scenes": "images",
    "images": "model activations receptive_fields gratings color preferred_stimulus "
    "ablation channels ablation_groups figures atlas",
    "model": "activations receptive_fields virtual_filters gabor gratings color texture "
    "preferred_stimulus ablation channels ablation_groups compare findings figures atlas",
    "activations": "receptive_fields color preferred_stimulus ablation channels "
    "ablation_groups compare figures atlas",
    "receptive_fields": "virtual_filters gabor color preferred_stimulus channels figures atlas",
    "virtual_filters": "gabor color channels figures atlas",
    "gabor": "channels figures atlas",
    "gratings": "channels figures atlas",
    "color": "channels figures atlas",
    "texture": "channels atlas",
    "preferred_stimulus": "channels figures atlas",
    "ablation": "channels figures atlas",
    "channels": "orientation v1 opponency ablation_groups compare figures atlas",
    "orientation": "findings figures",
    "v1": "findings figures atlas",
    "opponency": "findings figures",
    "ablation_groups": "findings figures",
    "compare": "figures atlas",
    "findings": "atlas",
    "figures": "",
    "atlas": "",
    "train_demo": "",
}
READERS = {stage: set(readers.split()) for stage, readers in READERS.items()}


def with_followers(stages) -> set[str]:
    """Stages, those that read them, those that read these, and so on."""
    found = set(stages)
    while True:
        more = found | {reader for stage in found for reader in READERS[stage]}
        if more == found:
            return found
        found = more


# Stages of single layers, whose rules have their names; all of such a stage is `all_<stage>`.
OF_LAYERS = set(
    "receptive_fields gabor gratings color preferred_stimulus ablation ablation_groups".split()
)


def target(stage: str) -> str:
    return f"all_{stage}" if stage in OF_LAYERS else stage


def stages(rules) -> set[str]:
    """The stages of rules, which are named <stage> or <stage>_<step>; targets left out."""
    names = sorted(READERS, key=len, reverse=True)
    steps = set(rules) - {target(stage) for stage in READERS} - {"all"}
    return {next(name for name in names if rule.startswith(name)) for rule in steps}


# ---- a finished folder in which every key has a meaning

EVERY = list(schema.schema()["properties"]["stages"]["properties"])
SIZE = {"resize": 32, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
LAYERS = ["conv1", "layer1.0"]
NETWORK = {"factory": "net.py:make", "kwargs": {"width": 6}, "input": SIZE, "layers": LAYERS}
CONFIG = {
    "device": "cpu",
    "runs": {
        "one": {"model": "one", "dataset": "val"},
        "twin": {"model": "twin", "dataset": "val", "without": sorted({*EVERY} - {"texture"})},
        "drawn": {"model": "two", "dataset": "scenes"},
        "other": {"model": "one", "dataset": "scenes", "without": EVERY},
    },
    "models": {
        "one": NETWORK | {"weights": "one.npz"},
        "twin": NETWORK | {"weights": "random:1"},
        "two": NETWORK | {"weights": "random:2"},
    },
    "datasets": {
        "val": {
            "source": "imagenet_val",
            "path": "data/imagenet/val",
            "labels": "data/imagenet/LOC_val_solution.csv",
            "class_map": "data/imagenet/LOC_synset_mapping.txt",
            "subset": {"size": 14},
        },
        "scenes": {"source": "scenes", "count": 12, "size": 32},
        "photos": {"source": "folders", "path": "photos"},
    },
    "activations": {"top_k": 4, "range_size": 5},
    "receptive_fields": {"top_k": 3, "keep": 2},
    "color": {"top_k": 2},
    "preferred_stimulus": {
        "channels": {"sample": 2, "all_up_to": "conv1"},
        "optimizer": "adam",
    },
    "ablation": {"images": 8, "range_size": 5, "modes": ["zero"]},
    "ablation_groups": {"groups": {"mine": {"conv1": [0]}}},
    "compare": {"groups": {"val": ["one", "twin"], "scenes": ["drawn", "other"]}},
    "figures": {"channels": 4, "patches": 1},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder that looks as after a run of CONFIG."""
    folder = tmp_path_factory.mktemp("finished")
    imagenet(folder, flat=20, archived=2)
    for split in ("train", "test"):
        (folder / "hub" / split).mkdir(parents=True)
        names = [f"{i}.png" for i in range(14)]
        for name in names:
            (folder / "hub" / split / name).touch()
        rows = "".join(f"{name},0\n" for name in names)
        (folder / "hub" / split / "metadata.csv").write_text(f"file_name,label\n{rows}")
    os.rename(folder / "data/imagenet/val", folder / "data/imagenet/val2")
    (folder / "data/imagenet/val").mkdir()
    for name in sorted(os.listdir(folder / "data/imagenet/val2"))[:16]:
        (folder / "data/imagenet/val" / name).touch()
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        copied = folder / "data/imagenet" / f"copy_{name}"
        copied.write_bytes((folder / "data/imagenet" / name).read_bytes())
    (folder / "names.txt").write_text("".join(f"class {i}\n" for i in range(30)))
    for i in range(8):
        (folder / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(folder / "photos" / "ab"[i % 2] / f"{i}.png")
    (folder / "net.py").write_text(NET + "\n\nfrom part import again\n")
    (folder / "part.py").write_text(
        "def again(width=6):\n    import net\n\n    return net.Net(width)\n"
    )
    scope = {}
    exec(NET, scope)
    torch.manual_seed(0)
    weights = scope["make"]().state_dict().items()
    np.savez(folder / "one.npz", **{f"net.{name}": tensor.numpy() for name, tensor in weights})
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    rehearsals.finish(folder, folder / "config.yaml")
    return folder


# ---- another value for every key


def value(key: str):
    """What a key has in CONFIG, or by default."""
    node = config.check(CONFIG)[1]
    for part in key.split("."):
        node = node[part]
    return node


def another(key: str, node: dict):
    """Another value that a key may have, as its schema says."""
    now = value(key)
    if isinstance(now, bool):
        return not now
    if "enum" in node:
        return next(word for word in node["enum"] if word != now)
    if isinstance(now, list):
        return now[:-1]
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    step = 1 if "integer" in kinds else 0.01
    if now is None:
        return max(node.get("minimum", 0), 2)
    return now + step if now + step <= node.get("maximum", now + step) else now - step


# Keys whose other value is not plain to see from the schema: {dotted key: value}, with names in
# place of <name>.
DIGEST = "the digest of one.npz"
CHANGES = {
    "device": {"device": "auto"},
    "runs": {"runs.new": {"model": "one", "dataset": "val"}},
    "runs.<name>.model": {"runs.one.model": "two"},
    "runs.<name>.dataset": {"runs.drawn.dataset": "photos", "runs.other.dataset": "photos"},
    "models": {"models.new": NETWORK | {"weights": "random:9"}},
    "models.<name>.factory": {"models.two.factory": "net.py:again"},
    "models.<name>.kwargs": {"models.two.kwargs": {"width": 7}},
    "models.<name>.weights": {"models.two.weights": "random:3"},
    "models.<name>.weights_key": {"models.one.weights_key": "net"},
    "models.<name>.sha256": {"models.one.sha256": DIGEST},
    "models.<name>.layers": {"models.two.layers": [*LAYERS, "layer1.1"]},
    "models.<name>.input": {"models.two.input": {**SIZE, "resize": 36}},
    "models.<name>.input.resize": {"models.two.input.resize": 34},
    "models.<name>.input.crop": {"models.two.input.crop": 30},
    "models.<name>.input.interpolation": {"models.two.input.interpolation": "bicubic"},
    "models.<name>.input.mean": {"models.two.input.mean": [0.4, 0.5, 0.5]},
    "models.<name>.input.std": {"models.two.input.std": [0.3, 0.25, 0.25]},
    "datasets": {"datasets.new": {"source": "scenes"}},
    "datasets.<name>.source": {"datasets.scenes": {"source": "folders", "path": "photos"}},
    "datasets.<name>.path": {"datasets.val.path": "data/imagenet/val2"},
    "datasets.<name>.split": {
        "datasets.val": {"source": "huggingface", "path": "hub", "split": "test"}
    },
    "datasets.<name>.labels": {"datasets.val.labels": "data/imagenet/copy_LOC_val_solution.csv"},
    "datasets.<name>.class_map": {
        "datasets.val.class_map": "data/imagenet/copy_LOC_synset_mapping.txt"
    },
    "datasets.<name>.class_names": {"datasets.val.class_names": "names.txt"},
    "datasets.<name>.limit": {"datasets.val.limit": 15},
    "datasets.<name>.subset": {"datasets.val.subset": None},
    "datasets.<name>.subset.size": {"datasets.val.subset.size": 13},
    "datasets.<name>.subset.seed": {"datasets.val.subset.seed": 1},
    "datasets.<name>.on_bad_image": {"datasets.val.on_bad_image": "skip"},
    "datasets.<name>.count": {"datasets.scenes.count": 13},
    "datasets.<name>.size": {"datasets.scenes.size": 33},
    "datasets.<name>.seed": {"datasets.scenes.seed": 21},
    "activations.keep_maps": {"activations.keep_maps": ["conv1"]},
    "preferred_stimulus.channels": {"preferred_stimulus.channels": None},
    "preferred_stimulus.channels.all_up_to": {"preferred_stimulus.channels.all_up_to": None},
    "ablation.layers": {"ablation.layers": ["conv1"]},
    "ablation.modes": {"ablation.modes": ["zero", "mean"]},
    "ablation.all_modes_layers": {"ablation.all_modes_layers": ["conv1"]},
    "ablation.estimate": {"ablation.estimate": False, "ablation.images": 4},
    "ablation.precision": {"ablation.precision": {"delta_loss": 0.1}},
    "ablation.precision.delta_loss": {"ablation.precision": {"delta_loss": 0.2}},
    "ablation.precision.pilot": {"ablation.precision": {"delta_loss": 0.1, "pilot": 20}},
    "ablation.precision.delta_top1": {"ablation.precision": {"delta_top1": 0.01}},
    "ablation_groups.layers": {"ablation_groups.layers": ["conv1"]},
    "ablation_groups.groups": {"ablation_groups.groups": {}},
    "ablation_groups.groups.<name>": {"ablation_groups.groups.mine": {"conv1": [0, 1]}},
    "ablation_groups.groups.<name>.<name>": {"ablation_groups.groups.mine.conv1": [1]},
    "ablation_groups.cumulative.modes": {"ablation_groups.cumulative.modes": ["zero", "mean"]},
    "compare.groups": {"compare.groups.val": ["twin", "one"]},
}


def edits(key: str, node: dict) -> dict:
    return CHANGES.get(key) or {key: another(key, node)}


def changed(folder: Path, changes: dict) -> dict:
    """CONFIG with dotted keys changed."""
    result = copy.deepcopy(CONFIG)
    for key, new in changes.items():
        *parents, last = key.split(".")
        node = result
        for part in parents:
            node = node.setdefault(part, {})
        if new == DIGEST:
            new = hashlib.sha256((folder / "one.npz").read_bytes()).hexdigest()
        node[last] = new
    return result


def rehearsed(folder: Path, changes: dict[str, dict], *words) -> dict[str, tuple[int, str]]:
    """What a rehearsal says after each of some changes, by the name of the change."""
    commands = []
    for number, edit in enumerate(changes.values()):
        file = folder / f"changed_{number}.yaml"
        file.write_text(yaml.safe_dump(changed(folder, edit)))
        commands.append(("--configfile", file, *words))
    return dict(zip(changes, rehearsals.rehearse(folder, commands), strict=True))


KEYS = {key: node for key, node in config_readme.keys() if "x-reruns" in node}
# Its row refers to those of the switches.
WITHOUT = "runs.<name>.without"
SWITCHES = [f"stages.{stage}" for stage in EVERY]
# What is off with a switch besides the stage itself, and what is off in a run without the stage.
OFF = {
    "receptive_fields": {"gabor"},
    "gratings": {"texture"},
    "color": {"opponency"},
    "ablation": {"ablation_groups"},
}
OFF_IN_RUN = {stage: off for stage, off in OFF.items() if stage in ("color", "ablation")}


def expected(key: str, off=OFF) -> set[str]:
    """The stages that rerun after a change of a key, as its row has it."""
    words = KEYS[key]["x-reruns"]
    named = set() if words == "none" else set(words.split(", "))
    assert named <= set(READERS), key
    stage = key.removeprefix("stages.")
    return with_followers(named) - ({stage, *off.get(stage, ())} if key in SWITCHES else set())


@pytest.fixture(scope="module")
def after(finished):
    """What a rehearsal says after a change of each key, by key."""
    changes = {key: edits(key, node) for key, node in KEYS.items() if key != WITHOUT}
    changes |= {stage: {"runs.one.without": [stage]} for stage in EVERY}
    return rehearsed(finished, changes)


def test_a_finished_folder_has_nothing_to_do(finished):
    assert rehearsals.jobs(*rehearsed(finished, {"none": {}})["none"]) == {}


@pytest.mark.parametrize("key", sorted(set(KEYS) - {WITHOUT, "runs"}))
def test_a_key_reruns_the_stages_of_its_row(after, key):
    assert stages(rehearsals.jobs(*after[key])) == expected(key)


def test_an_edit_of_what_a_factory_imports_reruns_the_model(finished):
    file = finished / "part.py"
    text, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(text + b"# edited\n")
    found = stages(rehearsals.jobs(*rehearsed(finished, {"none": {}})["none"]))
    file.write_bytes(text)
    os.utime(file, ns=times)
    assert found == with_followers({"model"})


def test_another_run_reruns_of_the_others_what_shows_all_runs(after):
    jobs = rehearsals.jobs(*after["runs"])
    assert KEYS["runs"]["x-reruns"] == "figures, atlas"
    assert jobs["figures_accuracy"] == jobs["atlas_start"] == 1
    assert jobs["atlas_site"] == 3, "of one, of drawn, and its own"
    assert jobs["channels_join"] == jobs["model_weights"] == 1
    assert jobs["gabor"] == jobs["gratings"] == len(LAYERS), "of the new run alone"
    assert not {"images_pack", "scenes_draw", "compare_tables"} & set(jobs)


@pytest.mark.parametrize("stage", EVERY)
def test_a_run_without_a_stage_reruns_what_switching_it_off_reruns(after, stage):
    assert KEYS[WITHOUT]["x-reruns"] == "as the switch of the stage"
    found = stages(rehearsals.jobs(*after[stage]))
    # The atlases of the other runs lead to that of this run.
    links = {"atlas"} if stage == "atlas" else set()
    assert found == expected(f"stages.{stage}", OFF_IN_RUN) | links


@pytest.mark.parametrize("key", ["activations.top_k", "receptive_fields.top_k"])
def test_more_units_need_no_decoding(after, key):
    jobs = rehearsals.jobs(*after[key])
    assert edits(key, KEYS[key])[key] > value(key)
    assert jobs and not {"images_pack", "scenes_draw", "model_weights"} & set(jobs)


def test_the_documentation_tells_who_reads_whom():
    text = (rehearsals.ROOT / "config" / "README.md").read_text()
    table = text.split("| stage | is read by |\n|---|---|\n")[1].split("\n\n")[0]
    found = {}
    for row in table.splitlines():
        names, readers = row.strip("| ").split(" | ")
        found |= {stage: set(readers.split(", ")) for stage in names.split(", ")}
    shown = {stage: readers - {"figures", "atlas"} for stage, readers in READERS.items()}
    assert found == {stage: readers for stage, readers in shown.items() if readers}


def test_the_rules_read_what_the_documentation_says(finished):
    words = ("--rulegraph", "--forceall", "--configfile", finished / "config.yaml")
    ((status, output),) = rehearsals.rehearse(finished, [words])
    assert status == 0, output[-3000:]
    names = dict(re.findall(r'(\d+)\[label = "([\w-]+)', output))
    edges = re.findall(r"(\d+) -> (\d+)", output)
    found = {stage: set() for stage in READERS}
    for start, end in edges:
        for one, other in [(stages({names[start]}), stages({names[end]}))]:
            if one and other and one != other:
                found[one.pop()] |= other
    assert found == READERS


# ---- one stage and what it needs

PACKED = "scenes_draw images_pack"
MODEL = f"{PACKED} model_weights"
UNITS = f"{MODEL} activations_range activations_merge"
FIELDS = f"{UNITS} receptive_fields"
VIRTUAL = f"{FIELDS} virtual_filters_compose"
EFFECTS = "ablation_estimates ablation ablation_gather"
TABLE = f"{VIRTUAL} gabor gratings color texture_responses preferred_stimulus {EFFECTS}"
TABLE += " channels_join"
COUNTS = f"{TABLE} orientation_tables v1_tables opponency_tables"
GROUPS = "ablation_groups ablation_groups_tables"
TOPICS = "overview orientation color gabor ablation gratings preferred_stimulus virtual_filters"
FIGURES = " ".join(f"figures_{topic}" for topic in TOPICS.split())
TARGETS = {
    "scenes": "scenes_draw",
    "train_demo": "train_demo_network",
    "images": PACKED,
    "model": MODEL,
    "activations": UNITS,
    "receptive_fields": FIELDS,
    "virtual_filters": VIRTUAL,
    "gabor": f"{VIRTUAL} gabor",
    "gratings": f"{MODEL} gratings",
    "color": f"{VIRTUAL} color",
    "texture": f"{MODEL} texture_responses",
    "preferred_stimulus": f"{FIELDS} preferred_stimulus",
    "ablation": f"{UNITS} {EFFECTS}",
    "channels": TABLE,
    "orientation": f"{TABLE} orientation_tables",
    "v1": f"{TABLE} v1_tables",
    "opponency": f"{TABLE} opponency_tables",
    "ablation_groups": f"{TABLE} {GROUPS}",
    "compare": f"{TABLE} compare_tables",
    "findings": f"{COUNTS} {GROUPS} findings_page",
    "figures": f"{COUNTS} {GROUPS} compare_tables {FIGURES} figures_compare figures_accuracy",
    "atlas": f"{COUNTS} {GROUPS} compare_tables findings_page atlas_site atlas_start",
}
TARGETS["all"] = f"{TARGETS['figures']} {TARGETS['atlas']}"


@pytest.fixture(scope="module")
def needed(finished):
    """What a rehearsal of each named target says, as if nothing was there."""
    config_words = ("--forceall", "--configfile", finished / "config.yaml")
    said = rehearsals.rehearse(finished, [(target(name), *config_words) for name in TARGETS])
    return dict(zip(TARGETS, said, strict=True))


@pytest.mark.parametrize("stage", TARGETS)
def test_a_target_needs_its_stage_and_what_that_reads(needed, stage):
    rules = set(rehearsals.jobs(*needed[stage])) - {target(stage)}
    assert rules == set(TARGETS[stage].split())


def test_names_of_runs_that_look_like_those_of_rules(finished):
    names = ["a", "a_0", "groups_a", "gather_a", "range_a", "of_a", "0", "0-0", "tables", "all"]
    changes = {f"runs.{name}": {"model": "two", "dataset": "scenes"} for name in names}
    jobs = rehearsals.jobs(*rehearsed(finished, {"names": changes})["names"])
    assert jobs["channels_join"] == len(names)
    assert jobs["ablation_gather"] == jobs["gabor"] == len(names) * len(LAYERS)
