# Stage v1: the report card, how much the layers are like macaque V1, and the random twin.
# In:  results/<run>/channels.csv, that of the run's twin, resources/v1_reference.csv
# Out: results/<run>/v1/{histograms,properties,scores,scales}.csv

v1_table = tables_in_report("Compared with macaque V1")


rule v1_tables:
    input:
        channels="results/{run}/channels.csv",
        twin=twin_table(),
        reference=in_place(ROOT / "resources" / "v1_reference.csv"),
    output:
        histograms="results/{run}/v1/histograms.csv",
        properties=v1_table("results/{run}/v1/properties.csv", "properties"),
        scores=v1_table("results/{run}/v1/scores.csv", "scores"),
        scales=v1_table("results/{run}/v1/scales.csv", "frequencies and sizes in degrees"),
    log:
        "logs/v1/{run}.log",
    benchmark:
        "benchmarks/v1/{run}.tsv"
    group:
        group_in_place("tables")
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("v1", runtime=10),
    params:
        code=versions.digest("v1"),
        settings=without(settings["orientation"], "thresholds"),
        twin=lambda wildcards: twin(wildcards.run) or "",
    script:
        "../../scripts/v1.py"
