"""Fit Gabors to the fields of one layer of a run."""

import contextlib

from rfatlas.fields import gabor
from rfatlas.files import jobs, store
from rfatlas.files.task import task

input, layer = snakemake.input, snakemake.wildcards.layer
with (
    jobs.job(snakemake) as log,
    store.open(input.fields, "receptive_fields") as fields,
    store.open(input.virtual) if input.virtual else contextlib.nullcontext() as virtual,
):
    work = task(snakemake, "gabor", ("fields", "virtual"), fields.attrs["weights_sha256"])
    gabor.measure(layer, snakemake.params.channels, fields, input.weights, virtual, work)
    log.info("%s: %d channels", layer, snakemake.params.channels)
