# Stage model: the network of a run, built, filled with its weights, checked and described.
# Reads: the weights and factory files that the config names; for a random network also
# results/images/<dataset>_<resize>_<crop>.h5, to re-estimate its batch-norm statistics.
# Writes: results/<run>/model.safetensors, results/<run>/model.json.


rule model_weights:
    input:
        files=lambda wildcards: model_files(wildcards.run),
        images=lambda wildcards: batch_norm_images(wildcards.run),
    output:
        weights="results/{run}/model.safetensors",
        description="results/{run}/model.json",
    log:
        "logs/model_weights/{run}.log",
    benchmark:
        "benchmarks/model_weights/{run}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        **asks("model", gpu=gpus()),
    params:
        # Which of its layers are analysed does not define a network.
        model=lambda wildcards: without(model_config(wildcards.run), "layers"),
        batch_norm_images=1024,
        device=settings["device"],
        version=versions.stage("model"),
    script:
        "../../scripts/model.py"
