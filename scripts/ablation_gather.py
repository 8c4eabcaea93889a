"""Gather the ranges of a group of layers: predictions and statistics per channel."""

from pathlib import Path

from rfatlas.ablation import ablation
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log:
    ranges = list(snakemake.input.ranges)
    params = {key: snakemake.params[key] for key in ("modes", "classes", "seed")}
    with store.open(ranges[0], "ablation") as first:
        made_from = {key: first.attrs[key] for key in ("weights_sha256", "device")}
    created_from = {Path(path).stem: store.identity(path) for path in ranges}
    attrs = store.provenance(
        "ablation", params, made_from["weights_sha256"], created_from, made_from["device"]
    )
    for layer, output in zip(snakemake.params.layers, snakemake.output.predictions, strict=True):
        ablation.gather(
            ranges, layer, params["modes"], params["classes"], params["seed"], Path(output), attrs
        )
    for output in snakemake.output.predictions:
        store.publish(output)
