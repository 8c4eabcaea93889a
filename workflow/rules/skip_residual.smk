# Stage skip_residual: gradients through the skip connection and through the residual branch.
# Reads: results/<run>/activations.h5, results/images/<dataset>_<resize>_<crop>.h5,
# results/<run>/model.safetensors.
# Writes: results/<run>/skip_residual/<layer>.h5 and .csv, the units and groups of layers of stage
# receptive_fields.

SKIP_RESIDUAL_SETTINGS = {
    "channels": settings["receptive_fields"]["channels"],
    "source": settings["receptive_fields"]["source"],
    "top_k": settings["skip_residual"]["top_k"] or settings["receptive_fields"]["top_k"],
}

for run in run_names():
    for number, layers in enumerate(layer_groups(run, "receptive_fields")):

        rule:
            name:
                f"skip_residual_{run}_{number}"
            input:
                images=run_images(run),
                weights=f"results/{run}/model.safetensors",
                activations=f"results/{run}/activations.h5",
            output:
                fields=[f"results/{run}/skip_residual/{layer}.h5" for layer in layers],
                tables=[f"results/{run}/skip_residual/{layer}.csv" for layer in layers],
            log:
                f"logs/skip_residual/{run}/{number}.log",
            benchmark:
                f"benchmarks/skip_residual/{run}/{number}.tsv"
            conda:
                "../../environment.yaml"
            threads: 4
            resources:
                mem_mb=grown(budget.mem_mb("skip_residual")),
                runtime=grown(budget.minutes("skip_residual", run)),
                gpu=gpus(),
                attempt=attempts,
            params:
                layers=layers,
                settings=SKIP_RESIDUAL_SETTINGS,
                device=settings["device"],
                tf32=settings["tf32"],
                version=versions.stage("skip_residual"),
            script:
                "../../scripts/skip_residual.py"
