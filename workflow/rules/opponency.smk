# Stage opponency: what the rules of colour opponency say of whole layers, where they differ,
# compared with the random twin and with macaques.
# In:  results/<run>/channels.csv, that of the run's twin, resources/v1_color.csv
# Out: results/<run>/opponency/{confusion,stability,counts,macaque,orientation}.csv

opponency_table = tables_in_report("Colour")


rule opponency_tables:
    input:
        channels="results/{run}/channels.csv",
        twin=twin_table("color"),
        reference=in_place(ROOT / "resources" / "v1_color.csv"),
    output:
        confusion=opponency_table("results/{run}/opponency/confusion.csv", "agreement of the rules"),
        stability="results/{run}/opponency/stability.csv",
        counts=opponency_table("results/{run}/opponency/counts.csv", "opponent channels"),
        macaque=opponency_table(
            "results/{run}/opponency/macaque.csv", "shares compared with macaque V1"
        ),
        orientation=opponency_table(
            "results/{run}/opponency/orientation.csv", "orientation for colour"
        ),
    log:
        "logs/opponency/{run}.log",
    benchmark:
        "benchmarks/opponency/{run}.tsv"
    group:
        group_in_place("tables")
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("opponency", runtime=10),
    params:
        code=versions.digest("opponency"),
        thresholds=settings["opponency"],
        # The lines that the classes of the stage color go by.
        rules={name: settings["color"][name] for name in settings["opponency"]},
        orientation_osi=settings["channels"]["orientation_osi"],
        twin=lambda wildcards: twin(wildcards.run, ["color"]) or "",
    script:
        "../../scripts/opponency.py"
