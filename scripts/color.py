"""Measure the tuning to colour of a group of layers of one run."""

import contextlib
from pathlib import Path

from rfatlas.files import jobs, store
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
    images = store.array(packed["images"])
    settings = dict(snakemake.params.settings)
    created_from = {
        name: store.identity(snakemake.input[name]) for name in ("images", "activations")
    }
    virtual = {}
    for path in snakemake.input.virtual:
        created_from["virtual_filters"] = store.identity(path)
        virtual = stack.enter_context(store.open(path, "virtual_filters"))
    fields = {Path(path).stem: path for path in snakemake.input.fields}
    for layer, output in zip(snakemake.params.layers, snakemake.output.responses, strict=True):
        own = dict(created_from)
        field = None
        if layer in fields:
            own["fields"] = store.identity(fields[layer])
            field = stack.enter_context(store.open(fields[layer], "receptive_fields"))
        attrs = store.provenance("color", settings, network.weights_sha256, own, str(device))
        group, source = activations[layer], settings["source"]
        top = {
            key: group[f"{source}_{key}"][:, : settings["top_k"]]
            for key in ("value", "image", "yx")
        }
        color.measure(
            network,
            layer,
            images,
            top,
            field,
            virtual[layer]["filter"][:] if "filter" in virtual.get(layer, {}) else None,
            settings,
            Path(output),
            jobs.memory_mb(snakemake),
            {key: str(value) for key, value in attrs.items()},
            attrs,
        )
        log.info("%s: %d channels", layer, len(top["image"]))
    for output in snakemake.output.responses:
        store.publish(output)
