"""Which code made a result: what Snakemake compares to decide whether a stage runs again.

Snakemake does not look into imported modules, so each rule carries one of two things in `params:`

* a cheap stage (channels, figures, ...) the digest of its library modules: any edit reruns it;
* an expensive stage (images, activations, ...) an integer version, raised by hand when the
  numbers it writes change. `stage_digests.json` records the digest that each version had; the
  tests fail when the modules changed and neither the version nor the record did.

Nothing here imports torch: the Snakefile reads this module while it builds the graph of jobs.

After an edit that leaves the results as they are: `python -m rfatlas.files.versions record`.
After one that changes them: raise the number in STAGE_VERSIONS, then record.
"""

import hashlib
import json
import sys
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("stage_digests.json")

#: Version of what a stage writes. Raise it when the same config gives other numbers than before.
STAGE_VERSIONS = {
    "scenes": 1,
    "train_demo": 1,
    "images": 1,
    "model": 1,
    "activations": 1,
    "receptive_fields": 1,
    "virtual_filters": 1,
    "skip_residual": 1,
    "gabor": 1,
    "gratings": 1,
    "color": 1,
    "preferred_stimulus": 1,
    "ablation_groups": 1,
    "ablation": 1,
}

#: Library modules that define what a stage writes; a stage that is not listed is its own module.
MODULES = {
    "train_demo": ("train_demo", "demo_net"),
    "images": ("images", "sources"),
    "model": ("model", "graph", "torchvision_ops"),
    "activations": ("activations", "model", "graph", "torchvision_ops"),
    "receptive_fields": ("receptive_fields", "crops", "model", "graph", "torchvision_ops"),
    "virtual_filters": ("virtual_filters", "crops", "model", "graph", "torchvision_ops"),
    "skip_residual": (
        "skip_residual",
        "crops",
        "statistics",
        "model",
        "graph",
        "torchvision_ops",
    ),
    "gabor": ("gabor", "gabor_fit"),
    "gratings": (
        "gratings",
        "tuning",
        "probe",
        "crops",
        "model",
        "graph",
        "torchvision_ops",
    ),
    "color": (
        "color",
        "colorspace",
        "tuning",
        "probe",
        "crops",
        "model",
        "graph",
        "torchvision_ops",
    ),
    "preferred_stimulus": (
        "preferred_stimulus",
        "ascent",
        "probe",
        "crops",
        "model",
        "graph",
        "torchvision_ops",
        "statistics",
    ),
    "ablation_groups": ("ablation_groups", "ablate", "model", "graph", "torchvision_ops"),
    "ablation_groups_tables": ("ablation_groups", "paired", "statistics"),
    "ablation": ("ablation", "ablate", "paired", "statistics", "model", "graph", "torchvision_ops"),
    "channels": ("channels", "statistics"),
    "orientation": ("orientation", "statistics"),
    "opponency": ("opponency", "statistics"),
    "findings": ("findings",),
    "compare": ("compare", "similarity", "statistics"),
    "figures": ("figures", "style", "statistics"),
    "atlas": ("atlas", "pictures", "style", "tuning"),
    "figures_orientation": ("figures_orientation", "style", "statistics"),
    "figures_ablation": ("figures_ablation", "style"),
    "figures_gabor": ("figures_gabor", "sheets", "style", "gabor_fit"),
    "figures_gratings": ("figures_gratings", "sheets", "style", "tuning"),
    "figures_color": ("figures_color", "sheets", "style"),
    "figures_preferred_stimulus": ("figures_preferred_stimulus", "sheets", "style"),
    "figures_virtual_filters": ("figures_virtual_filters", "sheets", "style"),
    "figures_compare": ("figures_compare", "style"),
}


def stage(name: str) -> int:
    """Version of the expensive stage `name`, for `params: version=...`.

    Raises
    ------
    KeyError
        If the stage has no version (cheap stages carry `digest` instead).
    """
    return STAGE_VERSIONS[name]


def _source(module: str) -> Path:
    """File of a library module, in whichever package it is."""
    found = sorted(LIBRARY.rglob(f"{module}.py"))
    if not found:
        raise FileNotFoundError(f"no module {module} below {LIBRARY}")
    return found[0]


@cache
def digest(name: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the library modules behind stage `name`.

    The content counts, not the time of the files: touching a file changes nothing, and taking
    an edit back restores the digest. Line ends are read as \\n on every system.

    Raises
    ------
    FileNotFoundError
        If `name` is neither listed in MODULES nor a module of the library.
    """
    total = hashlib.sha256()
    for module in MODULES.get(name, (name,)):
        text = _source(module).read_bytes().replace(b"\r\n", b"\n")
        total.update(f"{module} {len(text)}\n".encode())
        total.update(text)
    return total.hexdigest()[:16]


def current() -> dict[str, dict]:
    """Version and digest of each expensive stage, as the code stands."""
    return {
        name: {"version": version, "digest": digest(name)}
        for name, version in STAGE_VERSIONS.items()
    }


def recorded() -> dict[str, dict]:
    """Version and digest of each expensive stage at the time of the last `record`."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def unrecorded() -> list[str]:
    """Expensive stages whose version or digest is not the recorded one."""
    old = recorded()
    return [name for name, now in current().items() if old.get(name) != now]


def record() -> None:
    """Write the present versions and digests to `stage_digests.json`."""
    RECORD.write_text(json.dumps(current(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["record"]:
        sys.exit("usage: python -m rfatlas.files.versions record")
    record()
