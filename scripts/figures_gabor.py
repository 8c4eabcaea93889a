"""Draw the sheets of one run that show the Gabors fitted to its layers."""

from rfatlas.figures import figures_gabor, sheets, style
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log:
    params, input = snakemake.params, snakemake.input
    output = snakemake.output
    for layer, fits, fields, png, pdf in zip(
        params.layers, input.fits, input.fields, output.png, output.pdf, strict=True
    ):
        with store.open(fits, "gabor") as fitted, store.open(fields, "receptive_fields") as source:
            found = figures_gabor.read(fitted, source, params.channels)
        figure = figures_gabor.sheet(found, params.run, layer)
        for path in (png, pdf):
            style.save(figure, path, sheets.DPI)
        log.info("%s: %d channels", png, len(found.channel))
