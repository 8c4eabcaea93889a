"""Draw the sheets of one run that show how the channels of its layers are tuned to gratings."""

import contextlib

from rfatlas import figures_gratings, jobs, sheets, store, style

with jobs.job(snakemake) as log:
    params = snakemake.params
    table = store.read_table(snakemake.input.channels)
    fields = snakemake.input.get("fields", [])
    for number, (layer, source, output) in enumerate(
        zip(params.layers, snakemake.input.responses, snakemake.output, strict=True)
    ):
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(store.open(source, "gratings"))
            field = None
            if fields:
                field = opened.enter_context(store.open(fields[number], "receptive_fields"))
            found = figures_gratings.read(file, field, params.channels)
        rows = table[table["layer"] == layer]
        style.save(figures_gratings.sheet(found, rows, params.run, layer), output, sheets.DPI)
        log.info("%s: %d channels", output, len(found.channel))
