"""Draw the figures of one group of runs side by side."""

from rfatlas.figures import figures_compare, style
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log:
    given, group, runs = snakemake.input, snakemake.params.group, snakemake.params.runs
    networks, fractions, quantities, matched, matching, similarity = map(
        store.read_table,
        (
            given.runs,
            given.fractions,
            given.quantities,
            given.matched,
            given.matching,
            given.similarity,
        ),
    )
    draw = {
        "accuracy": lambda: figures_compare.accuracy(networks, group),
        "fractions": lambda: figures_compare.fractions(fractions, group, runs),
        "quantities": lambda: figures_compare.quantities(quantities, group, runs),
        "matched": lambda: figures_compare.matched(matching, matched, group, runs[0], runs),
        "cka": lambda: figures_compare.similarity(similarity, group, runs, "cka"),
        "svcca": lambda: figures_compare.similarity(similarity, group, runs, "svcca"),
    }
    for name, png, pdf in zip(
        snakemake.params.figures, snakemake.output.png, snakemake.output.pdf, strict=True
    ):
        figure = draw[name]()
        style.save(figure, png)
        style.save(figure, pdf)
        log.info("%s", png)
