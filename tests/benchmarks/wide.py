"""Stages that read tables, with a table of 26,560 channels: python tests/benchmarks/wide.py RUN

RUN is the folder of a finished run, from make demo CONFIG=tests/configs/reduced.yaml DIRECTORY=RUN.
A copy of it gets a channels.csv of as many channels as all convolutions of a ResNet-50 have, the
rows of the run again and again, and the stages that read nothing else of a channel run once more;
not the ablation of groups, which runs the network, nor findings, which read the tables of other
stages, nor figures with a picture of each channel, nor the atlas (tests/benchmarks/atlas.py). The
table itself is joined anew from tables of each stage, in a process of its own.

Printed are, by stage, seconds on the clock, processor seconds and the peak of memory. The last line
is one JSON object of ratios by stage: `memory`, the peak over the `mem_mb` that the stage's rule
states, and `time`, seconds over the minutes that it asks for, neither of which may exceed 1.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from rfatlas import stages
from rfatlas.files import store
from rfatlas.plan import estimates, schema
from rfatlas.tables import channels

CONFIG = schema.ROOT / "tests" / "configs" / "reduced.yaml"
TARGETS = (
    "orientation",
    "opponency",
    "compare",
    "results/demo/figures/overview",
    "results/demo/figures/orientation",
    "results/compare/demo/figures",
)
MINUTES = 10

JOIN = """
import resource, sys, time
from pathlib import Path
from rfatlas.files import store
from rfatlas.tables import channels
folder = Path(sys.argv[1])
table = store.read_table(folder / "own.csv")
for stage in sorted(path for path in folder.iterdir() if path.is_dir()):
    table = channels.join(table, stage.name, sorted(stage.glob("*.csv")))
store.write_table(table, folder / "channels.csv")
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss / 1e3, used.ru_utime + used.ru_stime)
"""


def widened(table: pd.DataFrame, total: int) -> pd.DataFrame:
    """Return a table of about `total` channels: the rows of each layer repeated, numbered on."""
    times = -(-total // len(table))
    wide = pd.concat([table] * times)
    wide["channel"] = wide.groupby("layer").cumcount()
    return wide.sort_values(["depth", "channel"], kind="stable").head(total)


def join(table: pd.DataFrame, folder: Path, parts: int = 8) -> tuple[float, float]:
    """Take a table apart into those of `parts` stages, a file per layer, and join these; returns
    the peak in MB and processor seconds."""
    own = list(channels.COLUMNS)
    others = [name for name in table if name not in own]
    folder.mkdir()
    store.write_table(table[own], folder / "own.csv")
    for number, names in enumerate(np.array_split(others, parts)):
        (folder / f"stage{number}").mkdir()
        for layer, rows in table.groupby("layer"):
            part = rows[[*channels.KEY, *names]]
            store.write_table(part, folder / f"stage{number}" / f"{layer}.csv")
    command = [sys.executable, "-c", JOIN, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak, seconds = map(float, done.stdout.split())
    return peak, seconds


def rerun(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Run what follows on the tables; yields each job's rule and what Snakemake measured of it."""
    benchmarks = folder / "benchmarks"
    shutil.rmtree(benchmarks, ignore_errors=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", schema.ROOT / "Snakefile"]
    command += ["--directory", folder, "--configfile", CONFIG, "--quiet", "rules"]
    command += ["--cores", 1, "--rerun-triggers", "mtime", "--", *TARGETS]
    environment = {**os.environ, "PYTHONPATH": str(schema.ROOT / "scripts")}
    subprocess.run([str(word) for word in command], check=True, cwd=folder, env=environment)
    for path in sorted(benchmarks.rglob("*.tsv")):
        rule = path.relative_to(benchmarks).parts[0].removesuffix(".tsv")
        yield rule, pd.read_csv(path, sep="\t").iloc[0].to_dict()


def main() -> None:
    """Widen the tables of a copy, run the stages, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--channels", type=int, default=26_560)
    options = parser.parse_args()
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        shutil.copytree(options.run, folder, symlinks=True)
        for run in yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["runs"]:
            path = folder / "results" / run / "channels.csv"
            table = widened(store.read_table(path), options.channels)
            if run == "demo":
                peak, seconds = join(table, Path(name) / "parts")
                megabytes = stages.BY_NAME["channels"].mem_mb
                print(f"{'channels':30} {'':>7} {seconds:7.1f} s cpu {peak:6.0f} MB")
                ratios["channels memory"] = peak / megabytes
                ratios["channels time"] = seconds / (60 * MINUTES)
            store.write_table(table, path)
        for rule, job in rerun(folder):
            stage = estimates.stage_of(rule)
            stated = stages.BY_NAME[stage].mem_mb or 1000
            peak = job["max_rss"]
            print(f"{rule:30} {job['s']:7.1f} s {job['cpu_time']:7.1f} s cpu {peak:6.0f} MB")
            for kind, value in (("memory", peak / stated), ("time", job["s"] / (60 * MINUTES))):
                key = f"{stage} {kind}"
                ratios[key] = max(ratios.get(key, 0), value)
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
