"""Seek the preferred stimuli of one layer of a run."""

from rfatlas.network.layer_job import layer_job
from rfatlas.stimuli import preferred_stimulus

sample = snakemake.params.sample
with layer_job(
    snakemake, "preferred_stimulus", "images", "activations", "fields", sample=sample
) as job:
    largest = job.activations["max"][:]
    channels = preferred_stimulus.chosen(len(largest), sample, job.settings["seed"], job.layer)
    best = (job.activations[f"top_per_image_{key}"][:, 0] for key in ("image", "yx"))
    preferred_stimulus.measure(
        job.network,
        job.layer,
        channels,
        largest,
        preferred_stimulus.Photographs(job.images, *best),
        job.files["fields"],
        preferred_stimulus.decorrelated(job.images),
        job.settings,
        job.task,
    )
    job.log.info("%s: %d of %d channels", job.layer, len(channels), len(largest))
