# Decodes the photographs of a data set and packs them into one file (docs/files.md).
# Needs: what `datasets.<dataset>` names (list, archive, ground truth, class map); for scenes the
#   list that the rule scenes writes. Photographs in folders are not inputs one by one: a change in
#   their names or number reruns the rule through `listing`.
# Writes: results/images/<dataset>_<resize>_<crop>.h5, and ..._bad.csv with the skipped files; with
#   _<interpolation> behind <crop> where that is not bilinear.


rule images_pack:
    input:
        unpack(lambda wildcards: packed_files(wildcards.dataset)),
    output:
        images="results/images/{dataset}_{resize}_{crop}{interpolation}.h5",
        bad=report(
            "results/images/{dataset}_{resize}_{crop}{interpolation}_bad.csv",
            caption="../report/bad_images.rst",
            category="Images",
            labels=bad_image_labels,
        ),
    log:
        "logs/images/{dataset}_{resize}_{crop}{interpolation}.log",
    benchmark:
        "benchmarks/images/{dataset}_{resize}_{crop}{interpolation}.tsv"
    conda:
        "../../environment.yaml"
    threads: 8
    resources:
        **asks("images"),
    params:
        dataset=lambda wildcards: listed_dataset(wildcards.dataset),
        listing=lambda wildcards: plan.images[wildcards.dataset].digest,
        version=versions.stage("images"),
    script:
        "../../scripts/images.py"
