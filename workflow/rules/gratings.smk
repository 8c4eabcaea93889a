# Stage gratings: the tuning of every channel to orientation, spatial frequency and phase.
# Reads: results/images/<dataset>_<resize>_<crop>.h5 (their mean), results/<run>/model.safetensors.
# Writes: results/<run>/gratings/<layer>.h5 and .csv, `layers_per_job` layers in one job.

GRATINGS_SETTINGS = {
    key: settings["gratings"][key] for key in ("f1_phases", "frequencies", "orientations", "phases")
}

for run in run_names():
    for number, layers in enumerate(layer_groups(run, "gratings")):

        rule:
            name:
                f"gratings_{run}_{number}"
            input:
                images=run_images(run),
                weights=f"results/{run}/model.safetensors",
            output:
                responses=[f"results/{run}/gratings/{layer}.h5" for layer in layers],
                tables=[f"results/{run}/gratings/{layer}.csv" for layer in layers],
            log:
                f"logs/gratings/{run}/{number}.log",
            benchmark:
                f"benchmarks/gratings/{run}/{number}.tsv"
            conda:
                "../../environment.yaml"
            threads: 4
            resources:
                mem_mb=grown(budget.mem_mb("gratings")),
                runtime=grown(budget.minutes("gratings", run)),
                gpu=gpus(),
                attempt=attempts,
            params:
                layers=layers,
                settings=GRATINGS_SETTINGS,
                device=settings["device"],
                tf32=settings["tf32"],
                version=versions.stage("gratings"),
            script:
                "../../scripts/gratings.py"
