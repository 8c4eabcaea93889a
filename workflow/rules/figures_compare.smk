# Stage figures, topic compare: the networks of a group of runs side by side.
# In:  results/compare/<group>/{runs,fractions,quantities,matched,matching,similarity}.csv
# Out: results/compare/<group>/figures/<figure>.{png,pdf}

if compare_groups():

    rule figures_compare:
        input:
            **{
                name: f"results/compare/{{group}}/{name}.csv"
                for name in [
                    "runs",
                    "fractions",
                    "quantities",
                    "matched",
                    "matching",
                    "similarity",
                ]
            },
        output:
            png=[
                report(
                    f"results/compare/{{group}}/figures/{name}.png",
                    caption=f"../report/compare_{name}.rst",
                    category="Networks side by side",
                    subcategory="{group}",
                    labels={"group": "{group}", "shows": title},
                )
                for name, title in compare_figures().items()
            ],
            pdf=[f"results/compare/{{group}}/figures/{name}.pdf" for name in compare_figures()],
        log:
            "logs/figures_compare/{group}.log",
        benchmark:
            "benchmarks/figures_compare/{group}.tsv"
        wildcard_constraints:
            group=one_of(compare_groups()),
        group:
            "pages"
        conda:
            "../../environment.yaml"
        threads: 1
        resources:
            mem_mb=grown(budget.mem_mb("figures_compare")),
            runtime=grown(30),
            gpu=0,
        params:
            code=versions.digest("figures_compare"),
            group="{group}",
            runs=lambda wildcards: compare_groups()[wildcards.group],
            figures=list(compare_figures()),
        script:
            "../../scripts/figures_compare.py"
