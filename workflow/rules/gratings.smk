# Stage gratings: the tuning of every channel to orientation, spatial frequency and phase.
# In:  results/images/<dataset>_<resize>_<crop>.h5 (their mean), results/<run>/model.safetensors
# Out: results/<run>/gratings/<layer>.h5 and .csv


rule gratings:
    input:
        images=lambda wildcards: run_images(wildcards.run),
        weights="results/{run}/model.safetensors",
    output:
        responses="results/{run}/gratings/{layer}.h5",
        table="results/{run}/gratings/{layer}.csv",
    log:
        "logs/gratings/{run}/{layer}.log",
    benchmark:
        "benchmarks/gratings/{run}/{layer}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        **asks("gratings", gpu=gpus()),
    params:
        settings=settings["gratings"],
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("gratings"),
    script:
        "../../scripts/gratings.py"
