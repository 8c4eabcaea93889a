# Stage train_demo: the demo's network trained from nothing, on scenes of its own.
# Reads: nothing; the settings stand in scripts/rfatlas/train_demo.py.
# Writes: results/train_demo/resnet_demo.safetensors, results/train_demo/provenance.json.
# Runs only when asked for (`snakemake train_demo`): the copy in resources/demo is what runs use.


rule train_demo_network:
    output:
        weights="results/train_demo/resnet_demo.safetensors",
        provenance="results/train_demo/provenance.json",
    log:
        "logs/train_demo/train_demo.log",
    benchmark:
        "benchmarks/train_demo/train_demo.tsv"
    conda:
        "../../environment.yaml"
    threads: 2
    resources:
        mem_mb=3000,
        runtime=240,
        gpu=0,
    params:
        version=versions.stage("train_demo"),
        scenes=versions.stage("scenes"),
    script:
        "../../scripts/train_demo.py"
