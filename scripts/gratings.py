"""Measure the tuning to gratings of a group of layers of one run."""

from pathlib import Path

from rfatlas.files import jobs, store
from rfatlas.network import devices, model
from rfatlas.physiology import gratings
from rfatlas.physiology.probe import Probe

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
    store.open(snakemake.input.images, "images") as packed,
):
    network = model.load(snakemake.input.weights, device)
    mean_image = gratings.mean_image(store.array(packed["images"]))
    settings = dict(snakemake.params.settings)
    created_from = {"images": store.identity(snakemake.input.images)}
    attrs = store.provenance(
        "gratings", settings, network.weights_sha256, created_from, str(device)
    )
    for layer, output in zip(snakemake.params.layers, snakemake.output.responses, strict=True):
        probe = Probe(network, layer, jobs.memory_mb(snakemake))
        gratings.measure(
            probe,
            layer,
            mean_image,
            settings,
            Path(output),
            {key: str(value) for key, value in attrs.items()},
            attrs,
        )
        log.info("%s: %d channels, crop of %d pixels", layer, probe.channels, probe.crop)
    for output in snakemake.output.responses:
        store.publish(output)
