# Stage figures, topic preferred stimuli: what drives the channels of each layer, one job per run.
# In:  results/<run>/channels.csv, activations.h5, results/<run>/preferred_stimulus/<layer>.h5 and,
#      with the stage receptive_fields, results/<run>/receptive_fields/<layer>.h5
# Out: results/<run>/figures/preferred_stimulus_<layer>.{png,pdf}

if stage_on("preferred_stimulus"):

    for run in run_names():

        rule:
            name:
                f"figures_preferred_stimulus_of_{run}"
            input:
                channels=f"results/{run}/channels.csv",
                activations=f"results/{run}/activations.h5",
                stimuli=[
                    f"results/{run}/preferred_stimulus/{layer}.h5" for layer in run_layers(run)
                ],
                fields=[
                    f"results/{run}/receptive_fields/{layer}.h5"
                    for layer in run_layers(run)
                    if stage_on("receptive_fields", run)
                ],
            output:
                png=[
                    report(
                        f"results/{run}/figures/preferred_stimulus_{layer}.png",
                        caption="../report/preferred_stimulus.rst",
                        category="Optimised stimuli",
                        subcategory=run,
                        labels={"run": run, "layer": f"{depth:02d} {layer}"},
                    )
                    for depth, layer in enumerate(run_layers(run))
                ],
                pdf=[
                    f"results/{run}/figures/preferred_stimulus_{layer}.pdf"
                    for layer in run_layers(run)
                ],
            log:
                f"logs/figures_preferred_stimulus/{run}.log",
            benchmark:
                f"benchmarks/figures_preferred_stimulus/{run}.tsv"
            group:
                "pages"
            conda:
                "../../environment.yaml"
            threads: 1
            resources:
                mem_mb=grown(budget.mem_mb("figures_preferred_stimulus")),
                runtime=grown(30),
                gpu=0,
            params:
                code=versions.digest("figures_preferred_stimulus"),
                run=run,
                layers=run_layers(run),
                channels=settings["figures"]["channels"],
                source=settings["receptive_fields"]["source"],
            script:
                "../../scripts/figures_preferred_stimulus.py"
