"""Make the page that leads to the atlases of all runs."""

import json
from pathlib import Path

from rfatlas.atlas import atlas
from rfatlas.files import jobs
from rfatlas.tables import findings

with jobs.job(snakemake) as log:
    claims = {
        found["run"]: findings.answers(found)
        for found in (
            json.loads(Path(file).read_text("utf-8")) for file in snakemake.input.findings
        )
    }
    runs = [
        {**run, "activations": Path(file), "claims": claims.get(run["name"], [])}
        for run, file in zip(snakemake.params.runs, snakemake.input.activations, strict=True)
    ]
    page = atlas.start_page(runs, snakemake.params.groups)
    Path(snakemake.output[0]).write_text(page, encoding="utf-8")
    log.info("open %s in a browser", Path(snakemake.output[0]).resolve())
