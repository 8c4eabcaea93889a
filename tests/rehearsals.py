"""Many rehearsals (`snakemake --dry-run`) in little time, in folders that look finished.

Snakemake and its plugins are imported once; each rehearsal is the command itself in a forked
process, two at a time. A folder is finished without any work: every output is made empty, and
`snakemake --touch` puts on record what a real run would.
"""

import atexit
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from snakemake import cli
from snakemake.executors import touch

from rfatlas import stages
from rfatlas.files import versions
from rfatlas.plan import schema

ROOT = Path(__file__).resolve().parents[1]
AT_A_TIME = 2


def finish(folder: Path, file: Path) -> None:
    """Make a folder look as after a run of the config in `file`."""
    process = _start(folder, "--touch", "--configfile", file, making=True)
    status, output = _end(*process)
    assert status == 0, output[-3000:]


def rehearse(folder: Path, words: Iterable[tuple]) -> Iterator[tuple[int, str]]:
    """(exit status, all that is said) of each `snakemake --dry-run` with these words."""
    running: list[tuple[int, int]] = []
    for arguments in words:
        running.append(_start(folder, "--dry-run", *arguments))
        if len(running) == AT_A_TIME:
            yield _end(*running.pop(0))
    for process in running:
        yield _end(*process)


def jobs(status: int, output: str) -> dict[str, int]:
    """The jobs by rule that a rehearsal found."""
    assert status == 0, output[-3000:]
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:")[1].split("\ntotal")[0]
    found = re.findall(r"^([\w-]+) +(\d+)$", table, re.MULTILINE)
    return {rule: int(count) for rule, count in found}


def _start(folder: Path, *words, making: bool = False) -> tuple[int, int]:
    """Start `snakemake` on the repository's Snakefile; (process, pipe of its output). With
    `making`, missing outputs of jobs that are touched are made, empty."""
    _known_to_all()
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    # What is left to be said at the end is Snakemake's, not this process's own.
    atexit._clear()
    try:
        os.close(reading)
        os.chdir(folder)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        command = ["--snakefile", ROOT / "Snakefile", "--directory", folder, "--cores", 2]
        sys.argv = ["snakemake", *(str(word) for word in (*command, *words))]
        if making:
            _make_outputs()
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@cache
def _known_to_all() -> None:
    """Read the plugins of Snakemake, the schema and the imports of the library, as otherwise each
    process would."""
    cli.get_argument_parser()
    schema.schema()
    for stage in stages.STAGES:
        with contextlib.suppress(FileNotFoundError):
            versions.digest(stage.name)


def _end(child: int, pipe: int) -> tuple[int, str]:
    with open(pipe, errors="replace") as reading:
        output = reading.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output


def _make_outputs() -> None:
    run_job = touch.Executor.run_job
    # Snakemake waits this long before each job.
    touch.Executor.SLEEPING_TIME = 0.001

    def make_and_touch(executor, job):
        for file in job.output:
            path = Path(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=True) if file.is_directory else path.touch()
        run_job(executor, job)

    touch.Executor.run_job = make_and_touch
