# Stage virtual_filters: what each layer would see if its blocks did nothing, one job per run.
# Reads: results/<run>/model.safetensors and, with the stage receptive_fields,
# results/<run>/receptive_fields/<layer>.h5.
# Writes: results/<run>/virtual_filters.h5, results/<run>/virtual_filters/<layer>.csv.

# The layers of a run are known only with its name, and an output cannot ask a function.
for run in run_names():

    rule:
        name:
            f"virtual_filters_{run}"
        input:
            weights=f"results/{run}/model.safetensors",
            fields=[
                f"results/{run}/receptive_fields/{layer}.h5"
                for layer in run_layers(run)
                if stage_on("receptive_fields", run)
            ],
        output:
            filters=f"results/{run}/virtual_filters.h5",
            tables=[f"results/{run}/virtual_filters/{layer}.csv" for layer in run_layers(run)],
        log:
            f"logs/virtual_filters/{run}.log",
        benchmark:
            f"benchmarks/virtual_filters/{run}.tsv"
        conda:
            "../../environment.yaml"
        threads: 1
        resources:
            mem_mb=grown(budget.mem_mb("virtual_filters")),
            runtime=grown(budget.minutes("virtual_filters", run)),
            gpu=0,
            attempt=attempts,
        params:
            layers=run_layers(run),
            version=versions.stage("virtual_filters"),
        script:
            "../../scripts/virtual_filters.py"
