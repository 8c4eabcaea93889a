"""Draw the sheets of one run that show what drives the channels of its layers most and least."""

import contextlib

from rfatlas.figures import figures_preferred_stimulus, sheets, style
from rfatlas.files import jobs, store

with (
    jobs.job(snakemake) as log,
    store.open(snakemake.input.activations, "activations") as activations,
):
    params, output = snakemake.params, snakemake.output
    table = store.read_table(snakemake.input.channels)
    fields = snakemake.input.get("fields", [])
    for number, (layer, source, png, pdf) in enumerate(
        zip(params.layers, snakemake.input.stimuli, output.png, output.pdf, strict=True)
    ):
        rows = table[table["layer"] == layer]
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(store.open(source, "preferred_stimulus"))
            field = None
            if fields:
                field = opened.enter_context(store.open(fields[number], "receptive_fields"))
            found = figures_preferred_stimulus.read(
                file, rows, field, activations[layer], params.channels, params.source
            )
        figure = figures_preferred_stimulus.sheet(found, rows, params.run, layer)
        for path in (png, pdf):
            style.save(figure, path, sheets.DPI)
        log.info("%s: %d channels", png, len(found.channel))
