# Stage gratings: the tuning of every channel to orientation, spatial frequency and phase, and with
# its parts size and contrast to the size and the contrast of its own grating.
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
        # Of their own switches alone: another stage may ask for the tuning where this one is off.
        parts=lambda wildcards: [
            part
            for part in ("size", "contrast")
            if entries.switched_on(settings, part, wildcards.run)
        ],
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("gratings"),
    script:
        "../../scripts/gratings.py"
