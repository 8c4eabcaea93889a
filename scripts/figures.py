"""Draw the figures of one run: montages, receptive-field sizes, sparsity, accuracy."""

import json
from pathlib import Path

from rfatlas.figures import figures, style
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log:
    params, run = snakemake.params, snakemake.params.run
    description = json.loads(Path(snakemake.input.description).read_text(encoding="utf-8"))
    layers = {layer["name"]: layer for layer in description["layers"]}
    image_size = description["input"]["crop"]
    table = store.read_table(snakemake.input.channels)

    with store.open(snakemake.input.activations, "activations") as activations:
        drawn = {
            "rf_size": figures.rf_size(table, image_size, run),
            "sparsity": figures.sparsity(table, run),
            "accuracy": figures.accuracy([figures.score(run, activations)]),
        }
        for name, figure in drawn.items():
            for path in getattr(snakemake.output, name):
                style.save(figure, path)
        for layer, source, png, pdf in zip(
            params.montages,
            snakemake.input.fields,
            snakemake.output.montages,
            snakemake.output.montages_pdf,
            strict=True,
        ):
            with store.open(source, "receptive_fields") as receptive_field:
                fields = figures.read_fields(
                    receptive_field,
                    activations[layer],
                    layers[layer],
                    image_size,
                    params.channels,
                    params.patches,
                    params.source,
                )
            montage = figures.montage(fields, table[table["layer"] == layer], run, layer)
            for path in (png, pdf):
                style.save(montage, path, figures.MONTAGE_DPI)
            log.info("%s: %d channels", png, len(fields.channel))
