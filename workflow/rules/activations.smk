# Stage activations: what every channel of every layer answers to every image.
# Reads: results/images/<dataset>_<resize>_<crop>.h5, results/<run>/model.safetensors.
# Writes: results/<run>/activations/<start>-<stop>.h5 per range of images (removed once merged),
# results/<run>/activations.h5.


rule activations_range:
    input:
        images=lambda wildcards: run_images(wildcards.run),
        weights="results/{run}/model.safetensors",
    output:
        temp("results/{run}/activations/{start}-{stop}.h5"),
    log:
        "logs/activations_range/{run}/{start}-{stop}.log",
    benchmark:
        "benchmarks/activations_range/{run}/{start}-{stop}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        **asks("activations", gpu=gpus()),
    params:
        layers=lambda wildcards: run_layers(wildcards.run),
        top_k=settings["activations"]["top_k"],
        batch_size=settings["activations"]["batch_size"],
        keep_maps=lambda wildcards: sorted(
            {*run_layers(wildcards.run)} & {*settings["activations"]["keep_maps"]}
        ),
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("activations"),
    script:
        "../../scripts/activations.py"


rule activations_merge:
    input:
        ranges=lambda wildcards: [
            f"results/{wildcards.run}/activations/{start}-{stop}.h5"
            for start, stop in image_ranges(wildcards.run, "activations")
        ],
    output:
        "results/{run}/activations.h5",
    log:
        "logs/activations_merge/{run}.log",
    benchmark:
        "benchmarks/activations_merge/{run}.tsv"
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("activations_merge"),
    params:
        version=versions.stage("activations"),
    script:
        "../../scripts/activations_merge.py"
