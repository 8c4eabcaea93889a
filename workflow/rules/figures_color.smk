# Stage figures, topic color: opponency and tuning to colour, one job per run.
# In:  results/<run>/channels.csv, results/<run>/opponency/*.csv, results/<run>/color/<layer>.h5
# Out: results/<run>/figures/color_<layer>.{png,pdf}, results/<run>/figures/opponency_<figure>.{png,pdf}

for run in runs_with("opponency"):

    rule:
        name:
            f"figures_color_of_{run}"
        input:
            channels=f"results/{run}/channels.csv",
            tables=[
                f"results/{run}/opponency/{name}.csv"
                for name in ["counts", "macaque", "stability", "confusion", "orientation"]
            ],
            responses=[f"results/{run}/color/{layer}.h5" for layer in run_layers(run)],
        output:
            sheets=[
                report(
                    f"results/{run}/figures/color_{layer}.png",
                    caption="../report/color.rst",
                    category="Colour",
                    subcategory=run,
                    labels={"run": run, "layer": f"{depth:02d} {layer}", "shows": "its channels"},
                )
                for depth, layer in enumerate(run_layers(run))
            ],
            sheets_pdf=[f"results/{run}/figures/color_{layer}.pdf" for layer in run_layers(run)],
            png=[
                report(
                    f"results/{run}/figures/opponency_{name}.png",
                    caption=f"../report/color_{name}.rst",
                    category="Colour",
                    subcategory=run,
                    labels={"run": run, "layer": "all", "shows": title},
                )
                for name, title in COLOR_FIGURES.items()
            ],
            pdf=[f"results/{run}/figures/opponency_{name}.pdf" for name in COLOR_FIGURES],
        log:
            f"logs/figures_color/{run}.log",
        benchmark:
            f"benchmarks/figures_color/{run}.tsv"
        group:
            "pages"
        conda:
            "../../environment.yaml"
        threads: 1
        resources:
            mem_mb=grown(budget.mem_mb("figures_color")),
            runtime=grown(30),
            gpu=0,
        params:
            code=versions.digest("figures_color"),
            run=run,
            twin=twin(run, ["color"]) or "",
            layers=run_layers(run),
            channels=settings["figures"]["channels"],
            figures=list(COLOR_FIGURES),
            lowpass=opponency_lines()["lowpass"],
            color_ratio=opponency_lines()["color_ratio"],
        script:
            "../../scripts/figures_color.py"
