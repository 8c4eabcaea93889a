# Stage ablation_groups: what the network loses without groups of channels, and without more and
# more of them.
# In:  results/<run>/channels.csv, results/images/<dataset>_<resize>_<crop>.h5,
#      results/<run>/{model.safetensors,activations.h5} (means of the channels)
# Out: results/<run>/ablation_groups/<layer>.h5 and .csv; of these
#      results/<run>/{ablation_groups,ablation_cumulative,inactive_first_layer}.csv


rule ablation_groups:
    input:
        channels="results/{run}/channels.csv",
        images=lambda wildcards: run_images(wildcards.run),
        weights="results/{run}/model.safetensors",
        activations="results/{run}/activations.h5",
    output:
        predictions="results/{run}/ablation_groups/{layer}.h5",
        table="results/{run}/ablation_groups/{layer}.csv",
    log:
        "logs/ablation_groups/{run}/{layer}.log",
    benchmark:
        "benchmarks/ablation_groups/{run}/{layer}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        **asks("ablation_groups", gpu=gpus()),
    params:
        settings=without(settings["ablation_groups"], "layers"),
        images=settings["ablation"]["images"],
        seed=settings["ablation"]["seed"],
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("ablation_groups"),
    script:
        "../../scripts/ablation_groups.py"


ablation_table = tables_in_report("Ablation")


rule ablation_groups_tables:
    input:
        predictions=layer_files("ablation_groups"),
        tables=layer_files("ablation_groups", suffix="csv"),
        channels="results/{run}/channels.csv",
    output:
        groups=ablation_table("results/{run}/ablation_groups.csv", "groups of channels"),
        cumulative=ablation_table("results/{run}/ablation_cumulative.csv", "more and more channels"),
        inactive=ablation_table(
            "results/{run}/inactive_first_layer.csv", "inactive channels of the first layer"
        ),
    log:
        "logs/ablation_groups_tables/{run}.log",
    benchmark:
        "benchmarks/ablation_groups_tables/{run}.tsv"
    group:
        "pages"
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("ablation_groups_tables", runtime=30),
    params:
        code=versions.digest("ablation_groups_tables"),
        seed=settings["ablation"]["seed"],
    script:
        "../../scripts/ablation_groups_tables.py"
