"""Count what the rules of colour opponency say of the layers of one run."""

from rfatlas.files import jobs, store
from rfatlas.tables import opponency

with jobs.job(snakemake):
    table = store.read_table(snakemake.input.channels)
    reference = store.read_table(snakemake.input.reference)
    found = opponency.tables(
        table,
        reference,
        dict(snakemake.params.thresholds),
        dict(snakemake.params.rules),
        snakemake.params.orientation_osi,
        store.read_table(snakemake.input.twin) if snakemake.input.twin else None,
        snakemake.params.twin,
    )
    store.write_tables(found, snakemake.output)
