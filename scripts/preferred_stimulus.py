"""Seek the preferred stimuli of a group of layers of one run."""

import contextlib
from pathlib import Path

from rfatlas.files import jobs, store
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
    images = store.array(packed["images"])
    params, outputs = snakemake.params, [Path(file) for file in snakemake.output.stimuli]
    settings = preferred_stimulus.Settings(**params.settings)
    colours = preferred_stimulus.decorrelated(images)
    fields = [
        opened.enter_context(store.open(file, "receptive_fields"))
        for file in snakemake.input.get("fields", [])
    ]
    for number, (layer, output) in enumerate(zip(params.layers, outputs, strict=True)):
        group, field = activations[layer], fields[number] if fields else None
        channels = preferred_stimulus.chosen(
            len(group["max"]), params.samples[number], settings.seed, layer
        )
        photographs = preferred_stimulus.Photographs(
            images, group["top_per_image_image"][:, 0], group["top_per_image_yx"][:, 0]
        )
        made_from = {"images": packed, "activations": activations}
        made_from |= {} if field is None else {"receptive_fields": field}
        attrs = store.provenance(
            "preferred_stimulus",
            dict(params.settings) | {"sample": params.samples[number]},
            network.weights_sha256,
            {name: store.identity(file.filename) for name, file in made_from.items()},
            str(device),
        )
        total = len(channels) * settings.steps
        with jobs.progress(total=total, unit="step", desc=layer) as bar:
            preferred_stimulus.measure(
                network,
                layer,
                channels,
                group["max"][:],
                photographs,
                field,
                colours,
                settings,
                output,
                jobs.memory_mb(snakemake),
                {key: str(value) for key, value in attrs.items()},
                attrs,
                bar.update,
            )
        log.info("%s: %d of %d channels", layer, len(channels), len(group["max"]))
    for output in outputs:
        store.publish(output)
