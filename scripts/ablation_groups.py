"""Predict without groups of channels, in a group of layers of one run."""

from pathlib import Path

from rfatlas.ablation import ablate, ablation_groups
from rfatlas.files import jobs, store
from rfatlas.network import devices, model

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
    store.open(snakemake.input.images, "images") as packed,
    store.open(snakemake.input.activations, "activations") as activations,
):
    network = model.load(snakemake.input.weights, device)
    params, table = snakemake.params, store.read_table(snakemake.input.channels)
    labels = packed["labels"][:]
    order = ablate.sequence(labels, params.images, params.seed)
    outputs = [Path(file) for file in snakemake.output.predictions]
    for layer, output in zip(params.layers, outputs, strict=True):
        ablator = ablate.Ablator(
            network, [layer], {layer: activations[layer]["mean"][:]}, jobs.memory_mb(snakemake)
        )
        rows = table[table["layer"] == layer].sort_values("channel")
        filters = ablator.has_filters(layer)
        plan = ablation_groups.plan(rows, layer, params.settings, filters, params.seed)
        attrs = store.provenance(
            "ablation_groups",
            {**params.settings, "images": params.images, "seed": params.seed},
            network.weights_sha256,
            {
                "images": store.identity(packed.filename),
                "activations": store.identity(activations.filename),
            },
            str(device),
        )
        ablation_groups.measure(
            ablator,
            layer,
            plan,
            store.array(packed["images"]),
            labels,
            order,
            output,
            {key: str(value) for key, value in attrs.items()},
            {**attrs, "filters": filters},
            ablation_groups.PREDICTIONS[device.type],
        )
        log.info("%s: %d sets of channels, %d images", layer, len(plan.sets), len(order))
    for output in outputs:
        store.publish(output)
