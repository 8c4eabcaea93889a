"""Answer the paper's three claims, and how much it is like V1, for one run: findings.json and a
page."""

import json
from pathlib import Path

from rfatlas.files import jobs, store
from rfatlas.tables import findings

with jobs.job(snakemake) as log:
    description = json.loads(Path(snakemake.input.description).read_text(encoding="utf-8"))
    of = {
        "network": snakemake.params.model,
        "data set": snakemake.params.dataset,
        "weights": description["weights_sha256"],
    }
    tables = {
        name: store.read_table(paths[0]) if (paths := snakemake.input.get(name, [])) else None
        for name in findings.TABLES
    }
    found = findings.collect(snakemake.wildcards.run, of, tables, snakemake.params.warnings)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    Path(snakemake.output.json).write_text(text + "\n", encoding="utf-8")
    page = findings.page(found, Path(snakemake.input.template))
    Path(snakemake.output.page).write_text(page, encoding="utf-8")
    for claim in found["claims"]:
        log.info("%s: %s", claim["claim"], claim["sentence"] or claim["missing"])
