"""Draw the figures of one topic: of a run, of a group of runs or of all runs."""

import importlib
from pathlib import Path

from rfatlas.figures import style
from rfatlas.files import jobs

with jobs.job(snakemake) as log:
    topic = importlib.import_module(f"rfatlas.figures.{snakemake.params.topic}")
    folder = Path(snakemake.output[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in topic.draw(snakemake.input, snakemake.params):
        style.save(figure, folder / name)
        log.info("%s", name)
