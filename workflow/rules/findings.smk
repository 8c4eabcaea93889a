# Stage findings: the paper's three claims and how much a run is like V1, answered from its tables.
# In:  results/<run>/model.json and, as far as their stages are on, results/<run>/orientation/
#      selective.csv, results/<run>/opponency/{counts,confusion}.csv,
#      results/<run>/inactive_first_layer.csv, results/<run>/v1/scores.csv
# Out: results/<run>/findings.json, results/<run>/findings.html


rule findings_page:
    input:
        description="results/{run}/model.json",
        selective=lambda wildcards: finding_tables(wildcards.run, "orientation", "selective"),
        counts=lambda wildcards: finding_tables(wildcards.run, "opponency", "counts"),
        confusion=lambda wildcards: finding_tables(wildcards.run, "opponency", "confusion"),
        inactive=lambda wildcards: finding_tables(
            wildcards.run, "ablation_groups", "inactive_first_layer"
        ),
        scores=lambda wildcards: finding_tables(wildcards.run, "v1", "scores"),
        template=in_place(ROOT / "workflow" / "findings" / "findings.html"),
    output:
        json="results/{run}/findings.json",
        page=report(
            "results/{run}/findings.html",
            caption="../report/findings.rst",
            category="Findings",
            labels={"run": "{run}", "shows": "the claims, and V1"},
        ),
    log:
        "logs/findings/{run}.log",
    benchmark:
        "benchmarks/findings/{run}.tsv"
    group:
        group_in_place("pages")
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("findings", runtime=10),
    params:
        code=versions.digest("findings"),
        model=lambda wildcards: model_config(wildcards.run)["factory"],
        dataset=lambda wildcards: run_dataset(wildcards.run),
        warnings=lambda wildcards: preflight.warnings(plan, wildcards.run),
    script:
        "../../scripts/findings.py"
