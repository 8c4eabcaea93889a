"""Which run works in a folder: Snakemake's lock says only that there is one.

A run notes its process when it starts; whoever comes second is told whether that process lives.
"""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil

NOTE = Path(".snakemake/rfatlas/run.json")
LOCKS = Path(".snakemake/locks")


def note(path: Path = NOTE) -> None:
    """Note this process as the run of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    process = psutil.Process()
    content = {
        "process": process.pid,
        "created": process.create_time(),
        "host": socket.gethostname(),
        "namespace": _namespace(),
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, path)


def is_over(path: Path = NOTE) -> bool:
    """Whether the run that was noted last, on this machine, has ended."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        run = json.loads(path.read_text(encoding="utf-8"))
        return _is_here(run) and not _lives(run["process"], run["created"])
    return False


def hint(path: Path = NOTE, locks: Path = LOCKS) -> str:
    """Return what to do about the folder's lock, in one line; "" where there is no lock."""
    if not any(locks.glob("*.lock")):
        return ""
    with contextlib.suppress(OSError, ValueError, KeyError):
        run = json.loads(path.read_text(encoding="utf-8"))
        number, created, host = run["process"], run["created"], run["host"]
        who = f"process {number} of {host}"
        if not _is_here(run):
            return (
                f"this folder is locked by another run, {who}: wait until it ends; or, if it is "
                f"dead, {_UNLOCK}"
            )
        if _lives(number, created):
            return (
                f"this folder is locked by another run, {who}, which is still at work: wait until "
                "it ends, or give this one a folder of its own with --directory"
            )
        return f"this folder is locked by a run that died ({who}): {_UNLOCK}"
    return f"this folder is locked: wait until the other run ends; or, if it is dead, {_UNLOCK}"


_UNLOCK = (
    "give the same command with --unlock added, then again with --rerun-incomplete instead; it "
    "goes on where it stopped"
)


def _namespace() -> str:
    """The Linux namespace in which numbers of processes are given: containers have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _is_here(run: dict[str, Any]) -> bool:
    return run["host"] == socket.gethostname() and run["namespace"] == _namespace()


def _lives(number: int, created: float) -> bool:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(number)
        # Numbers of processes are used again.
        same = abs(process.create_time() - created) < 2
        return same and process.status() != psutil.STATUS_ZOMBIE
    return False
