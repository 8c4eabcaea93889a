# Stage figures, topic gabor: the Gabors fitted to the mean gradients of each layer, one job per run.
# In:  results/<run>/gabor/<layer>.h5, results/<run>/receptive_fields/<layer>.h5
# Out: results/<run>/figures/gabor_<layer>.{png,pdf}

if stage_on("gabor"):

    for run in run_names():

        rule:
            name:
                f"figures_gabor_of_{run}"
            input:
                fits=[f"results/{run}/gabor/{layer}.h5" for layer in run_layers(run)],
                fields=[f"results/{run}/receptive_fields/{layer}.h5" for layer in run_layers(run)],
            output:
                png=[
                    report(
                        f"results/{run}/figures/gabor_{layer}.png",
                        caption="../report/gabor.rst",
                        category="Gabors",
                        subcategory=run,
                        labels={"run": run, "layer": f"{depth:02d} {layer}"},
                    )
                    for depth, layer in enumerate(run_layers(run))
                ],
                pdf=[f"results/{run}/figures/gabor_{layer}.pdf" for layer in run_layers(run)],
            log:
                f"logs/figures_gabor/{run}.log",
            benchmark:
                f"benchmarks/figures_gabor/{run}.tsv"
            group:
                "pages"
            conda:
                "../../environment.yaml"
            threads: 1
            resources:
                mem_mb=grown(budget.mem_mb("figures_gabor")),
                runtime=grown(30),
                gpu=0,
            params:
                code=versions.digest("figures_gabor"),
                run=run,
                layers=run_layers(run),
                channels=settings["figures"]["channels"],
            script:
                "../../scripts/figures_gabor.py"
