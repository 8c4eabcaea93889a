"""What scripts share: log file, one clear line for bad input, start-up record."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from rfatlas.files import running

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

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


def test_a_job_logs_and_records_its_start_up(tmp_path):
    done = run(tmp_path, "good")
    assert done.returncode == 0 and done.stdout.strip() == "False", "torch is not imported for it"
    log = (tmp_path / "logs/deep/a.log").read_text()
    assert "hello" in log and "work: 100%" in log and "3/3" in log
    record = (tmp_path / ".snakemake/rfatlas/startup.jsonl").read_text().splitlines()
    (line,) = map(json.loads, record)
    assert line["rule"] == "some_rule" and 0 < line["startup_s"] <= line["total_s"]
    assert line["log"] == "logs/deep/a.log" and line["threads"] == 1


def test_a_job_records_what_it_and_its_workers_used(tmp_path):
    work = """
        import multiprocessing, time
        from rfatlas.files import jobs
        def burn(megabytes):
            block = bytearray(megabytes * 10**6)
            began = time.process_time()
            while time.process_time() - began < 0.3:
                pass
        with jobs.job(job):
            burn(200)
            process = multiprocessing.get_context("fork").Process(target=burn, args=(400,))
            process.start()
            process.join()
    """
    code = SCRIPT[: SCRIPT.index("with jobs.job(job)")] + textwrap.dedent(work)
    # Through a shell that forks: a process begins with the peak of the one that it was before it
    # ran its program, which would be that of these tests.
    (tmp_path / "job.py").write_text(code)
    command = f"{sys.executable} job.py {SCRIPTS}; exit $?"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    record = (tmp_path / ".snakemake/rfatlas/startup.jsonl").read_text().splitlines()
    (line,) = map(json.loads, record)
    assert 200 < line["peak_mb"] < 350 and 400 < line["worker_peak_mb"] < 550
    assert 0.6 <= line["cpu_s"]


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


def test_records_of_jobs_at_once_stay_whole(tmp_path):
    procs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(SCRIPTS), "good"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(4)
    ]
    assert all(proc.wait() == 0 for proc in procs)
    record = (tmp_path / ".snakemake/rfatlas/startup.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in record]) == 4


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


def test_a_job_whose_snakemake_is_gone_before_it_begins_ends(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    note = tmp_path / running.NOTE
    running.note(note)
    living = json.loads(note.read_text())
    assert run(tmp_path, "good").returncode == 0
    note.write_text(json.dumps(living | {"process": ended.pid}))
    assert run(tmp_path, "good").returncode == 1
    assert "Snakemake was killed" in (tmp_path / "logs/deep/a.log").read_text()
    note.write_text(json.dumps(living | {"process": ended.pid, "host": "elsewhere"}))
    assert run(tmp_path, "good").returncode == 0
