"""Result files of an invented run, faithful to the schema, for tests of the stages that read them.

Images are coloured noise; the activation of a channel at an image and position is random; its
gradient is a Gabor of its own. What the real stages would derive from that (top units, patches,
means, counts) is derived here by plain loops.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from rfatlas.files import store

IMAGE = 32


@dataclass
class Layer:
    """A layer of the invented network; sizes in pixels, `size` None where it sees everything."""

    name: str
    channels: int
    units: int
    size: int | None
    stride: int
    start: float
    rectified: bool = True


@dataclass
class Run:
    """An invented run: change the arrays before `write` to plant something.

    `value` maps a layer to (N, C, H, W) activations.
    """

    layers: list[Layer] = field(
        default_factory=lambda: [
            Layer("conv1", 12, 16, 7, 2, 0.5, rectified=False),
            Layer("layer1.0", 8, 8, 19, 4, 0.5),
            Layer("layer2.0", 6, 4, 43, 8, 0.5),
        ]
    )
    images: int = 40
    classes: int = 5
    top_k: int = 16
    keep: int = 9
    seed: int = 0
    name: str = "demo"

    def __post_init__(self):
        random = np.random.default_rng(self.seed)
        noise = random.normal(0, 30, (self.images, IMAGE, IMAGE, 3))
        tint = random.uniform(40, 215, (self.images, 1, 1, 3))
        self.pixels = (noise + tint).clip(0, 255).astype(np.uint8)
        self.labels = random.integers(0, self.classes, self.images)
        self.class_names = [f"class {index}" for index in range(self.classes)]
        self.value = {}
        for layer in self.layers:
            shape = (self.images, layer.channels, layer.units, layer.units)
            value = random.normal(0, 1, shape).astype(np.float32)
            self.value[layer.name] = np.maximum(value, 0) if layer.rectified else value
        self.filter_norm = {
            layer.name: random.uniform(0.5, 1, layer.channels) for layer in self.layers
        }
        self.next_norm = {layer.name: np.ones(layer.channels) for layer in self.layers}
        self.logits = random.normal(0, 1, (self.images, self.classes)).astype(np.float32)

    def write(self, folder: Path) -> Path:
        """Write images.h5, activations.h5, model.json and receptive_fields/ into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        with store.create(folder / "images.h5", store.provenance("images", {})) as file:
            file["images"], file["labels"] = self.pixels, self.labels.astype(np.int64)
            file["names"] = [f"{index}.png" for index in range(self.images)]
            file.attrs["class_names"] = self.class_names
        description = {
            "run": self.name,
            "factory": "net.py:make",
            "weights": f"{self.name}.pth",
            "parameters": 1000,
            "gflops": 0.5,
            "input": {"resize": IMAGE, "crop": IMAGE},
            "n_classes": self.classes,
            "layers": [
                {
                    "name": layer.name,
                    "channels": layer.channels,
                    "height": layer.units,
                    "width": layer.units,
                    "rectified": layer.rectified,
                    "size": layer.size,
                    "rf_kind": "global" if layer.size is None else "exact",
                    "probed": [],
                    "stride": layer.stride,
                    "start": None if layer.start is None else [layer.start] * 2,
                    "filter_norm": self.filter_norm[layer.name].tolist(),
                    "next_norm": self.next_norm[layer.name].tolist(),
                }
                for layer in self.layers
            ],
        }
        (folder / "model.json").write_text(json.dumps(description))
        with store.create(folder / "activations.h5", store.provenance("activations", {})) as file:
            for layer in self.layers:
                self._activations(file.create_group(layer.name), layer)
            file["output/logits"], file["output/labels"] = self.logits, self.labels
            known = self.labels >= 0
            order = np.argsort(-self.logits[known], axis=1, kind="stable")
            right = order == self.labels[known][:, None]
            labelled = int(known.sum())
            file["output"].attrs["labelled"] = labelled
            for guesses in (1, 5):
                share = right[:, :guesses].sum() / labelled if labelled else np.nan
                file["output"].attrs[f"top{guesses}"] = share
        for layer in self.layers:
            self._receptive_field(folder, layer)
        return folder

    def top(self, layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return value (C, K), image (C, K) and yx (C, K, 2) of the best unit of each image."""
        value = np.zeros((layer.channels, self.top_k), np.float32)
        image = np.full((layer.channels, self.top_k), -1, np.int32)
        yx = np.zeros((layer.channels, self.top_k, 2), np.int16)
        for channel in range(layer.channels):
            best = []
            for index in range(self.images):
                plane = self.value[layer.name][index, channel]
                y, x = np.unravel_index(plane.argmax(), plane.shape)
                if plane[y, x] != 0 or not layer.rectified:
                    best.append((-plane[y, x], index, y, x))
            for rank, (negative, index, y, x) in enumerate(sorted(best)[: self.top_k]):
                value[channel, rank], image[channel, rank] = -negative, index
                yx[channel, rank] = y, x
        return value, image, yx

    def _activations(self, group: h5py.Group, layer: Layer) -> None:
        value = self.value[layer.name].astype(np.float64)
        names = ("top_per_image_value", "top_per_image_image", "top_per_image_yx")
        for name, array in zip(names, self.top(layer), strict=True):
            group[name] = array
        group["mean"], group["var"] = value.mean((0, 2, 3)), value.var((0, 2, 3))
        group["max"], group["fraction_active"] = value.max((0, 2, 3)), (value > 0).mean((0, 2, 3))
        group["image_mean"] = value.mean((2, 3)).astype(np.float32)
        group["image_max"] = value.max((2, 3)).astype(np.float32)
        means = np.full((self.classes, layer.channels), np.nan)
        for index in set(self.labels[self.labels >= 0].tolist()):
            means[index] = value[self.labels == index].mean((0, 2, 3))
        group["class_mean"] = means

    def gradient(self, layer: Layer, channel: int) -> np.ndarray:
        """Return the gradient (3, S, S) that every unit of a channel has: a Gabor of its own."""
        window = min(layer.size or IMAGE, IMAGE)
        y, x = np.indices((window, window)) - (window - 1) / 2
        angle = np.pi * channel / layer.channels
        along = x * np.cos(angle) - y * np.sin(angle)
        sigma = window / 6
        carrier = np.cos(2 * np.pi * along / (0.4 * window) + channel)
        field = np.exp(-(x**2 + y**2) / (2 * sigma**2)) * carrier
        weights = [(1, 1, 1), (1, -1, 0), (0.5, 0.5, -1)][channel % 3]
        return np.multiply.outer(np.array(weights, float), field)

    def _receptive_field(self, folder: Path, layer: Layer) -> None:
        window = min(layer.size or IMAGE, IMAGE)
        shape = (layer.channels, 3, window, window)
        keep = min(self.keep, self.top_k)
        patch = np.zeros((layer.channels, keep, window, window, 3), np.uint8)
        gradient = np.zeros((layer.channels, keep, *shape[1:]), np.float32)
        count = np.zeros((layer.channels, window, window), np.int32)
        sums = {
            name: np.zeros(shape) for name in ("image", "gradient", "abs_gradient", "effective")
        }
        _, image, yx = self.top(layer)
        for channel in range(layer.channels):
            field = self.gradient(layer, channel)
            for rank in range(self.top_k):
                if image[channel, rank] < 0:
                    continue
                box = np.zeros((window, window, 3), np.uint8)
                inside = np.zeros((window, window), bool)
                corner = [
                    int(np.floor(layer.start + layer.stride * int(place) - window / 2))
                    for place in yx[channel, rank]
                ]
                for row in range(window):
                    for column in range(window):
                        y, x = corner[0] + row, corner[1] + column
                        if 0 <= y < IMAGE and 0 <= x < IMAGE:
                            box[row, column] = self.pixels[image[channel, rank], y, x]
                            inside[row, column] = True
                here = field * inside
                picture = np.moveaxis(box / 255, -1, 0)
                if rank < keep:
                    patch[channel, rank], gradient[channel, rank] = box, here
                count[channel] += inside
                sums["image"][channel] += picture
                sums["gradient"][channel] += here
                sums["abs_gradient"][channel] += np.abs(here)
                sums["effective"][channel] += np.abs(here) * picture
        means = {name: total / np.maximum(count, 1)[:, None] for name, total in sums.items()}
        path = folder / "receptive_fields" / f"{layer.name}.h5"
        with store.create(path, store.provenance("receptive_fields", {})) as file:
            file["patch"], file["gradient"], file["count"] = patch, gradient, count
            file["mean_image"], file["mean_gradient"] = means["image"], means["gradient"]
            file["mean_abs_gradient"], file["effective"] = means["abs_gradient"], means["effective"]
            file["channel"] = np.arange(layer.channels, dtype=np.int32)
            file.attrs.update(stride=[layer.stride] * 2, start=[layer.start] * 2, image_size=IMAGE)
            file.attrs.update(size=layer.size or IMAGE, whole_image=layer.size is None)
        lines = ["layer,channel,n_units,split_half,erf_sigma,erf_r2"]
        for channel in range(layer.channels):
            units = (image[channel] >= 0).sum()
            values = (0.9 - channel / 100, window / 8 + channel / 100, 0.4 + 0.1 * (channel % 6))
            numbers = ",".join(f"{value:.9g}" for value in values) if units else ",,"
            lines.append(f"{layer.name},{channel},{units},{numbers}")
        path.with_suffix(".csv").write_text("\n".join(lines) + "\n")


def tuning(
    layers: Mapping[str, int] | None = None, seed: int = 0, tuned: float = 0.6
) -> pd.DataFrame:
    """Return an invented channels.csv with the columns of Gabors and gratings.

    `layers` maps layers to channels; only the first has kernels. A share `tuned` of the channels is
    tuned to orientation; the last of each layer answers nothing; the estimates of an orientation
    differ by some degrees. Numbers are plausible, not measured.
    """
    layers = {"conv1": 24, "layer1.0": 32, "layer2.0": 48} if layers is None else layers
    random = np.random.default_rng(seed)
    parts = []
    for depth, (layer, channels) in enumerate(layers.items()):
        theta = random.uniform(0, 180, channels)
        selective = random.random(channels) < tuned
        frequency = 0.12 * 2.0**-depth * 2 ** random.normal(0, 0.4, channels)
        nx = 10 ** random.normal(-0.4, 0.15, channels)
        part = pd.DataFrame(
            {
                "layer": layer,
                "channel": np.arange(channels),
                "depth": depth,
                "rf_size": pd.array([7 * 2**depth] * channels, "Int64"),
                "rf_stride": pd.array([2**depth] * channels, "Int64"),
                "gabor_theta_deg": (theta + random.normal(0, 3, channels)) % 180,
                "gabor_frequency": frequency,
                "gabor_nx": nx,
                "gabor_ny": nx * 10 ** random.normal(0.05, 0.15, channels),
                "gabor_r2": np.where(selective, 0.9, random.uniform(0, 0.9, channels)),
                "gabor_kernel_theta_deg": (theta + random.normal(0, 1, channels)) % 180,
                "osi": np.where(selective, 0.85, 0.2) + random.uniform(-0.15, 0.15, channels),
                "circular_variance": np.where(selective, 0.4, 0.85)
                + random.uniform(-0.15, 0.15, channels),
                "orientation_deg": theta,
                "bandwidth_deg": np.where(selective, random.uniform(12, 40, channels), np.nan),
                "sf_cpp": frequency,
                "sf_bandwidth_oct": random.uniform(0.8, 2.4, channels),
                "sf_aliased": frequency > 0.5 / 2**depth,
                "f1_f0": np.where(
                    random.random(channels) < 0.8 / (depth + 1),
                    random.normal(1.57, 0.1, channels),
                    random.uniform(0.05, 0.6, channels),
                ),
                "grating_reason": "",
            }
        )
        part["orientation_selective"] = selective
        part["orientation_selective"] = part["orientation_selective"].astype(object)
        silent = part.index[-1]
        part.loc[silent, "osi":"sf_bandwidth_oct"] = np.nan
        part.loc[silent, ["f1_f0", "orientation_selective"]] = np.nan
        part.loc[silent, "grating_reason"] = "no response"
        if depth:
            part["gabor_kernel_theta_deg"] = np.nan
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def opponency(
    layers: Mapping[str, int] | None = None, seed: int = 0, colored: float = 0.5
) -> pd.DataFrame:
    """Return an invented channels.csv with the columns of the stage `color` that go by channel.

    `layers` maps layers to channels. A share `colored` is opponent, about half of these low-pass;
    the second channel of each layer sees grey only, one in the middle has no answer to luminance,
    and the last answers nothing. The classes are those of the usual thresholds (0.6, or 0.5 of
    responses, 0.5, and 1 % for Harris' rule). Numbers are plausible, not measured.
    """
    layers = {"conv1": 24, "layer1.0": 32, "layer2.0": 48} if layers is None else layers
    random = np.random.default_rng(seed)
    parts = []
    for depth, (layer, channels) in enumerate(layers.items()):
        chromatic = random.random(channels) < colored
        ratio = np.where(chromatic, 1.2, 0.24) * 2 ** random.normal(0, 0.8, channels)
        ratio[channels // 2] = np.inf
        lowpass = random.uniform(0.05, 1, channels)
        margins = {
            kind: np.clip(random.uniform(-0.02, 0.5, channels), 0, None)
            for kind in ("spatial", "spectral")
        }
        part = pd.DataFrame(
            {
                "layer": layer,
                "channel": np.arange(channels),
                "depth": depth,
                "color_ratio": ratio,
                "color_ratio_s": np.where(chromatic, 0.6, 0.1)
                * 2 ** random.normal(0, 0.8, channels),
                "color_ratio_rgb": np.where(np.arange(channels) == 1, 0.001, ratio),
                "color_lowpass": lowpass,
                "color_lowpass_contrast": lowpass**1.1,
                "color_sensitivity_lm": np.minimum(1.2 * ratio, 32),
                "color_sensitivity_lm_same_sf": np.minimum(1.4 * ratio, 32),
                "color_reason": "",
                "harris_spatial_margin": margins["spatial"],
                "harris_spectral_margin": margins["spectral"],
                "color_osi": np.where(lowpass < 0.5, 0.7, 0.3) + random.normal(0, 0.1, channels),
                "color_bandwidth_deg": np.where(
                    random.random(channels) < 0.8, random.uniform(15, 45, channels), np.nan
                ),
                "hue_deg": random.uniform(0, 360, channels),
                "hue_selectivity": random.uniform(0, 1, channels),
                "osi": random.uniform(0, 1, channels),
            }
        )
        part["color_sensitivity_s"] = np.minimum(1.3 * part["color_ratio_s"], 32)
        part["color_sensitivity_s_same_sf"] = np.minimum(1.5 * part["color_ratio_s"], 32)
        for name, one, other, line, zero in (
            ("color_class_ratio", "color_ratio", "color_ratio_s", 0.5, lowpass),
            (
                "color_class",
                "color_sensitivity_lm",
                "color_sensitivity_s",
                0.6,
                part["color_lowpass_contrast"],
            ),
        ):
            largest = part[[one, other]].max(axis=1)
            if line == 0.6:
                same = part[[f"{one}_same_sf", f"{other}_same_sf"]].max(axis=1)
                largest = largest.where(zero < 0.5, same)
            opponent = largest >= line
            opponent &= part["color_ratio_rgb"] >= 0.01
            kind = np.where(zero >= 0.5, "single_opponent", "double_opponent")
            part[name] = np.where(opponent, kind, "non_opponent").astype(object)
        other = np.where(random.random(channels) < 0.8, part["color_class"], "single_opponent")
        part["color_class_energy"] = other.astype(object)
        part["color_class_ratio_unrectified"] = part["color_class"]
        for name, margin in margins.items():
            part[f"harris_{name}"] = (margin > 0.01).astype(object)
        silent = part.index[-1]
        part.loc[silent, "color_ratio":"osi"] = np.nan
        part.loc[silent, ["harris_spatial", "harris_spectral", "color_class_energy"]] = np.nan
        part.loc[silent, ["color_sensitivity_s", "color_sensitivity_s_same_sf"]] = np.nan
        part.loc[silent, "color_reason"] = "no_response"
        names = ["color_class", "color_class_ratio", "color_class_ratio_unrectified"]
        part.loc[silent, names] = "unresponsive"
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def ablation(
    layers: Mapping[str, int] | None = None,
    modes: tuple[str, ...] = ("zero", "mean", "shuffle"),
    controls: int = 20,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return invented tables of the stages `channels`, `ablation_groups` and its curves.

    `channels.csv` has the columns that orders and properties need; a channel matters the more the
    larger its filter norm. `ablation_groups.csv` has three groups of each layer, `matched` but for
    the first; `ablation_cumulative.csv` all orders of the first mode. Plausible, not measured.
    """
    layers = {"conv1": 16, "layer1.0": 24, "layer2.0": 40} if layers is None else layers
    random = np.random.default_rng(seed)
    kinds = np.array(["non_opponent", "single_opponent", "double_opponent", "unresponsive"])
    parts, groups, curves = [], [], []
    for depth, (layer, channels) in enumerate(layers.items()):
        norm = random.uniform(0.02, 1, channels)
        part = pd.DataFrame(
            {
                "layer": layer,
                "channel": np.arange(channels),
                "depth": depth,
                "filter_norm": norm,
                "inactive": norm < 0.1,
                "osi": random.uniform(0, 1, channels),
                "color_class": random.choice(kinds, channels),
                "class_selectivity": random.uniform(0, 0.8, channels) if depth else np.nan,
                "activation_mean": random.exponential(1, channels),
            }
        )
        for mode in modes:
            lost = norm * random.exponential(0.01, channels)
            for name, change in (("top1", -lost), ("top5", -lost / 2), ("loss", 4 * lost)):
                part[f"{mode}_delta_{name}"] = change
                part[f"{mode}_delta_{name}_lo"] = change - 0.01
                part[f"{mode}_delta_{name}_hi"] = change + 0.01
            part[f"{mode}_estimate_loss"] = 3 * lost + random.normal(0, 0.01, channels)
            part[f"{mode}_estimate_r"] = random.uniform(0.5, 1, channels)
            part[f"{mode}_p"] = part[f"{mode}_q"] = np.where(lost > 0.015, 0.01, 0.6)
        parts.append(part)
        for number, group in enumerate(("inactive", "double_opponent", "orientation_selective")):
            for mode in modes:
                kind = "matched" if number else "unmatched"
                loss = random.normal(0.05 + 0.1 * number, 0.03, controls + 1)
                for index, value in enumerate(loss):
                    rank = int((loss[1:] >= loss[0]).sum()) if index == 0 else None
                    groups.append(
                        {
                            "layer": layer,
                            "depth": depth,
                            "mode": mode,
                            "group": group,
                            "role": "control" if index else "group",
                            "number": index - 1 if index else None,
                            "n_channels": 3 + number,
                            "delta_top1": -value,
                            "delta_top1_lo": -value - 0.02,
                            "delta_top1_hi": -value + 0.02,
                            "control": kind,
                            "p_more_top1": (1 + rank) / (1 + controls)
                            if rank is not None
                            else None,
                        }
                    )
        steps = np.unique(np.geomspace(1, channels, 10).round().astype(int))
        ways = [(order, way, 0) for order in ("filter_norm", "osi") for way in ("descending",)]
        ways += [(order, "ascending", 0) for order, _, _ in ways]
        ways += [("random", "", number) for number in range(4)]
        for order, direction, number in ways:
            speed = random.uniform(0.5, 3)
            for count in steps:
                top1 = 0.1 + 0.6 * (1 - count / channels) ** speed
                curves.append(
                    (layer, depth, modes[0], order, direction, number, count, top1, top1 - 0.72)
                )
    names = ["layer", "depth", "mode", "order", "direction", "number", "n_removed", "top1"]
    names.append("delta_top1")
    curves = pd.DataFrame(curves, columns=names)
    return pd.concat(parts, ignore_index=True), pd.DataFrame(groups), curves


def color_file(path: Path, rows: pd.DataFrame, window: int = 15, seed: int = 0) -> Path:
    """Write an invented file of the stage `color` for one layer; `rows` are its channels in the
    table `opponency`.

    Opponent channels answer to L-M, in a curve that is low-pass or band-pass as their class says,
    and to hues as a cosine about their `hue_deg`; others to L+M. Their fields are Gabors.
    """
    random = np.random.default_rng(seed)
    count = len(rows)
    frequency = 0.02 * 2.0 ** np.arange(5)
    hue = np.arange(0, 360, 10.0)
    turn = np.radians(hue)
    opponent = rows["color_class"].isin(["single_opponent", "double_opponent"]).to_numpy()
    band = np.exp(-((np.log2(frequency / 0.08)) ** 2) / 2)
    low = np.exp(-frequency / 0.1)
    tuned = np.zeros((count, 6, 4, 5), np.float32)
    flicker = np.zeros((count, 6), np.float32)
    for index, kind in enumerate(rows["color_class"]):
        best = random.integers(4)
        axis = int(opponent[index])
        if kind != "unresponsive":
            tuned[index, axis] = 0.3 * (low if kind == "single_opponent" else band)
            tuned[index, axis, best] *= 3
            tuned[index, 1 - axis, best] = 0.2 * band
            flicker[index, axis] = 0.9 if kind == "single_opponent" else 0.1
    preferred = np.radians(rows["hue_deg"].fillna(0).to_numpy())
    answer = 0.5 + np.where(opponent[:, None], np.cos(turn - preferred[:, None]), 0.1)
    y, x = np.indices((window, window)) - (window - 1) / 2
    field = np.exp(-(x**2 + y**2) / (window / 2)) * np.cos(2 * np.pi * x / window)
    fields = np.zeros((count, 3, window, window), np.float32)
    fields[np.arange(count), opponent.astype(int)] = field
    with store.create(path, store.provenance("color", {})) as file:
        file["channel"] = np.arange(count, dtype=np.int32)
        file["orientation"], file["frequency"] = np.arange(0, 180, 45.0), frequency
        file["tuned"], file["tuned_flicker"] = tuned, flicker
        file["hue"], file["hue_response"] = hue, answer.astype(np.float32)
        file["hue_rgb"] = 0.5 + 0.3 * np.stack([np.cos(turn), -np.cos(turn), np.sin(turn)], 1)
        file["blank"] = np.full(count, 0.5, np.float32)
        file["field_channel"], file["field_dkl"] = np.arange(count, dtype=np.int32), fields
    return path
