"""rfatlas: an atlas of the neurons of a trained ResNet.

The library behind the workflow: pure functions, no Snakemake, importable from a notebook once
`make install` has run. Importing this package imports nothing heavy.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rfatlas.notebook import Run

__version__ = "0.1.0"


def open(path: str | Path) -> "Run":
    """Return the results of a run, `results/<run>`: tables as pandas, fields as lazy arrays.

    Raises RfatlasError if the folder holds no run. See `rfatlas.notebook.Run`.
    """
    from rfatlas.notebook import Run

    return Run(path)
