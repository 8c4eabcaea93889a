# Stage gabor: Gabors fitted to mean gradients, first-layer kernels and virtual filters.
# Reads: results/<run>/receptive_fields/<layer>.h5, results/<run>/model.safetensors and, with the
# stage virtual_filters, results/<run>/virtual_filters.h5.
# Writes: results/<run>/gabor/<layer>.h5 and .csv.

for run in run_names():
    for number, layers in enumerate(layer_groups(run, "gabor")):

        rule:
            name:
                f"gabor_{run}_{number}"
            input:
                fields=[f"results/{run}/receptive_fields/{layer}.h5" for layer in layers],
                weights=f"results/{run}/model.safetensors",
                virtual=(
                    f"results/{run}/virtual_filters.h5" if stage_on("virtual_filters", run) else []
                ),
            output:
                fits=[f"results/{run}/gabor/{layer}.h5" for layer in layers],
                tables=[f"results/{run}/gabor/{layer}.csv" for layer in layers],
            log:
                f"logs/gabor/{run}/{number}.log",
            benchmark:
                f"benchmarks/gabor/{run}/{number}.tsv"
            conda:
                "../../environment.yaml"
            threads: 1
            resources:
                mem_mb=grown(budget.mem_mb("gabor")),
                runtime=grown(budget.minutes("gabor", run)),
                gpu=0,
            params:
                layers=layers,
                channels=layer_channels(run, layers),
                version=versions.stage("gabor"),
            script:
                "../../scripts/gabor.py"
