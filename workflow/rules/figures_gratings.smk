# Stage figures, topic gratings: how the channels of each layer are tuned, one job per run.
# In:  results/<run>/channels.csv, results/<run>/gratings/<layer>.h5 and, with the stage
#      receptive_fields, results/<run>/receptive_fields/<layer>.h5
# Out: results/<run>/figures/gratings_<layer>.{png,pdf}

if stage_on("gratings"):

    for run in run_names():

        rule:
            name:
                f"figures_gratings_of_{run}"
            input:
                channels=f"results/{run}/channels.csv",
                responses=[f"results/{run}/gratings/{layer}.h5" for layer in run_layers(run)],
                fields=[
                    f"results/{run}/receptive_fields/{layer}.h5"
                    for layer in run_layers(run)
                    if stage_on("receptive_fields", run)
                ],
            output:
                png=[
                    report(
                        f"results/{run}/figures/gratings_{layer}.png",
                        caption="../report/gratings.rst",
                        category="Tuning to gratings",
                        subcategory=run,
                        labels={"run": run, "layer": f"{depth:02d} {layer}"},
                    )
                    for depth, layer in enumerate(run_layers(run))
                ],
                pdf=[f"results/{run}/figures/gratings_{layer}.pdf" for layer in run_layers(run)],
            log:
                f"logs/figures_gratings/{run}.log",
            benchmark:
                f"benchmarks/figures_gratings/{run}.tsv"
            group:
                "pages"
            conda:
                "../../environment.yaml"
            threads: 1
            resources:
                mem_mb=grown(budget.mem_mb("figures_gratings")),
                runtime=grown(30),
                gpu=0,
            params:
                code=versions.digest("figures_gratings"),
                run=run,
                layers=run_layers(run),
                channels=settings["figures"]["channels"],
            script:
                "../../scripts/figures_gratings.py"
