"""Make the site that shows the channels of a run."""

from pathlib import Path

from rfatlas.atlas import atlas
from rfatlas.files import jobs

with jobs.job(snakemake) as log:
    folder = Path(snakemake.output[0])
    atlas.build(snakemake.input, snakemake.params, folder, log.info)
    log.info("open %s in a browser", folder.resolve() / "index.html")
