# Stage virtual_filters: what each layer would see if its blocks did nothing, one job per run.
# In:  results/<run>/model.safetensors and, with the stage receptive_fields,
#      results/<run>/receptive_fields/<layer>.h5
# Out: results/<run>/virtual_filters.h5 and .csv


rule virtual_filters_compose:
    input:
        weights="results/{run}/model.safetensors",
        fields=layer_files("receptive_fields", optional=True),
    output:
        filters="results/{run}/virtual_filters.h5",
        table="results/{run}/virtual_filters.csv",
    log:
        "logs/virtual_filters/{run}.log",
    benchmark:
        "benchmarks/virtual_filters/{run}.tsv"
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("virtual_filters"),
    params:
        layers=lambda wildcards: run_layers(wildcards.run),
        version=versions.stage("virtual_filters"),
    script:
        "../../scripts/virtual_filters.py"
