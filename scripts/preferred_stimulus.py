"""Seek the preferred stimuli of one layer of a run."""

import contextlib

from rfatlas.files import jobs, store
from rfatlas.files.task import task
from rfatlas.network import devices, model
from rfatlas.stimuli import preferred_stimulus

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
    store.open(snakemake.input.images, "images") as packed,
    store.open(snakemake.input.activations, "activations") as activations,
    contextlib.ExitStack() as opened,
):
    network = model.load(snakemake.input.weights, device)
    images, layer = store.array(packed["images"]), snakemake.wildcards.layer
    params, group = snakemake.params, activations[layer]
    settings = preferred_stimulus.Settings(**params.settings)
    work = task(
        snakemake,
        "preferred_stimulus",
        ("images", "activations", "fields"),
        network.weights_sha256,
        str(device),
        sample=params.sample,
    )
    field = None
    if snakemake.input.fields:
        field = opened.enter_context(store.open(snakemake.input.fields, "receptive_fields"))
    channels = preferred_stimulus.chosen(len(group["max"]), params.sample, settings.seed, layer)
    preferred_stimulus.measure(
        network,
        layer,
        channels,
        group["max"][:],
        preferred_stimulus.Photographs(
            images, group["top_per_image_image"][:, 0], group["top_per_image_yx"][:, 0]
        ),
        field,
        preferred_stimulus.decorrelated(images),
        settings,
        work,
    )
    log.info("%s: %d of %d channels", layer, len(channels), len(group["max"]))
