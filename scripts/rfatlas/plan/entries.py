"""What the entries of a checked config mean: which stages are on, which run is whose twin."""

from collections.abc import Mapping
from typing import Any

from rfatlas import stages

#: Groups of channels that the columns of channels.csv define.
PROPERTY_GROUPS = ("inactive", "double_opponent", "orientation_selective")


def used(config: Mapping[str, Any], kind: str) -> list[str]:
    """Names of the models or data sets (`kind` is "model" or "dataset") that some run uses."""
    return sorted({run[kind] for run in config["runs"].values()})


def stage_on(config: Mapping[str, Any], stage: str, run: str | None = None) -> bool:
    """Whether a stage is part of the plain `snakemake` call; one without a switch always is, a part
    of another stage only with it.

    With `run`: whether that run takes part; it may go `without` stages that others have.
    """
    if (whole := stages.BY_NAME[stage].part_of) and not stage_on(config, whole, run):
        return False
    if followed := stages.BY_NAME[stage].follows:
        return any(stage_on(config, other, run) for other in followed)
    return switched_on(config, stage, run)


def switched_on(config: Mapping[str, Any], stage: str, run: str | None = None) -> bool:
    """Whether a stage's own switch is on, and that run does not go `without` it."""
    if run is not None and stage in config["runs"][run]["without"]:
        return False
    return config["stages"].get(stage, True)


def twin(config: Mapping[str, Any], run: str) -> str | None:
    """The random twin of a run: the first run by name on the same data set whose model differs in
    its weights alone, and those are `random:SEED`. None where there is none, or for a random run.
    """

    def network(name: str) -> tuple:
        entry = config["models"][config["runs"][name]["model"]]
        return entry["factory"], entry["kwargs"], config["runs"][name]["dataset"]

    def random(name: str) -> bool:
        return config["models"][config["runs"][name]["model"]]["weights"].startswith("random:")

    if random(run):
        return None
    twins = [other for other in config["runs"] if random(other) and network(other) == network(run)]
    return min(twins, default=None)


def stimulus_sample(
    config: Mapping[str, Any], description: Mapping[str, Any], layer: str
) -> int | None:
    """How many channels of a layer the stage preferred_stimulus draws; None for all of them.

    `description` is that of the network, with its layers in order.
    """
    channels = config["preferred_stimulus"]["channels"]
    if channels is None:
        return None
    names = [known["name"] for known in description["layers"]]
    last = channels["all_up_to"]
    whole = last in names and names.index(layer) <= names.index(last)
    return None if whole else channels["sample"]
