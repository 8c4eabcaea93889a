"""Split the gradients of a group of layers of one run into skip and residual parts."""

from pathlib import Path

from rfatlas.fields import crops, skip_residual
from rfatlas.files import jobs, store
from rfatlas.network import devices, model

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
    store.open(snakemake.input.images, "images") as packed,
    store.open(snakemake.input.activations, "activations") as activations,
):
    network = model.load(snakemake.input.weights, device)
    images = store.array(packed["images"])
    settings = dict(snakemake.params.settings)
    created_from = {
        "images": store.identity(snakemake.input.images),
        "activations": store.identity(snakemake.input.activations),
    }
    attrs = store.provenance(
        "skip_residual", settings, network.weights_sha256, created_from, str(device)
    )
    for layer, output in zip(snakemake.params.layers, snakemake.output.fields, strict=True):
        channels, top = crops.top_tables(
            activations[layer], settings["source"], settings["top_k"], settings["channels"]
        )
        with jobs.progress(total=int((top["image"] >= 0).sum()), unit="unit", desc=layer) as bar:
            reason = skip_residual.measure(
                network,
                layer,
                images,
                channels,
                top,
                Path(output),
                jobs.memory_mb(snakemake),
                {key: str(value) for key, value in attrs.items()},
                attrs,
                bar.update,
            )
        log.info("%s: %s", layer, reason or f"{len(channels)} channels")
    for output in snakemake.output.fields:
        store.publish(Path(output))
