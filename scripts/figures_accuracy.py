"""Draw the accuracy of all runs side by side."""

from rfatlas.figures import figures, style
from rfatlas.files import jobs, store

with jobs.job(snakemake):
    scores = []
    for run, path in zip(snakemake.params.runs, snakemake.input, strict=True):
        with store.open(path, "activations") as activations:
            scores.append(figures.score(run, activations))
    figure = figures.accuracy(scores)
    for path in snakemake.output:
        style.save(figure, path)
