# Stage orientation: what the estimates of orientation say of whole layers, compared with the random
# twin.
# In:  results/<run>/channels.csv, that of the run's twin
# Out: results/<run>/orientation/{agreement,selective}.csv

orientation_table = tables_in_report("Orientation and frequency")


rule orientation_tables:
    input:
        channels="results/{run}/channels.csv",
        twin=twin_table(),
    output:
        agreement=orientation_table("results/{run}/orientation/agreement.csv", "agreement"),
        selective=orientation_table("results/{run}/orientation/selective.csv", "selective channels"),
    log:
        "logs/orientation/{run}.log",
    benchmark:
        "benchmarks/orientation/{run}.tsv"
    group:
        "tables"
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("orientation", runtime=10),
    params:
        code=versions.digest("orientation"),
        thresholds=settings["orientation"]["thresholds"],
        orientation_osi=settings["channels"]["orientation_osi"],
        twin=lambda wildcards: twin(wildcards.run) or "",
    script:
        "../../scripts/orientation.py"
