"""A second run in one folder is told what the first is doing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rfatlas.files import running

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "0.input.lock").touch()
    return tmp_path / "run.json", tmp_path / "locks"


def test_no_lock_no_hint(place):
    note, locks = place
    running.note(note)
    (locks / "0.input.lock").unlink()
    assert running.hint(*place) == ""


def test_a_living_run_is_told_from_a_dead_one(place):
    note, _ = place
    assert "if it is dead, give the same command with --unlock" in running.hint(*place)
    running.note(note)
    assert f"process {os.getpid()} of {socket.gethostname()}, which is still" in running.hint(
        *place
    )
    content = json.loads(note.read_text())
    note.write_text(json.dumps(content | {"created": content["created"] - 1000}))
    assert "a run that died" in running.hint(*place), "another process has its number now"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    note.write_text(json.dumps(content | {"process": ended.pid}))
    assert "a run that died" in running.hint(*place)
    note.write_text(json.dumps(content | {"host": "elsewhere"}))
    assert "process" in running.hint(*place) and "of elsewhere" in running.hint(*place)
    assert not running.is_over(note)
    note.write_text(json.dumps(content | {"process": ended.pid, "namespace": "pid:[1]"}))
    assert "if it is dead" in running.hint(*place) and not running.is_over(note)
    note.write_text(json.dumps(content | {"process": ended.pid}))
    assert running.is_over(note)
    note.write_text("{")
    assert running.hint(*place).startswith("this folder is locked: wait")


@pytest.mark.workflow
def test_two_runs_in_one_folder(tmp_path):
    """The second is refused while the first lives; once it was killed, what the hint says helps."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "scenes"]
    command += ["--directory", tmp_path, "--cores", "1"]
    command += ["--configfile", ROOT / "tests" / "configs" / "reduced.yaml"]
    command = [str(word) for word in command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}

    def run(*words):
        options = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path}
        done = subprocess.run([*command, *words], **options)
        return done.returncode, done.stderr

    first = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("images.partial")):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        jobs = psutil.Process(first.pid).children(recursive=True)
        for process in (psutil.Process(first.pid), *jobs):
            process.suspend()
        status, told = run()
        assert status != 0 and "LockException" in told
        assert f"rfatlas: this folder is locked by another run, process {first.pid} of" in told
        first.send_signal(signal.SIGKILL)
        first.wait()
        for process in jobs:
            process.resume()
        _, alive = psutil.wait_procs(jobs, timeout=20)
        assert not alive, "jobs of a killed run end by themselves"
        status, told = run()
        assert status != 0 and "LockException" in told
        assert f"this folder is locked by a run that died (process {first.pid}" in told
        assert run("--unlock")[0] == 0
        status, told = run("--rerun-incomplete")
        assert status == 0 and "folder is locked" not in told
        assert len(list(tmp_path.glob("results/scenes/scenes/images/*/*.png"))) == 120
    finally:
        first.kill()
        first.wait()
