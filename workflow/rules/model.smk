# Stage model: the network of a run, built, filled with its weights, checked and described.
# Reads: the weights and factory files that the config names; for a random network also
# results/images/<dataset>_<resize>_<crop>.h5, to re-estimate its batch-norm statistics.
# Writes: results/<run>/model.safetensors, results/<run>/model.json.


def is_random(run):
    return model_config(run)["weights"].startswith("random:")


def model_files(wildcards):
    """The files of the user that a run's network is made from."""
    entry = model_config(wildcards.run)
    files = [entry["factory"].rpartition(":")[0], entry["weights"]]
    return [file for file in files if file and os.path.isfile(file)]


rule model_weights:
    input:
        files=model_files,
        images=lambda wildcards: run_images(wildcards.run) if is_random(wildcards.run) else [],
    output:
        weights="results/{run}/model.safetensors",
        description="results/{run}/model.json",
    log:
        "logs/model_weights/{run}.log",
    benchmark:
        "benchmarks/model_weights/{run}.tsv"
    conda:
        "../../environment.yaml"
    threads: 4
    resources:
        mem_mb=3000,
        runtime=60,
        gpu=gpus(),
    params:
        model=lambda wildcards: model_config(wildcards.run),
        batch_norm_images=1024,
        device=settings["device"],
        version=versions.stage("model"),
    script:
        "../../scripts/model.py"
