"""What jobs cost, before they start: time, memory and disk.

Disk follows from the shapes of what is written. Time is work (from the model's GFLOP per image
and receptive fields, and the number and size of the images) over the measured rates in
`resources/rates.csv`; `tests/benchmarks/rates.py` measures them anew. The rates are those of one
machine, so the times are good to a factor of two or three, not more.

Nothing here imports torch.
"""

import csv
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from rfatlas import stages
from rfatlas.errors import RfatlasError
from rfatlas.plan import entries, schema
from rfatlas.plan.preflight import Plan

RATES = schema.ROOT / "resources" / "rates.csv"

#: Threads of a job that runs a network, and of a job that draws or packs images.
THREADS = 4

#: GFLOP per image below which more threads of a job only wait for each other.
ONE_THREAD_GFLOP = 0.2

# Axes, apertures and contrasts of the stage color's gratings.
_AXES, _COLOR_APERTURES, _CONTRASTS = 6, 3, 6

# Smaller apertures, and lower contrasts in each, in which the stage gratings shows its coarse grid:
# an early layer needs one of each, a deep one two and three.
_APERTURES, _LEVELS = 2, 3

# Pictures that the stage texture shows: mid grey, and four samples of 11 families with their noise.
_TEXTURES = 1 + 2 * 4 * 11

# Channels that the stage compare takes at a time, `similarity.TILE`.
_TILE = 4096

_MB = 1e6


@dataclass
class Cost:
    """Seconds that jobs take, on the clock if nothing else runs, and bytes that they write."""

    seconds: float = 0.0
    disk: float = 0.0
    jobs: int = 0

    def add(self, other: "Cost", jobs: int) -> None:
        """Count another cost, of so many jobs, in."""
        self.seconds += other.seconds
        self.disk += other.disk
        self.jobs += jobs


def read_rates(path: Path = RATES) -> dict[str, float]:
    """The measured rates by name (columns `rate`, `value`, `unit`, `source`)."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["rate"]: float(row["value"]) for row in csv.DictReader(file)}


class Budget:
    """Estimates for the jobs of a config.

    A job is known by the name of its script, what it works on (`name`: a run, a group of runs, a
    data set, or a file of packed images) and, for stages of one layer at a time, its layer.

    `layers` are the names of the layers that each run analyses, `cores` those that Snakemake may
    use; networks run on `gpus`, a job on each, or on the CPU; `rates` are by default the shipped.
    """

    def __init__(
        self,
        plan: Plan,
        layers: Mapping[str, Sequence[str]],
        cores: int,
        gpus: int = 0,
        rates: Mapping[str, float] | None = None,
    ):
        self.plan, self.config, self.cores, self.gpus = plan, plan.config, cores, gpus
        self.rates = dict(read_rates() if rates is None else rates)
        self.layers = {}
        for run, names in layers.items():
            known = {layer["name"]: layer for layer in self._network(run)["layers"]}
            self.layers[run] = {name: known[name] for name in names}

    # ---- what a job asks for

    def threads(self, run: str) -> int:
        """Threads of a job that runs the network of a run."""
        return 1 if self._network(run)["gflops"] < ONE_THREAD_GFLOP else THREADS

    def mem_mb(self, script: str, name: str = "") -> int:
        """Megabytes that one job needs at most."""
        if script == "activations":
            # Live at once: the process itself, one batch of the layers that are summarised, and the
            # network's other tensors of that size.
            units = sum(map(_units, self.layers[name].values()))
            batch = self.config["activations"]["batch_size"]
            return round(1200 + batch * 4 * units * 2.5 / _MB)
        if script == "compare":
            # Live at once: the process with a batch of images, the products of two groups and
            # their next summand, what decorrelates each layer, and the widest's decomposition.
            widths = self._widths(name)
            live = 3 * _tile(widths) ** 2 + sum(w**2 for w in widths) + 4 * max(widths) ** 2
            return 400 + round(8 * live / _MB)
        return stages.BY_NAME[stage_of(script)].mem_mb or 1000

    def minutes(self, script: str, name: str, layer: str | None = None) -> int:
        """Minutes to grant one job: four times the estimate, at least ten; four hours for what no
        run asks for."""
        cost = self.cost(script, name, layer)
        return max(10, math.ceil(4 * cost.seconds / 60)) if cost else 240

    def cost(self, script: str, name: str, layer: str | None = None) -> Cost | None:
        """What one job costs; None for what no run asks for."""
        try:
            if formula := getattr(self, f"_{script}", None):
                found = formula(name, *([self.layers[name][layer]] if layer else []))
            else:
                found = self._each_channel(script, name, layer)
        except KeyError:
            return None
        return Cost(self.rates["start_plain"] + found.seconds, found.disk)

    # ---- what the user sees

    def rows(self, jobs: Iterable[Any]) -> dict[str, Cost]:
        """The costs of Snakemake's jobs, summed up by script; other jobs are left out."""
        found: dict[str, Cost] = {}
        for job in jobs:
            script = Path(job.rule.script or "").stem
            if stage_of(script) is None:
                continue
            cost = self.cost(script, *self._work(job.output)) or Cost(self.rates["start_plain"])
            slots = self.gpus if job.resources.get("gpu") else self.cores // job.threads
            more = max(0.0, cost.disk - sum(_present(Path(file)) for file in job.output))
            found.setdefault(script, Cost()).add(Cost(cost.seconds / max(1, slots), more), 1)
        order = list(stages.BY_NAME)
        return dict(sorted(found.items(), key=lambda row: (order.index(stage_of(row[0])), row[0])))

    def _work(self, output: Sequence[str]) -> tuple[str, str | None]:
        """What a job works on, as the paths of its outputs tell: its name and its layer."""
        parts = Path(output[0]).with_suffix("").parts
        parts = parts[parts.index("results") + 1 :]
        name = parts[1] if parts[0] in ("scenes", "images", "compare") else parts[0]
        return name, next((part for part in parts if part in self.layers.get(name, ())), None)

    def table(self, rows: Mapping[str, Cost]) -> str:
        """The costs of the jobs that will run as a table for the terminal."""
        total = Cost()
        for row in rows.values():
            total.add(row, row.jobs)
        where = f"{self.gpus} GPUs" if self.gpus else "the CPU"
        width = max(map(len, rows), default=5)
        lines = [
            f"rfatlas: estimates for the jobs that will run (networks on {where}, "
            f"cores: {self.cores})",
            f"  {'stage':{width}}  jobs         h:min:s      disk",
        ]
        for name, row in [*rows.items(), ("total", total)]:
            time = str(timedelta(seconds=round(row.seconds)))
            lines.append(f"  {name:{width}}  {row.jobs:4}  {time:>14}  {_size(row.disk):>8}")
        return "\n".join(lines)

    # ---- the stages

    def _network(self, run: str) -> dict[str, Any]:
        return self.plan.descriptions[self.config["runs"][run]["model"]]

    def _side(self, run: str, layer: Mapping[str, Any]) -> int:
        """Pixels of the side of what a unit of a layer sees of the image."""
        crop = self._network(run)["input"]["crop"]
        return min(layer["size"] or crop, crop)

    def _count(self, run: str) -> int:
        return self.plan.images[self.config["runs"][run]["dataset"]].count

    def _widths(self, name: str) -> list[int]:
        """Channels of each layer of a run, or of all runs of a group."""
        runs = self.config["compare"]["groups"].get(name, [name])
        return [layer["channels"] for run in runs for layer in self.layers[run].values()]

    def _measured(self, layer: Mapping[str, Any]) -> int:
        """Channels of a layer whose receptive fields are measured."""
        return min(layer["channels"], self.config["receptive_fields"]["channels"] or math.inf)

    def _top_k(self, section: str) -> int:
        """Top units of a channel that a stage works on."""
        asked = (self.config[name]["top_k"] for name in (section, "receptive_fields"))
        return next(filter(None, asked), self.config["activations"]["top_k"])

    def _cost(
        self, run: str, gflop: float, rate: str, looks: float = 0.0, disk: float = 0.0
    ) -> Cost:
        """What a job of a run costs that starts a network and runs so many GFLOP of it, in `looks`
        of which each takes its time whatever its size."""
        speed = self.rates[f"{rate}_cpu"] * min(self.threads(run), self.cores)
        speed = self.rates[f"{rate}_gpu"] if self.gpus else speed
        each = self.rates.get(f"{rate}_look", 0.0)
        return Cost(self.rates["start_torch"] + gflop / speed + looks * each, disk)

    def _looks(
        self, run: str, layer: Mapping[str, Any], looks: float, rate: str, disk: float
    ) -> Cost:
        """What it costs to look so often at a unit of a layer, forwards and backwards."""
        work = looks * gflop_per_unit(layer, self._network(run)["input"]["crop"])
        return self._cost(run, work, rate, looks, disk)

    def _each_channel(self, script: str, name: str, layer: str | None) -> Cost:
        """What the register says of each channel; reading a few tables is next to nothing compared
        with the start of the job."""
        seconds, size = stages.BY_NAME[script].per_channel if script in stages.BY_NAME else (0, 0)
        layers = self.layers[name] if layer is None else [layer]
        count = sum(self.layers[name][each]["channels"] for each in layers)
        return Cost(count * seconds, count * size)

    def _figures(self, name: str) -> Cost:
        """Those of one topic."""
        layers = len(self._widths(name))
        return Cost(layers * self.rates["figures"], layers * 5e5)

    def _scenes(self, name: str) -> Cost:
        dataset = self.config["datasets"][name]
        pixels = dataset["count"] * dataset["size"] ** 2
        return Cost(pixels / 1e6 / self.rates["scenes"] / min(THREADS, self.cores), 2.5 * pixels)

    def _images(self, name: str) -> Cost:
        dataset, crop = re.fullmatch(r"(.+)_\w+?_(\d+)(?:_[a-z]+)?", name).groups()
        images = self.plan.images[dataset]
        each = self.rates["decode_file"] + images.mean_bytes / _MB / self.rates["decode_bytes"]
        size = images.count * (3.0 * int(crop) ** 2 + 100)
        return Cost(images.count * each / min(THREADS, self.cores), size)

    def _model(self, run: str) -> Cost:
        description = self._network(run)
        weights = self.config["models"][self.config["runs"][run]["model"]]["weights"]
        # Of random weights, batch norm is estimated anew on at most so many images.
        images = min(self._count(run), 1024) if weights.startswith("random:") else 0
        size = 4.0 * description["parameters"]
        return self._cost(run, images * description["gflops"], "forward", disk=size)

    def _activations(self, run: str) -> Cost:
        """A range of images."""
        images = min(self._count(run), self.config["activations"]["range_size"])
        size = self._activation_bytes(run, images)
        return self._cost(run, images * self._network(run)["gflops"], "forward", disk=size)

    def _activations_merge(self, run: str) -> Cost:
        size = self._activation_bytes(run, self._count(run))
        return Cost(size / _MB / self.rates["merge"], size)

    def _activation_bytes(self, run: str, images: int) -> float:
        """Bytes of the activations of so many images."""
        settings, layers = self.config["activations"], list(self.layers[run].values())
        lists = sum(x["channels"] * (2 if x["rectified"] else 4) for x in layers)
        maps = sum(2.0 * _units(x) for x in layers if x["name"] in settings["keep_maps"])
        classes = self._network(run)["n_classes"] or 0
        channels = sum(layer["channels"] for layer in layers)
        # Maxima and means of every image and channel, logits and features in 32 bits; class means
        # in 64.
        per_image = 8.0 * channels + 4.0 * classes + 4.0 * layers[-1]["channels"] + maps
        return 10.0 * settings["top_k"] * lists + images * per_image + 8.0 * classes * channels

    def _receptive_fields(self, run: str, layer: Mapping[str, Any]) -> Cost:
        channels = self._measured(layer)
        looks = float(channels * self._top_k("receptive_fields"))
        size = 15.0 * self.config["receptive_fields"]["keep"] + 4 * 3 * 8 + 4
        if entries.stage_on(self.config, "skip_residual", run):
            # A second backward pass after the forward and the backward one.
            looks += 0.5 * channels * self._top_k("skip_residual")
            size += 2 * 3 * 4 + 4
        size *= channels * self._side(run, layer) ** 2
        return self._looks(run, layer, looks, "fields", size)

    def _gratings(self, run: str, layer: Mapping[str, Any]) -> Cost:
        settings, channels = self.config["gratings"], layer["channels"]
        on = {part: entries.stage_on(self.config, part, run) for part in ("size", "contrast")}
        orientations, phases = settings["orientations"], settings["phases"]
        coarse_phases = _coarse(phases)
        # In very large fields there are one or two more frequencies; at worst every channel likes
        # another grating best.
        grid = orientations * settings["frequencies"]
        coarse = grid / 2 * coarse_phases
        apertures = 1 + _APERTURES * on["size"]
        own = settings["f1_phases"] + settings["diameters"] * coarse_phases * on["size"]
        own += (settings["contrasts"] + coarse_phases + 1) * coarse_phases * on["contrast"]
        stimuli = grid * phases + min(channels, grid) * own
        stimuli += coarse * (apertures - 1 + apertures * _LEVELS * on["contrast"])
        size = 4.0 * channels * grid * (phases * _sides(layer) + 1)
        return self._looks(run, layer, stimuli / 2, "forward", size)

    def _color(self, run: str, layer: Mapping[str, Any]) -> Cost:
        settings, channels = self.config["color"], layer["channels"]
        grid, phases = settings["orientations"] * settings["frequencies"], settings["phases"]
        # At worst every channel likes another grating best; top units share whole images.
        stimuli = _AXES * (grid + 1) * phases + 2 * settings["hues"] + 7
        stimuli += min(channels, grid) * settings["directions"] * _coarse(phases)
        # The opponent axes in several apertures, and the best of these gratings at several
        # contrasts; few layers are so saturated that all are shown again.
        everywhere = 3 * _COLOR_APERTURES * (grid + 1)
        stimuli += everywhere * phases
        stimuli += min(channels, everywhere) * (_CONTRASTS - 1) * _coarse(phases)
        units = channels * self._top_k("color")
        whole = self._side(run, layer) == self._network(run)["input"]["crop"]
        stimuli += min(units, self._count(run)) if whole else units
        # Answers to uniform fields are few.
        maps = entries.stage_on(self.config, "receptive_fields", run) * self._measured(layer)
        size = 4.0 * channels * _AXES * grid * (_sides(layer) * phases + 1)
        size += 4.0 * channels * _CONTRASTS
        size += 4.0 * maps * 3 * self._side(run, layer) ** 2
        return self._looks(run, layer, stimuli / 2, "forward", size)

    def _texture(self, run: str) -> Cost:
        channels = sum(layer["channels"] for layer in self.layers[run].values())
        work = _TEXTURES * self._network(run)["gflops"]
        return self._cost(run, work, "forward", disk=4.0 * _TEXTURES * channels)

    def _preferred_stimulus(self, run: str, layer: Mapping[str, Any]) -> Cost:
        settings = self.config["preferred_stimulus"]
        # Those towards the least preferred stimulus have no photograph to start from.
        gradients = entries.stage_on(self.config, "receptive_fields", run)
        ascents = 2 * settings["noise_starts"] + settings["patch_start"]
        ascents += 2 * (settings["gradient_start"] and gradients)
        sample = entries.stimulus_sample(self.config, self._network(run), layer["name"])
        channels = min(layer["channels"], sample or layer["channels"])
        size = 2 * 3 * 4.0 * channels * self._side(run, layer) ** 2
        return self._looks(run, layer, channels * ascents * settings["steps"], "stimuli", size)

    def _ablation(self, run: str, layer: Mapping[str, Any]) -> Cost:
        """A range of images."""
        settings, images = self.config["ablation"], self._ablated(run)
        if settings["precision"] is None:
            images = min(images, settings["range_size"])
        return self._behind(run, layer, images, self._sets(layer))

    def _ablation_estimates(self, run: str) -> Cost:
        """A range of images: a forward and two backward passes of each. The exact images are the
        first; each range bears its share of them."""
        images = min(self._count(run), self.config["activations"]["range_size"])
        exact = images * self._ablated(run) / self._count(run)
        sets = sum(self._sets(layer) for layer in self.layers[run].values())
        work = 3 * images * self._network(run)["gflops"]
        return self._cost(run, work, "forward", disk=sets * (8.0 * exact + 32))

    def _sets(self, layer: Mapping[str, Any]) -> int:
        """Channels of a layer, in each mode, that are replaced."""
        settings = self.config["ablation"]
        if settings["layers"] is not None and layer["name"] not in settings["layers"]:
            return 0
        channels = min(layer["channels"], settings["channels"] or layer["channels"])
        every = layer["name"] in settings["all_modes_layers"]
        return channels * (3 if every else len(settings["modes"]))

    def _ablation_groups(self, run: str, layer: Mapping[str, Any]) -> Cost:
        settings = self.config["ablation_groups"]
        curves = settings["cumulative"]
        orders = 2 * len(set(curves["orders"]) - {"random"})
        orders += curves["random"] * ("random" in curves["orders"])
        own = sum(layer["name"] in members for members in settings["groups"].values())
        groups = own + len(entries.PROPERTY_GROUPS)
        sets = len(settings["modes"]) * groups * (1 + settings["controls"])
        sets += len(curves["modes"]) * orders * min(curves["steps"], layer["channels"])
        return self._behind(run, layer, self._ablated(run), sets)

    def _ablated(self, run: str) -> int:
        """Images that channels are taken out on."""
        return min(self._count(run), self.config["ablation"]["images"] or self._count(run))

    def _behind(self, run: str, layer: Mapping[str, Any], images: int, sets: int) -> Cost:
        """What it costs to run the network once per image, and what lies behind a layer once per
        image and set of channels."""
        whole, classes = self._network(run)["gflops"], self._network(run)["n_classes"] or 0
        work = images * (whole + sets * (whole - layer["gflops"]))
        # A class, whether among five, a loss; the change of each class.
        size = sets * (7.0 * images + 4.0 * classes)
        return self._cost(run, work, "ablation", images * sets, size)

    def _compare(self, group: str) -> Cost:
        widths = self._widths(group)
        channels, pairs = sum(widths), len(widths) * (len(widths) + 1) / 2
        # The products of all channels, with the same image and with another, for every two groups
        # of `_TILE` channels; then decompositions for every two layers, which take the cube of
        # their widths.
        count = self._count(self.config["compare"]["groups"][group][0])
        gflop = 4e-9 * count * channels * (channels + _tile(widths)) / 2
        cubes = 1e-9 * sum(width**1.5 for width in widths) ** 2 / 2
        seconds = gflop / self.rates["compare"] + cubes / self.rates["compare_pair"]
        return Cost(seconds, 200.0 * (pairs + channels))


def check_disk(rows: Mapping[str, Cost], folder: Path) -> None:
    """Refuse jobs whose outputs do not fit on the disk of `folder`, by a RfatlasError with what is
    needed by stage, what is free, and the keys that make it less."""
    need, free = sum(row.disk for row in rows.values()), shutil.disk_usage(folder).free
    if need > free:
        largest = sorted(rows, key=lambda name: rows[name].disk, reverse=True)[:3]
        parts = ", ".join(f"{name} {_size(rows[name].disk)}" for name in largest)
        raise RfatlasError(
            f"the results need about {_size(need)} more ({parts}), but the disk of "
            f"{folder.resolve()} has {_size(free)} free. Free some, run elsewhere "
            "(--directory), or take fewer images (datasets.*.subset), fewer layers, an empty "
            "activations.keep_maps or a smaller receptive_fields.keep"
        )


@cache
def stage_of(script: str) -> str | None:
    """The stage of a script, whose name is that of the stage, perhaps with a step; else None."""
    names = sorted(stages.BY_NAME, key=len, reverse=True)
    return next((name for name in names if f"{script}_".startswith(f"{name}_")), None)


def gflop_per_unit(layer: Mapping[str, Any], crop: int) -> float:
    """GFLOP of the forward and backward pass behind one unit of a layer of the description.

    The pass runs on the unit's receptive field, about a stride wider than its size, or on the whole
    image of `crop` pixels where that is smaller.
    """
    side = min(crop, layer["size"] + layer["stride"]) if layer["rf_kind"] == "exact" else crop
    return 2 * (side / crop) ** 2 * layer["gflops"]


def _units(layer: Mapping[str, Any]) -> int:
    return layer["channels"] * layer["height"] * layer["width"]


def _sides(layer: Mapping[str, Any]) -> int:
    """How many answers of a unit are kept: before the layer's last ReLU, and behind one."""
    return 1 + layer["rectified"]


def _coarse(phases: int) -> int:
    """Phases in which gratings are shown of which only the mean over phases counts."""
    return phases // 2 if phases % 2 == 0 and phases >= 8 else phases


def _tile(widths: Sequence[int]) -> int:
    """Channels whose products the stage compare holds at a time."""
    return min(sum(widths), max(_TILE, *widths))


def _present(path: Path) -> float:
    """Bytes of a file or a folder that is there already (0 where there is nothing)."""
    files = path.rglob("*") if path.is_dir() else [path]
    return float(sum(file.stat().st_size for file in files if file.is_file()))


def _size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= 0.95 * scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
