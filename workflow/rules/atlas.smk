# Stage atlas: a static site to look at the channels of a run, which opens from disk with no network,
# and a page that leads to the sites of all runs.
# In:  results/<run>/channels.csv, model.json, activations.h5, the run's packed images (names of
#      files and classes), the HDF5 files of the stages that bring columns, findings.json, the
#      report card of the stage v1 and the matched channels of the stage compare, as far as they are on, docs/columns.md (what the
#      columns mean)
# Out: results/<run>/atlas/index.html and what it loads; results/index.html
# The sites are a group of their own: they look at other runs, and Snakemake follows all that a group
# depends on once for each of its jobs.


rule atlas_site:
    input:
        unpack(lambda wildcards: column_files(wildcards.run, "h5")),
        channels="results/{run}/channels.csv",
        description="results/{run}/model.json",
        activations="results/{run}/activations.h5",
        images=lambda wildcards: run_images(wildcards.run),
        findings=where_on("findings", "results/{run}/findings.json"),
        card=lambda wildcards: sum(
            (finding_tables(wildcards.run, "v1", name) for name in ["properties", "scores"]), []
        ),
        matched=lambda wildcards: expand(
            "results/compare/{group}/matched.csv", group=atlas_groups(wildcards.run)
        ),
        columns=in_place(ROOT / "docs" / "columns.md"),
    output:
        directory("results/{run}/atlas"),
    log:
        "logs/atlas/{run}.log",
    benchmark:
        "benchmarks/atlas/{run}.tsv"
    group:
        group_in_place("sites")
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("atlas"),
    params:
        code=versions.digest("atlas"),
        run="{run}",
        network=lambda wildcards: network_name(wildcards.run),
        stages=lambda wildcards: atlas_stages(wildcards.run),
        references=lambda wildcards: [
            compare_groups()[group][0] for group in atlas_groups(wildcards.run)
        ],
        runs=lambda wildcards: [run for run in runs_with("atlas") if run != wildcards.run],
        source=settings["receptive_fields"]["source"],
    script:
        "../../scripts/atlas.py"


rule atlas_start:
    input:
        activations=expand("results/{run}/activations.h5", run=run_names()),
        findings=[
            f"results/{run}/findings.json" for run in run_names() if stage_on("findings", run)
        ],
    output:
        "results/index.html",
    log:
        "logs/atlas_start.log",
    benchmark:
        "benchmarks/atlas_start.tsv"
    group:
        group_in_place("pages")
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("atlas_start", runtime=10),
    params:
        code=versions.digest("atlas"),
        runs=[
            {
                "name": run,
                "network": network_name(run),
                "weights": model_config(run)["weights"].rsplit("/", 1)[-1],
                "dataset": run_dataset(run),
                "layers": len(run_layers(run)),
                "channels": sum(layer["channels"] for layer in budget.layers[run].values()),
                "atlas": stage_on("atlas", run),
                "findings": stage_on("findings", run),
                # Shown where the figures are, which it does not wait for.
                "picture": f"figures/overview/00_{run_layers(run)[0]}.png",
            }
            for run in run_names()
        ],
        groups=compare_groups(),
    script:
        "../../scripts/atlas_start.py"
