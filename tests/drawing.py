"""Figures drawn as their rules have them drawn: through the script, into a folder."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pdf
from PIL import Image
from snakemake.iocontainers import InputFiles, Params

ROOT = Path(__file__).resolve().parents[1]


def by_script(topic: str, folder: Path, given: dict, settings: dict) -> dict[str, Path]:
    """Draw a topic into folder/figures; return its PNG files by name.

    Each is checked not to be blank and to have a PDF of the same name with its fonts and title.
    """
    out = folder / "figures"
    files = {
        name: [str(path) for path in paths] if isinstance(paths, list) else str(paths)
        for name, paths in given.items()
    }
    snakemake = SimpleNamespace(
        input=InputFiles(fromdict=files),
        output=[str(out)],
        params=Params(fromdict={"topic": topic, **settings}),
        log=[str(folder / "log.txt")],
        threads=1,
    )
    runpy.run_path(str(ROOT / "scripts" / "figures.py"), {"snakemake": snakemake})
    found = {path.stem: path for path in sorted(out.glob("*.png"))}
    assert {path.name for path in out.iterdir()} == {
        f"{name}.{suffix}" for name in found for suffix in ("png", "pdf")
    }
    for name, path in found.items():
        page = pdf.read(out / f"{name}.pdf")
        assert pdf.outlined(page) and (" · " in page.text or "all runs" in page.text), name
        with Image.open(path) as image:
            assert np.ptp(np.asarray(image)) > 200, name
    return found
