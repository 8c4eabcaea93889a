# Stage figures, topic orientation: tuning to orientation and frequency over the layers of a run.
# In:  results/<run>/channels.csv, that of the run's twin, results/<run>/orientation/*.csv,
#      resources/v1_reference.csv, resources/v1_nx_ny.csv
# Out: results/<run>/figures/orientation_<figure>.{png,pdf}, as far as their stages are on

# Which of them there are may differ from run to run, and an output cannot ask a function.
for run in runs_with("orientation"):

    rule:
        name:
            f"figures_orientation_of_{run}"
        input:
            channels=f"results/{run}/channels.csv",
            twin=[
                f"results/{other}/channels.csv"
                for other in [twin(run, ["gabor", "gratings"])]
                if other
            ],
            tables=[
                f"results/{run}/orientation/{name}.csv"
                for name in ["selective", "v1", "v1_medians"]
            ],
            reference=in_place(ROOT / "resources" / "v1_reference.csv"),
            joint=in_place(ROOT / "resources" / "v1_nx_ny.csv"),
        output:
            png=[
                report(
                    f"results/{run}/figures/orientation_{name}.png",
                    caption=f"../report/orientation_{name}.rst",
                    category="Orientation and frequency",
                    subcategory=run,
                    labels={"run": run, "shows": title},
                )
                for name, title in orientation_figures(run).items()
            ],
            pdf=[
                f"results/{run}/figures/orientation_{name}.pdf"
                for name in orientation_figures(run)
            ],
        log:
            f"logs/figures_orientation/{run}.log",
        benchmark:
            f"benchmarks/figures_orientation/{run}.tsv"
        group:
            group_in_place("pages")
        conda:
            "../../environment.yaml"
        threads: 1
        resources:
            mem_mb=grown(budget.mem_mb("figures_orientation")),
            runtime=grown(30),
            gpu=0,
        params:
            code=versions.digest("figures_orientation"),
            run=run,
            twin=twin(run, ["gabor", "gratings"]) or "",
            figures=list(orientation_figures(run)),
            gabor_r2=settings["orientation"]["gabor_r2"],
            pixels_per_degree=settings["orientation"]["pixels_per_degree"],
        script:
            "../../scripts/figures_orientation.py"
