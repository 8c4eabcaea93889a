"""Fit Gabors to the fields of one layer of a run."""

import contextlib

from rfatlas.fields import gabor
from rfatlas.files import jobs, store
from rfatlas.files.task import task

with (
    jobs.job(snakemake) as log,
    store.open(snakemake.input.fields, "receptive_fields") as fields,
    contextlib.ExitStack() as files,
):
    input, layer = snakemake.input, snakemake.wildcards.layer
    virtual = None
    if input.virtual:
        virtual = files.enter_context(store.open(input.virtual))
    work = task(snakemake, "gabor", ("fields", "virtual"), fields.attrs["weights_sha256"])
    gabor.measure(layer, snakemake.params.channels, fields, input.weights, virtual, work)
    log.info("%s: %d channels", layer, snakemake.params.channels)
