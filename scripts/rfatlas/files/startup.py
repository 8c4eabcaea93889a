"""How much of a run's job time went into starting processes and importing libraries.

`rfatlas.files.jobs.job` notes one line per job; the Snakefile clears the notes when a run starts
and prints the share when it ends.
"""

import contextlib
import json
import os
from pathlib import Path

from rfatlas.files.jobs import STARTUP_RECORD as RECORD


def rotate(record: Path = RECORD) -> None:
    """Put the notes of the run before this one aside, as `<record>.1`."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(record, record.with_name(f"{record.name}.1"))


def share(record: Path = RECORD) -> tuple[float, float, int]:
    """Start-up seconds, total seconds, and number of the noted jobs.

    A line that was cut off by a killed job is left out.
    """
    startup = total = 0.0
    jobs = 0
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
            note = json.loads(line)
            startup, total = startup + note["startup_s"], total + note["total_s"]
            jobs += 1
    return startup, total, jobs


def summary(record: Path = RECORD) -> str:
    """One line on the share of start-up, for the end of a run."""
    startup, total, jobs = share(record)
    if not jobs:
        return "rfatlas: no job of the library ran"
    return (
        f"rfatlas: start-up {startup:.0f} s of {total:.0f} s of job time "
        f"({startup / total:.0%}) in {jobs} jobs"
    )
