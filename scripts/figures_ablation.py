"""Draw the figures of one run about ablations."""

from pathlib import Path

from rfatlas.figures import figures_ablation, style
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log:
    run, mode = snakemake.params.run, snakemake.params.mode
    table = store.read_table(snakemake.input.channels)
    groups = store.read_table(snakemake.input.groups)
    cumulative = store.read_table(snakemake.input.cumulative)
    files = {Path(path).stem: path for path in snakemake.input.ablation}
    class_delta = {}
    for layer, channel in figures_ablation.chosen(table, mode):
        with store.open(files[layer], "ablation") as file:
            class_delta[layer, channel] = file[f"{mode}/class_delta"][channel]
    with store.open(snakemake.input.images, "images") as file:
        class_names = [str(name) for name in file.attrs["class_names"]]
    draw = {
        "effects": lambda mode: figures_ablation.effects(table, run, mode),
        "properties": lambda _: figures_ablation.properties(table, run, mode),
        "cumulative": lambda mode: figures_ablation.cumulative(cumulative, run, mode),
        "groups": lambda _: figures_ablation.groups(groups, run),
        "classes": lambda _: figures_ablation.classes(class_delta, class_names, run, mode),
    }
    for name, png, pdf in zip(
        snakemake.params.figures, snakemake.output.png, snakemake.output.pdf, strict=True
    ):
        kind, _, of = name.partition("_")
        figure = draw[kind](of)
        style.save(figure, png)
        style.save(figure, pdf)
        log.info("%s", png)
