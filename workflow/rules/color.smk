# Stage color: the tuning of every channel to colour, and whether it is colour-opponent.
# In:  results/images/<dataset>_<resize>_<crop>.h5, results/<run>/activations.h5 (the top units),
#      results/<run>/model.safetensors and, as far as these stages are on,
#      results/<run>/receptive_fields/<layer>.h5 and the virtual filters of the run
# Out: results/<run>/color/<layer>.h5 and .csv


rule color:
    input:
        images=lambda wildcards: run_images(wildcards.run),
        weights="results/{run}/model.safetensors",
        activations="results/{run}/activations.h5",
        fields=where_on("receptive_fields", "results/{run}/receptive_fields/{layer}.h5"),
        virtual=where_on("virtual_filters", "results/{run}/virtual_filters.h5"),
    output:
        responses="results/{run}/color/{layer}.h5",
        table="results/{run}/color/{layer}.csv",
    log:
        "logs/color/{run}/{layer}.log",
    benchmark:
        "benchmarks/color/{run}/{layer}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        **asks("color", gpu=gpus()),
    params:
        settings=settings["color"]
        | {
            "source": settings["receptive_fields"]["source"],
            "top_k": settings["color"]["top_k"] or settings["receptive_fields"]["top_k"],
        },
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("color"),
    script:
        "../../scripts/color.py"
