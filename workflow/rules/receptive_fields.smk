# Stage receptive_fields: what the units that every channel likes best look at.
# Reads: results/<run>/activations.h5, results/images/<dataset>_<resize>_<crop>.h5,
# results/<run>/model.safetensors.
# Writes: results/<run>/receptive_fields/<layer>.h5 and .csv.

RECEPTIVE_FIELDS_SETTINGS = {
    key: settings["receptive_fields"][key] for key in ("channels", "keep", "source", "top_k")
}

for run in run_names():
    for number, layers in enumerate(layer_groups(run, "receptive_fields")):

        rule:
            name:
                f"receptive_fields_{run}_{number}"
            input:
                images=run_images(run),
                weights=f"results/{run}/model.safetensors",
                activations=f"results/{run}/activations.h5",
            output:
                fields=[f"results/{run}/receptive_fields/{layer}.h5" for layer in layers],
                tables=[f"results/{run}/receptive_fields/{layer}.csv" for layer in layers],
            log:
                f"logs/receptive_fields/{run}/{number}.log",
            benchmark:
                f"benchmarks/receptive_fields/{run}/{number}.tsv"
            conda:
                "../../environment.yaml"
            threads: 4
            resources:
                mem_mb=grown(budget.mem_mb("receptive_fields")),
                runtime=grown(budget.minutes("receptive_fields", run)),
                gpu=gpus(),
                attempt=attempts,
            params:
                layers=layers,
                settings=RECEPTIVE_FIELDS_SETTINGS,
                device=settings["device"],
                tf32=settings["tf32"],
                version=versions.stage("receptive_fields"),
            script:
                "../../scripts/receptive_fields.py"
