"""Estimate what replacing each channel of a run changes, to first order, on one range of images."""

from rfatlas.ablation import ablate, ablation, first_order
from rfatlas.files import jobs, store
from rfatlas.files.task import task
from rfatlas.network import devices, model

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
    store.open(snakemake.input.images) as images,
    store.open(snakemake.input.activations) as activations,
):
    jobs.limit_threads(snakemake.threads)
    network = model.load(snakemake.input.weights, device)
    work = task(
        snakemake, "ablation", ("images", "activations"), network.weights_sha256, str(device)
    )
    settings, labels = snakemake.params.settings, images["labels"][:]
    first_order.measure(
        first_order.FirstOrder(
            network,
            {layer: ablation.modes_of(layer, settings) for layer in settings["layers"]},
            {layer: activations[layer]["mean"][:] for layer in settings["layers"]},
            settings["site"],
            settings["channels"],
            work.memory_mb,
        ),
        store.array(images["images"]),
        labels,
        ablate.sequence(labels, None, settings["seed"]),
        int(snakemake.wildcards.start),
        int(snakemake.wildcards.stop),
        settings["images"],
        settings["batch_size"],
        work,
    )
