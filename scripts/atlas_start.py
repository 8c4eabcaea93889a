"""Make the page that leads to the atlases of all runs."""

from pathlib import Path

from rfatlas.atlas import atlas
from rfatlas.files import jobs

with jobs.job(snakemake) as log:
    files = zip(snakemake.params.runs, snakemake.input, strict=True)
    runs = [{**run, "activations": Path(file)} for run, file in files]
    page = atlas.start_page(runs, snakemake.params.groups)
    Path(snakemake.output[0]).write_text(page, encoding="utf-8")
    log.info("open %s in a browser", Path(snakemake.output[0]).resolve())
