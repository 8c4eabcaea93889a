"""What jobs cost, before they start: time, memory and disk.

Disk follows from the shapes of what is written. Time is work (from the model's GFLOP per image
and receptive fields, and the number and size of the images) over the measured rates in
`resources/rates.csv`; `tests/benchmarks/rates.py` measures them anew. The rates are those of one
machine, so the times are good to a factor of two or three, not more.

Nothing here imports torch.
"""

import csv
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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

#: Jobs that read tables and draw: a start, the rate of this name per layer, and bytes per layer.
#: The disk of a topic of figures is in that of all figures.
PER_LAYER = {
    "orientation": 30e3,
    "opponency": 60e3,
    "figures": 3.5e6,
    "figures_orientation": 0.0,
    "figures_color": 0.0,
    "figures_gabor": 0.0,
    "figures_ablation": 0.0,
    "figures_gratings": 0.0,
    "figures_preferred_stimulus": 0.0,
    "figures_virtual_filters": 0.0,
    "figures_compare": 40e3,
}

# Axes of the stage color's gratings.
_AXES = 6

# Channels that the stage compare takes at a time, `similarity.TILE`.
_TILE = 4096

_MB = 1e6


@dataclass(frozen=True)
class Cost:
    """Seconds that one job takes, and bytes that it writes."""

    seconds: float
    disk: float = 0.0


@dataclass
class Row:
    """Costs of all jobs of one kind: `seconds` on the clock if nothing else runs, megabytes of the
    largest job, and bytes of all outputs."""

    jobs: int = 0
    seconds: float = 0.0
    mem_mb: int = 0
    disk: float = 0.0


def read_rates(path: Path = RATES) -> dict[str, float]:
    """The measured rates by name (columns `rate`, `value`, `unit`, `source`)."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["rate"]: float(row["value"]) for row in csv.DictReader(file)}


class Budget:
    """Estimates for the jobs of a config.

    A job is known by the name of its script, what it works on (`name`: a run, a group of runs, a
    data set, or `<dataset>_<resize>_<crop>`) and, for stages of one layer at a time, its layer.

    Parameters
    ----------
    plan
        The config with its models described and its images counted.
    layers
        The names of the layers that each run analyses.
    cores
        Cores that Snakemake may use.
    gpus
        GPUs that the networks run on, a job on each; 0 where they run on the CPU.
    rates
        Measured rates; by default those of `resources/rates.csv`.
    """

    def __init__(
        self,
        plan: Plan,
        layers: Mapping[str, Sequence[str]],
        cores: int,
        gpus: int = 0,
        rates: Mapping[str, float] | None = None,
    ):
        self.plan = plan
        self.config = plan.config
        self.cores = cores
        self.gpus = gpus
        self.rates = dict(read_rates() if rates is None else rates)
        self.layers = {}
        for run, names in layers.items():
            known = {layer["name"]: layer for layer in self._description(run)["layers"]}
            self.layers[run] = {name: known[name] for name in names}

    # ---- what a job asks for

    def threads(self, run: str) -> int:
        """Threads of a job that runs the network of a run."""
        return 1 if self._description(run)["gflops"] < ONE_THREAD_GFLOP else THREADS

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
        try:
            return max(10, math.ceil(4 * self.cost(script, name, layer).seconds / 60))
        except KeyError:
            return 240

    def cost(self, script: str, name: str, layer: str | None = None) -> Cost:
        """What one job costs; KeyError for what no run asks for."""
        if script in PER_LAYER:
            runs = self.config["compare"]["groups"].get(name, [name])
            layers = sum(len(self.layers[run]) for run in runs)
            seconds = self.rates["start_plain"] + layers * self.rates[script]
            return Cost(seconds, layers * PER_LAYER[script])
        formula = getattr(self, f"_{script}", None)
        if formula is None:
            # Reading a few tables is next to nothing compared with the start of the job.
            return Cost(self.rates["start_plain"])
        if stages.BY_NAME[stage_of(script)].scope == "layer":
            return formula(name, self.layers[name][layer])
        return formula(name)

    # ---- what the user sees

    def rows(self, jobs: Iterable[Any]) -> dict[str, Row]:
        """The costs of Snakemake's jobs, summed up by script; other jobs are left out."""
        found: dict[str, Row] = {}
        for job in jobs:
            script = Path(job.rule.script or "").stem
            if stage_of(script) is None:
                continue
            name, layer = self._work(job.output)
            try:
                cost = self.cost(script, name, layer)
            except KeyError:
                cost = Cost(self.rates["start_plain"])
            row = found.setdefault(script, Row())
            row.jobs += 1
            slots = self.gpus if job.resources.get("gpu") else self.cores // job.threads
            row.seconds += cost.seconds / max(1, slots)
            row.mem_mb = max(row.mem_mb, int(job.resources.get("mem_mb", 0)))
            row.disk += max(0.0, cost.disk - sum(_present(Path(file)) for file in job.output))
        order = list(stages.BY_NAME)
        return dict(sorted(found.items(), key=lambda row: (order.index(stage_of(row[0])), row[0])))

    def _work(self, output: Sequence[str]) -> tuple[str, str | None]:
        """What a job works on, as the paths of its outputs tell: its name and its layer."""
        parts = Path(output[0]).with_suffix("").parts
        parts = parts[parts.index("results") + 1 :]
        name = parts[1] if parts[0] in ("scenes", "images", "compare") else parts[0]
        return name, next((part for part in parts if part in self.layers.get(name, ())), None)

    def table(self, rows: Mapping[str, Row]) -> str:
        """The costs of the jobs that will run as a table for the terminal."""
        total = Row(
            sum(row.jobs for row in rows.values()),
            sum(row.seconds for row in rows.values()),
            max((row.mem_mb for row in rows.values()), default=0),
            sum(row.disk for row in rows.values()),
        )
        body = [("stage", "jobs", "time", "memory/job", "disk")]
        for name, row in [*rows.items(), ("total", total)]:
            cells = (_time(row.seconds), _size(row.mem_mb * _MB), _size(row.disk))
            body.append((name, str(row.jobs), *cells))
        widths = [max(map(len, column)) for column in zip(*body, strict=True)]
        where = f"{self.gpus} GPUs" if self.gpus else "the CPU"
        lines = [
            f"rfatlas: estimates for the jobs that will run, networks on {where}, cores: "
            f"{self.cores} (resources/rates.csv)"
        ]
        for stage, *cells in body:
            right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  " + "  ".join([stage.ljust(widths[0]), *right]))
        return "\n".join(lines)

    # ---- the stages

    def _description(self, run: str) -> dict[str, Any]:
        return self.plan.descriptions[self.config["runs"][run]["model"]]

    def _crop(self, run: str) -> int:
        return self._description(run)["input"]["crop"]

    def _side(self, run: str, layer: Mapping[str, Any]) -> int:
        """Pixels of the side of what a unit of a layer sees of the image."""
        return min(layer["size"] or self._crop(run), self._crop(run))

    def _count(self, run: str) -> int:
        return self.plan.images[self.config["runs"][run]["dataset"]].count

    def _widths(self, group: str) -> list[int]:
        runs = self.config["compare"]["groups"][group]
        return [layer["channels"] for run in runs for layer in self.layers[run].values()]

    def _measured(self, layer: Mapping[str, Any]) -> int:
        """Channels of a layer whose receptive fields are measured."""
        return min(layer["channels"], self.config["receptive_fields"]["channels"] or math.inf)

    def _network_s(self, run: str, gflop: float, rate: str) -> float:
        """Seconds that a job of a run needs for so many GFLOP of network, and its start."""
        speed = self.rates[f"{rate}_cpu"] * min(self.threads(run), self.cores)
        return self.rates["start_torch"] + gflop / (
            self.rates[f"{rate}_gpu"] if self.gpus else speed
        )

    def _scenes(self, name: str) -> Cost:
        dataset = self.config["datasets"][name]
        pixels = dataset["count"] * dataset["size"] ** 2
        seconds = pixels / 1e6 / self.rates["scenes"] / min(THREADS, self.cores)
        return Cost(self.rates["start_plain"] + seconds, 2.5 * pixels)

    def _images(self, name: str) -> Cost:
        dataset, _, crop = name.rsplit("_", 2)
        images = self.plan.images[dataset]
        each = self.rates["decode_file"] + images.mean_bytes / _MB / self.rates["decode_bytes"]
        seconds = self.rates["start_plain"] + images.count * each / min(THREADS, self.cores)
        return Cost(seconds, images.count * (3.0 * int(crop) ** 2 + 100))

    def _model(self, run: str) -> Cost:
        description = self._description(run)
        weights = self.config["models"][self.config["runs"][run]["model"]]["weights"]
        # Of random weights, batch norm is estimated anew on at most so many images.
        images = min(self._count(run), 1024) if weights.startswith("random:") else 0
        seconds = self._network_s(run, images * description["gflops"], "forward")
        return Cost(seconds + self.rates["model"], 4.0 * description["parameters"])

    def _activations(self, run: str) -> Cost:
        """A range of images."""
        images = min(self._count(run), self.config["activations"]["range_size"])
        units = images * sum(map(_units, self.layers[run].values())) / 1e6
        seconds = self._network_s(run, images * self._description(run)["gflops"], "forward")
        seconds += units / (self.rates["summary_cpu"] * min(self.threads(run), self.cores))
        return Cost(seconds, self._activation_bytes(run, images))

    def _activations_merge(self, run: str) -> Cost:
        size = self._activation_bytes(run, self._count(run))
        return Cost(self.rates["start_plain"] + size / _MB / self.rates["merge"], size)

    def _activation_bytes(self, run: str, images: int) -> float:
        """Bytes of the activations of so many images."""
        settings, layers = self.config["activations"], self.layers[run].values()
        lists = sum(
            layer["channels"] * (2 if layer["rectified"] else 4) * 10.0 * settings["top_k"]
            for layer in layers
        )
        classes = self._description(run)["n_classes"] or 0
        channels = sum(layer["channels"] for layer in layers)
        kept = sum(2.0 * _units(x) for x in layers if x["name"] in settings["keep_maps"])
        # Maxima and means of every image and channel, logits and features in 32 bits; class means
        # in 64.
        features = [layer["channels"] for layer in layers][-1]
        per_image = 8.0 * channels + 4.0 * classes + 4.0 * features + kept
        return lists + images * per_image + 8.0 * classes * channels

    def _receptive_fields(self, run: str, layer: Mapping[str, Any]) -> Cost:
        settings, channels = self.config["receptive_fields"], self._measured(layer)
        units = channels * (settings["top_k"] or self.config["activations"]["top_k"])
        pixels = channels * self._side(run, layer) ** 2
        kept = pixels * settings["keep"] * 15.0
        return Cost(self._fields_s(run, layer, units, 1), kept + pixels * (4 * 3 * 8.0 + 4))

    def _skip_residual(self, run: str, layer: Mapping[str, Any]) -> Cost:
        fields, channels = self.config["receptive_fields"], self._measured(layer)
        top_k = self.config["skip_residual"]["top_k"] or fields["top_k"]
        units = channels * (top_k or self.config["activations"]["top_k"])
        pixels = channels * self._side(run, layer) ** 2
        # A second backward pass after the forward and the backward one.
        return Cost(self._fields_s(run, layer, units, 1.5), pixels * (2 * 3 * 4.0 + 4))

    def _fields_s(self, run: str, layer: Mapping[str, Any], units: int, passes: float) -> float:
        work = passes * units * gflop_per_unit(layer, self._crop(run))
        each = 0.0 if self.gpus else self.rates["fields_unit"]
        return self._network_s(run, work, "fields") + units * each

    def _virtual_filters(self, run: str) -> Cost:
        read = written = 0.0
        for layer in self.layers[run].values():
            read += self._measured(layer) * 3 * 8.0 * self._side(run, layer) ** 2
            # Kernels of 7 pixels and a window of 11 after pooling; weights of 64 kernels.
            written += 4.0 * layer["channels"] * (3 * 7**2 + 3 * 11**2 + 64)
        seconds = self.rates["start_torch"] + read / _MB / self.rates["virtual_filters"]
        return Cost(seconds, written)

    def _gabor(self, run: str, layer: Mapping[str, Any]) -> Cost:
        # The mean gradient and its luminance of each channel that has one; perhaps virtual filters
        # of all; the kernels are few.
        gradients = 2 * self._measured(layer)
        virtual = entries.stage_on(self.config, "virtual_filters", run)
        fields = gradients + virtual * layer["channels"]
        pixels = gradients * self._side(run, layer) ** 2 / 1e6 / self.rates["gabor_pixels"]
        seconds = self.rates["start_plain"] + fields * self.rates["gabor_field"] + pixels
        return Cost(seconds, 250.0 * fields)

    def _gratings(self, run: str, layer: Mapping[str, Any]) -> Cost:
        settings, channels = self.config["gratings"], layer["channels"]
        # In very large fields there are one or two more frequencies; at worst every channel likes
        # another grating best.
        grid = settings["orientations"] * settings["frequencies"]
        stimuli = grid * settings["phases"] + min(channels, grid) * settings["f1_phases"]
        seconds = self._shown_s(run, layer, stimuli, channels * grid)
        # Before and behind the layer's last ReLU.
        return Cost(seconds, 4.0 * channels * grid * settings["phases"] * (1 + layer["rectified"]))

    def _color(self, run: str, layer: Mapping[str, Any]) -> Cost:
        settings, fields = self.config["color"], self.config["receptive_fields"]
        units = settings["top_k"] or fields["top_k"] or self.config["activations"]["top_k"]
        grid, phases = settings["orientations"] * settings["frequencies"], settings["phases"]
        gratings, uniform = _AXES * (grid + 1) * phases, 2 * settings["hues"] + 7
        channels, side = layer["channels"], self._side(run, layer)
        # At worst every channel likes another grating best; top units share whole images.
        best = min(channels, grid) * settings["directions"] * phases
        whole = side == self._crop(run)
        grey = min(channels * units, self._count(run)) if whole else channels * units
        sides = 1 + layer["rectified"]
        stimuli, indices = gratings + uniform + best + grey, channels * _AXES * grid * sides
        # Before and behind the layer's last ReLU; the mean responses; maps along three axes.
        kept = sides * _AXES * grid * phases + _AXES * grid + 2 * (uniform + _AXES * phases)
        maps = entries.stage_on(self.config, "receptive_fields", run)
        size = 4.0 * channels * kept + 4.0 * maps * self._measured(layer) * 3 * side**2
        # Its library of colour conversions takes as long to import as torch.
        return Cost(self.rates["start_torch"] + self._shown_s(run, layer, stimuli, indices), size)

    def _shown_s(self, run: str, layer: Mapping[str, Any], stimuli: int, indices: int) -> float:
        """Seconds to show stimuli to the units of a layer, and to describe so many responses."""
        work = stimuli * gflop_per_unit(layer, self._crop(run)) / 2
        return self._network_s(run, work, "forward") + indices * self.rates["gratings_index"]

    def _preferred_stimulus(self, run: str, layer: Mapping[str, Any]) -> Cost:
        settings, description = self.config["preferred_stimulus"], self._description(run)
        # Those towards the least preferred stimulus have no photograph to start from.
        ascents = 2 * settings["noise_starts"] + settings["patch_start"]
        gradients = entries.stage_on(self.config, "receptive_fields", run)
        ascents += 2 * (settings["gradient_start"] and gradients)
        sample = entries.stimulus_sample(self.config, description, layer["name"])
        channels = min(layer["channels"], sample or layer["channels"])
        images = channels * ascents * settings["steps"]
        work = images * gflop_per_unit(layer, self._crop(run))
        each = 0.0 if self.gpus else self.rates["stimuli_image"]
        seconds = self._network_s(run, work, "stimuli") + images * each
        return Cost(seconds, 2 * 3 * 4.0 * channels * self._side(run, layer) ** 2)

    def _ablated(self, run: str) -> int:
        """Images that channels are taken out on."""
        return min(self._count(run), self.config["ablation"]["images"] or self._count(run))

    def _ablation(self, run: str, layer: Mapping[str, Any]) -> Cost:
        """A range of images."""
        settings, description = self.config["ablation"], self._description(run)
        images = self._ablated(run)
        if settings["precision"] is None:
            images = min(images, settings["range_size"])
        # One look at each image, and what lies behind the layer once per channel and mode.
        pairs = self._pairs(layer)
        gflop = description["gflops"] + pairs * (description["gflops"] - layer["gflops"])
        seconds = self._network_s(run, images * gflop, "ablation")
        seconds += images * pairs * self.rates["ablation_pair"]
        return Cost(seconds, self._ablation_bytes(run, layer, images))

    def _ablation_gather(self, run: str, layer: Mapping[str, Any]) -> Cost:
        size = self._ablation_bytes(run, layer, self._ablated(run))
        return Cost(self.rates["start_plain"], size)

    def _pairs(self, layer: Mapping[str, Any]) -> int:
        """Channels of a layer that are taken out, times the modes."""
        settings = self.config["ablation"]
        every = layer["name"] in settings["all_modes_layers"]
        channels = min(layer["channels"], settings["channels"] or layer["channels"])
        return channels * (3 if every else len(settings["modes"]))

    def _ablation_bytes(self, run: str, layer: Mapping[str, Any], images: int) -> float:
        # A class, whether among five, a loss; the change of each class.
        classes = self._description(run)["n_classes"] or 0
        return self._pairs(layer) * (7.0 * images + 4.0 * classes)

    def _ablation_groups(self, run: str, layer: Mapping[str, Any]) -> Cost:
        settings, images = self.config["ablation_groups"], self._ablated(run)
        curves, name = settings["cumulative"], layer["name"]
        orders = 2 * len(set(curves["orders"]) - {"random"})
        orders += curves["random"] * ("random" in curves["orders"])
        groups = sum(name in members for members in settings["groups"].values())
        groups += len(entries.PROPERTY_GROUPS)
        # Filters can be set to 0 where the first convolution alone feeds the layer: conv1 and
        # maxpool of a ResNet.
        filters = name in list(self.layers[run])[:2]
        modes = [mode for mode in settings["modes"] if mode != "weight" or filters]
        sets = len(modes) * groups * (1 + settings["controls"])
        sets += len(curves["modes"]) * orders * min(curves["steps"], layer["channels"])
        behind = self._description(run)["gflops"] - layer["gflops"]
        seconds = self._network_s(run, sets * images * behind, "ablation")
        return Cost(seconds + sets * images * self.rates["ablation_pair"], 7.0 * sets * images)

    def _channels(self, run: str) -> Cost:
        rows = sum(layer["channels"] for layer in self.layers[run].values())
        return Cost(self.rates["start_plain"] + rows * self.rates["channels"], 600.0 * rows)

    def _compare(self, group: str) -> Cost:
        widths = self._widths(group)
        channels, pairs = sum(widths), len(widths) * (len(widths) + 1) / 2
        # The products of all channels, with the same image and with another, for every two groups
        # of `_TILE` channels; then decompositions for every two layers, which take the cube of
        # their widths.
        count = self._count(self.config["compare"]["groups"][group][0])
        gflop = 4e-9 * count * channels * (channels + _tile(widths)) / 2
        cubes = sum(width**1.5 for width in widths) ** 2 / 2
        seconds = self.rates["start_plain"] + gflop / self.rates["compare"]
        seconds += 1e-9 * cubes / self.rates["compare_pair"]
        return Cost(seconds, 200.0 * (pairs + channels))

    def _atlas(self, run: str) -> Cost:
        channels = sum(layer["channels"] for layer in self.layers[run].values())
        # The columns; thumbnails, pictures and curves of each channel.
        seconds = self.rates["start_plain"] + channels * self.rates["atlas"]
        return Cost(seconds, 5e6 + 25e3 * channels)


def check_disk(rows: Mapping[str, Row], folder: Path) -> None:
    """Refuse jobs whose outputs do not fit on the disk of `folder`.

    Raises
    ------
    RfatlasError
        With what is needed by stage, what is free, and the keys that make it less.
    """
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
    side = min(crop, (layer["size"] or crop) + (layer["stride"] or 0))
    return 2 * (side / crop) ** 2 * layer["gflops"]


def _units(layer: Mapping[str, Any]) -> int:
    return layer["channels"] * layer["height"] * layer["width"]


def _tile(widths: Sequence[int]) -> int:
    """Channels whose products the stage compare holds at a time."""
    return min(sum(widths), max(_TILE, *widths))


def _present(path: Path) -> float:
    """Bytes of a file or a folder that is there already (0 where there is nothing)."""
    if path.is_dir():
        return float(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
    return float(path.stat().st_size) if path.is_file() else 0.0


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= 0.95 * scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
