# Stage compare: the networks of a group of runs side by side, one job per group.
# In:  results/<run>/channels.csv, model.json and activations.h5 of each run of the group
# Out: results/compare/<group>/{runs,fractions,quantities,matched,matching,similarity}.csv


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
        runs=report(
            "results/compare/{group}/runs.csv",
            caption="../report/compare_runs_table.rst",
            category="Networks side by side",
            subcategory="{group}",
            labels={"group": "{group}", "shows": "accuracy (table)"},
        ),
        fractions=report(
            "results/compare/{group}/fractions.csv",
            caption="../report/compare_fractions_table.rst",
            category="Networks side by side",
            subcategory="{group}",
            labels={"group": "{group}", "shows": "kinds of channels (table)"},
        ),
        quantities=report(
            "results/compare/{group}/quantities.csv",
            caption="../report/compare_quantities_table.rst",
            category="Networks side by side",
            subcategory="{group}",
            labels={"group": "{group}", "shows": "sizes and indices (table)"},
        ),
        matched="results/compare/{group}/matched.csv",
        matching=report(
            "results/compare/{group}/matching.csv",
            caption="../report/compare_matching_table.rst",
            category="Networks side by side",
            subcategory="{group}",
            labels={"group": "{group}", "shows": "matched channels (table)"},
        ),
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
        mem_mb=grown(lambda wildcards: budget.mem_mb("compare", wildcards.group)),
        runtime=grown(lambda wildcards: budget.minutes("compare", wildcards.group)),
        gpu=0,
    params:
        code=versions.digest("compare"),
        runs=lambda wildcards: compare_groups()[wildcards.group],
        feature=settings["compare"]["feature"],
        variance=settings["compare"]["svcca_variance"],
        seed=settings["compare"]["seed"],
    script:
        "../../scripts/compare.py"
