"""Compare the layers of one run with macaque V1, property by property."""

from rfatlas.files import jobs, store
from rfatlas.tables import v1

with jobs.job(snakemake):
    found = v1.tables(
        store.read_table(snakemake.input.channels),
        store.read_table(snakemake.input.reference),
        dict(snakemake.params.settings),
        store.read_table(snakemake.input.twin) if snakemake.input.twin else None,
        snakemake.params.twin,
    )
    store.write_tables(found, snakemake.output)
