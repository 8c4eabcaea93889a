"""The same files from any number of threads, any ranges of images, and as a module of another
workflow."""

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


def snakemake(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--directory", folder, "--cores", "1", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_neither_threads_nor_ranges_nor_a_module_change_the_results(reference, tmp_path):
    """The demo as a module, on one core and in one range of images; the reference ran on two cores
    and in two ranges."""
    config = yaml.safe_load((ROOT / "tests" / "configs" / "reduced.yaml").read_text())
    for section in ("activations", "ablation"):
        config[section]["range_size"] = 1000
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "Snakefile").write_text(OUTER)
    layers = [f"neurons/results/demo/ablation/{layer}.h5" for layer in ("maxpool", "layer3.1")]
    fields = [path.replace("ablation", "receptive_fields") for path in layers]
    snakemake(tmp_path, *layers, *fields)
    made = tmp_path / "neurons"
    names = {str(path.relative_to(made / "results")) for path in made.glob("results/**/*.h5")}
    assert {"images/scenes_64_64.h5", "demo/activations.h5", "demo/ablation/layer3.1.h5"} <= names
    # Estimates of ablation have a file per range; they are in the tables of both.
    assert [line for line in differences(reference, made) if ": missing in " not in line] == []
    assert "rfatlas_atlas_site" in snakemake(tmp_path, "--dry-run", "rfatlas_all"), "of all rules"
