"""The same tables and files from any number of threads and any ranges of images."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from same_results import differences

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.workflow


def results(folder: Path, cores: int, range_size: int) -> Path:
    """A run of all stages but the pictures, of two layers of the demo network on sixty scenes."""
    config = yaml.safe_load((ROOT / "tests" / "configs" / "reduced.yaml").read_text())
    config["runs"].pop("demo_random")
    config["models"].pop("demo_random")
    config.pop("compare")
    config["models"]["demo"]["weights"] = str(
        ROOT / "resources" / "demo" / "resnet_demo.safetensors"
    )
    config["models"]["demo"]["layers"] = ["maxpool", "layer3.1"]
    config["datasets"]["scenes"]["count"] = 60
    config["activations"]["range_size"] = range_size
    config["ablation"]["range_size"] = range_size
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"),
            *("--directory", folder, "--configfile", folder / "config.yaml"),
            *("--cores", str(cores), "findings", "ablation_groups"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


def test_neither_threads_nor_ranges_change_the_results(tmp_path):
    one = results(tmp_path / "one", cores=1, range_size=60)
    two = results(tmp_path / "two", cores=2, range_size=17)
    names = {path.name for path in one.glob("results/demo/**/*.h5")}
    assert {"activations.h5", "layer3.1.h5", "virtual_filters.h5"} <= names
    assert (one / "results/demo/channels.csv").exists()
    assert differences(one, two) == []
