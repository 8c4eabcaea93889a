"""Measure the tuning of one layer of a run to gratings."""

from rfatlas.network.layer_job import layer_job
from rfatlas.physiology import gratings
from rfatlas.physiology.probe import Probe

parts = list(snakemake.params.parts)
with layer_job(snakemake, "gratings", "images", parts=parts) as job:
    probe = Probe(job.network, job.layer, job.task.memory_mb)
    mean = job.files["images"]["mean"][:]
    gratings.measure(probe, job.layer, mean, job.settings, parts, job.task)
    job.log.info("%s: %d channels, crop of %d pixels", job.layer, probe.channels, probe.crop)
