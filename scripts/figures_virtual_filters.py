"""Draw the figures of one run about virtual filters, skip connections and residual branches."""

import contextlib

from rfatlas.figures import figures_virtual_filters, sheets, style
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log:
    params, run = snakemake.params, snakemake.params.run
    table = store.read_table(snakemake.input.channels)
    twins = [store.read_table(path) for path in snakemake.input.twin]
    given = (table, run, twins[0] if twins else None, params.twin)
    draw = {
        "virtual_correlation": figures_virtual_filters.correlation,
        "skip_share": figures_virtual_filters.skip_share,
    }
    for name, png, pdf in zip(
        params.figures, snakemake.output.png, snakemake.output.pdf, strict=True
    ):
        figure = draw[name](*given)
        style.save(figure, png)
        style.save(figure, pdf)
        log.info("%s", png)
    fields = snakemake.input.get("fields", [])
    pages = (snakemake.output.get(name, []) for name in ("sheets", "sheets_pdf"))
    for number, (layer, png, pdf) in enumerate(zip(params.layers, *pages, strict=True)):
        rows = table[table["layer"] == layer]
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(store.open(snakemake.input.filters[0], "virtual_filters"))
            field = None
            if fields:
                field = opened.enter_context(store.open(fields[number], "receptive_fields"))
            found = figures_virtual_filters.read(file[layer], field, len(rows), params.channels)
        figure = figures_virtual_filters.sheet(found, rows, run, layer)
        for path in (png, pdf):
            style.save(figure, path, sheets.DPI)
        log.info("%s: %d channels", png, len(found.channel))
