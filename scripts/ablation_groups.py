"""Predict without groups of channels, in one layer of a run."""

from rfatlas.ablation import ablate, ablation_groups
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
    params, layer = snakemake.params, snakemake.wildcards.layer
    labels = packed["labels"][:]
    order = ablate.sequence(labels, params.images, params.seed)
    work = task(
        snakemake,
        "ablation_groups",
        ("images", "activations"),
        network.weights_sha256,
        str(device),
        images=params.images,
        seed=params.seed,
    )
    ablator = ablate.Ablator(network, layer, activations[layer]["mean"][:], work.memory_mb)
    table = store.read_table(snakemake.input.channels)
    rows = table[table["layer"] == layer].sort_values("channel")
    plan = ablation_groups.plan(rows, layer, params.settings, ablator.has_filters(), params.seed)
    ablation_groups.measure(
        ablator,
        plan,
        store.array(packed["images"]),
        labels,
        order,
        work,
        ablation_groups.PREDICTIONS[device.type],
    )
    log.info("%s: %d sets of channels, %d images", layer, len(plan.sets), len(order))
