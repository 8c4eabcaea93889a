"""Measure the receptive fields of one layer of a run."""

from rfatlas.fields import crops, receptive_fields
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
        snakemake,
        "receptive_fields",
        ("images", "activations"),
        network.weights_sha256,
        str(device),
        split=snakemake.params.split,
    )
    channels, top = crops.top_tables(
        activations[layer], settings["source"], settings["top_k"], settings["channels"]
    )
    split, units = snakemake.params.split, top["image"].shape[1]
    receptive_fields.measure(
        network,
        layer,
        store.array(packed["images"]),
        channels,
        top,
        settings["keep"],
        (split["top_k"] or units) if split else 0,
        work,
    )
    log.info("%s: %d channels, %d units", layer, len(channels), (top["image"] >= 0).sum())
