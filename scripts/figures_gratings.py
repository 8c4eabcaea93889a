"""Draw the sheets of one run that show how the channels of its layers are tuned to gratings."""

import contextlib

from rfatlas.figures import figures_gratings, sheets, style
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log:
    params, output = snakemake.params, snakemake.output
    table = store.read_table(snakemake.input.channels)
    fields = snakemake.input.get("fields", [])
    for number, (layer, source, png, pdf) in enumerate(
        zip(params.layers, snakemake.input.responses, output.png, output.pdf, strict=True)
    ):
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(store.open(source, "gratings"))
            field = None
            if fields:
                field = opened.enter_context(store.open(fields[number], "receptive_fields"))
            found = figures_gratings.read(file, field, params.channels)
        rows = table[table["layer"] == layer]
        figure = figures_gratings.sheet(found, rows, params.run, layer)
        for path in (png, pdf):
            style.save(figure, path, sheets.DPI)
        log.info("%s: %d channels", png, len(found.channel))
