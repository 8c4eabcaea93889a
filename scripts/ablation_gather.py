"""Gather the ranges of one layer of a run: predictions and statistics per channel."""

from pathlib import Path

from rfatlas.ablation import ablation
from rfatlas.files import jobs, store
from rfatlas.files.task import Task

with jobs.job(snakemake) as log:
    ranges, settings = list(snakemake.input.ranges), dict(snakemake.params.settings)
    estimates = list(snakemake.input.get("estimates", ()))
    with store.open(ranges[0], "ablation") as first:
        made = {key: first.attrs[key] for key in ("weights_sha256", "device")}
    created_from = {Path(path).stem: store.identity(path) for path in ranges}
    created_from |= {f"estimates {Path(path).stem}": store.identity(path) for path in estimates}
    attrs = store.provenance(
        "ablation", settings, made["weights_sha256"], created_from, made["device"]
    )
    ablation.gather(
        ranges,
        snakemake.wildcards.layer,
        settings["modes"],
        settings["classes"],
        settings["seed"],
        Task(Path(snakemake.output[0]), attrs),
        estimates,
    )
