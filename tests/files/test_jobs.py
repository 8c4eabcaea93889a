"""What scripts share: log file, one clear line for bad input, an end when the run is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"

SCRIPT = textwrap.dedent(
    """
    import sys
    from types import SimpleNamespace
    sys.path.insert(0, sys.argv[1])
    from rfatlas.files import jobs
    from rfatlas.errors import RfatlasError
    job = SimpleNamespace(
        log=["logs/deep/a.log"], threads=1, rule="some_rule", output=["results/b.png"]
    )
    with jobs.job(job) as log:
        log.info("hello")
        for _ in jobs.progress(range(3), unit="image", desc="work"):
            pass
        if sys.argv[2] == "bad":
            raise RfatlasError("config key x: 3 is not 4")
        if sys.argv[2] == "bug":
            raise ZeroDivisionError("oops")
        if sys.argv[2] == "full":
            raise OSError(28, "No space left on device")
        if sys.argv[2] == "long":
            import time
            time.sleep(60)
    print("torch" in sys.modules)
    """
)


def run(folder, kind):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(SCRIPTS), kind],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_job_logs(tmp_path):
    done = run(tmp_path, "good")
    assert done.returncode == 0 and done.stdout.strip() == "False", "torch is not imported for it"
    log = (tmp_path / "logs/deep/a.log").read_text()
    assert "hello" in log and "work: 100%" in log and "3/3" in log


@pytest.mark.parametrize("kind", ["bad", "bug", "full"])
def test_bad_input_is_one_line_and_a_bug_a_traceback(tmp_path, kind):
    done = run(tmp_path, kind)
    log = (tmp_path / "logs/deep/a.log").read_text()
    assert done.returncode == 1
    if kind == "bad":
        assert done.stderr == "rfatlas: config key x: 3 is not 4\n"
        assert "ERROR config key x: 3 is not 4" in log and "Traceback" not in log
    elif kind == "full":
        assert done.stderr.startswith("rfatlas: results/b.png: no room on the disk (or in the quo")
        assert "results/b.png: no room" in log and "Traceback" not in log
    else:
        assert "ZeroDivisionError: oops" in log and "Traceback" in log


@pytest.mark.parametrize("drawn", [False, True])
def test_a_job_writes_to_a_terminal_unless_a_logger_draws_on_it(tmp_path, drawn):
    reading, writing = os.openpty()
    command = [sys.executable, "-c", SCRIPT, str(SCRIPTS), "bad"]
    environment = os.environ | ({"RFATLAS_DRAWN": "1"} if drawn else {})
    subprocess.run(command, cwd=tmp_path, stderr=writing, env=environment, check=False)
    os.close(writing)
    said = b""
    # Behind the end of what was written there is an error.
    with contextlib.suppress(OSError):
        while more := os.read(reading, 10_000):
            said += more
    os.close(reading)
    assert (b"hello" in said and b"3 is not 4" in said) != drawn and bool(said) != drawn


def test_a_job_ends_when_its_snakemake_is_killed(tmp_path):
    """A program of that name starts the job through a shell, as Snakemake does, and is killed."""
    (tmp_path / "job.py").write_text(SCRIPT)
    (tmp_path / "snakemake").write_text(
        "import subprocess, sys, time\n"
        f"subprocess.Popen(['bash', '-c', '{sys.executable} job.py {SCRIPTS} long; echo over'])\n"
        "time.sleep(60)\n"
    )
    running = subprocess.Popen([sys.executable, "snakemake"], cwd=tmp_path)
    log = tmp_path / "logs/deep/a.log"
    deadline = time.monotonic() + 30
    while not (log.exists() and "hello" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes = psutil.Process(running.pid).children(recursive=True)
    assert len(processes) == 2, "a shell and the job"
    running.kill()
    try:
        gone, alive = psutil.wait_procs(processes, timeout=20)
        assert not alive
        assert "Snakemake was killed" in log.read_text()
    finally:
        for process in processes:
            if process.is_running():
                process.kill()
        running.wait()


@pytest.mark.workflow
def test_two_runs_in_one_folder(tmp_path):
    """The second is refused while the first lives; once that was killed, --unlock helps."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "scenes"]
    command += ["--directory", tmp_path, "--cores", "1"]
    command += ["--configfile", ROOT / "tests" / "configs" / "reduced.yaml"]
    command = [str(word) for word in command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}

    def again(*words):
        options = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path}
        done = subprocess.run([*command, *words], **options)
        return done.returncode, done.stderr

    first = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("logs/scenes/*.log")):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        jobs = psutil.Process(first.pid).children(recursive=True)
        for process in (psutil.Process(first.pid), *jobs):
            process.suspend()
        status, told = again()
        assert status != 0 and "LockException" in told
        first.send_signal(signal.SIGKILL)
        first.wait()
        for process in jobs:
            process.resume()
        _, alive = psutil.wait_procs(jobs, timeout=20)
        assert not alive, "jobs of a killed run end by themselves"
        status, told = again()
        assert status != 0 and "LockException" in told
        assert again("--unlock")[0] == 0
        status, told = again("--rerun-incomplete")
        assert status == 0, told
        assert len(list(tmp_path.glob("results/scenes/scenes/images/*/*.png"))) == 120
    finally:
        first.kill()
        first.wait()
