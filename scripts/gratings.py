"""Measure the tuning of one layer of a run to gratings."""

from rfatlas.network.layer_job import layer_job
from rfatlas.physiology import gratings
from rfatlas.physiology.probe import Probe

with layer_job(snakemake, "gratings", "images") as job:
    probe = Probe(job.network, job.layer, job.task.memory_mb)
    gratings.measure(probe, job.layer, job.files["images"]["mean"][:], job.settings, job.task)
    job.log.info("%s: %d channels, crop of %d pixels", job.layer, probe.channels, probe.crop)
