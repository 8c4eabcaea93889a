# rfatlas: from a trained network and photographs to an atlas of its neurons.
#
#   snakemake --cores 8                                   the demo (config/config.yaml)
#   snakemake --cores 8 --configfile my.yaml              a config of your own
#   snakemake images --cores 8 --configfile my.yaml       one stage (names below)
from snakemake.logging import logger
from snakemake.utils import min_version

min_version("9.0")

# A config given on the command line replaces the demo; one without runs (or plain --config
# key=value) changes the demo. Snakemake alone would merge the demo's runs into every config.
if "runs" not in config:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


# Every stage has a file of its name.
for stage in stages.STAGES:
    if not stage.part_of:

        include: f"workflow/rules/{stage.name}.smk"


# Plain `snakemake` makes what the config switches on.
rule all:
    default_target: True
    input:
        [stage_files(name) for name in stages.BY_NAME if name != "train_demo" and stage_on(name)],
    localrule: True


# A target for every stage. Those of one layer at a time are rules with wildcards, which Snakemake
# takes for no target: `snakemake all_gabor` makes them for all layers of all runs. In a loop, as the
# register of stages says all about them.
for stage in [stage for stage in stages.STAGES if not stage.part_of]:

    rule:
        name:
            stages.target(stage.name)
        input:
            stage_files(stage.name),
        localrule: True


onstart:
    if not workflow.touch:
        try:
            announce(logger.info)
        except RfatlasError as error:
            raise WorkflowError(str(error)) from None


onerror:
    print(
        "rfatlas: a job failed; its message is above and in its log file below logs/. Once the "
        "cause is gone, the same command goes on where it stopped: finished files stay, and long "
        "jobs resume from their .partial folders.",
        file=sys.stderr,
    )
