# Stage scenes: labelled synthetic scenes for the data sets with `source: scenes`.
# Reads: nothing but the config (count, size, seed).
# Writes: results/scenes/<dataset>/images/<label>_<name>/NNNNN.png and
# results/scenes/<dataset>/labels.csv (file, label, class_name).


rule scenes_draw:
    output:
        table="results/scenes/{dataset}/labels.csv",
        images=directory("results/scenes/{dataset}/images"),
    log:
        "logs/scenes/{dataset}.log",
    benchmark:
        "benchmarks/scenes/{dataset}.tsv"
    conda:
        "../../environment.yaml"
    threads: 4
    resources:
        **asks("scenes"),
    params:
        scenes=lambda wildcards: settings["datasets"][wildcards.dataset]["count"],
        size=lambda wildcards: settings["datasets"][wildcards.dataset]["size"],
        seed=lambda wildcards: settings["datasets"][wildcards.dataset]["seed"],
        version=versions.stage("scenes"),
    script:
        "../../scripts/scenes.py"
