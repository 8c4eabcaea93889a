# Stage figures, topic ablation: what the network loses without a channel or a group of them.
# In:  results/<run>/{channels,ablation_groups,ablation_cumulative}.csv,
#      results/<run>/ablation/<layer>.h5 (changes per class), the run's packed images (their names)
# Out: results/<run>/figures/ablation_<figure>.{png,pdf}

for run in ablation_runs():

    rule:
        name:
            f"figures_ablation_of_{run}"
        input:
            channels=f"results/{run}/channels.csv",
            groups=f"results/{run}/ablation_groups.csv",
            cumulative=f"results/{run}/ablation_cumulative.csv",
            ablation=[f"results/{run}/ablation/{layer}.h5" for layer in ablation_layers(run)],
            images=run_images(run),
        output:
            png=[
                report(
                    f"results/{run}/figures/ablation_{name}.png",
                    caption=f"../report/ablation_{name.split('_')[0]}.rst",
                    category="Ablation",
                    subcategory=run,
                    labels={"run": run, "shows": title},
                )
                for name, title in ablation_figures(run).items()
            ],
            pdf=[f"results/{run}/figures/ablation_{name}.pdf" for name in ablation_figures(run)],
        log:
            f"logs/figures_ablation/{run}.log",
        benchmark:
            f"benchmarks/figures_ablation/{run}.tsv"
        group:
            "pages"
        conda:
            "../../environment.yaml"
        threads: 1
        resources:
            mem_mb=grown(budget.mem_mb("figures_ablation")),
            runtime=grown(30),
            gpu=0,
        params:
            code=versions.digest("figures_ablation"),
            run=run,
            figures=list(ablation_figures(run)),
            mode=ablation_modes(run)[0],
        script:
            "../../scripts/figures_ablation.py"
