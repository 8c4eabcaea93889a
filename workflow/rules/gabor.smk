# Stage gabor: Gabors fitted to mean gradients, first-layer kernels and virtual filters.
# In:  results/<run>/receptive_fields/<layer>.h5, results/<run>/model.safetensors and, with the
#      stage of that name, the virtual filters of the run
# Out: results/<run>/gabor/<layer>.h5 and .csv


rule gabor:
    input:
        fields="results/{run}/receptive_fields/{layer}.h5",
        weights="results/{run}/model.safetensors",
        virtual=where_on("virtual_filters", "results/{run}/virtual_filters.h5"),
    output:
        fits="results/{run}/gabor/{layer}.h5",
        table="results/{run}/gabor/{layer}.csv",
    log:
        "logs/gabor/{run}/{layer}.log",
    benchmark:
        "benchmarks/gabor/{run}/{layer}.tsv"
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("gabor"),
    params:
        channels=lambda wildcards: budget.layers[wildcards.run][wildcards.layer]["channels"],
        version=versions.stage("gabor"),
    script:
        "../../scripts/gabor.py"
