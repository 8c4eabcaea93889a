"""The workflow on a real SLURM, a cluster of one node: the tables of a local run, retries, nothing
lost.

No part of a plain pytest, since it starts daemons as root and may install them:
`make test ARGS="-m slurm tests/test_slurm.py"`. An undisturbed local run of the reduced demo can be
named by RFATLAS_REFERENCE.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from same_results import differences

ROOT = Path(__file__).resolve().parents[1]
NODE = ROOT / "tests" / "slurm" / "node.sh"
DEMO = [
    *("--snakefile", ROOT / "Snakefile"),
    *("--configfile", ROOT / "tests" / "configs" / "reduced.yaml"),
]

pytestmark = pytest.mark.slurm

# What this cluster needs besides the profile: two cores are here, nobody keeps accounts, and a test
# does not wait half a minute for the end of a job that takes seconds.
SITE = [
    *("--workflow-profile", ROOT / "workflow" / "profiles" / "slurm"),
    *("--cores", 2),
    *("--latency-wait", 10),
    "--slurm-no-account",
    *("--slurm-status-command", "squeue"),
    *("--slurm-init-seconds-before-status-checks", 5),
    *("--seconds-between-status-checks", 2),
    *("--default-resources", "slurm_partition=debug"),
]

# A job costs some ten seconds here, so that the demo's stages of seconds share a few.
GROUPS = {
    "start": [
        *("scenes_draw", "images_pack", "model_weights", "activations_range", "activations_merge"),
        "gratings",
    ],
    "layers": [
        *("receptive_fields", "virtual_filters_compose", "gabor", "color", "preferred_stimulus"),
    ],
    "sweeps": ["ablation", "ablation_gather"],
}


class Run:
    """Snakemake at work in `folder`; interrupted, and its jobs with it, if it is left too early."""

    def __init__(self, folder: Path, *words):
        self._file = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--directory", folder, *map(str, words)],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.process.kill()
        self._file.close()

    def output(self, status: int = 0) -> str:
        """Wait for the end; return what was printed."""
        found = self.process.wait()
        self._file.seek(0)
        text = self._file.read()
        assert found == status, text[-3000:]
        return text


@pytest.fixture(scope="module")
def cluster():
    """A running SLURM of one node; skips where none can be had."""
    # Sockets lie in it, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    try:
        for words in (["install"], ["start", folder]):
            done = subprocess.run([NODE, *words], stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no SLURM to test with: {done.stderr.strip()}")
        yield
    finally:
        subprocess.run([NODE, "stop", folder], check=True)
        shutil.rmtree(folder)


def cancel_once_begun(run: Run, comment: str, logs: Path) -> None:
    """Cancel the job with this comment when a script of it has opened its log below `logs`."""
    while run.process.poll() is None and not any(logs.rglob("*.log")):
        time.sleep(0.5)
    listed = subprocess.check_output(
        ["squeue", "--noheader", "--states=running", "--format=%A %k"], text=True
    )
    number, *_ = re.findall(rf"^(\d+) {comment}", listed, re.MULTILINE)
    subprocess.run(["scancel", number], check=True)


def test_the_reduced_demo_ends_with_the_tables_of_a_local_run(cluster, reference, tmp_path):
    groups = [f"{rule}={group}" for group, rules in GROUPS.items() for rule in rules]
    chunks = ("--group-components", "layers=6", "sweeps=2", "tables=10", "pages=40", "sites=10")
    # Figures are a third of the jobs, and hold nothing that could be compared.
    demo = (*DEMO, "--config", 'stages={"figures": false}')
    with Run(tmp_path, *demo, *SITE, "--groups", *groups, *chunks) as run:
        cancel_once_begun(run, "rule_sweeps", tmp_path / "logs" / "ablation")
        output = run.output()
    # All steps in few jobs, one of them twice.
    assert len(re.findall("has been submitted with SLURM jobid", output)) < 15
    assert "Trying to restart" in output
    assert differences(reference, tmp_path) == []
    assert not list(tmp_path.rglob("*.partial"))
    # What SLURM has made counts here, too.
    with Run(tmp_path, *demo, "--cores", 2, "--dry-run") as run:
        assert "Nothing to be done" in run.output()


def test_results_of_jobs_on_nodes_may_go_to_a_storage(cluster, reference, tmp_path):
    if not shutil.which("rsync"):
        pytest.skip("the storage plugin fs needs rsync")
    storage, work = tmp_path / "storage", tmp_path / "work"
    words = [
        *("--default-storage-provider", "fs", "--default-storage-prefix", storage),
        *("--local-storage-prefix", tmp_path / "node"),
        *("--shared-fs-usage", "persistence", "software-deployment", "sources", "source-cache"),
    ]
    # The model is made here, from weights that are read where they lie; all else on the node.
    groups = ["scenes_draw=drawn", "images_pack=drawn"]
    groups += ["activations_range=looked", "activations_merge=looked"]
    work.mkdir()
    target = "results/demo/activations.h5"
    with Run(work, *DEMO, *SITE, *words, "--groups", *groups, "--", target) as run:
        output = run.output()
    assert len(re.findall("has been submitted with SLURM jobid", output)) == 2
    assert not (work / "results").exists()
    names = {str(file.relative_to(storage)) for file in storage.rglob("results/**/*.h5")}
    assert names == {"results/images/scenes_64_64.h5", target}
    lines = differences(reference, storage)
    assert all(line.endswith(f": missing in {storage}") for line in lines), lines
    assert list(storage.rglob("logs/**/*.log"))


@pytest.fixture
def s3(monkeypatch):
    """The bucket `atlas` on an S3 server that listens on loopback, and what Snakemake must be told
    to find it."""
    moto, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    for name in ("ACCESS_KEY", "SECRET_KEY"):
        monkeypatch.setenv(f"SNAKEMAKE_STORAGE_S3_{name}", "test")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    words = ["--default-storage-provider", "s3", "--default-storage-prefix", "s3://atlas/mine"]
    client = boto3.session.Session("test", "test", region_name="us-east-1")
    bucket = client.resource("s3", endpoint_url=url).Bucket("atlas")
    yield bucket, [*words, "--storage-s3-endpoint-url", url]
    server.stop()


def test_results_may_go_to_s3(reference, s3, tmp_path):
    """Files and a folder are written there, read by later jobs, and up to date the next time."""
    bucket, words = s3
    targets = ["results/demo/activations.h5", "results/figures"]
    words = [*DEMO, "--cores", 2, *words, "--", *targets]
    work, copy = tmp_path / "work", tmp_path / "copy"
    work.mkdir()
    with Run(work, *words) as run:
        run.output()
    assert not (work / "results").exists()
    for item in bucket.objects.filter(Prefix="mine/"):
        file = copy / item.key.removeprefix("mine/")
        file.parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(item.key, str(file))
    assert {"logs", "benchmarks", "results"} <= {path.name for path in copy.iterdir()}
    assert [line for line in differences(reference, copy) if ": missing in " not in line] == []
    assert {path.name for path in (copy / targets[1]).glob("*")} >= {"accuracy.pdf", "accuracy.png"}
    with Run(work, *words[:-3], "--dry-run", *words[-3:]) as run:
        assert "Nothing to be done" in run.output()


def attempts(folder: Path, name: str) -> int:
    return (folder / f"{name}.count").read_text().count("\n")


def test_what_goes_wrong_is_reported_and_tried_again_and_nothing_is_lost(cluster, tmp_path):
    small = ("--snakefile", ROOT / "tests" / "slurm" / "small.smk", *SITE)
    with Run(tmp_path, *small) as run:
        output = run.output(status=1)
    # The profile says two retries; and a failure is shown with its log.
    assert attempts(tmp_path, "failing") == 3
    assert "the planet is missing" in output and "logs/failing.log" in output
    assert not (tmp_path / "failing.txt").exists()
    # The others end well, each when its trouble is over.
    made = {name: attempts(tmp_path, name) for name in ("fine", "cancelled", "greedy")}
    assert made == {"fine": 1, "cancelled": 2, "greedy": 2}
    assert all((tmp_path / f"{name}.txt").exists() for name in made)
    told = "".join(file.read_text() for file in tmp_path.rglob(".snakemake/slurm_logs/**/*.log"))
    assert "exceeded memory limit" in told

    (tmp_path / "mended").touch()
    with Run(tmp_path, *small) as run:
        run.output()
    assert attempts(tmp_path, "failing") == 4 and (tmp_path / "failing.txt").exists()
    assert {name: attempts(tmp_path, name) for name in made} == made
