# rfatlas: from a trained network and photographs to an atlas of its neurons.
#
#   snakemake --cores 8                                   the demo (config/config.yaml)
#   snakemake --cores 8 --configfile my.yaml              a config of your own
#   snakemake images --cores 8 --configfile my.yaml       one stage (names below)
from snakemake.utils import min_version

min_version("9.0")

# A config given on the command line replaces the demo; one without runs (or plain --config
# key=value) changes the demo. Snakemake alone would merge the demo's runs into every config.
if "runs" not in config:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/scenes.smk"
include: "workflow/rules/train_demo.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/activations.smk"
include: "workflow/rules/receptive_fields.smk"
include: "workflow/rules/virtual_filters.smk"
include: "workflow/rules/skip_residual.smk"
include: "workflow/rules/gabor.smk"
include: "workflow/rules/gratings.smk"
include: "workflow/rules/color.smk"
include: "workflow/rules/preferred_stimulus.smk"
include: "workflow/rules/ablation.smk"
include: "workflow/rules/channels.smk"
include: "workflow/rules/orientation.smk"
include: "workflow/rules/opponency.smk"
include: "workflow/rules/ablation_groups.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/findings.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/figures_orientation.smk"
include: "workflow/rules/figures_color.smk"
include: "workflow/rules/figures_gabor.smk"
include: "workflow/rules/figures_ablation.smk"
include: "workflow/rules/figures_gratings.smk"
include: "workflow/rules/figures_preferred_stimulus.smk"
include: "workflow/rules/figures_virtual_filters.smk"
include: "workflow/rules/figures_compare.smk"
include: "workflow/rules/atlas.smk"


# The stages by name; plain `snakemake` makes what the config switches on.
rule all:
    default_target: True
    input:
        packed_images(),
        expand("results/{run}/{file}", run=run_names(), file=["model.json", "activations.h5"]),
        expand("results/{run}/channels.csv", run=run_names()),
        layer_files("receptive_fields") if stage_on("receptive_fields") else [],
        virtual_files() if stage_on("virtual_filters") else [],
        layer_files("skip_residual") if stage_on("skip_residual") else [],
        layer_files("gabor") if stage_on("gabor") else [],
        layer_files("gratings") if stage_on("gratings") else [],
        layer_files("color") if stage_on("color") else [],
        layer_files("preferred_stimulus") if stage_on("preferred_stimulus") else [],
        ablation_files(),
        orientation_files() if stage_on("orientation") else [],
        opponency_files() if stage_on("opponency") else [],
        compare_files(),
        ablation_group_files(),
        finding_files() if stage_on("findings") else [],
        figure_files() if stage_on("figures") else [],
        atlas_files() if stage_on("atlas") else [],
    localrule: True


rule scenes:
    input:
        expand("results/scenes/{dataset}/labels.csv", dataset=drawn_datasets()),
    localrule: True


rule train_demo:
    input:
        "results/train_demo/resnet_demo.safetensors",
        "results/train_demo/plainnet_demo.safetensors",
    localrule: True


rule images:
    input:
        packed_images(),
    localrule: True


rule model:
    input:
        expand("results/{run}/model.json", run=run_names()),
    localrule: True


rule activations:
    input:
        expand("results/{run}/activations.h5", run=run_names()),
    localrule: True


rule receptive_fields:
    input:
        layer_files("receptive_fields"),
    localrule: True


rule virtual_filters:
    input:
        virtual_files(),
    localrule: True


rule skip_residual:
    input:
        layer_files("skip_residual"),
    localrule: True


rule gabor:
    input:
        layer_files("gabor"),
    localrule: True


rule gratings:
    input:
        layer_files("gratings"),
    localrule: True


rule color:
    input:
        layer_files("color"),
    localrule: True


rule preferred_stimulus:
    input:
        layer_files("preferred_stimulus"),
    localrule: True


rule ablation:
    input:
        ablation_files(),
    localrule: True


rule channels:
    input:
        expand("results/{run}/channels.csv", run=run_names()),
    localrule: True


rule orientation:
    input:
        orientation_files(),
    localrule: True


rule compare:
    input:
        compare_files(),
    localrule: True


rule opponency:
    input:
        opponency_files() if stage_on("opponency") else [],
    localrule: True


rule ablation_groups:
    input:
        ablation_group_files(),
    localrule: True


rule findings:
    input:
        finding_files(),
    localrule: True


rule figures:
    input:
        figure_files(),
    localrule: True


rule atlas:
    input:
        atlas_files(),
    localrule: True


onstart:
    startup.rotate()
    running.note()


onsuccess:
    print(startup.summary(), file=sys.stderr)


onerror:
    print(
        "rfatlas: a job failed; its message stands above and in its file below logs/. Once the "
        "cause is gone, the same command goes on where it stopped: finished files stay, and long "
        "jobs resume from their .partial folders.",
        file=sys.stderr,
    )
