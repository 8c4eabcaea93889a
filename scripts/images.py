"""Decode the photographs of a data set and pack them into one file."""

from rfatlas.files import jobs
from rfatlas.images import images
from rfatlas.sources import catalogue

with jobs.job(snakemake) as log:
    dataset = dict(snakemake.params.dataset)
    if dataset["source"] == "scenes":
        # The rule scenes has drawn them by now and left a list.
        dataset["path"] = snakemake.input.labels
    resize, crop = int(snakemake.wildcards.resize), int(snakemake.wildcards.crop)
    listing = catalogue.list_images(dataset, key=f"datasets.{snakemake.wildcards.dataset}")
    counts = images.pack(
        listing,
        snakemake.output.images,
        resize,
        crop,
        workers=snakemake.threads,
        on_bad_image=dataset["on_bad_image"],
        bad_table=snakemake.output.bad,
        config={"dataset": snakemake.params.dataset, "resize": resize, "crop": crop},
    )
    log.info("%d images packed, %d skipped", counts["packed"], counts["skipped"])
