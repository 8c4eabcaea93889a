"""rfatlas: an atlas of the neurons of a trained ResNet.

The library behind the workflow: pure functions, no Snakemake, importable from a notebook
(with `scripts/` on the path). Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"
