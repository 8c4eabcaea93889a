"""Compose the virtual filters of all layers of one run and compare them with the mean gradients."""

from pathlib import Path

import pandas as pd

from rfatlas.fields import virtual_filters
from rfatlas.files import jobs, store
from rfatlas.network import graph, model

with jobs.job(snakemake) as log:
    network = model.load(snakemake.input.weights)
    fields = {Path(path).stem: path for path in snakemake.input.fields}
    created_from = {f"fields_{layer}": store.identity(path) for layer, path in fields.items()}
    attrs = store.provenance("virtual_filters", {}, network.weights_sha256, created_from)
    tables = []
    with store.create(snakemake.output.filters, attrs) as file:
        for layer in snakemake.params.layers:
            found, compared, reason = None, {}, ""
            try:
                found = virtual_filters.virtual(network, layer, jobs.memory_mb(snakemake))
            except graph.NoPath as error:
                reason = str(error)
            if found is not None and layer in fields:
                with store.open(fields[layer], "receptive_fields") as field:
                    compared = virtual_filters.compare(
                        found,
                        network.graph.field(layer).local,
                        field["channel"][:],
                        field["mean_gradient"],
                    )
            virtual_filters.write(file.create_group(layer), found, reason)
            channels = network.graph.shape(layer)[0]
            tables.append(virtual_filters.table(layer, channels, found, compared, reason))
            log.info("%s: %s", layer, reason or f"{channels} filters, path: {found.path}")
    store.write_table(pd.concat(tables), snakemake.output.table)
