"""Make the site that shows the channels of a run."""

from pathlib import Path

from rfatlas.atlas import atlas
from rfatlas.files import jobs

with jobs.job(snakemake) as log:
    files, params = snakemake.input, snakemake.params
    fields = iter(map(Path, files.fields))
    virtual = [Path(path) for path in files.virtual_filters]
    atlas.build(
        atlas.Sources(
            run=params.run,
            description=Path(files.description),
            activations=Path(files.activations),
            images=Path(files.images),
            channels=Path(files.channels),
            stages={
                stage: {layer: next(fields) for layer in layers}
                for stage, layers in params.stages.items()
            },
            virtual_filters=virtual[0] if virtual else None,
            columns=Path(files.columns),
            assets=Path(files.template).parent,
            absent=params.absent,
            findings=Path(files.findings[0]) if files.findings else None,
            matched=list(zip(params.references, map(Path, files.matched), strict=True)),
            runs=params.runs,
        ),
        params.source,
        Path(snakemake.output[0]),
        log.info,
    )
    log.info("open %s in a browser", Path(snakemake.output[0]).resolve() / "index.html")
