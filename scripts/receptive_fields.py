"""Measure the receptive fields of one layer of a run."""

from rfatlas.fields import crops, receptive_fields
from rfatlas.network.layer_job import layer_job

split = snakemake.params.split
with layer_job(snakemake, "receptive_fields", "images", "activations", split=split) as job:
    settings = job.settings
    channels, top = crops.top_tables(
        job.activations, settings["source"], settings["top_k"], settings["channels"]
    )
    receptive_fields.measure(
        job.network,
        job.layer,
        job.images,
        channels,
        top,
        settings["keep"],
        (split["top_k"] or top["image"].shape[1]) if split else 0,
        job.task,
    )
    job.log.info("%s: %d channels, %d units", job.layer, len(channels), (top["image"] >= 0).sum())
