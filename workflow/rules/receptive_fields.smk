# Stage receptive_fields: what the units that every channel likes best look at, and with its part
# skip_residual how much of that comes through the skip connection.
# In:  results/<run>/activations.h5, results/images/<dataset>_<resize>_<crop>.h5,
#      results/<run>/model.safetensors
# Out: results/<run>/receptive_fields/<layer>.h5 and .csv


rule receptive_fields:
    input:
        images=lambda wildcards: run_images(wildcards.run),
        weights="results/{run}/model.safetensors",
        activations="results/{run}/activations.h5",
    output:
        fields="results/{run}/receptive_fields/{layer}.h5",
        table="results/{run}/receptive_fields/{layer}.csv",
    log:
        "logs/receptive_fields/{run}/{layer}.log",
    benchmark:
        "benchmarks/receptive_fields/{run}/{layer}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        **asks("receptive_fields", gpu=gpus()),
    params:
        settings=settings["receptive_fields"],
        # Of its own switch alone: another stage may ask for the fields where this one is off.
        split=lambda wildcards: when(
            entries.switched_on(settings, "skip_residual", wildcards.run),
            settings["skip_residual"],
        ),
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("receptive_fields"),
    script:
        "../../scripts/receptive_fields.py"
