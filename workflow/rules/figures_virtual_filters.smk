# Stage figures, topic virtual filters: what the skip connections hand on, one job per run.
# In:  results/<run>/channels.csv, that of the run's twin, results/<run>/virtual_filters.h5 and, with
#      the stage receptive_fields, results/<run>/receptive_fields/<layer>.h5
# Out: results/<run>/figures/virtual_filters_<layer>.{png,pdf} and
#      results/<run>/figures/{virtual_correlation,skip_share}.{png,pdf}, as far as their stages are on

for run in sorted({*runs_with("virtual_filters"), *runs_with("skip_residual")}):

    rule:
        name:
            f"figures_virtual_filters_of_{run}"
        input:
            channels=f"results/{run}/channels.csv",
            twin=[
                f"results/{other}/channels.csv"
                for other in [twin(run, ["virtual_filters", "skip_residual"])]
                if other
            ],
            filters=[f"results/{run}/virtual_filters.h5" for _ in virtual_layers(run)[:1]],
            fields=[
                f"results/{run}/receptive_fields/{layer}.h5"
                for layer in virtual_layers(run)
                if stage_on("receptive_fields", run)
            ],
        output:
            sheets=[
                report(
                    f"results/{run}/figures/virtual_filters_{layer}.png",
                    caption="../report/virtual_filters.rst",
                    category="Virtual filters, skip and residual",
                    subcategory=run,
                    labels={"run": run, "layer": f"{depth:02d} {layer}", "shows": "its channels"},
                )
                for depth, layer in enumerate(virtual_layers(run))
            ],
            sheets_pdf=[
                f"results/{run}/figures/virtual_filters_{layer}.pdf"
                for layer in virtual_layers(run)
            ],
            png=[
                report(
                    f"results/{run}/figures/{name}.png",
                    caption=f"../report/{name}.rst",
                    category="Virtual filters, skip and residual",
                    subcategory=run,
                    labels={"run": run, "layer": "all", "shows": title},
                )
                for name, title in virtual_figures(run).items()
            ],
            pdf=[f"results/{run}/figures/{name}.pdf" for name in virtual_figures(run)],
        log:
            f"logs/figures_virtual_filters/{run}.log",
        benchmark:
            f"benchmarks/figures_virtual_filters/{run}.tsv"
        group:
            "pages"
        conda:
            "../../environment.yaml"
        threads: 1
        resources:
            mem_mb=grown(budget.mem_mb("figures_virtual_filters")),
            runtime=grown(30),
            gpu=0,
        params:
            code=versions.digest("figures_virtual_filters"),
            run=run,
            twin=twin(run, ["virtual_filters", "skip_residual"]) or "",
            layers=virtual_layers(run),
            figures=list(virtual_figures(run)),
            channels=settings["figures"]["channels"],
        script:
            "../../scripts/figures_virtual_filters.py"
