"""Decode the photographs of a data set and pack them into one file."""

from rfatlas.files import jobs
from rfatlas.images import decoding, images
from rfatlas.sources import catalogue

with jobs.job(snakemake) as log:
    dataset = dict(snakemake.params.dataset)
    if dataset["source"] == "scenes":
        # The rule scenes has drawn them by now and left a list.
        dataset["path"] = snakemake.input.labels
    frame = decoding.frame(*snakemake.wildcards[1:])
    key = f"datasets.{snakemake.wildcards.dataset}"
    listing = catalogue.list_images(dataset, key=key, classes=dataset.get("classes", ()))
    for note in listing.notes:
        log.info("%s: %s", key, note)
    counts = images.pack(
        listing,
        snakemake.output.images,
        **frame,
        workers=snakemake.threads,
        on_bad_image=dataset["on_bad_image"],
        bad_table=snakemake.output.bad,
        config={"dataset": snakemake.params.dataset, **frame},
    )
    log.info("%d images packed, %d skipped", counts["packed"], counts["skipped"])
