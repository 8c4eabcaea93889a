"""Draw the figures of one run about tuning to orientation and frequency."""

from rfatlas.figures import figures_orientation, style
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log:
    params, run = snakemake.params, snakemake.params.run
    table = store.read_table(snakemake.input.channels)
    twins = [store.read_table(path) for path in snakemake.input.twin]
    twin = twins[0] if twins else None
    selective, histograms, medians = map(store.read_table, snakemake.input.tables)
    reference = store.read_table(snakemake.input.reference)
    joint = store.read_table(snakemake.input.joint)
    r2, scale = params.gabor_r2, params.pixels_per_degree
    draw = {
        "distribution": lambda: figures_orientation.roses(table, run, r2, twin, params.twin),
        "frequency": lambda: figures_orientation.frequency(
            table, run, r2, scale, reference, twin, params.twin
        ),
        "selective": lambda: figures_orientation.selective(selective, run),
        "stability": lambda: figures_orientation.stability(selective, run),
        "v1": lambda: figures_orientation.v1(histograms, medians, reference, run, r2),
        "nx_ny": lambda: figures_orientation.nx_ny(table, joint, reference, run, r2),
        "agreement": lambda: figures_orientation.agreement(table, run),
    }
    for name, png, pdf in zip(
        params.figures, snakemake.output.png, snakemake.output.pdf, strict=True
    ):
        figure = draw[name]()
        style.save(figure, png)
        style.save(figure, pdf)
        log.info("%s", png)
