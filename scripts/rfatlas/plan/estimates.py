"""What a run will cost, before it starts: time, memory and disk of each stage.

Disk follows from the shapes of what is written. Time is work (from the model's GFLOP per image
and receptive fields, and the number and size of the images) over the measured rates in
`resources/rates.csv`; `tests/benchmarks/rates.py` measures them anew. The rates are those of one
machine, so the times are good to a factor of two or three, not more.

Nothing here imports torch.
"""

import csv
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rfatlas.errors import RfatlasError
from rfatlas.plan import config as rfatlas_config
from rfatlas.plan.preflight import Plan, no_ablation

RATES = rfatlas_config.ROOT / "resources" / "rates.csv"

#: Threads of a job that runs a network, and of a job that packs images.
THREADS = 4

#: Megabytes that a job of a stage needs at most, whatever it works on. Receptive fields choose
#: their batches so as to stay below; what activations need depends on the network.
MEMORY_MB = {
    "scenes": 1000,
    "images": 2000,
    "model": 3000,
    "activations_merge": 1000,
    "receptive_fields": 3000,
    "virtual_filters": 3000,
    "skip_residual": 3000,
    "gabor": 1500,
    "gratings": 3000,
    "color": 3000,
    "preferred_stimulus": 3000,
    "ablation": 4000,
    "channels": 1000,
    "ablation_groups": 3000,
    "ablation_groups_tables": 3000,
    "orientation": 1000,
    "opponency": 1000,
    "findings": 1000,
    "figures": 2000,
    "figures_orientation": 1000,
    "figures_color": 1500,
    "figures_gabor": 1000,
    "figures_ablation": 1000,
    "figures_gratings": 1000,
    "figures_preferred_stimulus": 1000,
    "figures_virtual_filters": 1000,
    "figures_compare": 1000,
    "atlas": 1500,
}

#: What is done for every run, in the order of the work; each stage has a method of its name.
RUN_STAGES = (
    "model",
    "activations",
    "activations_merge",
    "receptive_fields",
    "virtual_filters",
    "skip_residual",
    "gabor",
    "gratings",
    "color",
    "preferred_stimulus",
    "ablation",
    "channels",
    "orientation",
    "opponency",
    "ablation_groups",
    "findings",
    "figures",
    "figures_orientation",
    "figures_color",
    "figures_gabor",
    "figures_gratings",
    "figures_preferred_stimulus",
    "figures_virtual_filters",
    "atlas",
    "figures_ablation",
)

# Axes of the stage color's gratings.
_AXES = 6

# Channels that the stage compare takes at a time, `similarity.TILE`.
_TILE = 4096

_MB = 1e6


@dataclass(frozen=True)
class Row:
    """Cost of one stage for one run (or data set).

    `jobs` jobs of `seconds` each, of which `parallel` run at a time; `mem_mb` megabytes per job;
    `files` maps each output to its bytes.
    """

    stage: str
    name: str
    jobs: int
    seconds: float
    parallel: int
    mem_mb: int
    files: dict[str, float]

    @property
    def wall_s(self) -> float:
        """Seconds on the clock when nothing else runs."""
        return math.ceil(self.jobs / self.parallel) * self.seconds

    @property
    def disk(self) -> float:
        """Bytes of all outputs."""
        return sum(self.files.values())


def read_rates(path: Path = RATES) -> dict[str, float]:
    """The measured rates by name (columns `rate`, `value`, `unit`, `source`)."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["rate"]: float(row["value"]) for row in csv.DictReader(file)}


class Budget:
    """Estimates for all runs of a config.

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
        self.threads = max(1, min(THREADS, cores))
        self.gpus = gpus
        self.rates = dict(read_rates() if rates is None else rates)
        self.layers = {}
        for run, names in layers.items():
            known = {layer["name"]: layer for layer in self._description(run)["layers"]}
            self.layers[run] = [known[name] for name in names]

    # ---- what a job asks for

    def mem_mb(self, stage: str, run: str | None = None) -> int:
        """Megabytes that one job of `stage` needs at most; activations need to know the run."""
        return MEMORY_MB[stage] if stage in MEMORY_MB else self._row(stage, run).mem_mb

    def minutes(self, stage: str, name: str) -> int:
        """Minutes to grant one job of `stage` for a run, a data set or `<dataset>_<resize>_<crop>`.

        Four times the estimate, at least ten minutes; four hours for what no run asks for.
        """
        row = self._row(stage, name)
        return 240 if row is None else max(10, math.ceil(4 * row.seconds / 60))

    # ---- what the user sees

    @cached_property
    def rows(self) -> list[Row]:
        """One row per stage and run (or data set), in the order of the work."""
        rows = []
        datasets = rfatlas_config.used(self.config, "dataset")
        rows += [self._scenes(d) for d in datasets if self._dataset(d)["source"] == "scenes"]
        packed = {}
        for run in self.layers:
            packed.setdefault(self._packed(run), run)
        rows += [self._images(run) for run in packed.values()]
        for run in self.layers:
            rows += [
                getattr(self, f"_{stage}")(run)
                for stage in RUN_STAGES
                if rfatlas_config.stage_on(self.config, stage, run)
            ]
        for group in self.config["compare"]["groups"]:
            rows.append(self._compare(group))
            if rfatlas_config.stage_on(self.config, "figures"):
                rows.append(self._figures_compare(group))
        # A stage may leave a run out.
        return [row for row in rows if row is not None]

    def table(self) -> str:
        """The estimates as a table for the terminal."""
        head = ("stage", "run or data set", "jobs", "time", "memory/job", "disk")
        body = [
            (
                row.stage,
                row.name,
                str(row.jobs),
                _time(row.wall_s),
                _size(row.mem_mb * _MB),
                _size(row.disk),
            )
            for row in self.rows
        ]
        total = ("total", "", str(sum(row.jobs for row in self.rows)))
        total += (_time(sum(row.wall_s for row in self.rows)), "")
        total += (_size(sum(row.disk for row in self.rows)),)
        widths = [max(map(len, column)) for column in zip(head, *body, total, strict=True)]
        where = "a GPU" if self.gpus else "the CPU"
        lines = [
            f"rfatlas: estimates for everything from nothing, networks on {where}, "
            f"{self.cores} cores (resources/rates.csv)"
        ]
        for line in (head, *body, total):
            cells = [
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append("  " + "  ".join(cells).rstrip())
        return "\n".join(lines)

    def check_disk(self, folder: Path) -> None:
        """Refuse a run whose missing outputs do not fit on the disk of `folder`.

        Raises
        ------
        RfatlasError
            With what is needed by stage, what is free, and the keys that make it less.
        """
        missing = {}
        for row in self.rows:
            need = sum(max(0.0, size - _present(folder / file)) for file, size in row.files.items())
            missing[row.stage] = missing.get(row.stage, 0.0) + need
        need, free = sum(missing.values()), shutil.disk_usage(folder).free
        if need > free:
            largest = sorted(missing, key=missing.get, reverse=True)[:3]
            parts = ", ".join(f"{stage} {_size(missing[stage])}" for stage in largest)
            raise RfatlasError(
                f"the results need about {_size(need)} more ({parts}), but the disk of "
                f"{folder.resolve()} has {_size(free)} free. Free some, run elsewhere "
                "(--directory), or take fewer images (datasets.*.subset), fewer layers, an empty "
                "activations.keep_maps or a smaller receptive_fields.keep"
            )

    # ---- the stages

    def _row(self, stage: str, name: str | None) -> Row | None:
        return self._rows.get((stage, name))

    @cached_property
    def _rows(self) -> dict[tuple[str, str], Row]:
        # Thousands of jobs ask.
        return {(row.stage, row.name): row for row in self.rows}

    def _dataset(self, name: str) -> dict[str, Any]:
        return self.config["datasets"][name]

    def _description(self, run: str) -> dict[str, Any]:
        return self.plan.descriptions[self.config["runs"][run]["model"]]

    def _count(self, run: str) -> int:
        return self.plan.images[self.config["runs"][run]["dataset"]].count

    def _packed(self, run: str) -> str:
        size = self._description(run)["input"]
        dataset = self.config["runs"][run]["dataset"]
        return f"results/images/{dataset}_{size['resize']}_{size['crop']}.h5"

    def _network_s(self, gflop: float, rate: str) -> float:
        """Seconds that one job needs for so many GFLOP of network."""
        if self.gpus:
            return gflop / self.rates[f"{rate}_gpu"]
        return gflop / (self.rates[f"{rate}_cpu"] * self.threads)

    @property
    def _parallel(self) -> int:
        return self.gpus or max(1, self.cores // self.threads)

    def _scenes(self, name: str) -> Row:
        dataset = self._dataset(name)
        pixels = dataset["count"] * dataset["size"] ** 2
        seconds = self.rates["start_plain"] + pixels / 1e6 / self.rates["scenes"] / self.threads
        files = {f"results/scenes/{name}": 2.5 * pixels}
        return Row("scenes", name, 1, seconds, 1, self.mem_mb("scenes"), files)

    def _images(self, run: str) -> Row:
        images = self.plan.images[self.config["runs"][run]["dataset"]]
        crop = self._description(run)["input"]["crop"]
        each = self.rates["decode_file"] + images.mean_bytes / _MB / self.rates["decode_bytes"]
        seconds = self.rates["start_plain"] + images.count * each / self.threads
        size = images.count * (3.0 * crop**2 + 100)
        packed = self._packed(run)
        name = Path(packed).stem
        return Row("images", name, 1, seconds, 1, self.mem_mb("images"), {packed: size})

    def _model(self, run: str) -> Row:
        description = self._description(run)
        weights = self.config["models"][self.config["runs"][run]["model"]]["weights"]
        seconds = self.rates["start_torch"] + self.rates["model"]
        if weights.startswith("random:"):
            # Batch norm is estimated anew on at most so many images.
            images = min(self._count(run), 1024)
            seconds += self._network_s(images * description["gflops"], "forward")
        bytes_ = 4.0 * description["parameters"]
        files = {f"results/{run}/model.safetensors": bytes_}
        return Row("model", run, 1, seconds, 1, self.mem_mb("model"), files)

    def _activations(self, run: str) -> Row:
        description, count = self._description(run), self._count(run)
        settings = self.config["activations"]
        jobs = math.ceil(count / settings["range_size"])
        images = min(count, settings["range_size"])
        units = sum(_units(layer) for layer in self.layers[run])
        seconds = self.rates["start_torch"] + self._network_s(
            images * description["gflops"], "forward"
        )
        seconds += images * units / 1e6 / (self.rates["summary_cpu"] * self.threads)
        channels = sum(layer["channels"] for layer in self.layers[run])
        lists = sum(
            layer["channels"] * (2 if layer["rectified"] else 4) * 10.0 * settings["top_k"]
            for layer in self.layers[run]
        )
        classes = description["n_classes"] or 0
        kept = sum(
            2.0 * _units(layer) * count
            for layer in self.layers[run]
            if layer["name"] in settings["keep_maps"]
        )
        # Maxima and means of every image and channel, logits and features in 32 bits; class means
        # in 64.
        per_image = 8.0 * channels + 4.0 * classes + 4.0 * self.layers[run][-1]["channels"]
        total = lists + count * per_image + 8.0 * classes * channels + kept
        # Ranges stay beside the merged file until the merge is done.
        files = {
            f"results/{run}/activations.h5": total,
            f"results/{run}/activations": total + (jobs - 1) * lists,
        }
        # Live at once: the process itself, one batch of the layers that are summarised, and the
        # network's other tensors of that size.
        mem = 1200 + settings["batch_size"] * 4 * units * 2.5 / _MB
        return Row("activations", run, jobs, seconds, self._parallel, round(mem), files)

    def _activations_merge(self, run: str) -> Row:
        # What is written is what was read; its disk is in that of the activations.
        size = self._activations(run).files[f"results/{run}/activations.h5"]
        seconds = self.rates["start_plain"] + size / _MB / self.rates["merge"]
        return Row("activations_merge", run, 1, seconds, 1, self.mem_mb("activations_merge"), {})

    def _receptive_fields(self, run: str) -> Row:
        settings, crop = self.config["receptive_fields"], self._description(run)["input"]["crop"]
        units_per_channel = settings["top_k"] or self.config["activations"]["top_k"]
        seconds, files = [], {}
        for layer in self.layers[run]:
            channels = min(layer["channels"], settings["channels"] or layer["channels"])
            size = min(layer["size"] or crop, crop)
            units = channels * units_per_channel
            seconds.append(self._network_s(units * gflop_per_unit(layer, crop), "fields"))
            seconds[-1] += units * (0.0 if self.gpus else self.rates["fields_unit"])
            kept = channels * settings["keep"] * 15.0 * size**2
            means = channels * size**2 * (4 * 3 * 8.0 + 4)
            files[f"results/{run}/receptive_fields/{layer['name']}.h5"] = kept + means
        jobs = len(seconds)
        each = self.rates["start_torch"] + sum(seconds) / jobs
        mem = self.mem_mb("receptive_fields")
        return Row("receptive_fields", run, jobs, each, self._parallel, mem, files)

    def _virtual_filters(self, run: str) -> Row:
        settings, crop = self.config["receptive_fields"], self._description(run)["input"]["crop"]
        read = written = 0.0
        for layer in self.layers[run]:
            compared = min(layer["channels"], settings["channels"] or layer["channels"])
            read += compared * 3 * 8.0 * min(layer["size"] or crop, crop) ** 2
            # Kernels of 7 pixels and a window of 11 after pooling; weights of 64 kernels.
            written += 4.0 * layer["channels"] * (3 * 7**2 + 3 * 11**2 + 64)
        seconds = self.rates["start_torch"] + read / _MB / self.rates["virtual_filters"]
        files = {f"results/{run}/virtual_filters.h5": written}
        mem = self.mem_mb("virtual_filters")
        return Row("virtual_filters", run, 1, seconds, 1, mem, files)

    def _skip_residual(self, run: str) -> Row:
        settings, crop = self.config["receptive_fields"], self._description(run)["input"]["crop"]
        units_per_channel = self.config["skip_residual"]["top_k"] or settings["top_k"]
        units_per_channel = units_per_channel or self.config["activations"]["top_k"]
        seconds, files = [], {}
        for layer in self.layers[run]:
            channels = min(layer["channels"], settings["channels"] or layer["channels"])
            units = channels * units_per_channel
            # A second backward pass beside the forward and the backward one.
            gflop = 1.5 * gflop_per_unit(layer, crop)
            seconds.append(self._network_s(units * gflop, "fields"))
            seconds[-1] += units * (0.0 if self.gpus else self.rates["fields_unit"])
            size = min(layer["size"] or crop, crop)
            file = f"results/{run}/skip_residual/{layer['name']}.h5"
            files[file] = channels * size**2 * (2 * 3 * 4.0 + 4)
        jobs = len(seconds)
        each = self.rates["start_torch"] + sum(seconds) / jobs
        mem = self.mem_mb("skip_residual")
        return Row("skip_residual", run, jobs, each, self._parallel, mem, files)

    def _gabor(self, run: str) -> Row:
        crop = self._description(run)["input"]["crop"]
        limit = self.config["receptive_fields"]["channels"]
        seconds, files = [], {}
        for layer in self.layers[run]:
            size = min(layer["size"] or crop, crop)
            # The mean gradient and its luminance of each channel that has one; perhaps virtual
            # filters of all; the kernels are few.
            gradients = 2 * min(layer["channels"], limit or layer["channels"])
            fields = gradients + self.config["stages"]["virtual_filters"] * layer["channels"]
            pixels = gradients * size**2 / 1e6 / self.rates["gabor_pixels"]
            seconds.append(fields * self.rates["gabor_field"] + pixels)
            files[f"results/{run}/gabor/{layer['name']}.h5"] = 250.0 * fields
        jobs = len(seconds)
        each = self.rates["start_plain"] + sum(seconds) / jobs
        return Row("gabor", run, jobs, each, self.cores, self.mem_mb("gabor"), files)

    def _gratings(self, run: str) -> Row:
        settings, crop = self.config["gratings"], self._description(run)["input"]["crop"]
        # In very large fields there are one or two more frequencies.
        grid = settings["orientations"] * settings["frequencies"]
        seconds, files = [], {}
        for layer in self.layers[run]:
            channels = layer["channels"]
            # At worst every channel likes another grating best.
            best = min(channels, grid) * settings["f1_phases"]
            stimuli = grid * settings["phases"] + best
            work = self._network_s(stimuli * gflop_per_unit(layer, crop) / 2, "forward")
            seconds.append(work + channels * grid * self.rates["gratings_index"])
            # Before and behind the layer's last ReLU.
            size = 4.0 * channels * grid * settings["phases"] * (1 + layer["rectified"])
            files[f"results/{run}/gratings/{layer['name']}.h5"] = size
        jobs = len(seconds)
        each = self.rates["start_torch"] + sum(seconds) / jobs
        mem = self.mem_mb("gratings")
        return Row("gratings", run, jobs, each, self._parallel, mem, files)

    def _color(self, run: str) -> Row:
        settings, fields = self.config["color"], self.config["receptive_fields"]
        crop, images = self._description(run)["input"]["crop"], self._count(run)
        units = settings["top_k"] or fields["top_k"] or self.config["activations"]["top_k"]
        grid, phases = settings["orientations"] * settings["frequencies"], settings["phases"]
        gratings, uniform = _AXES * (grid + 1) * phases, 2 * settings["hues"] + 7
        seconds, files = [], {}
        for layer in self.layers[run]:
            channels, size = layer["channels"], min(layer["size"] or crop, crop)
            # At worst every channel likes another grating best; top units share whole images.
            best = min(channels, grid) * settings["directions"] * phases
            grey = channels * units if size < crop else min(channels * units, images)
            stimuli = gratings + uniform + best + grey
            work = self._network_s(stimuli * gflop_per_unit(layer, crop) / 2, "forward")
            work += (
                channels * _AXES * grid * (1 + layer["rectified"]) * self.rates["gratings_index"]
            )
            seconds.append(work)
            # Before and behind the layer's last ReLU; the mean responses; maps along three axes.
            kept = (1 + layer["rectified"]) * _AXES * grid * phases + _AXES * grid
            kept += 2 * (uniform + _AXES * phases)
            total = 4.0 * channels * kept
            if self.config["stages"]["receptive_fields"]:
                total += 4.0 * min(channels, fields["channels"] or channels) * 3 * size**2
            files[f"results/{run}/color/{layer['name']}.h5"] = total
        jobs = len(seconds)
        # Its library of colour conversions takes as long to import as torch.
        each = 2 * self.rates["start_torch"] + sum(seconds) / jobs
        return Row("color", run, jobs, each, self._parallel, self.mem_mb("color"), files)

    def _preferred_stimulus(self, run: str) -> Row:
        settings, description = self.config["preferred_stimulus"], self._description(run)
        crop = description["input"]["crop"]
        # Those towards the least preferred stimulus have no photograph to start from.
        ascents = 2 * settings["noise_starts"] + settings["patch_start"]
        if settings["gradient_start"] and self.config["stages"]["receptive_fields"]:
            ascents += 2
        seconds, files = [], {}
        for layer in self.layers[run]:
            sample = rfatlas_config.stimulus_sample(self.config, description, layer["name"])
            channels = min(layer["channels"], sample or layer["channels"])
            images = channels * ascents * settings["steps"]
            size = min(layer["size"] or crop, crop)
            seconds.append(self._network_s(images * gflop_per_unit(layer, crop), "stimuli"))
            seconds[-1] += images * (0.0 if self.gpus else self.rates["stimuli_image"])
            pictures = 2 * 3 * 4.0 * channels * size**2
            files[f"results/{run}/preferred_stimulus/{layer['name']}.h5"] = pictures
        jobs = len(seconds)
        each = self.rates["start_torch"] + sum(seconds) / jobs
        mem = self.mem_mb("preferred_stimulus")
        return Row("preferred_stimulus", run, jobs, each, self._parallel, mem, files)

    def _ablation(self, run: str) -> Row | None:
        if no_ablation(self.plan, run):
            return None
        settings, description = self.config["ablation"], self._description(run)
        images = min(self._count(run), settings["images"] or self._count(run))
        one_range = settings["precision"] is not None
        size = images if one_range else min(images, settings["range_size"])
        layers = [
            layer
            for layer in self.layers[run]
            if layer["name"] in (settings["layers"] or [layer["name"]])
        ]
        # One look at each image, and what lies behind a layer once per channel and mode.
        gflop, pairs, files = description["gflops"], 0, {}
        for layer in layers:
            every = layer["name"] in settings["all_modes_layers"]
            modes = 3 if every else len(settings["modes"])
            channels = min(layer["channels"], settings["channels"] or layer["channels"])
            gflop += channels * modes * (description["gflops"] - layer["gflops"])
            pairs += channels * modes
            # A class, whether among five, a loss; the change of each class.
            bytes_ = channels * modes * (7.0 * images + 4.0 * description["n_classes"])
            files[f"results/{run}/ablation/{layer['name']}.h5"] = bytes_
        groups = len(layers)
        ranges = math.ceil(images / size)
        work = self._network_s(size * gflop / groups, "ablation")
        work += size * pairs / groups * self.rates["ablation_pair"]
        each = self.rates["start_torch"] + work
        mem = self.mem_mb("ablation")
        return Row("ablation", run, groups * ranges, each, self._parallel, mem, files)

    def _channels(self, run: str) -> Row:
        rows = sum(layer["channels"] for layer in self.layers[run])
        seconds = self.rates["start_plain"] + rows * self.rates["channels"]
        files = {f"results/{run}/channels.csv": 600.0 * rows}
        return Row("channels", run, 1, seconds, 1, self.mem_mb("channels"), files)

    def _orientation(self, run: str) -> Row:
        # Counting is next to nothing beside the start of the job.
        rows = len(self.layers[run])
        seconds = self.rates["start_plain"] + rows * self.rates["orientation"]
        files = {f"results/{run}/orientation": 30e3 * rows}
        return Row("orientation", run, 1, seconds, 1, self.mem_mb("orientation"), files)

    def _opponency(self, run: str) -> Row:
        rows = len(self.layers[run])
        seconds = self.rates["start_plain"] + rows * self.rates["opponency"]
        # A row per layer for each class at each threshold.
        files = {f"results/{run}/opponency": 60e3 * rows}
        return Row("opponency", run, 1, seconds, 1, self.mem_mb("opponency"), files)

    def _ablation_groups(self, run: str) -> Row | None:
        if no_ablation(self.plan, run):
            return None
        settings, description = self.config["ablation_groups"], self._description(run)
        images = min(self._count(run), self.config["ablation"]["images"] or self._count(run))
        asked = [self.config["ablation"]["layers"], settings["layers"]]
        layers = [
            layer
            for layer in self.layers[run]
            if all(names is None or layer["name"] in names for names in asked)
        ]
        curves = settings["cumulative"]
        orders = 2 * len(set(curves["orders"]) - {"random"})
        orders += curves["random"] * ("random" in curves["orders"])
        seconds, files = [], {}
        first = [layer["name"] for layer in self.layers[run][:2]]
        for layer in layers:
            own = sum(layer["name"] in members for members in settings["groups"].values())
            groups = own + len(rfatlas_config.PROPERTY_GROUPS)
            # Filters can be set to 0 where the first convolution alone feeds the layer: conv1 and
            # maxpool of a ResNet.
            filters = layer["name"] in first
            modes = [mode for mode in settings["modes"] if mode != "weight" or filters]
            sets = len(modes) * groups * (1 + settings["controls"])
            sets += len(curves["modes"]) * orders * min(curves["steps"], layer["channels"])
            behind = description["gflops"] - layer["gflops"]
            seconds.append(self._network_s(sets * images * behind, "ablation"))
            seconds[-1] += sets * images * self.rates["ablation_pair"]
            files[f"results/{run}/ablation_groups/{layer['name']}.h5"] = 7.0 * sets * images
        jobs = max(1, len(seconds))
        each = self.rates["start_torch"] + sum(seconds) / jobs
        mem = self.mem_mb("ablation_groups")
        return Row("ablation_groups", run, jobs, each, self._parallel, mem, files)

    def _findings(self, run: str) -> Row:
        # Reading a few tables is next to nothing beside the start of the job.
        files = {f"results/{run}/findings": 20e3 * len(self.layers[run])}
        seconds = self.rates["start_plain"]
        return Row("findings", run, 1, seconds, 1, self.mem_mb("findings"), files)

    def _figures(self, run: str) -> Row:
        layers = len(self.layers[run])
        seconds = self.rates["start_plain"] + layers * self.rates["figures"]
        files = {f"results/{run}/figures": 3.5e6 * layers}
        return Row("figures", run, 1, seconds, 1, self.mem_mb("figures"), files)

    def _figures_ablation(self, run: str) -> Row | None:
        if no_ablation(self.plan, run):
            return None
        layers = len(self.layers[run])
        seconds = self.rates["start_plain"] + layers * self.rates["figures_ablation"]
        mem = self.mem_mb("figures_ablation")
        return Row("figures_ablation", run, 1, seconds, 1, mem, {})

    def _figures_orientation(self, run: str) -> Row:
        layers = len(self.layers[run])
        seconds = self.rates["start_plain"] + layers * self.rates["figures_orientation"]
        mem = self.mem_mb("figures_orientation")
        # Their disk is in that of the folder of figures.
        return Row("figures_orientation", run, 1, seconds, 1, mem, {})

    def _figures_color(self, run: str) -> Row:
        layers = len(self.layers[run])
        seconds = self.rates["start_plain"] + layers * self.rates["figures_color"]
        mem = self.mem_mb("figures_color")
        return Row("figures_color", run, 1, seconds, 1, mem, {})

    def _figures_gabor(self, run: str) -> Row:
        return self._sheets("figures_gabor", run)

    def _figures_gratings(self, run: str) -> Row:
        return self._sheets("figures_gratings", run)

    def _figures_preferred_stimulus(self, run: str) -> Row:
        return self._sheets("figures_preferred_stimulus", run)

    def _figures_virtual_filters(self, run: str) -> Row:
        return self._sheets("figures_virtual_filters", run)

    def _sheets(self, stage: str, run: str) -> Row:
        """The row of a topic of figures that draws a sheet per layer."""
        seconds = self.rates["start_plain"] + len(self.layers[run]) * self.rates[stage]
        return Row(stage, run, 1, seconds, 1, self.mem_mb(stage), {})

    def _compare(self, group: str) -> Row:
        runs = self.config["compare"]["groups"][group]
        widths = [layer["channels"] for run in runs for layer in self.layers[run]]
        channels, pairs = sum(widths), len(widths) * (len(widths) + 1) / 2
        # The products of all channels, with the same image and with another, for every two groups
        # of `_TILE` channels; then decompositions for every two layers, which take the cube of
        # their widths.
        tile = min(channels, max(_TILE, *widths))
        gflop = 4e-9 * self._count(runs[0]) * channels * (channels + tile) / 2
        cubes = sum(width**1.5 for width in widths) ** 2 / 2
        seconds = self.rates["start_plain"] + gflop / self.rates["compare"]
        seconds += 1e-9 * cubes / self.rates["compare_pair"]
        # Live at once: the process with a batch of images, the products of two groups and their
        # next summand, what decorrelates each layer, and the decomposition of the widest.
        live = 3 * tile**2 + sum(width**2 for width in widths) + 4 * max(widths) ** 2
        mem = 400 + round(8 * live / _MB)
        files = {f"results/compare/{group}": 200.0 * (pairs + channels)}
        return Row("compare", group, 1, seconds, 1, mem, files)

    def _figures_compare(self, group: str) -> Row:
        layers = sum(len(self.layers[run]) for run in self.config["compare"]["groups"][group])
        seconds = self.rates["start_plain"] + layers * self.rates["figures_compare"]
        files = {f"results/compare/{group}/figures": 40e3 * layers}
        mem = self.mem_mb("figures_compare")
        return Row("figures_compare", group, 1, seconds, 1, mem, files)

    def _atlas(self, run: str) -> Row:
        channels = sum(layer["channels"] for layer in self.layers[run])
        seconds = self.rates["start_plain"] + channels * self.rates["atlas"]
        # The columns; thumbnails, pictures and curves of each channel.
        files = {f"results/{run}/atlas": 5e6 + 25e3 * channels}
        return Row("atlas", run, 1, seconds, self.cores, self.mem_mb("atlas"), files)


def stage_of(rule: str) -> str:
    """The stage that states the memory of a rule, whose name is that of the stage and a step."""
    names = sorted({*MEMORY_MB, "activations", "compare"}, key=len, reverse=True)
    return next(name for name in names if rule == name or rule.startswith(f"{name}_"))


def gflop_per_unit(layer: Mapping[str, Any], crop: int) -> float:
    """GFLOP of the forward and backward pass behind one unit of a layer of the description.

    The pass runs on the unit's receptive field, about a stride wider than its size, or on the whole
    image of `crop` pixels where that is smaller.
    """
    side = min(crop, (layer["size"] or crop) + (layer["stride"] or 0))
    return 2 * (side / crop) ** 2 * layer["gflops"]


def _units(layer: Mapping[str, Any]) -> int:
    return layer["channels"] * layer["height"] * layer["width"]


def _present(path: Path) -> float:
    """Bytes that lie at `path`, a file or a folder, already (0 where there is nothing)."""
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
