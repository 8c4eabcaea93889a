"""Join what the stages found about each channel of a run into one table."""

from rfatlas.files import jobs, store
from rfatlas.tables import channels

with jobs.job(snakemake) as log:
    table = channels.build(
        snakemake.input.activations,
        snakemake.input.description,
        snakemake.input.images,
        snakemake.params.layers,
        snakemake.input.tables,
        snakemake.params.inactive_norm,
        snakemake.params.inactive_drive,
        snakemake.params.orientation_osi,
        snakemake.params.first,
    )
    store.write_table(table, snakemake.output[0])
    log.info(
        "%d channels in %d layers, %d inactive, %d columns",
        len(table),
        table["layer"].nunique(),
        table["inactive"].sum(),
        table.shape[1],
    )
