"""Make the site that shows the channels of a run."""

from pathlib import Path

from rfatlas.atlas import atlas
from rfatlas.files import jobs

with jobs.job(snakemake) as log:
    files, params = snakemake.input, snakemake.params
    single = ("description", "activations", "images", "channels", "columns")
    atlas.build(
        atlas.Sources(
            run=params.run,
            network=params.network,
            **{name: Path(files[name]) for name in single},
            source=params.source,
            stages=params.stages,
            files={
                stage["name"]: [Path(file) for file in files.get(stage["name"], [])]
                for stage in params.stages
            },
            findings=Path(files.findings) if files.findings else None,
            card=[Path(file) for file in files.card],
            matched=list(zip(params.references, map(Path, files.matched), strict=True)),
            runs=params.runs,
        ),
        Path(snakemake.output[0]),
        log.info,
    )
    log.info("open %s in a browser", Path(snakemake.output[0]).resolve() / "index.html")
