"""Jobs that are killed (SIGKILL) at given calls, resume, and must end with the undisturbed file."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

HERE = Path(__file__).resolve().parent

_PREFACE = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
output, seen, stop = Path(sys.argv[1]), [0], int(sys.argv[2])

def counted(function):
    def call(*args, **kwargs):
        seen[0] += 1
        if seen[0] == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
"""


def check_resumes(script: str, folder: Path, stops: Callable[[int], tuple], head: int = 0) -> None:
    """Assert that a job killed at some calls ends with the file of one that was not, and that each
    kill costs at most one call.

    `script` makes the file `output` with a function wrapped in `counted`; `stops` tells from the
    number of calls of an undisturbed job at which to kill; the first `head` calls are made at every
    start.
    """
    folders = [HERE, *(path.parent for path in HERE.glob("*/test_*.py")), HERE.parent / "scripts"]
    code = _PREFACE.format(paths=sorted({str(path) for path in folders})) + script
    code += "\nprint(seen[0])"

    def run(output: Path, stop: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, str(output), str(stop)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def finish(output: Path) -> int:
        result = run(output, 0)
        assert result.returncode == 0, result.stderr
        return int(result.stdout.split()[-1]) - head

    whole, killed = folder / "whole.h5", folder / "killed.h5"
    calls = finish(whole)
    done, kills = 0, stops(calls)
    for stop in kills:
        assert run(killed, head + stop).returncode == -signal.SIGKILL
        assert not killed.exists()
        done += stop - 1
    assert done + finish(killed) <= calls + len(kills)
    assert not os.path.exists(f"{killed}.partial")
    with h5py.File(whole) as a, h5py.File(killed) as b:
        names = [[], []]
        for file, found in zip((a, b), names, strict=True):
            file.visit(found.append)
        assert names[0] == names[1]
        for key in names[0]:
            if isinstance(a[key], h5py.Dataset):
                assert np.array_equal(a[key][:], b[key][:], equal_nan=True), key
    table = whole.with_suffix(".csv")
    if table.exists():
        assert table.read_bytes() == killed.with_suffix(".csv").read_bytes()
