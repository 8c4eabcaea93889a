# Stage color: the tuning of every channel to colour, and whether it is colour-opponent.
# Reads: results/images/<dataset>_<resize>_<crop>.h5, results/<run>/activations.h5 (the top units),
# results/<run>/model.safetensors and, as far as these stages are on,
# results/<run>/receptive_fields/<layer>.h5 and results/<run>/virtual_filters.h5.
# Writes: results/<run>/color/<layer>.h5 and .csv.

COLOR_SETTINGS = {key: value for key, value in settings["color"].items() if key != "top_k"} | {
    "source": settings["receptive_fields"]["source"],
    "top_k": settings["color"]["top_k"] or settings["receptive_fields"]["top_k"],
}

for run in run_names():
    for number, layers in enumerate(layer_groups(run, "color")):

        rule:
            name:
                f"color_{run}_{number}"
            input:
                images=run_images(run),
                weights=f"results/{run}/model.safetensors",
                activations=f"results/{run}/activations.h5",
                fields=[
                    f"results/{run}/receptive_fields/{layer}.h5"
                    for layer in layers
                    if stage_on("receptive_fields", run)
                ],
                virtual=[
                    f"results/{run}/virtual_filters.h5"
                    for on in [stage_on("virtual_filters", run)]
                    if on
                ],
            output:
                responses=[f"results/{run}/color/{layer}.h5" for layer in layers],
                tables=[f"results/{run}/color/{layer}.csv" for layer in layers],
            log:
                f"logs/color/{run}/{number}.log",
            benchmark:
                f"benchmarks/color/{run}/{number}.tsv"
            conda:
                "../../environment.yaml"
            threads: 4
            resources:
                mem_mb=grown(budget.mem_mb("color")),
                runtime=grown(budget.minutes("color", run)),
                gpu=gpus(),
                attempt=attempts,
            params:
                layers=layers,
                settings=COLOR_SETTINGS,
                device=settings["device"],
                tf32=settings["tf32"],
                version=versions.stage("color"),
            script:
                "../../scripts/color.py"
