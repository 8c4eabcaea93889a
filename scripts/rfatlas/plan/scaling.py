"""What large runs will cost: the tables of docs/scaling.md, from `rfatlas.plan.estimates`.

A network of the size of the paper's (torchvision's ResNet-34), with the settings of
config/imagenet.yaml, on as many images as ImageNet has, on machines of several sizes. Nothing is
run: the model is described, the images are a number. `python -m rfatlas.plan.scaling` writes the
tables into docs/scaling.md.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from rfatlas.errors import RfatlasError
from rfatlas.plan import config as rfatlas_config
from rfatlas.plan import estimates, preflight

CONFIG = rfatlas_config.ROOT / "config" / "imagenet.yaml"
PAGE = rfatlas_config.ROOT / "docs" / "scaling.md"

#: Cores and GPUs.
MACHINES = {
    "8 cores": (8, 0),
    "one GPU, 8 cores": (8, 1),
    "64 GPUs, 512 cores": (512, 64),
}

#: Runs, images and mean size of a file in bytes: the archives' sizes (6.3 and 138 GB) over the
#: number of images. https://image-net.org/challenges/LSVRC/2012/
WORKLOADS = {
    "validation set": (1, 50_000, 126e3),
    "training set": (1, 1_281_167, 108e3),
    "100 models on the validation set": (100, 50_000, 126e3),
}

#: Settings that cost less, each alone: what is written into the config.
LEVERS: dict[str, dict[str, Any]] = {
    "`ablation: {images: 1000}`": {"ablation": {"images": 1000}},
    "`ablation: {modes: [zero]}`": {"ablation": {"modes": ["zero"]}},
    "`ablation: {channels: 64}`": {"ablation": {"channels": 64}},
    "`ablation_groups: {layers: [maxpool]}`": {"ablation_groups": {"layers": ["maxpool"]}},
    "`receptive_fields: {top_k: 25}`": {"receptive_fields": {"top_k": 25}},
    "`skip_residual: {top_k: 10}`": {"skip_residual": {"top_k": 10}},
    "`color: {frequencies: 6, phases: 6, directions: 6}`": {
        "color": {"frequencies": 6, "phases": 6, "directions": 6}
    },
    "`preferred_stimulus: {channels: {sample: 4}}`": {
        "preferred_stimulus": {"channels": {"sample": 4, "all_up_to": None}}
    },
}

#: Minutes that a job of a cluster should last, and below which it is not cut for more devices.
JOB_MINUTES = (20, 60)
SHORTEST_MINUTES = 5


def describe() -> dict[str, Any]:
    """The description of the network (`preflight.describe`), with random weights: its shapes count.

    Builds it in a process of its own, which takes some seconds.
    """
    raw = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    models = {"model": raw["models"]["resnet34_random"]}
    problems, filled = rfatlas_config.check(_raw(models["model"]))
    if problems:
        raise RfatlasError(rfatlas_config.listing(str(CONFIG), problems))
    found, problems = preflight.describe(filled["models"])
    if problems:
        raise RfatlasError("; ".join(problems))
    return found["model"]


def _raw(model: Mapping[str, Any], **changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config of one run with the settings of config/imagenet.yaml, and these changes."""
    shipped = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    sections = ("runs", "models", "datasets", "compare", "device")
    raw = {key: value for key, value in shipped.items() if key not in sections}
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value}
    return raw | {
        "runs": {"run": {"model": "model", "dataset": "images"}},
        "models": {"model": model},
        "datasets": {"images": {"source": "scenes"}},
    }


def budget(
    description: Mapping[str, Any],
    images: int,
    file_bytes: float,
    cores: int,
    gpus: int,
    **changes: Mapping[str, Any],
) -> estimates.Budget:
    """The estimates of one run on so many images and such a machine."""
    shipped = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["models"]["resnet34_random"]
    problems, filled = rfatlas_config.check(_raw(shipped, **changes))
    if problems:
        raise RfatlasError(rfatlas_config.listing("the settings", problems))
    # Photographs that need not be there.
    filled["datasets"]["images"]["source"] = "list"
    found = preflight.Images(images, file_bytes, description["n_classes"] - 1, "")
    plan = preflight.Plan(filled, {"model": dict(description)}, {"images": found})
    layers = {"run": description["default_layers"]}
    return estimates.Budget(plan, layers, cores, gpus)


def wall(row: estimates.Row, runs: int, cores: int) -> float:
    """Seconds on the clock for a stage of so many runs: its jobs side by side, all of one length.

    A stage that runs one job at a time in one run takes a core for it; those of other runs go
    beside it. The packed images are those of all runs.
    """
    if row.stage == "images":
        return row.wall_s
    parallel = row.parallel if row.parallel > 1 or row.jobs > 1 else max(1, cores // 4)
    return math.ceil(runs * row.jobs / parallel) * row.seconds


def cost(description: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table per workload: hours by stage and machine, and what binds."""
    for workload, (runs, images, size) in WORKLOADS.items():
        budgets = {
            machine: budget(description, images, size, cores, gpus)
            for machine, (cores, gpus) in MACHINES.items()
        }
        yield f"### {workload[0].upper()}{workload[1:]}"
        yield ""
        yield f"| stage | jobs | {' | '.join(MACHINES)} | disk |"
        yield f"|---|---:|{'---:|' * len(MACHINES)}---:|"
        total = dict.fromkeys(MACHINES, 0.0)
        largest = dict.fromkeys(MACHINES, (0.0, ""))
        disk, small = 0.0, dict.fromkeys(MACHINES, 0.0)
        rest = 0
        for position, row in enumerate(next(iter(budgets.values())).rows):
            seconds = {}
            for machine, (cores, _) in MACHINES.items():
                seconds[machine] = wall(budgets[machine].rows[position], runs, cores)
                total[machine] += seconds[machine]
                largest[machine] = max(largest[machine], (seconds[machine], row.stage))
            shared = row.stage == "images"
            bytes_ = row.disk * (1 if shared else runs)
            disk += bytes_
            if max(seconds.values()) < 0.002 * max(total["8 cores"], 3600) and bytes_ < 1e9:
                rest += row.jobs * runs
                small = {machine: small[machine] + seconds[machine] for machine in MACHINES}
                continue
            cells = " | ".join(_hours(seconds[machine]) for machine in MACHINES)
            jobs = row.jobs * (1 if shared else runs)
            yield f"| `{row.stage}` | {jobs:,} | {cells} | {_size(bytes_)} |"
        cells = " | ".join(_hours(small[machine]) for machine in MACHINES)
        yield f"| all others | {rest:,} | {cells} | |"
        cells = " | ".join(f"**{_hours(total[machine])}**" for machine in MACHINES)
        yield f"| **one after another** | | {cells} | **{_size(disk)}** |"
        cells = " | ".join(
            f"`{stage}`, {seconds / total[machine]:.0%}"
            for machine, (seconds, stage) in largest.items()
        )
        yield f"| what binds | | {cells} | |"
        yield ""


def levers(description: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table: what each setting saves of a run on the validation set."""
    _, images, size = WORKLOADS["validation set"]

    def hours(**changes: Mapping[str, Any]) -> list[float]:
        return [
            sum(row.wall_s for row in budget(description, images, size, *machine, **changes).rows)
            for machine in ((8, 0), (8, 1))
        ]

    yield "| setting | 8 cores | one GPU |"
    yield "|---|---:|---:|"
    yield f"| as in `config/imagenet.yaml` | {' | '.join(map(_hours, hours()))} |"
    for name, changes in LEVERS.items():
        yield f"| {name} | {' | '.join(map(_hours, hours(**changes)))} |"
    every: dict[str, dict[str, Any]] = {}
    for changes in LEVERS.values():
        for section, values in changes.items():
            every[section] = {**every.get(section, {}), **values}
    yield f"| all of these | {' | '.join(map(_hours, hours(**every)))} |"
    yield ""


def ranges(description: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of range sizes, by which a job lasts about 20 to 60 minutes, or
    less while not every device has one."""
    yield "| images | machine | `activations.range_size` | jobs | minutes each |"
    yield "|---|---|---:|---:|---:|"
    for workload in ("validation set", "training set"):
        _, images, size = WORKLOADS[workload]
        for machine, (cores, gpus) in MACHINES.items():
            chosen, row = range_size(description, images, size, cores, gpus)
            cells = f"{chosen:,} | {row.jobs} | {row.seconds / 60:.1f}"
            yield f"| {workload} | {machine} | {cells} |"
    yield ""


def range_size(
    description: Mapping[str, Any], images: int, file_bytes: float, cores: int, gpus: int
) -> tuple[int, estimates.Row]:
    """The size of ranges for a machine, a round number, and what the activations then cost."""

    def row(size: int) -> estimates.Row:
        changes = {"activations": {"range_size": size}}
        found = budget(description, images, file_bytes, cores, gpus, **changes)
        return next(row for row in found.rows if row.stage == "activations")

    parallel = row(images).parallel
    middle = math.sqrt(JOB_MINUTES[0] * JOB_MINUTES[1])
    per_minute = images * 60 / row(images).seconds
    wanted = min(images / parallel, middle * per_minute)
    wanted = min(images, max(wanted, SHORTEST_MINUTES * per_minute))
    digit = 10 ** max(0, math.floor(math.log10(wanted)) - 1)
    chosen = math.ceil(wanted / digit) * digit
    return chosen, row(chosen)


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 96 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.1f} d"


def _size(count: float) -> str:
    if not count:
        return ""
    if count < 1e9:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:,.0f} GB" if count < 1e12 else f"{count / 1e12:,.1f} TB"


def tables() -> dict[str, str]:
    """The tables of docs/scaling.md by name."""
    description = describe()
    makers = {"cost": cost, "levers": levers, "ranges": ranges}
    return {name: "\n".join(maker(description)).strip() for name, maker in makers.items()}


def document(text: str, known: Mapping[str, str]) -> str:
    """Return a page with its tables anew: what stands between `<!-- table NAME -->` and `<!-- end
    -->`.

    Raises RfatlasError if the page has no place for a table.
    """
    for name, table in known.items():
        head, mark, rest = text.partition(f"<!-- table {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->\n")
        if not end:
            raise RfatlasError(f"the page has no lines <!-- table {name} --> and <!-- end -->")
        text = f"{head}{mark}\n{table}\n\n{end}{tail}"
    return text


if __name__ == "__main__":
    PAGE.write_text(document(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
