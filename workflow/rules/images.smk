# Decodes the photographs of a data set and packs them into one file (design.md, section 4).
# Needs: what `datasets.<dataset>` names (list, archive, ground truth, class map); for scenes the
#   list that the rule scenes writes. Photographs in folders are not inputs one by one: a change in
#   their names or number reruns the rule through `listing`.
# Writes: results/images/<dataset>_<resize>_<crop>.h5, and ..._bad.csv with the skipped files.


def images_inputs(wildcards):
    """The files that tell where the photographs of a data set are and what they show."""
    dataset = dataset_config(wildcards.dataset)
    if dataset["source"] == "scenes":
        return {"labels": f"results/scenes/{wildcards.dataset}/labels.csv"}
    files = {
        "truth": dataset["labels"],
        "class_map": dataset["class_map"],
        "class_names": dataset["class_names"],
    }
    if dataset["source"] in ("list", "imagenet_tar"):
        files["path"] = dataset["path"]
    return {name: str(Path(file).expanduser()) for name, file in files.items() if file is not None}


def images_dataset(wildcards):
    """What the config says about a data set, less what it leaves out and what only scenes use."""
    dataset = dataset_config(wildcards.dataset)
    idle = () if dataset["source"] == "scenes" else ("count", "size", "seed")
    return {
        key: value
        for key, value in sorted(dataset.items())
        if value is not None and key not in idle
    }


rule images_pack:
    input:
        unpack(images_inputs),
    output:
        images="results/images/{dataset}_{resize}_{crop}.h5",
        bad="results/images/{dataset}_{resize}_{crop}_bad.csv",
    log:
        "logs/images/{dataset}_{resize}_{crop}.log",
    benchmark:
        "benchmarks/images/{dataset}_{resize}_{crop}.tsv"
    conda:
        "../../environment.yaml"
    threads: 8
    resources:
        mem_mb=2000,
        runtime=240,
        gpu=0,
    params:
        dataset=images_dataset,
        listing=lambda wildcards: plan.images[wildcards.dataset].digest,
        version=versions.stage("images"),
    script:
        "../../scripts/images.py"
