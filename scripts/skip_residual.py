"""Split the gradients of one layer of a run into skip and residual parts."""

from rfatlas.fields import crops, skip_residual
from rfatlas.files import jobs, store
from rfatlas.files.task import task
from rfatlas.network import devices, model

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
    store.open(snakemake.input.images, "images") as packed,
    store.open(snakemake.input.activations, "activations") as activations,
):
    network = model.load(snakemake.input.weights, device)
    layer, settings = snakemake.wildcards.layer, snakemake.params.settings
    work = task(
        snakemake, "skip_residual", ("images", "activations"), network.weights_sha256, str(device)
    )
    channels, top = crops.top_tables(
        activations[layer], settings["source"], settings["top_k"], settings["channels"]
    )
    reason = skip_residual.measure(
        network, layer, store.array(packed["images"]), channels, top, work
    )
    log.info("%s: %s", layer, reason or f"{len(channels)} channels")
