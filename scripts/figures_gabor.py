"""Draw the sheets of one run that show the Gabors fitted to its layers."""

from rfatlas import figures_gabor, jobs, sheets, store, style

with jobs.job(snakemake) as log:
    params, input = snakemake.params, snakemake.input
    for layer, fits, fields, output in zip(
        params.layers, input.fits, input.fields, snakemake.output, strict=True
    ):
        with store.open(fits, "gabor") as fitted, store.open(fields, "receptive_fields") as source:
            found = figures_gabor.read(fitted, source, params.channels)
        style.save(figures_gabor.sheet(found, params.run, layer), output, sheets.DPI)
        log.info("%s: %d channels", output, len(found.channel))
