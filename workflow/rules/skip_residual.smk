# Stage skip_residual: mean gradients in two parts, through the skip connection and through the
# residual branch of the block that ends at the layer; the units are those of receptive_fields.
# In:  results/<run>/activations.h5, results/images/<dataset>_<resize>_<crop>.h5,
#      results/<run>/model.safetensors
# Out: results/<run>/skip_residual/<layer>.h5 and .csv


rule skip_residual:
    input:
        images=lambda wildcards: run_images(wildcards.run),
        weights="results/{run}/model.safetensors",
        activations="results/{run}/activations.h5",
    output:
        fields="results/{run}/skip_residual/{layer}.h5",
        table="results/{run}/skip_residual/{layer}.csv",
    log:
        "logs/skip_residual/{run}/{layer}.log",
    benchmark:
        "benchmarks/skip_residual/{run}/{layer}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        mem_mb=grown(stages.BY_NAME["skip_residual"].mem_mb),
        runtime=grown(minutes("skip_residual")),
        gpu=gpus(),
        attempt=attempts,
    params:
        settings={
            "channels": settings["receptive_fields"]["channels"],
            "source": settings["receptive_fields"]["source"],
            "top_k": settings["skip_residual"]["top_k"] or settings["receptive_fields"]["top_k"],
        },
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("skip_residual"),
    script:
        "../../scripts/skip_residual.py"
