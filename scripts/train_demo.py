"""Train one of the demo's networks and write its weights with their provenance."""

from rfatlas.files import jobs
from rfatlas.network import train_demo

with jobs.job(snakemake) as log:
    # Layers this small gain nothing from more threads, and so --cores does not change the bits.
    jobs.limit_threads(1)
    network = snakemake.wildcards.network
    settings = train_demo.SETTINGS[network]
    result = train_demo.train(
        network,
        settings,
        processes=snakemake.threads,
        progress=lambda epochs: jobs.progress(epochs, unit="epoch", desc="train_demo"),
    )
    train_demo.write(result, settings, snakemake.output.weights, snakemake.output.provenance)
    log.info("held-out accuracy %.4f", result.accuracy_held_out)
