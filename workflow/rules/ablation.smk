# Stage ablation: what the network loses with one channel replaced, for every channel.
# Reads: results/images/<dataset>_<resize>_<crop>.h5, results/<run>/model.safetensors,
# results/<run>/activations.h5 (means of channels, logits, features).
# Writes: results/<run>/ablation/<group>/<start>-<stop>.h5 for each layer
# and range of images (removed once gathered), results/<run>/ablation/<layer>.h5 and .csv.

ABLATION_SETTINGS = {
    key: settings["ablation"][key]
    for key in ("all_modes_layers", "batch_size", "channels", "images", "modes", "precision")
    + ("seed", "site")
}


def ablation_ranges(run):
    """Ranges [(start, stop), ...] of places in the order of the images; one where channels may
    stop early, since that depends on all images before."""
    count = min(plan.images[run_dataset(run)].count, settings["ablation"]["images"] or 10**12)
    one = settings["ablation"]["precision"] is not None
    size = count if one else settings["ablation"]["range_size"]
    return [(start, min(start + size, count)) for start in range(0, count, size)]


for run in ablation_runs():
    swept, size = ablation_layers(run), 1
    for number, first in enumerate(range(0, len(swept), size)):
        layers = swept[first : first + size]

        rule:
            name:
                f"ablation_range_{run}_{number}"
            input:
                images=run_images(run),
                weights=f"results/{run}/model.safetensors",
                activations=f"results/{run}/activations.h5",
            output:
                temp(f"results/{run}/ablation/{number}/{{start}}-{{stop}}.h5"),
            log:
                f"logs/ablation/{run}/{number}_{{start}}-{{stop}}.log",
            benchmark:
                f"benchmarks/ablation/{run}/{number}_{{start}}-{{stop}}.tsv"
            conda:
                "../../environment.yaml"
            threads: 4
            resources:
                mem_mb=grown(budget.mem_mb("ablation")),
                runtime=grown(budget.minutes("ablation", run)),
                gpu=gpus(),
                attempt=attempts,
            params:
                layers=layers,
                settings=ABLATION_SETTINGS,
                device=settings["device"],
                tf32=settings["tf32"],
                version=versions.stage("ablation"),
            script:
                "../../scripts/ablation.py"

        rule:
            name:
                f"ablation_gather_{run}_{number}"
            input:
                ranges=[
                    f"results/{run}/ablation/{number}/{start}-{stop}.h5"
                    for start, stop in ablation_ranges(run)
                ],
            output:
                predictions=[f"results/{run}/ablation/{layer}.h5" for layer in layers],
                tables=[f"results/{run}/ablation/{layer}.csv" for layer in layers],
            log:
                f"logs/ablation_gather/{run}/{number}.log",
            benchmark:
                f"benchmarks/ablation_gather/{run}/{number}.tsv"
            group:
                "gathers"
            conda:
                "../../environment.yaml"
            threads: 1
            resources:
                mem_mb=grown(budget.mem_mb("ablation")),
                runtime=grown(60),
                gpu=0,
            params:
                layers=layers,
                modes=ablation_modes(run),
                classes=description(run)["n_classes"],
                seed=settings["ablation"]["seed"],
                version=versions.stage("ablation"),
            script:
                "../../scripts/ablation_gather.py"
