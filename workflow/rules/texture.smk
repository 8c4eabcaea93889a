# Stage texture: responses to naturalistic textures and to noise of the same spectrum, one job per run.
# In:  results/<run>/model.safetensors, resources/textures/textures.{png,csv}
# Out: results/<run>/texture.h5 and .csv


rule texture_responses:
    input:
        weights="results/{run}/model.safetensors",
        sheet=in_place(ROOT / "resources" / "textures" / "textures.png"),
        families=in_place(ROOT / "resources" / "textures" / "textures.csv"),
    output:
        responses="results/{run}/texture.h5",
        table="results/{run}/texture.csv",
    log:
        "logs/texture/{run}.log",
    benchmark:
        "benchmarks/texture/{run}.tsv"
    conda:
        "../../environment.yaml"
    threads: network_threads
    resources:
        **asks("texture", gpu=gpus()),
    params:
        layers=lambda wildcards: run_layers(wildcards.run),
        device=settings["device"],
        tf32=settings["tf32"],
        version=versions.stage("texture"),
    script:
        "../../scripts/texture.py"
