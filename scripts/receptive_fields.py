"""Measure the receptive fields of a group of layers of one run."""

from pathlib import Path

from rfatlas.fields import crops, receptive_fields
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
        "receptive_fields", settings, network.weights_sha256, created_from, str(device)
    )
    for layer, output in zip(snakemake.params.layers, snakemake.output.fields, strict=True):
        channels, top = crops.top_tables(
            activations[layer], settings["source"], settings["top_k"], settings["channels"]
        )
        with jobs.progress(total=int((top["image"] >= 0).sum()), unit="unit", desc=layer) as bar:
            receptive_fields.measure(
                network,
                layer,
                images,
                channels,
                top,
                Path(output),
                settings["keep"],
                jobs.memory_mb(snakemake),
                {key: str(value) for key, value in attrs.items()},
                attrs,
                bar.update,
            )
        log.info("%s: %d channels, %d units", layer, len(channels), (top["image"] >= 0).sum())
    for output in snakemake.output.fields:
        store.publish(Path(output))
