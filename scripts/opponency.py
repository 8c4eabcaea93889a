"""Count what the rules of colour opponency say of the layers of one run."""

from rfatlas.files import jobs, store
from rfatlas.tables import opponency

with jobs.job(snakemake) as log:
    table = store.read_table(snakemake.input.channels)
    twins = [store.read_table(path) for path in snakemake.input.twin]
    reference = store.read_table(snakemake.input.reference)
    found = opponency.tables(
        table,
        reference,
        dict(snakemake.params.thresholds),
        dict(snakemake.params.rules),
        snakemake.params.orientation_osi,
        twins[0] if twins else None,
        snakemake.params.twin,
    )
    for name, rows in found.items():
        store.write_table(rows, getattr(snakemake.output, name))
        log.info("%s: %d rows", name, len(rows))
