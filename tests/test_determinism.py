"""The same tables and files from any number of threads, any ranges of images, and as a module of
another workflow."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from same_results import differences

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.workflow


#: A workflow of somebody else, with ours below a folder of its own.
OUTER = f"""
configfile: "config.yaml"

module rfatlas:
    snakefile: "{ROOT / "Snakefile"}"
    config: config
    prefix: "neurons"

use rule * from rfatlas as rfatlas_*
"""


def results(folder: Path, cores: int, range_size: int, module: bool = False) -> Path:
    """A run of all stages but the pictures, of two layers of the demo network on sixty scenes; as
    it is, or as a module."""
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
    words = ["--directory", folder, "--cores", str(cores)]
    if module:
        (folder / "Snakefile").write_text(OUTER)
        words += ["--snakefile", folder / "Snakefile"]
    else:
        words = ["--configfile", folder / "config.yaml", "--snakefile", ROOT / "Snakefile", *words]
    targets = ["findings", "all_ablation_groups"]
    words += [f"rfatlas_{target}" if module else target for target in targets]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return folder / "neurons" if module else folder


def test_neither_threads_nor_ranges_nor_a_module_change_the_results(tmp_path):
    one = results(tmp_path / "one", cores=1, range_size=60)
    two = results(tmp_path / "two", cores=2, range_size=17, module=True)
    names = {path.name for path in one.glob("results/demo/**/*.h5")}
    assert {"activations.h5", "layer3.1.h5", "virtual_filters.h5"} <= names
    assert (one / "results/demo/channels.csv").exists()
    assert differences(one, two) == []
