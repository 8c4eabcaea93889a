# Stage orientation: what the estimates of orientation and frequency say of whole layers, compared
# with the random twin and with macaques.
# In:  results/<run>/channels.csv, that of the run's twin, resources/v1_reference.csv
# Out: results/<run>/orientation/{agreement,selective,v1,v1_medians,frequency}.csv

orientation_table = tables_in_report("Orientation and frequency")


rule orientation_tables:
    input:
        channels="results/{run}/channels.csv",
        twin=twin_table(),
        reference=in_place(ROOT / "resources" / "v1_reference.csv"),
    output:
        agreement=orientation_table("results/{run}/orientation/agreement.csv", "agreement"),
        selective=orientation_table("results/{run}/orientation/selective.csv", "selective channels"),
        v1="results/{run}/orientation/v1.csv",
        v1_medians=orientation_table(
            "results/{run}/orientation/v1_medians.csv", "medians compared with macaque V1"
        ),
        frequency=orientation_table(
            "results/{run}/orientation/frequency.csv", "frequencies in cycles per degree"
        ),
    log:
        "logs/orientation/{run}.log",
    benchmark:
        "benchmarks/orientation/{run}.tsv"
    group:
        group_in_place("tables")
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("orientation", runtime=10),
    params:
        code=versions.digest("orientation"),
        settings=settings["orientation"],
        orientation_osi=settings["channels"]["orientation_osi"],
        twin=lambda wildcards: twin(wildcards.run) or "",
    script:
        "../../scripts/orientation.py"
