"""Measure the tuning to colour of one layer of a run."""

import contextlib

from rfatlas.files import jobs, store
from rfatlas.files.task import task
from rfatlas.network import devices, model
from rfatlas.physiology import color

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
    store.open(snakemake.input.images, "images") as packed,
    store.open(snakemake.input.activations, "activations") as activations,
    contextlib.ExitStack() as stack,
):
    network = model.load(snakemake.input.weights, device)
    layer, settings = snakemake.wildcards.layer, dict(snakemake.params.settings)
    work = task(
        snakemake,
        "color",
        ("images", "activations", "fields", "virtual"),
        network.weights_sha256,
        str(device),
    )
    field = virtual = None
    if snakemake.input.fields:
        field = stack.enter_context(store.open(snakemake.input.fields, "receptive_fields"))
    if snakemake.input.virtual:
        filters = stack.enter_context(store.open(snakemake.input.virtual))
        virtual = filters[layer]["filter"][:] if "filter" in filters[layer] else None
    top = {
        key: activations[layer][f"{settings['source']}_{key}"][:, : settings["top_k"]]
        for key in ("value", "image", "yx")
    }
    color.measure(
        network, layer, store.array(packed["images"]), top, field, virtual, settings, work
    )
    log.info("%s: %d channels", layer, len(top["image"]))
