"""Draw the figures of one run about colour: a sheet per layer, and what is counted over layers."""

import contextlib
from pathlib import Path

from rfatlas.figures import figures_color, sheets, style
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log, contextlib.ExitStack() as opened:
    params, run = snakemake.params, snakemake.params.run
    table = store.read_table(snakemake.input.channels)
    counted = {Path(path).stem: store.read_table(path) for path in snakemake.input.tables}
    files = {
        layer: opened.enter_context(store.open(path, "color"))
        for layer, path in zip(params.layers, snakemake.input.responses, strict=True)
    }
    rows = {layer: table[table["layer"] == layer] for layer in params.layers}
    for layer, png, pdf in zip(
        params.layers, snakemake.output.sheets, snakemake.output.sheets_pdf, strict=True
    ):
        found = figures_color.read_channels(files[layer], params.channels)
        figure = figures_color.sheet(found, rows[layer], run, layer)
        for path in (png, pdf):
            style.save(figure, path, sheets.DPI)
        log.info("%s: %d channels", png, len(found.channel))
    curves = {
        name: [
            figures_color.read_curves(files[layer], layer, channel) for layer, channel in members
        ]
        for name, members in figures_color.examples(table).items()
    }
    hues = [figures_color.read_hues(files[layer], rows[layer]) for layer in params.layers]
    draw = {
        "classes": lambda: figures_color.classes(counted["counts"], counted["macaque"], run),
        "stability": lambda: figures_color.stability(counted["stability"], run),
        "confusion": lambda: figures_color.confusion(counted["confusion"], run),
        "orientation": lambda: figures_color.orientation(counted["orientation"], run),
        "tuning": lambda: figures_color.tuning(curves, run, params.lowpass, params.color_ratio),
        "hue": lambda: figures_color.hues(hues, run),
    }
    for name, png, pdf in zip(
        params.figures, snakemake.output.png, snakemake.output.pdf, strict=True
    ):
        figure = draw[name]()
        style.save(figure, png)
        # Everything has its place now; the layout need not be worked out again.
        figure.set_layout_engine("none")
        style.save(figure, pdf)
        log.info("%s", png)
