"""Make the tables about groups of channels of one run."""

from rfatlas.ablation import ablation_groups
from rfatlas.files import jobs, store

with jobs.job(snakemake) as log:
    groups, cumulative, inactive = ablation_groups.tables(
        snakemake.input.predictions,
        store.read_table(snakemake.input.channels),
        snakemake.params.seed,
    )
    store.write_table(groups, snakemake.output.groups)
    store.write_table(cumulative, snakemake.output.cumulative)
    store.write_table(inactive, snakemake.output.inactive)
    for sentence in inactive["sentence"]:
        if sentence:
            log.info("%s", sentence)
