"""Compare the networks of one group of runs."""

import contextlib
import json
from pathlib import Path

from rfatlas.files import jobs, store
from rfatlas.tables import compare

with jobs.job(snakemake), contextlib.ExitStack() as stack:
    given, params = snakemake.input, snakemake.params
    files = [stack.enter_context(store.open(path, "activations")) for path in given.activations]
    channels = [store.read_table(path) for path in given.channels]
    descriptions = [json.loads(Path(path).read_text("utf-8")) for path in given.descriptions]
    found = compare.tables(
        dict(zip(params.runs, channels, strict=True)),
        dict(zip(params.runs, descriptions, strict=True)),
        dict(zip(params.runs, files, strict=True)),
        params.feature,
        params.variance,
        params.seed,
    )
    store.write_tables(found, snakemake.output)
