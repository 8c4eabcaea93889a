"""One forward pass of a run's network over one range of images."""

from rfatlas.fields import activations
from rfatlas.files import jobs

with jobs.job(snakemake) as log:
    jobs.limit_threads(snakemake.threads)
    activations.compute(
        snakemake.input.images,
        snakemake.input.weights,
        snakemake.output[0],
        start=int(snakemake.wildcards.start),
        stop=int(snakemake.wildcards.stop),
        layers=snakemake.params.layers,
        top_k=snakemake.params.top_k,
        batch_size=snakemake.params.batch_size,
        keep_maps=snakemake.params.keep_maps,
        device=snakemake.params.device,
        tf32=snakemake.params.tf32,
    )
