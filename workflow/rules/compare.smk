# Stage compare: the networks of a group of runs side by side, one job per group.
# In:  results/<run>/channels.csv, model.json and activations.h5 of each run of the group
# Out: results/compare/<group>/{runs,fractions,quantities,matched,matching,similarity}.csv

compare_table = tables_in_report("Networks side by side")


rule compare_tables:
    input:
        channels=lambda wildcards: expand(
            "results/{run}/channels.csv", run=compare_groups()[wildcards.group]
        ),
        descriptions=lambda wildcards: expand(
            "results/{run}/model.json", run=compare_groups()[wildcards.group]
        ),
        activations=lambda wildcards: expand(
            "results/{run}/activations.h5", run=compare_groups()[wildcards.group]
        ),
    output:
        runs=compare_table("results/compare/{group}/runs.csv", "accuracy"),
        fractions=compare_table("results/compare/{group}/fractions.csv", "kinds of channels"),
        quantities=compare_table("results/compare/{group}/quantities.csv", "sizes and indices"),
        matched="results/compare/{group}/matched.csv",
        matching=compare_table("results/compare/{group}/matching.csv", "matched channels"),
        similarity="results/compare/{group}/similarity.csv",
    log:
        "logs/compare/{group}.log",
    benchmark:
        "benchmarks/compare/{group}.tsv"
    wildcard_constraints:
        group=one_of(compare_groups()),
    conda:
        "../../environment.yaml"
    threads: 1
    resources:
        **asks("compare"),
    params:
        code=versions.digest("compare"),
        runs=lambda wildcards: compare_groups()[wildcards.group],
        feature=settings["compare"]["feature"],
        variance=settings["compare"]["svcca_variance"],
        seed=settings["compare"]["seed"],
    script:
        "../../scripts/compare.py"
