"""Draw the labelled scenes of one data set."""

from rfatlas.files import jobs
from rfatlas.images import scenes

with jobs.job(snakemake) as log:
    count = snakemake.params.scenes
    scenes.write(
        snakemake.output.images,
        snakemake.output.table,
        count=count,
        size=snakemake.params.size,
        seed=snakemake.params.seed,
        processes=snakemake.threads,
        progress=lambda drawn: jobs.progress(drawn, total=count, unit="scene", desc="scenes"),
    )
    log.info("%d scenes", count)
