"""The workflow as a user runs it: rehearsals of every config, refusals, what a change reruns."""

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rehearsals
import yaml
from PIL import Image
from standins import imagenet

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [*sorted(ROOT.glob("config/*.yaml")), *sorted(ROOT.glob("tests/configs/*.yaml"))]
# Stages of single layers, whose rules have their names; all of such a stage is `all_<stage>`.
OF_LAYERS = (
    "receptive_fields gabor gratings color preferred_stimulus ablation ablation_groups".split()
)
TARGETS = [f"all_{stage}" for stage in OF_LAYERS] + (
    "all scenes train_demo images model activations virtual_filters texture channels orientation "
    "v1 opponency compare findings figures atlas".split()
)
STAGES = [target.removeprefix("all_") for target in TARGETS if target != "all"]

pytestmark = pytest.mark.workflow


# Snakemake on a disk that has 20 GB free.
SMALL = """
import shutil
from types import SimpleNamespace
from snakemake.cli import main
shutil.disk_usage = lambda folder: SimpleNamespace(free=2e10)
main()
"""


def snakemake(folder: Path, *words, check: bool = True, python: tuple = ("-m", "snakemake")) -> str:
    """Run Snakemake on the repository's Snakefile in `folder`; its output and messages in one."""
    command = [sys.executable, *python, "--snakefile", ROOT / "Snakefile"]
    done = subprocess.run(
        [str(word) for word in (*command, "--directory", folder, "--cores", 2, *words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
    )
    assert not check or done.returncode == 0, done.stdout[-3000:]
    if not check:
        assert done.returncode != 0, done.stdout[-3000:]
    return done.stdout


def rehearse(folder: Path, *words) -> str:
    """What `snakemake --dry-run` says, in less time."""
    ((status, output),) = rehearsals.rehearse(folder, [words])
    assert status == 0, output[-3000:]
    return output


def jobs(output: str) -> dict[str, int]:
    """Number of jobs by rule, from the statistics that Snakemake prints; targets left out."""
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:")[1].split("\ntotal")[0]
    found = re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)
    return {rule: int(count) for rule, count in found if rule not in TARGETS}


def stages(output: str) -> set[str]:
    """The stages that jobs belong to: rules are named <stage> or <stage>_<step>."""
    names = sorted(STAGES, key=len, reverse=True)
    return {next(name for name in names if rule.startswith(name)) for rule in jobs(output)}


# ---- rehearsals


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with stand-ins for ImageNet, in which every config is rehearsed."""
    folder = tmp_path_factory.mktemp("place")
    imagenet(folder)
    return folder


@pytest.fixture
def unbounded(monkeypatch):
    """A disk without bounds: whether a config is sound should not depend on what is free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e18))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_dry_run_of(config, place, unbounded, request):
    if "../shared/data" in config.read_text():
        request.getfixturevalue("shared_data")
    output = rehearse(place, "--configfile", config)
    runs = yaml.safe_load(config.read_text())["runs"]
    assert jobs(output)["channels_join"] == len(runs), "its own runs and none of the demo's"
    assert "rfatlas: estimates" in output
    for stage in ("images", "activations", "receptive_fields"):
        line = rf"^  {stage} +\d+ +(\d+ days?, )?\d+:\d\d:\d\d +\d\S* [kMGT]B"
        assert re.search(line, output, re.MULTILINE), stage


def test_layers_have_jobs_of_their_own_at_the_size_of_imagenet(place, unbounded):
    found = jobs(rehearse(place, "--configfile", ROOT / "config" / "imagenet-small.yaml"))
    assert found["receptive_fields"] == found["gabor"] == 18
    assert found["activations_range"] == 4


def test_named_targets_exist(place):
    config = ROOT / "config" / "imagenet-small.yaml"
    output = snakemake(place, "--list-target-rules", "--configfile", config)
    assert set(TARGETS) <= set(output.split())
    assert "estimates" not in output


def test_torch_is_not_imported_while_the_graph_is_built(place):
    words = ("--dry-run", "--configfile", ROOT / "tests" / "configs" / "reduced.yaml")
    output = snakemake(place, *words, python=("-X", "importtime", "-m", "snakemake"))
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", output, re.MULTILINE))
    assert "snakemake" in imported
    # Pandas is imported by Snakemake's plugin for SLURM.
    assert not {"torch", "torchvision", "h5py"} & imported


@pytest.mark.parametrize("profile", ["default", "slurm"])
def test_profiles_hold_only_options_that_snakemake_knows(profile, place):
    text = (ROOT / "workflow" / "profiles" / profile / "config.yaml").read_text()
    content = yaml.safe_load(text)
    # What a site may want, too.
    content |= dict.fromkeys(re.findall(r"^# ([\w-]+):(?: \S+)?$", text, re.MULTILINE))
    options = snakemake(place, "--help")
    for key in content:
        assert re.search(rf"--{key}\b", options), key


def test_a_retry_asks_for_more_memory_and_time(place):
    words = ("--configfile", ROOT / "tests" / "configs" / "reduced.yaml")
    pattern = re.compile(r"^ *rule (\w+):.*?^ +resources: (.*?)$", re.MULTILINE | re.DOTALL)
    asked = []
    for attempt in (1, 3):
        # The attempt is what Snakemake tells a job on a cluster.
        output = rehearse(place, *words, "--attempt", attempt)
        for rule, line in sorted(pattern.findall(output)):
            if rule not in TARGETS:
                found = dict(re.findall(r"(mem_mb|runtime)=(\d+)", line))
                asked.append((rule, int(found["mem_mb"]), int(found["runtime"])))
    count = sum(jobs(output).values())
    assert len(asked) == 2 * count
    assert asked[count:] == [(rule, 3 * mb, 3 * minutes) for rule, mb, minutes in asked[:count]]


def test_the_default_profile_works(place):
    profile = ROOT / "workflow" / "profiles" / "default"
    words = ("--configfile", ROOT / "tests" / "configs" / "reduced.yaml")
    assert jobs(rehearse(place, "--workflow-profile", profile, *words))


# ---- refusals


def test_a_bad_config_is_refused_before_any_job_also_in_a_rehearsal(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "runs: {a: {model: demo, dataset: scene}}\nactivations: {top_k: 0}\ntf23: true\n"
    )
    for words in ([], ["--dry-run"]):
        output = snakemake(tmp_path, *words, "--configfile", bad, check=False)
        assert "activations.top_k: 0 is not allowed; it must be an integer from 1 to" in output
        assert "tf23: true: unknown key (did you mean 'tf32'?)" in output
        assert 'runs.a.dataset: "scene" is not defined' in output
        assert "Traceback" not in output
        assert "Building DAG" not in output
    assert not (tmp_path / "results").exists()


def test_a_disk_that_is_too_small_for_what_was_asked_is_refused(place):
    small = ("-c", SMALL)
    words = ("--configfile", ROOT / "config" / "imagenet-small.yaml")
    output = snakemake(place, *words, check=False, python=small)
    found = re.search(r"need about (\d+\.\d) GB more \(.*has 20\.0 GB free", output)
    assert found and float(found[1]) > 38.5 + 4.6, "that of fields and their parts"
    assert "Execute" not in output and not (place / "results").exists()
    assert found[0] in snakemake(place, "--dry-run", *words, python=small)
    for asked in (("activations",), ("--until", "activations_merge")):
        output = snakemake(place, *asked, "--dry-run", *words, python=small)
        assert "rfatlas: estimates" in output and "need about" not in output
        assert not re.search("^  receptive_fields", output, re.MULTILINE)


# ---- a small run, and what changes do to it


NET = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.conv2(self.relu(self.conv1(x))))


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 5, stride=2, padding=2)
        self.layer1 = nn.Sequential(Block(width), Block(width))
        self.fc = nn.Linear(width, 24)

    def forward(self, x):
        return self.fc(self.layer1(self.conv1(x)).mean((2, 3)))


def make(width=6):
    return Net(width)
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A finished run of two small networks on twelve images and on eight scenes."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "net.py").write_text("from beside import make\n")
    (folder / "beside.py").write_text(NET)
    random = np.random.default_rng(0)
    for i in range(12):
        file = folder / "photos" / "ab"[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(file)
    size = {"resize": 32, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    network = {"factory": "net.py:make", "layers": ["conv1", "layer1.1"], "input": size}
    config = {
        "runs": {
            "one": {"model": "one", "dataset": "photos"},
            "two": {"model": "two", "dataset": "scenes"},
        },
        "models": {
            "one": network | {"weights": "random:1"},
            "two": network | {"weights": "random:2"},
        },
        "datasets": {
            "photos": {"source": "folders", "path": "photos"},
            "scenes": {"source": "scenes", "count": 8, "size": 32},
        },
        "activations": {"top_k": 4, "range_size": 5},
        "receptive_fields": {"keep": 3},
        "color": {
            "orientations": 3,
            "frequencies": 4,
            "phases": 4,
            "directions": 3,
            "hues": 12,
        },
        "preferred_stimulus": {"steps": 3, "noise_starts": 1},
        "ablation": {"images": 6, "range_size": 4, "modes": ["zero"]},
        "ablation_groups": {
            "controls": 2,
            "cumulative": {"steps": 2, "random": 1},
        },
        "figures": {"channels": 4, "patches": 3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder, snakemake(folder, "--configfile", "config.yaml")


def runs_drawn(output: str, topic: str) -> set[str]:
    """The runs whose figures of a topic a rehearsal would draw."""
    return set(re.findall(rf"output: results/(\w+)/figures/{topic}$", output, re.MULTILINE))


def again(small, words=(), **changes) -> str:
    """A rehearsal of the small run with sections of its config changed."""
    folder, _ = small
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for section, change in changes.items():
        config.setdefault(section, {}).update(change)
    (folder / "changed.yaml").write_text(yaml.safe_dump(config))
    return rehearse(folder, *words, "--configfile", "changed.yaml")


def test_a_run_makes_its_results(small):
    folder, output = small
    for run in ("one", "two"):
        results = folder / "results" / run
        assert (results / "channels.csv").stat().st_size > 0
        for depth, layer in enumerate(("conv1", "layer1.1")):
            assert (results / "figures" / "overview" / f"0{depth}_{layer}.png").is_file()
            assert (results / "receptive_fields" / f"{layer}.h5").is_file()
            assert (results / "preferred_stimulus" / f"{layer}.h5").is_file()
            assert (results / "ablation" / f"{layer}.h5").is_file()
            assert (results / "ablation_groups" / f"{layer}.h5").is_file()
        for name in ("ablation_groups", "ablation_cumulative", "inactive_first_layer"):
            assert (results / f"{name}.csv").is_file()
        assert (results / "atlas" / "index.html").is_file()
    assert (folder / "results" / "index.html").is_file()
    assert not list(folder.rglob("*.partial")), "progress is removed with the last step"


def test_no_job_needs_more_memory_than_its_rule_asks_for(small):
    folder, output = small
    blocks = re.findall(r"^(?:local)?rule (\w+):\n((?: .*\n)+)", output, re.MULTILINE)
    asked, needed = {}, {}
    for rule, lines in blocks:
        memory, benchmark = (
            re.search(pattern, lines) for pattern in (r"\bmem_mb=(\d+)", r"benchmark: (\S+)")
        )
        if memory and benchmark:
            asked[rule] = int(memory[1])
            # Of a job of less than a second there is none.
            (row,) = csv.DictReader((folder / benchmark[1]).open(), delimiter="\t")
            with contextlib.suppress(ValueError):
                needed[rule] = max(float(row["max_rss"]), needed.get(rule, 0))
    assert {"images_pack", "activations_range", "channels_join"} <= needed.keys() <= asked.keys()
    assert {rule: peak for rule, peak in needed.items() if peak > asked[rule]} == {}


def test_nothing_is_done_twice(small):
    assert "Nothing to be done" in again(small)


@pytest.fixture(scope="session")
def report(small):
    """The report of the small run: its text, its results by path, and their paths by category."""
    folder, _ = small
    style = ROOT / "workflow" / "report" / "report.css"
    words = ("--configfile", "config.yaml", "--report", "report.html")
    snakemake(folder, *words, "--report-stylesheet", style)
    text = (folder / "report.html").read_text()
    parts = {}
    for name in ("results", "categories"):
        start = re.search(rf'^\s*var {name} = (?={{")', text, re.MULTILINE).end()
        parts[name], _ = json.JSONDecoder().raw_decode(text, start)
    return text, parts["results"], parts["categories"]


def test_the_report_builds_as_one_file(report):
    text, results, _ = report
    assert not re.search(r"<(script|link)[^>]+(src|href)=[\"']https?:", text), "it opens offline"
    assert "align-items: safe center" in text, "figures taller than the window can be scrolled"
    for path, result in results.items():
        assert result["data_uri"].startswith("data:"), path


def test_the_report_shows_every_figure_once_with_its_caption(small, report):
    folder, _ = small
    _, results, categories = report
    figures = list(folder.glob("results/**/figures/**/*.png"))
    shown = [path for path in results if "/figures/" in path]
    assert sorted(shown) == sorted(str(path.relative_to(folder)) for path in figures)
    # Beside each, for papers, the same as PDF; in the report that would be the figure again.
    assert all(path.with_suffix(".pdf").is_file() for path in figures)
    listed = [path for parts in categories.values() for paths in parts.values() for path in paths]
    assert sorted(listed) == sorted(results)
    for path, result in results.items():
        assert len(result["caption"]) > 100, path
        # Nothing of the template, of the markup or of docutils' complaints is left.
        assert not re.search(r"\{\{|\{%|\*\*|``|system-message|Undefined", result["caption"]), path


def test_the_report_is_sorted_by_stage_run_and_layer(report):
    _, results, categories = report
    layers = {"00 conv1", "01 layer1.1"}
    of_layers = 0
    assert {"Overview", "Preferred stimuli", "Gabors", "Colour"} <= categories.keys()
    for category, parts in categories.items():
        for part, paths in parts.items():
            labels = [results[path]["labels"] for path in paths]
            # One set of columns, in which no two rows say the same.
            assert len({tuple(sorted(one)) for one in labels}) == 1, category
            assert len({tuple(sorted(one.items())) for one in labels}) == len(labels), category
            for path, one in zip(paths, labels, strict=True):
                if "run" in one and one["run"] != "all":
                    assert path.split("/")[1] == one["run"] and part in ("Other", one["run"])
                if one.get("shows") in layers:
                    assert path.endswith(f"/{one['shows'].replace(' ', '_')}.png")
                    of_layers += 1
    assert of_layers == 6 * len(layers) * 2, "six kinds of sheets of two runs"


# What reads channels.csv, and what reads the receptive fields and the top units besides.
TABLE = {"channels", "orientation", "v1", "opponency", "ablation_groups", "findings", "figures"}
TABLE |= {"atlas"}
FIELDS = TABLE | {"gabor", "color", "preferred_stimulus", "virtual_filters"}
UNITS = FIELDS | {"receptive_fields", "ablation"}


@pytest.mark.parametrize(
    ("changes", "rerun"),
    [
        ({"figures": {"channels": 3}}, {"figures"}),
        ({"channels": {"inactive_norm": 0.2}}, TABLE),
        (
            {"ablation_groups": {"controls": 3}},
            {"ablation_groups", "findings", "figures", "atlas"},
        ),
        ({"receptive_fields": {"keep": 4}}, FIELDS | {"receptive_fields"}),
        ({"activations": {"top_k": 5}}, UNITS | {"activations"}),
        ({"stages": {"figures": False}}, set()),
        ({"stages": {"atlas": False}}, set()),
        # Without the fields there are no Gabors; what uses them where they are does without.
        ({"stages": {"receptive_fields": False}}, FIELDS - {"gabor"}),
        (
            {"stages": {"receptive_fields": False, "figures": False}},
            FIELDS - {"gabor", "figures"},
        ),
    ],
    # Not of the sets, which have no order.
    ids=lambda changes: str(changes) if isinstance(changes, dict) else "",
)
def test_a_change_of_the_config_reruns_the_stages_that_it_concerns(small, changes, rerun):
    assert stages(again(small, **changes)) == rerun


def test_a_change_of_one_run_leaves_the_other_alone(small):
    folder, _ = small
    models = yaml.safe_load((folder / "config.yaml").read_text())["models"]
    models["two"]["weights"] = "random:5"
    output = again(small, models=models)
    found = jobs(output)
    assert found["model_weights"] == found["channels_join"] == 1
    assert runs_drawn(output, "overview") == {"two"}
    assert "images_pack" not in found


def test_a_run_may_go_without_stages_that_others_have(small):
    without = ["gratings", "gabor", "virtual_filters", "preferred_stimulus"]
    run = {"model": "two", "dataset": "scenes", "without": without}
    models = yaml.safe_load((small[0] / "config.yaml").read_text())["models"]
    models["two"]["weights"] = "random:5"
    models["one"]["weights"] = "random:6"
    output = again(small, runs={"two": run}, models=models)
    found = jobs(output)
    assert {found[stage] for stage in ("gratings", "gabor")} == {2}, "of one alone"
    assert found["virtual_filters_compose"] == 1 and found["receptive_fields"] == 2 * 2
    assert runs_drawn(output, "overview") == {"one", "two"}
    assert runs_drawn(output, "orientation") == runs_drawn(output, "gratings") == {"one"}
    assert found["channels_join"] == 2 and found["orientation_tables"] == 1


def test_an_image_more_reruns_everything_that_looks_at_images_of_that_data_set(small):
    folder, _ = small
    added = folder / "photos" / "a" / "more.png"
    Image.new("RGB", (40, 40)).save(added)
    try:
        output = again(small)
    finally:
        added.unlink()
    assert jobs(output)["images_pack"] == 1
    assert runs_drawn(output, "overview") == {"one"}
    assert "results/one/activations/10-13.h5" in output


def test_touching_the_library_reruns_nothing(small):
    os.utime(ROOT / "scripts" / "rfatlas" / "tables" / "channels.py")
    assert "Nothing to be done" in again(small)


def test_a_stage_that_is_switched_off_can_still_be_asked_for(small):
    output = again(small, words=["all_receptive_fields"], stages={"receptive_fields": False})
    assert "Nothing to be done" in output
