# Stage preferred_stimulus: the inputs that drive the centre unit of every channel most and least.
# In:  results/<run>/activations.h5, results/images/<dataset>_<resize>_<crop>.h5,
#      results/<run>/model.safetensors and, with the stage receptive_fields,
#      results/<run>/receptive_fields/<layer>.h5
# Out: results/<run>/preferred_stimulus/<layer>.h5 and .csv


rule preferred_stimulus:
    input:
        images=lambda wildcards: run_images(wildcards.run),
        weights="results/{run}/model.safetensors",
        activations="results/{run}/activations.h5",
        fields=where_on("receptive_fields", "results/{run}/receptive_fields/{layer}.h5"),
    output:
        stimuli="results/{run}/preferred_stimulus/{layer}.h5",
        table="results/{run}/preferred_stimulus/{layer}.csv",
    log:
        "logs/preferred_stimulus/{run}/{layer}.log",
    benchmark:
        "benchmarks/preferred_stimulus/{run}/{layer}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        **asks("preferred_stimulus", gpu=gpus()),
    params:
        sample=lambda wildcards: entries.stimulus_sample(
            settings, description(wildcards.run), wildcards.layer
        ),
        settings=without(settings["preferred_stimulus"], "channels"),
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("preferred_stimulus"),
    script:
        "../../scripts/preferred_stimulus.py"
