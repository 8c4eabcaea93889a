# Stage channels: one table per run, one row per channel.
# In:  results/<run>/activations.h5, results/<run>/model.json, the run's packed images (class names),
#      and of each stage that brings columns results/<run>/<stage>/<layer>.csv or <stage>.csv
# Out: results/<run>/channels.csv; docs/columns.md explains its columns


rule channels_join:
    input:
        activations="results/{run}/activations.h5",
        description="results/{run}/model.json",
        images=lambda wildcards: run_images(wildcards.run),
        tables=lambda wildcards: sum(column_files(wildcards.run, "csv").values(), []),
    output:
        report(
            "results/{run}/channels.csv",
            caption="../report/channels.rst",
            category="Channels",
            labels={"run": "{run}", "shows": "channels (table)"},
        ),
    log:
        "logs/channels/{run}.log",
    benchmark:
        "benchmarks/channels/{run}.tsv"
    group:
        "tables"
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("channels", runtime=10),
    params:
        code=versions.digest("channels"),
        layers=lambda wildcards: run_layers(wildcards.run),
        inactive_norm=settings["channels"]["inactive_norm"],
        inactive_drive=settings["channels"]["inactive_drive"],
        orientation_osi=settings["channels"]["orientation_osi"],
        # A stage that looks at the first channels of a layer only has no rows for the others.
        first={
            stage: settings[stage]["channels"]
            for stage in stages.with_columns()
            if isinstance(settings.get(stage, {}).get("channels"), int)
        },
    script:
        "../../scripts/channels.py"
