"""Stage `preferred_stimulus`: for every channel the input that drives its centre unit most, and the
one that suppresses it most, as an ascent on the pixels finds them.

Only the receptive-field box of the unit is optimised, on its exact crop (see `probe`): 7 pixels for
a first layer of 7 x 7 kernels, whatever the size of the image. Several starts per channel tell how
much the answer depends on where the ascent begins. What is maximised is the unit's value with the
layer's last ReLU left out, which has a gradient also where the unit is silent, and a minimum below
zero: the least preferred stimulus, the OFF field.
"""

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from rfatlas import statistics
from rfatlas.fields import crops
from rfatlas.files import store
from rfatlas.files.task import Task
from rfatlas.network.devices import room
from rfatlas.network.model import LoadedModel
from rfatlas.physiology.probe import GREY, Probe
from rfatlas.stimuli import ascent

#: Where an ascent can begin, in the order of the rows of `start_*`; noise may come several times.
NOISE, GRADIENT, PATCH = "noise", "gradient", "patch"

# Standard deviation of noise starts, in code values: enough to break symmetries, little enough that
# pixels which the unit hardly sees stay about grey.
_NOISE_CONTRAST = 0.03
# Starts of the Fourier parametrisation are moved this far inside the range: its sigmoid reaches the
# ends only at infinity.
_MARGIN = 0.02
# Below this jump in code values total variation is quadratic, above linear.
_SMOOTHING = 0.01
# The last steps of an ascent with jitter are without.
_STILL_SHARE = 0.2
# The box is shifted at most by this share of its side.
_JITTER_SHARE = 1 / 8
# An ascent is at rest if what it maximises rises by no more than `_REST` of itself over the last
# `_LAST_SHARE` of its steps, which are still.
_LAST_SHARE, _REST = 1 / 8, 0.005
# A unit whose value no stimulus changes by more than this share of its layer's usual maximum looks
# at nothing.
_CONSTANT = 1e-6

# An ascent's point, gradient, direction and curvature pairs, and passing copies of them.
_STATE_COPIES = 24
# At most so many channels climb together, and are saved together.
_BLOCK = 16


# ---- what is drawn on the crop


@dataclass(frozen=True)
class Region:
    """The square of `size` pixels that is optimised: at `top`, `left` of the crop of `crop` pixels.

    It holds all pixels of the image that the unit can see. `window_top`, `window_left`: where in
    the crop the stage receptive_fields has its window of the same size; both differ where that
    window, centred on the receptive field, reaches over the edge of the image.
    """

    size: int
    crop: int
    top: int
    left: int
    window_top: int
    window_left: int

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (n, 3, size, size) on crops (n, 3, crop, crop) that are mid grey around."""
        below, right = (self.crop - self.size - start for start in (self.top, self.left))
        return F.pad(images, (self.left, right, self.top, below), value=GREY)

    def from_window(self, fields: np.ndarray) -> np.ndarray:
        """Return fields (n, 3, size, size) of the receptive fields' window on the region, 0 where
        they reach no pixel of it."""
        top, left = (
            torch.full((len(fields),), start)
            for start in (self.top - self.window_top, self.left - self.window_left)
        )
        return crops.cut_windows(torch.from_numpy(fields), top, left, self.size).numpy()


def region(probe: Probe) -> Region:
    """Return what is optimised of a probe's crop."""
    window = [int(np.floor(centre - probe.size / 2)) for centre in probe.centre]
    start = [min(max(first, 0), probe.crop - probe.size) for first in window]
    return Region(probe.size, probe.crop, *start, *window)


def shifted(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return images (n, 3, S, S) moved down and right by `shift` int64 (n, 2) pixels; the edge is
    repeated."""
    size = images.shape[-1]
    span = torch.arange(size, device=images.device)
    rows, columns = ((span - shift[:, axis, None]).clamp(0, size - 1) for axis in (0, 1))
    number = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


# ---- parametrisations


class Pixels:
    """The code values themselves as variables of an ascent, which stays in the box."""

    box = (0.0, 1.0)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images as they are."""
        return images.clamp(*self.box)

    def decode(self, variables: torch.Tensor) -> torch.Tensor:
        """Return the variables as they are."""
        return variables


class Fourier:
    """Real and imaginary parts of the spectrum of decorrelated colours, (n, 2, 3, S, S // 2 + 1).

    Olah, Mordvintsev & Schubert 2017, Feature Visualization, Distill, doi:10.23915/distill.00007:
    the spectrum is divided by the frequency, as that of photographs falls, so that an ascent moves
    all frequencies alike; the colours are those along which photographs vary independently. The
    image is the logistic function of the result, so that it stays within 0..1. Images have `size`
    pixels a side; the columns of `colours` (3, 3) are the decorrelated ones (see `decorrelated`).
    """

    box = None

    def __init__(self, size: int, colours: np.ndarray, device: torch.device | str = "cpu"):
        self._size = size
        y, x = torch.meshgrid(torch.fft.fftfreq(size), torch.fft.rfftfreq(size), indexing="ij")
        scale = 1 / torch.hypot(y, x).clamp(min=1 / size)
        # White variables of variance 1 then make an image of variance 1 before the colours.
        self._scale = (scale / scale.square().mean().sqrt()).to(device)
        self._colours = torch.tensor(colours, dtype=torch.float32, device=device)
        self._inverse = torch.linalg.inv(self._colours)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the spectrum of images, drawn a little inside the range where they touch it."""
        raw = torch.logit(images.clamp(_MARGIN, 1 - _MARGIN))
        spectrum = torch.fft.rfft2(torch.einsum("dc,ncyx->ndyx", self._inverse, raw), norm="ortho")
        return torch.stack([spectrum.real, spectrum.imag], 1) / self._scale

    def decode(self, variables: torch.Tensor) -> torch.Tensor:
        """Return the images of spectra."""
        spectrum = torch.complex(*(variables * self._scale).unbind(1))
        raw = torch.fft.irfft2(spectrum, s=(self._size, self._size), norm="ortho")
        return torch.sigmoid(torch.einsum("cd,ndyx->ncyx", self._colours, raw))


def decorrelated(images: Any) -> np.ndarray:
    """Return the colours (3, 3), in columns, along which the pixels of `images` uint8 (N, H, H, 3)
    vary independently, as strongly as they do; the strongest has length 1.

    The square root of the covariance of code values, U sqrt(L) of its eigenvectors and
    eigenvalues; Lucid has it of ImageNet as a constant. Every fourth pixel of at most 200 images.
    """
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), 200)).astype(int))
    pixels = np.concatenate([images[i][::4, ::4].reshape(-1, 3) for i in rows]) / 255
    values, vectors = np.linalg.eigh(np.cov(pixels.T))
    # Colours that the images lack (grey pictures have one) stay reachable.
    lengths = np.sqrt(np.maximum(values, 1e-4 * values[-1]) if values[-1] > 0 else np.ones(3))
    return (vectors * lengths / lengths.max())[:, ::-1].copy()


# ---- the objective


def penalty(images: torch.Tensor, l2: float, tv: float) -> torch.Tensor:
    """Return the regularisers (n,) of images (n, 3, S, S): `l2` times the mean squared distance
    from mid grey, and `tv` times the total variation that a line across the image meets on average.

    The variation at a pixel is sqrt(dx^2 + dy^2 + e^2) - e, with e a small jump (Rudin, Osher &
    Fatemi 1992, Physica D 60:259, made smooth); its mean over pixels and colours times S is 1 for
    one jump from black to white per line, whatever the size of the image.
    """
    total = images.new_zeros(len(images))
    if l2:
        total = total + l2 * (images - GREY).square().mean((1, 2, 3))
    if tv:
        down = F.pad(images.diff(dim=2), (0, 0, 0, 1))
        across = F.pad(images.diff(dim=3), (0, 1, 0, 0))
        jump = (down.square() + across.square() + _SMOOTHING**2).sqrt() - _SMOOTHING
        total = total + tv * images.shape[-1] * jump.mean((1, 2, 3))
    return total


@dataclass
class Objective:
    """What is maximised over the variables, and its gradient: d - r sqrt(1 + d^2).

    The drive d is sign * value / scale, and r the penalty of the image.

    The penalty takes a share of the drive, once the unit is driven as photographs drive it: so the
    same weights mean the same for units that optimised images drive twice and twenty times as much.
    For a linear unit and r = l2 * mean square about grey, the optimum inside the range is still
    along the gradient, and its mean square approaches 1 / (3 l2) as the drive grows.

    Of each climb, (n,): `channel`, `sign` (1 most, -1 least preferred), `scale` (what counts as one
    of the unit's value); `shift` (steps, n, 2) of its jitter. `steps` are the evaluations that an
    ascent may take.
    """

    probe: Probe
    region: Region
    parametrisation: Pixels | Fourier
    channel: torch.Tensor
    sign: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor
    l2: float
    tv: float
    steps: int
    calls: int = 0

    def __post_init__(self):
        self._batch = max(1, self.probe.batch // 2)
        self._highest = torch.full_like(self.scale, -torch.inf)
        self._earlier = self._highest

    def __call__(self, rows: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values (r,) and gradients (r, ...) at the variables `x` of the climbs `rows`."""
        values, gradients = torch.empty_like(x[:, *[0] * (x.ndim - 1)]), torch.empty_like(x)
        shift = self.shift[self.calls] if self.calls < len(self.shift) else None
        for first in range(0, len(rows), self._batch):
            part = slice(first, first + self._batch)
            variables = x[part].detach().requires_grad_()
            images = self.parametrisation.decode(variables)
            moved = images if shift is None else shifted(images, shift[rows[part]])
            _, unrectified = self._unit(moved, rows[part])
            drive = self.sign[rows[part]] * unrectified / self.scale[rows[part]]
            share = penalty(images, self.l2, self.tv)
            value = drive - share * (1 + drive.square()).sqrt()
            (gradients[part],) = torch.autograd.grad(value.sum(), variables)
            values[part] = value.detach()
        if shift is None:
            self._highest[rows] = torch.maximum(self._highest[rows], values)
        self.calls += 1
        if self.calls <= self.steps - math.ceil(_LAST_SHARE * self.steps):
            self._earlier = self._highest.clone()
        return values, gradients

    def at_rest(self) -> torch.Tensor:
        """Return whether each climb (n,) had come to rest when its steps ended."""
        return self._highest - self._earlier <= _REST * self._highest.abs()

    @torch.no_grad()
    def reached(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the unit's activation and unrectified value (n,) at an image per climb."""
        rows = torch.arange(len(images), device=images.device)
        parts = [self._unit(images[part], part) for part in rows.split(self._batch)]
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))

    def _unit(self, images: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channel = self.channel[rows, None]
        answers = self.probe.answer(self.region.embed(images))
        return tuple(answer.gather(1, channel)[:, 0] for answer in answers)


# ---- starts and channels


def chosen(channels: int, sample: int | None, seed: int, layer: str) -> np.ndarray:
    """Return the channels of a layer that are measured: all, or `sample` drawn by seed and layer,
    sorted."""
    if sample is None or sample >= channels:
        return np.arange(channels)
    random = np.random.default_rng([seed, zlib.crc32(layer.encode())])
    return np.sort(random.permutation(channels)[:sample])


def noise(size: int, seed: int, layer: str, channel: int, number: int) -> np.ndarray:
    """Return a noise start (3, size, size) about mid grey, its own for every channel and number."""
    random = np.random.default_rng([seed, zlib.crc32(layer.encode()), channel, number])
    values = random.standard_normal((3, size, size), np.float32)
    return np.float32(GREY) + np.float32(_NOISE_CONTRAST) * values


def along(fields: np.ndarray) -> np.ndarray:
    """Return images (n, 3, S, S) about mid grey in the direction of `fields`, at full contrast."""
    largest = np.abs(fields).max((1, 2, 3), keepdims=True)
    return (GREY + 0.5 * fields / np.where(largest > 0, largest, 1)).astype(np.float32)


def jitters(
    pixels: int, steps: int, size: int, seed: int, layer: str, numbers: list[tuple[int, int]]
) -> np.ndarray:
    """Return the shifts int64 (steps without the still last ones, n, 2) of climbs, each its own.

    `numbers` names the climbs (channel, number). Shifts are at most `pixels`, and an eighth of the
    box.
    """
    most = min(pixels, int(size * _JITTER_SHARE))
    shaken = steps - math.ceil(_STILL_SHARE * steps) if most else 0
    rows = [
        np.random.default_rng([seed, zlib.crc32(layer.encode()), *number, 1]).integers(
            -most, most, (shaken, 2), endpoint=True
        )
        for number in numbers
    ]
    return np.stack(rows, 1) if shaken else np.zeros((0, len(numbers), 2), np.int64)


def agreement(images: np.ndarray) -> np.ndarray:
    """Return the mean correlation (n,) of all pairs of images (n, starts, ...); NaN with one."""
    flat = images.reshape(*images.shape[:2], -1).astype(np.float64)
    pairs = list(itertools.combinations(range(images.shape[1]), 2))
    if not pairs:
        return np.full(len(images), np.nan)
    return np.mean([statistics.correlation(flat[:, i], flat[:, j]) for i, j in pairs], axis=0)


# ---- one layer


@dataclass(frozen=True)
class Photographs:
    """The photographs, `images` uint8 (N, H, H, 3), and the unit of each channel of a layer that
    any of them drives most: `image` (C,), -1 where none does, and `yx` (C, 2)."""

    images: Any
    image: np.ndarray
    yx: np.ndarray

    def seen(
        self, channels: np.ndarray, square: Region, probe: Probe, network: LoadedModel
    ) -> np.ndarray:
        """Return what these units of channels (m,) see, moved to where the centre unit looks:
        float32 (m, 3, S, S); mid grey for a channel without.

        Outside the image is what the first layer's padding amounts to: the mean that is
        subtracted from the input.
        """
        geometry = probe.geometry
        stride = geometry.stride if geometry else (0, 0)
        padding = np.reshape(network.description["input"]["mean"], (3, 1, 1))
        extent = self.images.shape[1]
        result = np.empty((len(channels), 3, square.size, square.size), np.float32)
        for picture, channel in zip(result, channels, strict=True):
            if self.image[channel] < 0:
                picture[:] = GREY
                continue
            picture[:] = padding
            moved = (self.yx[channel].astype(int) - probe.unit) * stride
            first = (np.add(probe.origin, (square.top, square.left)) + moved).tolist()
            (t, b), (u, v) = ((max(f, 0), min(f + square.size, extent)) for f in first)
            part = self.images[self.image[channel], t:b, u:v].transpose(2, 0, 1)
            picture[:, t - first[0] : b - first[0], u - first[1] : v - first[1]] = part / 255
        return result


def measure(
    network: LoadedModel,
    layer: str,
    channels: np.ndarray,
    largest: np.ndarray,
    photographs: Photographs,
    fields: Mapping[str, Any] | None,
    colours: np.ndarray,
    settings: Mapping[str, Any],
    task: Task,
) -> None:
    """Write `<layer>.h5` (docs/files.md) and its table.

    `channels` (n,) are measured; the table has a row for every channel of the layer. `largest` (C,)
    is the largest activation of each on any photograph, `photographs` what to start from. `fields`
    holds `channel` (m,) and `mean_gradient` (m, 3, S, S) of the stage receptive_fields, to start
    from and to compare with; None for neither. `colours` see `decorrelated`; `settings` are the
    keys of `preferred_stimulus` in the config, but `channels`. Killed, the work resumes from
    `<output>.partial`.
    """
    probe = Probe(network, layer, task.memory_mb)
    square = region(probe)
    kinds = [NOISE] * settings["noise_starts"]
    kinds += [GRADIENT] * (settings["gradient_start"] and fields is not None)
    kinds += [PATCH] * settings["patch_start"]
    off_kinds = [kind for kind in kinds if kind != PATCH]
    per_channel = len(kinds) + len(off_kinds)
    state = _STATE_COPIES * 4.0 * 3 * square.size**2 * per_channel
    # Two batches fill a processor; more would only be lost with a killed job.
    fitting = int(room(task.memory_mb) // state), math.ceil(2 * probe.batch / per_channel)
    block = max(1, min(_BLOCK, len(channels), *fitting))
    partial = store.Partial(task.output, task.fingerprint(block=block, channels=channels.tolist()))
    steps = store.Steps(partial)
    positive = largest[largest > 0]
    usual = float(np.median(positive)) if len(positive) else 1.0
    n = len(channels)
    with task.bar(total=n, unit="channel", desc=layer) as progress:
        for first in range(0, n, block):
            members = channels[first : first + block]

            def seek(members: np.ndarray = members) -> dict[str, np.ndarray]:
                scale = np.where(largest[members] > 0, largest[members], usual)
                patch = gradient = None
                if settings["patch_start"]:
                    patch = photographs.seen(members, square, probe, network)
                if fields is not None:
                    stored = fields["mean_gradient"], fields["channel"]
                    gradient = square.from_window(store.aligned(*stored, members))
                seen = members, scale, patch, gradient
                return _block(probe, square, layer, *seen, colours, settings)

            steps.take(str(first), seek)
            progress.update(len(members))
    attrs = {
        **task.attrs,
        "size": square.size,
        "top": probe.origin[0] + square.top,
        "left": probe.origin[1] + square.left,
        "window_top": probe.origin[0] + square.window_top,
        "window_left": probe.origin[1] + square.window_left,
        "image_size": network.description["input"]["crop"],
        "starts": kinds,
        "off_starts": off_kinds,
    }
    with store.create(task.output, attrs) as file:
        file["channel"] = channels.astype(np.int32)
        blocks = []

        def images() -> Iterator[dict[str, np.ndarray]]:
            for found in steps.all():
                yield {key: found.pop(key) for key in ("image", "off_image")}
                blocks.append(found)

        store.fill(file, n, images())
        rows = {key: np.concatenate([found[key] for found in blocks]) for key in blocks[0]}
        table = _table(
            layer, len(largest), channels, rows, largest, usual, kinds, off_kinds,
            network.graph.rectified(layer),
        )  # fmt: skip
        measured = table.loc[channels]
        for key, column in (
            ("activation", "stimulus_activation"),
            ("gain", "stimulus_gain"),
            ("off_activation", "off_activation"),
        ):
            file[key] = measured[column].to_numpy(np.float32)
        file["start_value"], file["off_start_value"] = rows["value"], rows["off_value"]
    store.write_table(table, task.table)
    partial.finish()


def _block(
    probe: Probe,
    square: Region,
    layer: str,
    channels: np.ndarray,
    scale: np.ndarray,
    patch: np.ndarray | None,
    gradient: np.ndarray | None,
    colours: np.ndarray,
    settings: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Return what the channels (m,) of one block reach, from all starts."""
    noises = np.empty(
        (len(channels), settings["noise_starts"], 3, square.size, square.size), np.float32
    )
    for place in np.ndindex(noises.shape[:2]):
        noises[place] = noise(
            square.size, settings["seed"], layer, int(channels[place[0]]), place[1]
        )
    starts, off_starts = [noises], [noises]
    if settings["gradient_start"] and gradient is not None:
        direction = np.nan_to_num(gradient)
        starts.append(along(direction)[:, None])
        off_starts.append(along(-direction)[:, None])
    if patch is not None:
        starts.append(patch[:, None])
    starts, off_starts = np.concatenate(starts, 1), np.concatenate(off_starts, 1)
    every = np.concatenate([starts, off_starts], 1)
    m, k = every.shape[:2]
    device = probe.device
    sign = np.where(np.arange(k) < starts.shape[1], 1, -1)
    numbers = [(int(channel), number) for channel in channels for number in range(k)]
    shift = jitters(
        settings["jitter"], settings["steps"], square.size, settings["seed"], layer, numbers
    )
    if settings["parametrisation"] == "pixels":
        parametrisation: Pixels | Fourier = Pixels()
    else:
        parametrisation = Fourier(square.size, colours, device)
    objective = Objective(
        probe,
        square,
        parametrisation,
        torch.from_numpy(np.repeat(channels, k)).to(device),
        torch.from_numpy(np.tile(sign, m)).to(device, torch.float32),
        torch.from_numpy(np.repeat(scale, k)).to(device, torch.float32),
        torch.from_numpy(shift).to(device),
        *(settings[key] for key in ("l2", "tv", "steps")),
    )
    begin = parametrisation.encode(torch.from_numpy(every).to(device).flatten(0, 1))
    if settings["optimizer"] == "adam":
        rate, box = settings["learning_rate"], parametrisation.box
        end = ascent.adam(objective, begin, settings["steps"], rate, box, len(shift))
    else:
        end = ascent.lbfgs(objective, begin, settings["steps"], parametrisation.box)
    with torch.no_grad():
        images = parametrisation.decode(end)
    activation, value = (found.view(m, k).cpu().numpy() for found in objective.reached(images))
    rest = objective.at_rest().view(m, k).cpu().numpy()
    images = images.view(m, k, *images.shape[1:]).cpu().numpy()
    result = {}
    for prefix, columns in (("", sign > 0), ("off_", sign < 0)):
        own, values = images[:, columns], value[:, columns]
        best = (values if prefix == "" else -values).argmax(1)
        at = np.arange(m), best
        result |= {
            f"{prefix}image": own[at],
            f"{prefix}best": best,
            f"{prefix}activation": activation[:, columns][at],
            f"{prefix}value": values,
            f"{prefix}rest": rest[:, columns][at],
            f"{prefix}agreement": agreement(own),
            f"{prefix}gradient": _similarity(own[at], gradient),
        }
    return result


def _similarity(images: np.ndarray, gradient: np.ndarray | None) -> np.ndarray:
    """Return the correlation (n,) of images with mean gradients (n, 3, S, S); NaN without one, or
    where it is NaN."""
    if gradient is None:
        return np.full(len(images), np.nan)
    flat = (fields.reshape(len(images), -1).astype(np.float64) for fields in (images, gradient))
    return statistics.correlation(*flat)


COLUMNS = (
    "layer", "channel", "stimulus_activation", "stimulus_gain", "stimulus_noise_gain",
    "stimulus_start", "stimulus_converged", "stimulus_agreement", "stimulus_spread",
    "stimulus_gradient", "off_activation", "off_start", "off_converged", "off_agreement",
    "off_gradient", "stimulus_reason",
)  # fmt: skip


def _table(
    layer: str,
    total: int,
    channels: np.ndarray,
    rows: Mapping[str, np.ndarray],
    largest: np.ndarray,
    usual: float,
    kinds: list[str],
    off_kinds: list[str],
    rectified: bool,
) -> pd.DataFrame:
    """Return the table of a layer, a row for each of its `total` channels."""
    value, off_value = rows["value"].astype(np.float64), rows["off_value"].astype(np.float64)
    activation, lowest = rows["activation"].astype(np.float64), off_value.min(1)
    photograph = np.where(largest[channels] > 0, largest[channels], np.nan)
    from_noise = np.full(len(channels), np.nan)
    if NOISE in kinds:
        from_noise = value[:, [kind == NOISE for kind in kinds]].max(1)
    constant = value.max(1) - lowest <= _CONSTANT * usual
    silent = rectified & (activation <= 0)
    nothing = constant | silent
    # Where nothing takes the unit below zero there is no OFF field to speak of.
    no_off = constant | (rectified & (lowest >= 0))
    largest_value = np.where(constant, np.nan, np.abs(value).max(1))
    on = {
        "stimulus_activation": activation,
        "stimulus_gain": activation / photograph,
        "stimulus_noise_gain": np.maximum(from_noise, 0 if rectified else -np.inf) / photograph,
        "stimulus_start": np.array(kinds, object)[rows["best"]],
        "stimulus_converged": pd.array(rows["rest"], "boolean"),
        "stimulus_agreement": rows["agreement"],
        "stimulus_spread": (value.max(1) - value.min(1)) / largest_value,
        "stimulus_gradient": rows["gradient"],
    }
    off = {
        "off_activation": lowest,
        "off_start": np.array(off_kinds, object)[rows["off_best"]],
        "off_converged": pd.array(rows["off_rest"], "boolean"),
        "off_agreement": rows["off_agreement"],
        "off_gradient": rows["off_gradient"],
    }
    measured = pd.DataFrame(on | off, index=channels)
    measured.loc[nothing, list(on)] = pd.NA
    measured.loc[no_off, list(off)] = pd.NA
    measured["stimulus_reason"] = np.select(
        [constant, silent, np.isnan(photograph)], ["constant", "silent", "no_photograph"], ""
    )
    table = measured.reindex(np.arange(total))
    table["stimulus_reason"] = table["stimulus_reason"].fillna("not_measured")
    table.insert(0, "channel", np.arange(total))
    table.insert(0, "layer", layer)
    return table[list(COLUMNS)]
