# Stage atlas: a static site to look at the channels of a run; it opens from disk with no network.
# In:  results/<run>/channels.csv, model.json, activations.h5, the run's packed images (names of
#      files and classes), the HDF5 files of the stages in ATLAS_STAGES and virtual_filters.h5, as
#      far as they are on, docs/columns.md (what the columns mean), workflow/atlas/ (the pages)
# Out: results/<run>/atlas/index.html and what it loads

# The stages whose fields and curves are shown; of the others their columns are.
ATLAS_STAGES = [
    stage
    for stage in [
        "receptive_fields",
        "skip_residual",
        "gratings",
        "color",
        "preferred_stimulus",
    ]
    if stage in CHANNEL_STAGES
]


rule atlas_site:
    input:
        channels="results/{run}/channels.csv",
        description="results/{run}/model.json",
        activations="results/{run}/activations.h5",
        images=lambda wildcards: run_images(wildcards.run),
        fields=lambda wildcards: expand(
            "results/{run}/{stage}/{layer}.h5",
            run=wildcards.run,
            stage=[stage for stage in ATLAS_STAGES if stage_on(stage, wildcards.run)],
            layer=run_layers(wildcards.run),
        ),
        virtual_filters=lambda wildcards: [
            f"results/{wildcards.run}/virtual_filters.h5"
            for stage in CHANNEL_STAGES
            if stage == "virtual_filters" and stage_on(stage, wildcards.run)
        ],
        columns=Path(workflow.basedir) / "docs" / "columns.md",
        assets=sorted((Path(workflow.basedir) / "workflow" / "atlas").iterdir()),
    output:
        directory("results/{run}/atlas"),
    log:
        "logs/atlas/{run}.log",
    benchmark:
        "benchmarks/atlas/{run}.tsv"
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        mem_mb=budget.mem_mb("atlas"),
        runtime=lambda wildcards: budget.minutes("atlas", wildcards.run),
        gpu=0,
    params:
        code=versions.digest("atlas"),
        run="{run}",
        layers=lambda wildcards: run_layers(wildcards.run),
        stages=lambda wildcards: [stage for stage in ATLAS_STAGES if stage_on(stage, wildcards.run)],
        source=settings["receptive_fields"]["source"],
    script:
        "../../scripts/atlas.py"
