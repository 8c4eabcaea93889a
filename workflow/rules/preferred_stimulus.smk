# Stage preferred_stimulus: the inputs that drive the centre unit of every channel most and least.
# Reads: results/<run>/activations.h5, results/images/<dataset>_<resize>_<crop>.h5,
# results/<run>/model.safetensors and, with the stage receptive_fields,
# results/<run>/receptive_fields/<layer>.h5.
# Writes: results/<run>/preferred_stimulus/<layer>.h5 and .csv.

PREFERRED_STIMULUS_SETTINGS = {
    key: settings["preferred_stimulus"][key]
    for key in (
        "gradient_start",
        "jitter",
        "l2",
        "learning_rate",
        "noise_starts",
        "optimizer",
        "parametrisation",
        "patch_start",
        "seed",
        "steps",
        "tv",
    )
}

for run in run_names():
    for number, layers in enumerate(layer_groups(run, "preferred_stimulus")):

        rule:
            name:
                f"preferred_stimulus_{run}_{number}"
            input:
                images=run_images(run),
                weights=f"results/{run}/model.safetensors",
                activations=f"results/{run}/activations.h5",
                fields=[
                    f"results/{run}/receptive_fields/{layer}.h5"
                    for layer in layers
                    if stage_on("receptive_fields", run)
                ],
            output:
                stimuli=[f"results/{run}/preferred_stimulus/{layer}.h5" for layer in layers],
                tables=[f"results/{run}/preferred_stimulus/{layer}.csv" for layer in layers],
            log:
                f"logs/preferred_stimulus/{run}/{number}.log",
            benchmark:
                f"benchmarks/preferred_stimulus/{run}/{number}.tsv"
            conda:
                "../../environment.yaml"
            threads: 4
            resources:
                mem_mb=grown(budget.mem_mb("preferred_stimulus")),
                runtime=grown(budget.minutes("preferred_stimulus", run)),
                gpu=gpus(),
                attempt=attempts,
            params:
                layers=layers,
                samples=stimulus_samples(run, layers),
                settings=PREFERRED_STIMULUS_SETTINGS,
                device=settings["device"],
                tf32=settings["tf32"],
                version=versions.stage("preferred_stimulus"),
            script:
                "../../scripts/preferred_stimulus.py"
