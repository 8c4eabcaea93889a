"""What befalls a whole workflow: a disk that fills up, results that were damaged."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import disks
import pytest

from rfatlas.files import store

ROOT = Path(__file__).resolve().parents[1]
REDUCED = ROOT / "tests" / "configs" / "reduced.yaml"

pytestmark = pytest.mark.workflow

# Snakemake that takes its disk for large; its jobs see the disk as it is.
TRUSTING = """
import shutil
from types import SimpleNamespace
from snakemake.cli import main
shutil.disk_usage = lambda folder: SimpleNamespace(free=1e18)
main()
"""


def snakemake(folder, *words, python=("-m", "snakemake")):
    """Run Snakemake in a folder; return its exit status and all it prints."""
    command = [sys.executable, *python, "--snakefile", ROOT / "Snakefile", *words]
    command += ["--directory", folder, "--configfile", REDUCED, "--cores", 2]
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
    )
    return done.returncode, done.stdout


def test_a_disk_that_fills_up(tmp_path):
    """Told in one line, by the job and by Snakemake; the run goes on once there is room."""
    with disks.small_disk(tmp_path / "results", "1000k") as results:
        for size in ("1000k", "2000k"):
            # The first has no room for the scenes, the second none for the packed images.
            disks.resize(results, size)
            status, output = snakemake(tmp_path, "images", python=("-c", TRUSTING))
            assert status == 1
            assert "rfatlas: results/" in output
            assert "no room on the disk" in output or "has 0.0 GB free" in output
            assert "Traceback" not in output
            assert not list(results.glob("images/*.h5"))
        disks.resize(results, "64m")
        status, output = snakemake(tmp_path, "images", python=("-c", TRUSTING))
        assert status == 0, output
        with store.open(results / "images" / "scenes_64_64.h5", "images") as file:
            assert len(file["images"]) == 120 and file["images"][:].std(axis=(1, 2, 3)).min() > 0


def test_a_damaged_result_is_named_and_made_again(tmp_path):
    """The packed images are cut; the job that reads them says so, and what to do."""
    status, output = snakemake(tmp_path, "images")
    assert status == 0, output
    path = tmp_path / "results" / "images" / "scenes_64_64.h5"
    times = os.stat(path)
    os.truncate(path, times.st_size // 2)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    target = "results/demo/activations/0-80.h5"
    status, output = snakemake(tmp_path, target)
    assert status == 1
    assert "rfatlas: results/images/scenes_64_64.h5: not a readable HDF5 file" in output
    assert "delete it and rerun" in output
    path.unlink()
    shutil.rmtree(tmp_path / "logs")
    status, output = snakemake(tmp_path, target)
    assert status == 0, output
    assert (tmp_path / target).exists()
