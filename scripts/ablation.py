"""Replace the channels of one layer of a run, one by one, over one range of images."""

from rfatlas.ablation import ablate, ablation
from rfatlas.files import jobs, store
from rfatlas.files.task import task
from rfatlas.network import devices, model

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
    store.open(snakemake.input.images, "images") as packed,
    store.open(snakemake.input.activations, "activations") as activations,
):
    layer, settings = snakemake.wildcards.layer, dict(snakemake.params.settings)
    labels = packed["labels"][:]
    network = model.load(snakemake.input.weights, device)
    work = task(
        snakemake,
        "ablation",
        ("images", "activations"),
        network.weights_sha256,
        str(device),
    )
    ablation.sweep(
        ablate.Ablator(network, layer, activations[layer]["mean"][:], work.memory_mb),
        store.array(packed["images"]),
        labels,
        ablate.sequence(labels, settings["images"], settings["seed"]),
        int(snakemake.wildcards.start),
        int(snakemake.wildcards.stop),
        {name: activations["output"][name] for name in ("logits", "features")},
        settings,
        work,
    )
