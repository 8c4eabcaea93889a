"""Count what the estimates of orientation say of the layers of one run."""

from rfatlas.files import jobs, store
from rfatlas.tables import orientation

with jobs.job(snakemake):
    found = orientation.tables(
        store.read_table(snakemake.input.channels),
        snakemake.params.thresholds,
        snakemake.params.orientation_osi,
        store.read_table(snakemake.input.twin) if snakemake.input.twin else None,
        snakemake.params.twin,
    )
    store.write_tables(found, snakemake.output)
