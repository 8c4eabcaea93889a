"""Make the page that leads to the atlases of all runs."""

from pathlib import Path

from rfatlas.atlas import atlas
from rfatlas.files import jobs

with jobs.job(snakemake) as log:
    params = snakemake.params
    runs = [
        {**run, "activations": Path(activations)}
        for run, activations in zip(params.runs, snakemake.input.activations, strict=True)
    ]
    page = atlas.start_page(runs, params.groups, Path(snakemake.input.template))
    Path(snakemake.output[0]).write_text(page, encoding="utf-8")
    log.info("open %s in a browser", Path(snakemake.output[0]).resolve())
