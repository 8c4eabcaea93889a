# Stage train_demo: the demo's networks trained from nothing, on scenes of their own.
# Reads: nothing; the settings are in scripts/rfatlas/network/train_demo.py.
# Writes: results/train_demo/<network>.safetensors, results/train_demo/<network>.json (provenance).
# Runs only when asked for (`snakemake train_demo`): the copies in resources/demo are what runs use.


rule train_demo_network:
    output:
        weights="results/train_demo/{network}.safetensors",
        provenance="results/train_demo/{network}.json",
    log:
        "logs/train_demo/{network}.log",
    benchmark:
        "benchmarks/train_demo/{network}.tsv"
    wildcard_constraints:
        network="resnet_demo|plainnet_demo",
    conda:
        "../../environment.yaml"
    threads: 2
    resources:
        **asks("train_demo", runtime=240),
    params:
        version=versions.stage("train_demo"),
        scenes=versions.stage("scenes"),
    script:
        "../../scripts/train_demo.py"
