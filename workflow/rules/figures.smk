# Stage figures: what each run looks like, one job per run, and the accuracy of all runs.
# In:  results/<run>/channels.csv, model.json, activations.h5 and, with the stage receptive_fields,
#      results/<run>/receptive_fields/<layer>.h5
# Out: results/<run>/figures/{rf_size,sparsity,accuracy}.{png,pdf}, with the stage receptive_fields
#      results/<run>/figures/montage_<layer>.{png,pdf}; of several runs results/figures/accuracy.{png,pdf}

# The layers of a run are known only with its name, and an output cannot ask a function: so each run
# has a rule of its own.
for run in run_names():
    montaged = run_layers(run) if stage_on("receptive_fields", run) else []

    rule:
        name:
            f"figures_of_{run}"
        input:
            channels=f"results/{run}/channels.csv",
            description=f"results/{run}/model.json",
            activations=f"results/{run}/activations.h5",
            fields=[f"results/{run}/receptive_fields/{layer}.h5" for layer in montaged],
        output:
            montages=[
                report(
                    f"results/{run}/figures/montage_{layer}.png",
                    caption="../report/montage.rst",
                    category="Preferred stimuli",
                    subcategory=run,
                    labels={"run": run, "layer": f"{depth:02d} {layer}"},
                )
                for depth, layer in enumerate(montaged)
            ],
            montages_pdf=[f"results/{run}/figures/montage_{layer}.pdf" for layer in montaged],
            rf_size=[
                report(
                    f"results/{run}/figures/rf_size.png",
                    caption="../report/rf_size.rst",
                    category="Layers against depth",
                    labels={"run": run, "shows": "receptive-field size"},
                ),
                f"results/{run}/figures/rf_size.pdf",
            ],
            sparsity=[
                report(
                    f"results/{run}/figures/sparsity.png",
                    caption="../report/sparsity.rst",
                    category="Layers against depth",
                    labels={"run": run, "shows": "sparsity"},
                ),
                f"results/{run}/figures/sparsity.pdf",
            ],
            accuracy=[
                report(
                    f"results/{run}/figures/accuracy.png",
                    caption="../report/accuracy.rst",
                    category="Accuracy",
                    labels={"run": run, "shows": "accuracy"},
                ),
                f"results/{run}/figures/accuracy.pdf",
            ],
        log:
            f"logs/figures/{run}.log",
        benchmark:
            f"benchmarks/figures/{run}.tsv"
        group:
            "pages"
        conda:
            "../../environment.yaml"
        threads: 1
        resources:
            mem_mb=grown(budget.mem_mb("figures")),
            runtime=grown(30),
            gpu=0,
        params:
            code=versions.digest("figures"),
            run=run,
            montages=montaged,
            channels=settings["figures"]["channels"],
            patches=settings["figures"]["patches"],
            source=settings["receptive_fields"]["source"],
        script:
            "../../scripts/figures.py"


if len(run_names()) > 1:

    rule figures_accuracy:
        input:
            [f"results/{run}/activations.h5" for run in run_names()],
        output:
            report(
                "results/figures/accuracy.png",
                caption="../report/accuracy.rst",
                category="Accuracy",
                labels={"run": "all", "shows": "accuracy"},
            ),
            "results/figures/accuracy.pdf",
        log:
            "logs/figures_accuracy.log",
        benchmark:
            "benchmarks/figures_accuracy.tsv"
        group:
            "pages"
        conda:
            "../../environment.yaml"
        threads: 1
        resources:
            mem_mb=grown(1000),
            runtime=grown(10),
            gpu=0,
        params:
            code=versions.digest("figures"),
            runs=run_names(),
        script:
            "../../scripts/figures_accuracy.py"
