"""Measure the tuning to colour of one layer of a run."""

from rfatlas.network.layer_job import layer_job
from rfatlas.physiology import color

with layer_job(snakemake, "color", "images", "activations", "fields", "virtual") as job:
    source, top_k = job.settings["source"], job.settings["top_k"]
    top = {key: job.activations[f"{source}_{key}"][:, :top_k] for key in ("value", "image", "yx")}
    virtual = job.files["virtual"] and job.files["virtual"][job.layer].get("filter")
    color.measure(
        job.network,
        job.layer,
        job.images,
        top,
        job.files["fields"],
        None if virtual is None else virtual[:],
        job.settings,
        job.task,
    )
    job.log.info("%s: %d channels", job.layer, len(top["image"]))
