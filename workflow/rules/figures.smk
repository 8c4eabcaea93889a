# Stage figures: a job per run and topic; the stages name their topic in the register.
# In:  results/<run>/channels.csv, the tables and the files of the layers that a topic is about and,
#      where they are measured, the receptive fields; of groups of runs results/compare/<group>/*.csv
# Out: results/<run>/figures/<topic>/<figure>.{png,pdf}, a sheet per layer as <depth>_<layer>;
#      results/compare/<group>/figures/<figure>.{png,pdf}; of several runs
#      results/figures/accuracy.{png,pdf}
# The name of a figure is also its title in the report. All rules take script and resources from the
# first.


rule figures_accuracy:
    input:
        activations=expand("results/{run}/activations.h5", run=run_names()),
    output:
        figure_folder("results/figures", "overview", "Overview", "all runs"),
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
        **asks("figures", runtime=30),
    params:
        topic="figures",
        code=versions.digest("rfatlas.figures.figures"),
    script:
        "../../scripts/figures.py"


use rule figures_accuracy as figures_overview with:
    input:
        channels="results/{run}/channels.csv",
        description="results/{run}/model.json",
        activations=["results/{run}/activations.h5"],
        receptive_fields=layer_files("receptive_fields", optional=True),
    output:
        figure_folder(
            "results/{run}/figures/overview",
            "overview",
            lambda wildcards: (
                "Preferred stimuli" if wildcards.figure[0].isdigit() else "Overview"
            ),
        ),
    log:
        "logs/figures_overview/{run}.log",
    benchmark:
        "benchmarks/figures_overview/{run}.tsv"
    params:
        run="{run}",
        layers=lambda wildcards: run_layers(wildcards.run),
        channels=settings["figures"]["channels"],
        patches=settings["figures"]["patches"],
        source=settings["receptive_fields"]["source"],


use rule figures_accuracy as figures_virtual_filters with:
    input:
        channels="results/{run}/channels.csv",
        twin=twin_table(*stages.drawn_by("virtual_filters")),
        virtual_filters=where_on("virtual_filters", "results/{run}/virtual_filters.h5"),
        receptive_fields=layer_files("receptive_fields", optional=True),
    output:
        figure_folder(
            "results/{run}/figures/virtual_filters",
            "virtual_filters",
            "Virtual filters, skip and residual",
        ),
    log:
        "logs/figures_virtual_filters/{run}.log",
    benchmark:
        "benchmarks/figures_virtual_filters/{run}.tsv"
    params:
        **sheets("virtual_filters"),
        twin=lambda wildcards: twin(wildcards.run, stages.drawn_by("virtual_filters")) or "",


use rule figures_accuracy as figures_gabor with:
    input:
        gabor=layer_files("gabor"),
        receptive_fields=layer_files("receptive_fields"),
    output:
        figure_folder("results/{run}/figures/gabor", "gabor", "Gabors"),
    log:
        "logs/figures_gabor/{run}.log",
    benchmark:
        "benchmarks/figures_gabor/{run}.tsv"
    params:
        **sheets("gabor"),


use rule figures_accuracy as figures_gratings with:
    input:
        channels="results/{run}/channels.csv",
        gratings=layer_files("gratings"),
        receptive_fields=layer_files("receptive_fields", optional=True),
    output:
        figure_folder("results/{run}/figures/gratings", "gratings", "Tuning to gratings"),
    log:
        "logs/figures_gratings/{run}.log",
    benchmark:
        "benchmarks/figures_gratings/{run}.tsv"
    params:
        **sheets("gratings"),


use rule figures_accuracy as figures_color with:
    input:
        channels="results/{run}/channels.csv",
        tables=[
            f"results/{{run}}/opponency/{name}.csv"
            for name in ["counts", "macaque", "stability", "confusion", "orientation"]
        ],
        color=layer_files("color"),
    output:
        figure_folder("results/{run}/figures/color", "color", "Colour"),
    log:
        "logs/figures_color/{run}.log",
    benchmark:
        "benchmarks/figures_color/{run}.tsv"
    params:
        **sheets("color"),
        lowpass=settings["color"]["lowpass"],
        sensitivity=settings["color"]["sensitivity"],


use rule figures_accuracy as figures_preferred_stimulus with:
    input:
        channels="results/{run}/channels.csv",
        activations="results/{run}/activations.h5",
        preferred_stimulus=layer_files("preferred_stimulus"),
        receptive_fields=layer_files("receptive_fields", optional=True),
    output:
        figure_folder(
            "results/{run}/figures/preferred_stimulus", "preferred_stimulus", "Optimised stimuli"
        ),
    log:
        "logs/figures_preferred_stimulus/{run}.log",
    benchmark:
        "benchmarks/figures_preferred_stimulus/{run}.tsv"
    params:
        **sheets("preferred_stimulus"),
        source=settings["receptive_fields"]["source"],


use rule figures_accuracy as figures_orientation with:
    input:
        channels="results/{run}/channels.csv",
        twin=twin_table("gabor", "gratings"),
        tables=[
            f"results/{{run}}/{name}.csv"
            for name in ["orientation/selective", "v1/histograms", "v1/properties", "v1/scores"]
        ],
        reference=in_place(ROOT / "resources" / "v1_reference.csv"),
        joint=in_place(ROOT / "resources" / "v1_nx_ny.csv"),
    output:
        figure_folder(
            "results/{run}/figures/orientation", "orientation", "Orientation and frequency"
        ),
    log:
        "logs/figures_orientation/{run}.log",
    benchmark:
        "benchmarks/figures_orientation/{run}.tsv"
    group:
        group_in_place("pages")
    params:
        topic="figures_orientation",
        code=versions.digest("rfatlas.figures.figures_orientation"),
        run="{run}",
        twin=lambda wildcards: twin(wildcards.run, ["gabor", "gratings"]) or "",
        gabor_r2=settings["orientation"]["gabor_r2"],
        pixels_per_degree=settings["orientation"]["pixels_per_degree"],


use rule figures_accuracy as figures_ablation with:
    input:
        channels="results/{run}/channels.csv",
        groups="results/{run}/ablation_groups.csv",
        cumulative="results/{run}/ablation_cumulative.csv",
        ablation=layer_files("ablation"),
        images=lambda wildcards: run_images(wildcards.run),
    output:
        figure_folder("results/{run}/figures/ablation", "ablation", "Ablation"),
    log:
        "logs/figures_ablation/{run}.log",
    benchmark:
        "benchmarks/figures_ablation/{run}.tsv"
    params:
        topic="figures_ablation",
        code=versions.digest("rfatlas.figures.figures_ablation"),
        run="{run}",
        mode=lambda wildcards: ablation_modes(wildcards.run)[0],
        modes=lambda wildcards: ablation_modes(wildcards.run),
        curves=settings["ablation_groups"]["cumulative"],


use rule figures_accuracy as figures_compare with:
    input:
        **{
            name: f"results/compare/{{group}}/{name}.csv"
            for name in ["runs", "fractions", "quantities", "matched", "matching", "similarity"]
        },
    output:
        figure_folder(
            "results/compare/{group}/figures", "compare", "Networks side by side", "{group}"
        ),
    log:
        "logs/figures_compare/{group}.log",
    benchmark:
        "benchmarks/figures_compare/{group}.tsv"
    wildcard_constraints:
        group=one_of(compare_groups()),
    params:
        topic="figures_compare",
        code=versions.digest("rfatlas.figures.figures_compare"),
        group="{group}",
        runs=lambda wildcards: compare_groups()[wildcards.group],
