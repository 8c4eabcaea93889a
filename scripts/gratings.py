"""Measure the tuning of one layer of a run to gratings."""

from rfatlas.files import jobs, store
from rfatlas.files.task import task
from rfatlas.network import devices, model
from rfatlas.physiology import gratings
from rfatlas.physiology.probe import Probe

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
    store.open(snakemake.input.images, "images") as packed,
):
    network = model.load(snakemake.input.weights, device)
    layer = snakemake.wildcards.layer
    work = task(snakemake, "gratings", ("images",), network.weights_sha256, str(device))
    probe = Probe(network, layer, work.memory_mb)
    gratings.measure(probe, layer, packed["mean"][:], dict(snakemake.params.settings), work)
    log.info("%s: %d channels, crop of %d pixels", layer, probe.channels, probe.crop)
