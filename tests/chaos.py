"""A run that is killed again and again must end as one that was not.

    python tests/chaos.py --kills 40 --seed 0
    python tests/chaos.py --kills 3 --seed 0 --until all_receptive_fields     (a part of the stages)

Runs a config (default: tests/configs/reduced.yaml) and sends SIGKILL at seeded times to Snakemake
itself, to a job, or to a worker process of a job: first once to every script of the workflow as it
comes up, then to scripts at random. After each kill it waits until nothing of the run is left
(jobs whose Snakemake is gone must end by themselves), unlocks the folder where that is needed, and
goes on with --rerun-incomplete. In the end the tables, HDF5 files and JSON of the folder are
compared with those of an undisturbed run: the folder in $RFATLAS_REFERENCE or --reference, or one
that is made first. A table of the kills is printed:

    kept      records of progress that were on the disk at the kill
    redone    those of them that were written again afterwards, or lost: must be 0
    unnoted   outputs that were in place, but which Snakemake did not yet count as done: it removes
              them, and their job is done again

Exit status 1 if results differ, records were redone, processes or progress are left.
"""

import argparse
import base64
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from same_results import differences

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("snakemake", "job", "worker")
# Scripts that have worker processes.
WITH_WORKERS = ("images", "scenes")
_SCRIPT = re.compile(r"\.snakemake/scripts/tmp[^./]*\.(\w+)\.py$")
# Also on a machine so busy that a job takes a minute to import its libraries.
_ORPHANS_S = 180
# Snakemake lets other jobs end before it gives up.
_FAILURE_S = 300


@dataclass
class Kill:
    """One kill: of what, of which kind, when (share of the job's usual time), and what came of
    it."""

    script: str
    kind: str
    share: float
    after_s: float | None = None
    kept: dict[Path, int] = field(default_factory=dict)
    redone: set[Path] = field(default_factory=set)
    unnoted: int = 0


def scripts_of(process: psutil.Process) -> dict[str, psutil.Process]:
    """The jobs that a Snakemake process runs, by the name of their script."""
    found = {}
    for child in process.children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        match = _SCRIPT.search(words[1]) if len(words) > 1 else None
        if match:
            found[match[1]] = child
    return found


def usual_seconds(reference: Path) -> dict[str, float]:
    """Seconds that the jobs of each script take, from the benchmarks of a run."""
    found: dict[str, list[float]] = {}
    for path in reference.glob("benchmarks/**/*.tsv"):
        name = path.relative_to(reference / "benchmarks").parts[0].removesuffix(".tsv")
        seconds = float(path.read_text().splitlines()[1].split("\t")[0])
        found.setdefault(_OTHER_NAMES.get(name, name), []).append(seconds)
    return {name: statistics.mean(times) for name, times in found.items()}


# Rules whose script has another name.
_OTHER_NAMES = {"activations_range": "activations", "model_weights": "model"}


def plan(scripts: dict[str, float], kills: int, seed: int) -> list[Kill]:
    """Which scripts are killed how: each once, then the long ones more often."""
    draw = random.Random(seed)
    names = list(scripts)
    draw.shuffle(names)
    names = names[:kills]
    longer = [name for name in scripts if not name.startswith(("figures", "atlas"))]
    weights = [scripts[name] for name in longer]
    names += draw.choices(longer, weights, k=kills - len(names)) if kills > len(names) else []
    found = []
    for number, name in enumerate(names):
        kinds = KINDS if name in WITH_WORKERS else KINDS[:2]
        kind = "worker" if number == 0 and name in WITH_WORKERS else draw.choice(kinds)
        found.append(Kill(name, kind, draw.uniform(0.05, 0.6)))
    # A script with workers is the only one whose workers can be killed: at least once.
    for name in WITH_WORKERS:
        of_it = [kill for kill in found if kill.script == name]
        if of_it and not any(kill.kind == "worker" for kill in of_it):
            of_it[0].kind = "worker"
    return found


def progress(folder: Path) -> dict[Path, int]:
    """What is on record of unfinished work: time of each file, or length of a journal."""
    found = {}
    for partial in folder.glob("results/**/*.partial"):
        for path in partial.glob("*.npz"):
            # The state of a block of channels is written over while the block goes on.
            if path.stem != "state":
                found[path] = _stamp(path)
    return {path: stamp for path, stamp in found.items() if stamp}


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def check_kept(kill: Kill) -> None:
    """Note the records of a kill that were written again; call it often while the run goes on."""
    for path, before in kill.kept.items():
        if _stamp(path) not in (0, before):
            kill.redone.add(path)


def unnoted(folder: Path) -> int:
    """Outputs that are in place but which Snakemake does not yet know to be whole."""
    count = 0
    for marker in (folder / ".snakemake" / "incomplete").glob("**/*"):
        try:
            name = base64.b64decode(marker.name, validate=True).decode()
        except ValueError:
            continue
        count += marker.is_file() and (folder / name).is_file()
    return count


class Chaos:
    """The runs of one folder, one after another."""

    def __init__(self, folder: Path, config: Path, targets: list[str], cores: int):
        self.folder, self._log = folder, folder / "chaos.log"
        self._command = [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
            *targets,
            *("--directory", str(folder), "--configfile", str(config), "--cores", str(cores)),
            "--rerun-incomplete",
        ]
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}

    def start(self, *words: str) -> subprocess.Popen:
        """Start Snakemake; what it prints goes to chaos.log."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*self._command, *words],
                cwd=self.folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, waiting: list[Kill], usual: dict[str, float], last: Kill | None) -> Kill | None:
        """Run until one of the kills `waiting` could be dealt, or until the run ends; return it."""
        running = self.start()
        main = psutil.Process(running.pid)
        since: dict[int, tuple[float, Kill | None]] = {}
        while running.poll() is None:
            if last is not None:
                check_kept(last)
            try:
                jobs = scripts_of(main)
            except psutil.Error:
                break
            for name, process in jobs.items():
                kill = next((kill for kill in waiting if kill.script == name), None)
                begun, _ = since.setdefault(process.pid, (time.monotonic(), kill))
                after = time.monotonic() - begun
                if kill is None or (kill.kind != "worker" and after < kill.share * usual[name]):
                    continue
                # A worker is killed as soon as there is one; a job of little work may have none.
                if kill.kind == "worker" and after > 0.95 * usual[name]:
                    kill.kind = "job"
                if self._deal(kill, running, process):
                    kill.after_s = time.monotonic() - begun
                    return kill
            for pid in [pid for pid in since if not psutil.pid_exists(pid)]:
                # Too late for a job that ended; the next of its script is killed earlier.
                _, late = since.pop(pid)
                if late is not None:
                    late.share /= 2
            time.sleep(0.02)
        if running.wait() != 0:
            raise SystemExit(f"Snakemake failed by itself; see {self._log}")
        return None

    def _deal(self, kill: Kill, running: subprocess.Popen, job: psutil.Process) -> bool:
        try:
            victim = {"snakemake": psutil.Process(running.pid), "job": job}.get(kill.kind)
            if victim is None:
                # Forked from the job; other children are programs that it asks something.
                forked = [child for child in job.children() if child.cmdline() == job.cmdline()]
                if not forked:
                    return False
                victim = forked[0]
            below = psutil.Process(running.pid).children(recursive=True)
            kill.kept, kill.unnoted = progress(self.folder), unnoted(self.folder)
            victim.send_signal(signal.SIGKILL)
        except psutil.Error:
            return False
        try:
            running.wait(_ORPHANS_S if kill.kind == "snakemake" else _FAILURE_S)
        except subprocess.TimeoutExpired:
            running.kill()
            raise SystemExit(f"Snakemake did not end after the death of a {kill.kind}") from None
        _, alive = psutil.wait_procs(below, timeout=_ORPHANS_S)
        if alive:
            raise SystemExit(f"processes of a killed run live on: {alive}")
        if list((self.folder / ".snakemake" / "locks").glob("*")):
            assert kill.kind == "snakemake", "only its own death leaves the folder locked"
            if self.start("--unlock").wait() != 0:
                raise SystemExit(f"unlocking failed; see {self._log}")
        return True


def table(kills: list[Kill]) -> str:
    """The kills as a table."""
    lines = ["| script | killed | after s | kept | redone | unnoted |", "|---|---|---|---|---|---|"]
    for kill in kills:
        cells = [kill.script, kill.kind, f"{kill.after_s:.1f}"]
        cells += [str(len(kill.kept)), str(len(kill.redone)), str(kill.unnoted)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the chaos; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=ROOT / "tests" / "configs" / "reduced.yaml")
    parser.add_argument("--until", nargs="*", default=[], help="targets instead of all stages")
    parser.add_argument("--scripts", nargs="*", help="the scripts to kill (default: all)")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--directory", type=Path, help="default: a temporary one")
    reference = os.environ.get("RFATLAS_REFERENCE")
    parser.add_argument("--reference", type=Path, default=reference)
    options = parser.parse_args()

    folder = options.directory or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    config = options.config.resolve()
    if options.reference is None:
        options.reference = folder / "undisturbed"
        options.reference.mkdir()
        print(f"an undisturbed run in {options.reference} ...", flush=True)
        if Chaos(options.reference, config, options.until, options.cores).start().wait():
            raise SystemExit(f"it failed; see {options.reference / 'chaos.log'}")
        folder = folder / "disturbed"
        folder.mkdir()
    usual = usual_seconds(options.reference)
    scripts = {name: usual[name] for name in sorted(options.scripts or usual)}
    waiting, dealt = plan(scripts, options.kills, options.seed), []
    chaos, last, begun = Chaos(folder, config, options.until, options.cores), None, time.time()
    while True:
        last = chaos.run(waiting, usual, last)
        if last is None:
            break
        waiting.remove(last)
        dealt.append(last)
        print(
            f"{time.time() - begun:.0f} s: kill {len(dealt)} of {options.kills}: {last.kind} "
            f"in {last.script} after {last.after_s:.1f} s, {len(last.kept)} records kept",
            flush=True,
        )
    print(table(dealt))
    kinds = Counter(kill.kind for kill in dealt)
    print(", ".join(f"{count} x {kind}" for kind, count in kinds.items()))
    if waiting:
        print("not dealt, the job was over: " + ", ".join(kill.script for kill in waiting))
    missed = sorted(set(scripts) - {kill.script for kill in dealt})
    print(f"scripts never hit: {', '.join(missed) or 'none'}")
    problems = [
        line
        for line in differences(options.reference, folder)
        # With targets of its own the run makes a part of the results.
        if not (options.until and line.endswith(f"missing in {folder}"))
    ]
    problems += [f"redone: {path}" for kill in dealt for path in kill.redone]
    problems += [f"left: {path}" for path in folder.glob("results/**/*.partial")]
    problems += [f"left: {path}" for path in folder.glob("results/**/*.tmp")]
    print("\n".join(problems) or "the results are those of the undisturbed run")
    print(f"{len(dealt)} kills in {time.time() - begun:.0f} s")
    return bool(problems) or not dealt


if __name__ == "__main__":
    sys.exit(main())
