"""Fit Gabors to the fields of a group of layers of one run."""

import contextlib
from pathlib import Path

from rfatlas.fields import gabor
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log, contextlib.ExitStack() as files:
    input, params = snakemake.input, snakemake.params
    virtual, created_from = None, {}
    if input.virtual:
        virtual = files.enter_context(store.open(input.virtual, "virtual_filters"))
        created_from["virtual_filters"] = store.identity(input.virtual)
    for layer, channels, source, output in zip(
        params.layers, params.channels, input.fields, snakemake.output.fits, strict=True
    ):
        with store.open(source, "receptive_fields") as fields:
            attrs = store.provenance(
                "gabor",
                {},
                fields.attrs["weights_sha256"],
                {**created_from, "receptive_fields": store.identity(source)},
            )
            gabor.measure(
                layer,
                channels,
                fields,
                input.weights,
                virtual,
                Path(output),
                {key: str(value) for key, value in attrs.items()},
                attrs,
            )
        log.info("%s: %d channels", layer, channels)
    for output in snakemake.output.fits:
        store.publish(output)
