# Stage ablation: what the network loses with one channel replaced, for every channel.
# In:  results/images/<dataset>_<resize>_<crop>.h5, results/<run>/model.safetensors,
#      results/<run>/activations.h5 (means of channels, logits, features)
# Out: results/<run>/ablation_estimates/<start>-<stop>.h5, first-order estimates of all channels for
#      each range of images; results/<run>/ablation/<layer>/<start>-<stop>.h5, exact for each range of
#      the first images (removed once gathered); results/<run>/ablation/<layer>.h5 and .csv


rule ablation_estimates:
    input:
        images=lambda wildcards: run_images(wildcards.run),
        weights="results/{run}/model.safetensors",
        activations="results/{run}/activations.h5",
    output:
        "results/{run}/ablation_estimates/{start}-{stop}.h5",
    log:
        "logs/ablation_estimates/{run}/{start}-{stop}.log",
    benchmark:
        "benchmarks/ablation_estimates/{run}/{start}-{stop}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        **asks("ablation_estimates", gpu=gpus()),
    params:
        settings=lambda wildcards: {
            "layers": stage_layers(wildcards.run, "ablation"),
            **without(settings["ablation"], "layers", "range_size", "estimate", "precision"),
        },
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("ablation"),
    script:
        "../../scripts/ablation_estimates.py"


rule ablation:
    input:
        images=lambda wildcards: run_images(wildcards.run),
        weights="results/{run}/model.safetensors",
        activations="results/{run}/activations.h5",
        estimates=lambda wildcards: when(
            settings["ablation"]["precision"], estimate_files(wildcards.run)
        ),
    output:
        temp("results/{run}/ablation/{layer}/{start}-{stop}.h5"),
    log:
        "logs/ablation/{run}/{layer}_{start}-{stop}.log",
    benchmark:
        "benchmarks/ablation/{run}/{layer}_{start}-{stop}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        **asks("ablation", gpu=gpus()),
    params:
        settings=lambda wildcards: {
            **without(settings["ablation"], "layers", "range_size"),
            "estimate": estimated(wildcards.run),
        },
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("ablation"),
    script:
        "../../scripts/ablation.py"


rule ablation_gather:
    input:
        ranges=lambda wildcards: [
            f"results/{{run}}/ablation/{{layer}}/{start}-{stop}.h5"
            for start, stop in image_ranges(wildcards.run, "ablation")
        ],
        estimates=lambda wildcards: estimate_files(wildcards.run),
    output:
        predictions="results/{run}/ablation/{layer}.h5",
        table="results/{run}/ablation/{layer}.csv",
    log:
        "logs/ablation_gather/{run}/{layer}.log",
    benchmark:
        "benchmarks/ablation_gather/{run}/{layer}.tsv"
    group:
        "gathers"
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("ablation_gather", runtime=60),
    params:
        settings=lambda wildcards: {
            "modes": ablation_modes(wildcards.run),
            "classes": description(wildcards.run)["n_classes"],
            "seed": settings["ablation"]["seed"],
        },
        version=versions.stage("ablation"),
    script:
        "../../scripts/ablation_gather.py"
