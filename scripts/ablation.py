"""Replace channels of a group of layers of one run, one by one, over one range of images."""

from pathlib import Path

from rfatlas.ablation import ablate, ablation
from rfatlas.files import jobs, store
from rfatlas.network import devices, model

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
    store.open(snakemake.input.images, "images") as packed,
    store.open(snakemake.input.activations, "activations") as activations,
):
    settings, layers = dict(snakemake.params.settings), list(snakemake.params.layers)
    labels = packed["labels"][:]
    order = ablate.sequence(labels, settings["images"], settings["seed"])
    network = model.load(snakemake.input.weights, device)
    created_from = {
        name: store.identity(snakemake.input[name]) for name in ("images", "activations")
    }
    attrs = store.provenance(
        "ablation", settings | {"layers": layers}, network.weights_sha256, created_from, str(device)
    )
    ablation.sweep(
        ablate.Ablator(
            network,
            layers,
            {layer: activations[layer]["mean"][:] for layer in layers},
            jobs.memory_mb(snakemake),
        ),
        store.array(packed["images"]),
        labels,
        order,
        int(snakemake.wildcards.start),
        int(snakemake.wildcards.stop),
        {name: activations["output"][name] for name in ("logits", "features")},
        settings,
        Path(snakemake.output[0]),
        attrs,
    )
