"""What every stage costs as images and threads grow: python tests/benchmarks/scale.py FOLDER

Runs the workflow itself, with the ResNet-18 and the photographs of ../shared/data (repeated up to
the number, at 112 px, a quarter of the usual work), in FOLDER/<images>_<threads>, at 250, 1,000 and
4,000 images and 1 and 2 threads. The stages that look at every image run at every size; the rest,
which do not depend on their number, at the smallest alone, on four layers. Few channels are swept,
and few stimuli shown: what is measured is the cost of each, not of all. FOLDER keeps what is
measured (benchmarks/), and a call that was interrupted goes on; --only runs one size and number of
threads, --report none.

Snakemake measures the processor seconds and the peak of memory of each job, so that other processes
on the machine disturb little. Printed are, by stage: processor seconds (one thread; and seconds on
the clock with each number of threads), the line a + b n through the sizes with its largest
residual, the exponent of growth between the two largest sizes after the start of the process
(parameter `a`), memory, and disk. The last line is one JSON object of ratios by stage: `time`,
measured processor seconds over those predicted by rfatlas.plan.estimates with resources/rates.csv,
`memory`, measured peak over the `mem_mb` that the stage's rule states, and `disk`, bytes found over
bytes predicted. `memory` must not exceed 1; the others should lie between 0.4 and 2.5.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from rfatlas import stages
from rfatlas.plan import config, estimates, preflight, schema

ROOT = schema.ROOT
SHARED = ROOT.parent / "shared" / "data"
SIZES, THREADS = (250, 1000, 4000), (1, 2)
RUN = "resnet18"
INPUT = {"resize": 128, "crop": 112, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
LAYERS = ["conv1", "layer1.0", "layer2.0", "layer4.0"]

#: Stages that look at every image, in the order in which they are asked for.
BY_IMAGE = ("images", "activations", "ablation")


def photographs(folder: Path, count: int) -> Path:
    """Make a list of `count` photographs, those that there are again and again; returns it."""
    with (SHARED / "photographs" / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        for i in range(count):
            row = rows[i % len(rows)]
            link = folder / f"{i:05d}.jpeg"
            if not link.exists():
                link.symlink_to(SHARED / "photographs" / row["file"])
            writer.writerow([link.name, row["label"]])
    return folder / "labels.csv"


def settings(images: Path, smallest: bool) -> dict:
    """The config of one size; the stages that do not look at every image in the smallest alone."""
    model = {
        "factory": "torchvision.models.resnet18",
        "weights": str(SHARED / "resnet18" / "resnet18.safetensors"),
        "input": INPUT,
        "layers": LAYERS,
    }
    twin = {**model, "weights": "random:0"}
    switches = schema.schema()["properties"]["stages"]["properties"]
    every = {name: smallest or name in BY_IMAGE for name in switches}
    raw = {
        "runs": {RUN: {"model": RUN, "dataset": "photographs"}},
        "models": {RUN: model},
        "datasets": {"photographs": {"source": "list", "path": str(images)}},
        "activations": {"top_k": 100, "range_size": 100_000},
        "receptive_fields": {"channels": 4, "top_k": 8, "keep": 4},
        "gratings": {"orientations": 8, "frequencies": 4, "phases": 4, "f1_phases": 12},
        "color": {"orientations": 4, "frequencies": 4, "phases": 4, "directions": 3, "hues": 12},
        "preferred_stimulus": {"channels": {"sample": 2}, "steps": 8},
        "ablation": {"layers": ["layer4.0"], "channels": 4, "modes": ["zero"]},
        "ablation_groups": {"layers": ["layer4.0"], "controls": 4},
        "figures": {"channels": 16, "patches": 4},
        "stages": every,
    }
    if smallest:
        raw["runs"]["twin"] = {
            "model": "twin",
            "dataset": "photographs",
            "without": [name for name in switches if name != "findings"],
        }
        raw["models"]["twin"] = twin
        raw["compare"] = {"groups": {"twins": [RUN, "twin"]}}
    return raw


def run(folder: Path, count: int, threads: int, smallest: bool, targets: list[str]) -> None:
    """Run the workflow for one size; what its jobs used is in `benchmarks/`."""
    images = photographs(folder.parent / f"photographs_{count}", count)
    folder.mkdir(exist_ok=True)
    raw = settings(images, smallest)
    (folder / "scale.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", folder, "--configfile", folder / "scale.yaml", "--quiet", "progress"]
    command += ["--cores", threads, "--rerun-triggers", "mtime", "--", *targets]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    environment["OMP_NUM_THREADS"] = str(threads)
    subprocess.run([str(word) for word in command], check=True, cwd=folder, env=environment)


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """By stage: processor and clock seconds of all its jobs, the largest peak of a job in MB."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted((folder / "benchmarks").rglob("*.tsv")):
        rule = path.relative_to(folder / "benchmarks").parts[0].removesuffix(".tsv")
        if "twin" in str(path) and "compare" not in rule:
            continue
        (job,) = pd.read_csv(path, sep="\t").to_dict("records")
        stage = found.setdefault(
            estimates.stage_of(rule), {"cpu_s": 0, "wall_s": 0, "peak_mb": 0, "jobs": 0}
        )
        stage["cpu_s"] += job["cpu_time"]
        stage["wall_s"] += job["s"]
        stage["peak_mb"] = max(stage["peak_mb"], job["max_rss"])
        stage["jobs"] += 1
    return found


def predicted(folder: Path) -> estimates.Budget:
    """The estimates for what was run in a folder, on one thread."""
    raw = yaml.safe_load((folder / "scale.yaml").read_text(encoding="utf-8"))
    plan = preflight.prepare(config.load(raw), raw, folder / ".snakemake" / "rfatlas")
    layers = {name: LAYERS for name in raw["runs"]}
    return estimates.Budget(plan, layers, cores=1)


def jobs(budget: estimates.Budget, stage: str) -> list[tuple[str, dict[str, str]]]:
    """What each job of a stage works on: its name in the budget, and the wildcards of its files."""
    scope = stages.BY_NAME[stage].scope
    if scope == "layer":
        layers = ["layer4.0"] if stage.startswith("ablation") else LAYERS
        return [(RUN, {"run": RUN, "layer": layer}) for layer in layers]
    if scope == "run":
        return [(RUN, {"run": RUN})]
    if scope == "group":
        return [("twins", {"group": "twins"})]
    size = budget.plan.descriptions[RUN]["input"]
    where = {"dataset": "photographs", "resize": size["resize"], "crop": size["crop"]}
    return [("_".join(map(str, where.values())), where)]


def line(sizes: list[int], seconds: list[float]) -> tuple[float, float, float]:
    """Return a, b and the largest relative residual of seconds = a + b n (least squares of ratios,
    a >= 0)."""
    n, y = np.array(sizes, float), np.array(seconds)
    slope, offset = np.polyfit(n, y, 1, w=1 / y)
    if offset < 0:
        offset, slope = 0.0, float(np.sum(n / y) / np.sum((n / y) ** 2))
    return offset, slope, float(np.abs((offset + slope * n) / y - 1).max())


def report(folder: Path, sizes: list[int], threads: list[int]) -> Iterator[str]:
    """Yield the lines of the report, the JSON object of ratios last."""
    runs = {(n, t): folder / f"{n}_{t}" for n in sizes for t in threads}
    runs = {key: place for key, place in runs.items() if (place / "benchmarks").exists()}
    found = {key: measured(place) for key, place in runs.items()}
    expected = {key: predicted(place) for key, place in runs.items()}
    smallest = min(n for n, _ in runs), min(t for _, t in runs)
    ratios: dict[str, dict[str, float]] = {}
    yield (
        f"{'stage':28} {'images':>6} {'jobs':>4} {'cpu s':>7} {'predicted':>9} "
        + " ".join(f"clock s, {t} thread(s)" for t in threads)
        + f" {'peak MB':>8} {'stated':>6}"
    )
    for stage in found[smallest]:
        for n in sorted({n for n, _ in runs}):
            rows = {t: found[n, t].get(stage) for t in threads if (n, t) in runs}
            if not any(rows.values()):
                continue
            first = next(t for t, row in rows.items() if row)
            budget = expected[n, first]
            works = jobs(budget, stage)
            stated = budget.mem_mb(stage, works[0][0])
            costs = [budget.cost(stage, name, where.get("layer")) for name, where in works]
            forecast = sum(cost.seconds for cost in costs)
            peak = max(row["peak_mb"] for row in rows.values() if row)
            clock = " ".join(f"{rows[t]['wall_s'] if rows.get(t) else np.nan:20.1f}" for t in rows)
            yield (
                f"{stage:28} {n:6d} {rows[first]['jobs']:4d} {rows[first]['cpu_s']:7.1f} "
                f"{forecast:9.1f} {clock} {peak:8.0f} {stated:6d}"
            )
            own = ratios.setdefault(stage, {})
            own["memory"] = max(own.get("memory", 0), peak / stated)
            own["time"] = rows[first]["cpu_s"] / forecast
            files = {
                file.format(**where) for _, where in works for file in stages.BY_NAME[stage].files
            }
            disk = sum(cost.disk for cost in costs)
            if disk:
                own["disk"] = sum(_bytes(runs[n, first] / file) for file in files) / disk
    for stage in found[smallest]:
        for t in threads:
            known = [n for n in sizes if stage in found.get((n, t), {})]
            if len(known) < 3:
                continue
            a, b, worst = line(known, [found[n, t][stage]["cpu_s"] for n in known])
            yield (
                f"{stage}, {t} thread(s): {a:.1f} s + {1e3 * b:.2f} ms per image "
                f"(processor; worst residual {worst:.0%})"
            )
    yield json.dumps(
        {
            f"{stage} {name}": round(value, 3)
            for stage, values in ratios.items()
            for name, value in values.items()
        }
    )


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def main() -> None:
    """Run what is missing, print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--threads", type=int, nargs="+", default=list(THREADS))
    parser.add_argument("--only", nargs=2, type=int, metavar=("IMAGES", "THREADS"))
    parser.add_argument("--targets", nargs="+", default=["all"], help="of --only")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    every = [(n, t) for n in options.images for t in options.threads]
    for n, t in [] if options.report else [options.only] if options.only else every:
        run(folder / f"{n}_{t}", n, t, n == min(options.images), options.targets)
    if not options.only:
        print("\n".join(report(folder, options.images, options.threads)))


if __name__ == "__main__":
    main()
