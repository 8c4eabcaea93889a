"""Stage `receptive_fields`: what the units that a channel likes best look at, from exact crops of
the network.

For each channel the K strongest units are taken (positions and values come from `activations.h5`).
The gradient of a unit is computed on a crop of its image (see `crops`), where activation and
gradient are those of the whole image. All crops of a layer have one size, so units of different
images, channels and positions share a batch and one backward pass.

Units that lie in the same crop (deep layers, whose crop is the whole image) share its forward pass.
"""

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import optimize
from torch import nn

from rfatlas import statistics, store
from rfatlas.crops import Window, window
from rfatlas.errors import RfatlasError

# Share of the centre above which a pixel belongs to the effective RF (Luo et al. 2016, where it is
# 1 - 0.9545, the two-sigma level); of a Gaussian, all within 2.49 sigma.
ERF_THRESHOLD = 0.0455

# A recomputed activation further from the cached one than this share of the layer's largest means
# that the two come from other weights or images; float32 rounding stays far below.
_CERTIFICATE_LIMIT = 1e-2

_CPU = torch.device("cpu")

_FIELDS, _TABLE = "fields.h5", "table.csv"

# Progress is saved after so many seconds, or 20 times what a save costs if that is more.
_SAVE_EVERY_S = 30.0


# ---- units


@dataclass(frozen=True)
class Units:
    """Units to analyse, one row each: channel slot, rank, image, y, x, cached activation (all of
    shape (n,))."""

    slot: np.ndarray
    rank: np.ndarray
    image: np.ndarray
    y: np.ndarray
    x: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.slot)

    def take(self, rows: np.ndarray) -> "Units":
        """Return the units of the given rows."""
        return Units(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def list_units(value: np.ndarray, image: np.ndarray, yx: np.ndarray) -> Units:
    """Return the units of top-K tables: value (C, K), image (C, K), yx (C, K, 2); image -1 marks an
    empty place."""
    slot, rank = np.nonzero(image >= 0)
    return Units(
        slot,
        rank,
        image[slot, rank].astype(np.int64),
        yx[slot, rank, 0].astype(np.int64),
        yx[slot, rank, 1].astype(np.int64),
        value[slot, rank].astype(np.float32),
    )


def batches(units: Units, window: Window, size: int) -> Iterator[list[np.ndarray]]:
    """Yield batches of at most `size` crops, each a list of rounds of units (rows).

    Units of the same image and crop share the crop. A round holds one unit in each of the first
    crops of its batch: crops come in order of how many units they hold, so that later rounds need
    fewer and few batches are left partly idle.
    """
    keys = np.stack([units.image, window.crop_start(units.y, 0), window.crop_start(units.x, 1)], 1)
    _, crop, members = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    crop = crop.reshape(-1)
    order = np.lexsort((crop, -members[crop]))
    starts = np.flatnonzero(np.r_[True, np.diff(crop[order]) != 0]) if len(order) else order
    groups = np.split(order, starts[1:])
    for first in range(0, len(groups) if len(order) else 0, size):
        chunk = groups[first : first + size]
        deepest = max(len(group) for group in chunk)
        yield [
            np.array([group[round] for group in chunk if len(group) > round])
            for round in range(deepest)
        ]


# ---- gradients


def unit_gradients(
    prefix: nn.Module,
    crops: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    rounds: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield, per round, the activations (n,) of its units and their gradients (n, 3, h, w).

    `crops` float (B, 3, h, w) holds pixels in 0..1, before normalisation with `mean` and `std`
    (3,); the gradient is with respect to them. A round is (crop, channel, y, x), each int64 (n,),
    with each crop at most once: the units' sum is differentiated in one backward pass, and no crop
    sees another's unit.
    """
    pixels = crops.detach().requires_grad_()
    normalised = (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    output = prefix(normalised.contiguous(memory_format=torch.channels_last))
    if output.ndim == 2:
        output = output[:, :, None, None]
    for number, (channel, y, x) in enumerate(rounds):
        values = output[torch.arange(len(channel), device=output.device), channel, y, x]
        last = number == len(rounds) - 1
        (gradient,) = torch.autograd.grad(values.sum(), pixels, retain_graph=not last)
        yield values.detach(), gradient[: len(values)]


def cut_windows(
    fields: torch.Tensor, top: torch.Tensor, left: torch.Tensor, size: int
) -> torch.Tensor:
    """Return the windows (n, c, size, size) of `fields` (n, c, h, w) that begin at (top, left),
    int64 (n,).

    A window may reach outside its field; there it is zero.
    """
    height, width = fields.shape[2:]
    span = torch.arange(size, device=fields.device)
    rows, columns = top[:, None] + span, left[:, None] + span
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    number = torch.arange(len(fields), device=fields.device)[:, None, None]
    picked = fields.permute(0, 2, 3, 1)[
        number, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ]
    return (picked * inside[..., None]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Seen:
    """What some units see, on a device.

    Activation `value` (n,); in the stored windows `gradient` (n, 3, S, S) float32, `image` (n, 3,
    S, S) uint8 and `inside` (n, S, S) bool, true in the image; `energy` (n,) float64, the squared
    gradient summed over the whole image.
    """

    value: torch.Tensor
    gradient: torch.Tensor
    image: torch.Tensor
    inside: torch.Tensor
    energy: torch.Tensor


def look(
    model: Any,
    prefix: nn.Module,
    cut: Window,
    images: Any,
    channels: np.ndarray,
    units: Units,
    rounds: list[np.ndarray],
) -> Iterator[tuple[Units, Seen]]:
    """Yield, per round of one batch (see `batches`), its units and what they see.

    `images` uint8 (N, H, H, 3) is indexed by the units' image; `channels` maps their slots to
    channels of the layer that `prefix` computes.
    """
    device = model.device
    first = units.take(rounds[0])
    corners = zip(first.image, cut.crop_start(first.y, 0), cut.crop_start(first.x, 1), strict=True)
    crops = np.stack([images[i, t : t + cut.crop, u : u + cut.crop] for i, t, u in corners])
    crops = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2)
    members = [units.take(rows) for rows in rounds]
    positions = [
        (
            channels[member.slot].astype(np.int64),
            cut.position_in_crop(member.y, 0),
            cut.position_in_crop(member.x, 1),
        )
        for member in members
    ]
    input = model.description["input"]
    results = unit_gradients(
        prefix,
        crops.float() / 255,
        torch.tensor(input["mean"], device=device),
        torch.tensor(input["std"], device=device),
        [tuple(torch.from_numpy(a).to(device) for a in arrays) for arrays in positions],
    )
    for member, (value, gradient) in zip(members, results, strict=True):
        top, left = (
            torch.from_numpy(cut.window_start(p, axis) - cut.crop_start(p, axis)).to(device)
            for axis, p in enumerate((member.y, member.x))
        )
        pixels = crops[: len(member)]
        yield (
            member,
            Seen(
                value,
                cut_windows(gradient, top, left, cut.size),
                cut_windows(pixels, top, left, cut.size),
                cut_windows(torch.ones_like(pixels[:, :1]), top, left, cut.size)[:, 0] > 0,
                gradient.double().square().sum((1, 2, 3)),
            ),
        )


# ---- sums over units


class Sums:
    """Running sums over the units of `channels` channels, in float64, on a device.

    `fields` (5, channels, 3, S, S): gradients of odd ranks (1st, 3rd, ...) and of even ranks,
    absolute gradients, images, absolute gradients times images; `counts` (2, channels, S, S): how
    many windows of odd and of even ranks have that pixel in the image.
    """

    def __init__(self, channels: int, size: int, device: torch.device):
        self.fields = torch.zeros(5, channels, 3, size, size, dtype=torch.float64, device=device)
        self.counts = torch.zeros(2, channels, size, size, dtype=torch.int32, device=device)

    def add(
        self,
        slot: torch.Tensor,
        rank: torch.Tensor,
        gradient: torch.Tensor,
        image: torch.Tensor,
        inside: torch.Tensor,
    ) -> None:
        """Add units: channel slot and rank (n,), gradient and image (n, 3, S, S), inside (n, S, S)
        in {0, 1}."""
        odd, even = rank % 2 == 0, rank % 2 == 1
        gradient, image = gradient.double(), image.double()
        self.fields[0].index_add_(0, slot[odd], gradient[odd])
        self.fields[1].index_add_(0, slot[even], gradient[even])
        size = gradient.abs()
        self.fields[2].index_add_(0, slot, size)
        self.fields[3].index_add_(0, slot, image)
        self.fields[4].index_add_(0, slot, size * image)
        self.counts[0].index_add_(0, slot[odd], inside[odd].int())
        self.counts[1].index_add_(0, slot[even], inside[even].int())

    def means(self) -> dict[str, np.ndarray]:
        """Return `count` and the mean fields of design.md section 4 (zero where no unit has the
        pixel)."""
        odd, even, size, image, effective = self.fields.cpu().numpy()
        count = self.counts.sum(0).cpu().numpy()
        divisor = np.maximum(count, 1)[:, None]
        return {
            "count": count,
            "mean_image": image / divisor,
            "mean_gradient": (odd + even) / divisor,
            "mean_abs_gradient": size / divisor,
            "effective": effective / divisor,
        }

    def split_half(self) -> np.ndarray:
        """Return the correlation (channels,) of the mean gradients of odd and even ranks; NaN below
        two units."""
        halves = [
            (self.fields[i] / self.counts[i].clamp(min=1)[:, None]).flatten(1).cpu().numpy()
            for i in (0, 1)
        ]
        result = statistics.correlation(*halves)
        result[self.counts[1].flatten(1).amax(1).cpu().numpy() == 0] = np.nan
        return result


# ---- effective receptive field


def fit_gaussian(field: np.ndarray) -> tuple[float, float, float, float]:
    """Return (sigma, y, x, r2) of the least-squares fit of a round Gaussian to a field F (S, S).

    The model is A exp(-((i - y)^2 + (j - x)^2) / (2 sigma^2)), in pixels; `r2` is 1 - residual /
    total sum of squares. The amplitude is linear and projected out, so three parameters remain:
    maximise (g_y' F g_x)^2 / (|g_y|^2 |g_x|^2). Sigma stays within 0.2 pixels and 4 S (a flat field
    has no width of its own); NaN for a field without variation.
    """
    size = len(field)
    total = ((field - field.mean()) ** 2).sum()
    if not total > 0:
        return math.nan, math.nan, math.nan, math.nan
    grid = np.arange(size)
    weight = np.abs(field) / np.abs(field).sum()
    rows, columns = weight.sum(1), weight.sum(0)
    y, x = rows @ grid, columns @ grid
    spread = math.sqrt(max((rows @ (grid - y) ** 2 + columns @ (grid - x) ** 2) / 2, 0.25))

    def width(parameters: np.ndarray) -> float:
        return math.exp(np.clip(parameters[0], math.log(0.2), math.log(4 * size)))

    def explained(parameters: np.ndarray) -> float:
        sigma = width(parameters)
        vertical = np.exp(-((grid - parameters[1]) ** 2) / (2 * sigma**2))
        horizontal = np.exp(-((grid - parameters[2]) ** 2) / (2 * sigma**2))
        norm = (vertical @ vertical) * (horizontal @ horizontal)
        return float((vertical @ field @ horizontal) ** 2 / norm) if norm > 0 else 0.0

    best = max(
        (
            optimize.minimize(
                lambda p: -explained(p),
                np.array([math.log(start), y, x]),
                method="Nelder-Mead",
                options={"xatol": 1e-4, "fatol": 1e-10 * total, "maxiter": 400},
            )
            for start in (spread, spread / 3)
        ),
        key=lambda result: -result.fun,
    )
    residual = (field**2).sum() + best.fun
    return width(best.x), best.x[1], best.x[2], 1 - residual / total


def effective_rf(mean_abs_gradient: np.ndarray) -> tuple[float, float, float]:
    """Return (erf_sigma, erf_r2, erf_fraction) of one channel's mean absolute gradient (3, S, S).

    Colours are summed. Sigma in pixels; the fraction is the share of the S x S window above 4.55 %
    of its centre pixel (Luo et al. 2016), NaN where the centre is zero.
    """
    field = mean_abs_gradient.sum(0)
    sigma, _, _, r2 = fit_gaussian(field)
    centre = field[len(field) // 2, len(field) // 2]
    fraction = float((field > ERF_THRESHOLD * centre).mean()) if centre > 0 else math.nan
    return sigma, r2, fraction


# ---- one layer


@dataclass(frozen=True)
class Plan:
    """How a layer is worked through within a memory budget: channels per block, crops per batch."""

    block: int
    batch: int


# What the libraries and the network take before the first unit.
_BASE_MB = 700
# Pixels of crops in one batch: beyond, a CPU leaves its cache and a GPU gains nothing more.
_BATCH_PIXELS = {"cpu": 2**19, "cuda": 2**23}


def plan(
    window: Window,
    channels: int,
    units: int,
    keep: int,
    crop_bytes: float,
    memory_mb: float,
    device: torch.device = _CPU,
) -> Plan:
    """Return block and batch sizes for a layer.

    `crop_bytes`: what one crop's forward pass keeps; `units`: units per channel. Half of
    `memory_mb`, less a base for the libraries, goes to the sums of a block. The other half goes to
    the batch, or on a GPU half of its free memory.
    """
    budget = max(memory_mb - _BASE_MB, 200) * 1e6 / 2
    area = window.size**2
    per_channel = area * (5 * 3 * 8 * 2 + 4 * 3 + keep * 3 * 5)
    per_crop = crop_bytes + window.crop**2 * 3 * 4 * 4 + area * 3 * 8 * 5
    room = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else budget
    pixels = _BATCH_PIXELS[device.type]
    batch = int(min(room // per_crop, pixels // window.crop**2, channels * units))
    return Plan(max(1, min(channels, int(budget // per_channel))), max(1, batch))


def measure(
    model: Any,
    layer: str,
    images: Any,
    channels: np.ndarray,
    top: Mapping[str, np.ndarray],
    output: Path,
    keep: int,
    memory_mb: float,
    fingerprint: Mapping[str, Any],
    attrs: Mapping[str, Any],
    advance: Any = lambda units: None,
) -> None:
    """Make `<layer>.h5` of design.md section 4 and its table, ready for `publish`.

    `images` uint8 (N, H, H, 3); `channels` (C,) the channels to analyse; `top` their `value` (C,
    K), `image` (C, K) and `yx` (C, K, 2); `keep` (P): patches and gradients kept per channel.
    `advance` is called with the number of units finished. Killed, the work resumes from
    `<output>.partial`. Raises RfatlasError if recomputed activations are not the cached ones.
    """
    image_size = model.description["input"]["crop"]
    cut = window(model.graph.geometry(layer), image_size)
    k = top["image"].shape[1]
    keep = min(keep, k)
    ratio = (cut.crop / image_size) ** 2
    kept_bytes = model.graph.kept_bytes(layer) * ratio
    scheme = plan(cut, len(channels), k, keep, kept_bytes, memory_mb, model.device)
    partial = store.Partial(
        output,
        {
            **fingerprint,
            "block": scheme.block,
            "batch": scheme.batch,
            "channels": channels.tolist(),
        },
    )
    n, s, geometry = len(channels), cut.size, cut.geometry
    field = ((n, 3, s, s), np.float64)
    fields = store.Allocated(
        partial.folder / _FIELDS,
        {
            "channel": ((n,), np.int32),
            "patch": ((n, keep, s, s, 3), np.uint8),
            "gradient": ((n, keep, 3, s, s), np.float32),
            "count": ((n, s, s), np.int32),
            "mean_image": field,
            "mean_gradient": field,
            "mean_abs_gradient": field,
            "effective": field,
            "energy_inside": ((n,), np.float32),
            "certificate": ((n, k), np.float32),
        },
        {
            **attrs,
            "size": max(geometry.size) if geometry else image_size,
            "stride": max(geometry.stride) if geometry else 0,
            "start": geometry.start[0] if geometry else image_size / 2,
            "whole_image": geometry is None,
            "image_size": image_size,
        },
    )
    fields.write("channel", 0, channels)
    prefix = model.graph.prefix(layer)
    done = set(partial.names())
    for first in range(0, len(channels), scheme.block):
        name = f"block-{first:06d}"
        slots = slice(first, min(first + scheme.block, len(channels)))
        units = list_units(*(top[key][slots] for key in ("value", "image", "yx")))
        if name not in done:
            block = _Block(cut, slots.stop - first, k, keep, model.device)
            block.run(model, prefix, images, channels[slots], units, scheme.batch, partial, advance)
            for key, rows in block.fields().items():
                fields.write(key, first, rows)
            partial.save(name, block.rows())
        else:
            advance(len(units))
    blocks = [partial.load(name) for name in partial.names() if name.startswith("block-")]
    rows = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    _check_certificate(layer, channels, rows["certificate"], top["value"])
    for key in ("certificate", "energy_inside"):
        fields.write(key, 0, rows[key])
    fields.complete()
    store.write_table(_table(layer, channels, rows, top), partial.folder / _TABLE)


def publish(output: Path) -> None:
    """Move what `measure` made to `output` (.h5) and the table beside it (.csv).

    Apart from `measure`, so that a job of several layers moves them all at its end: Snakemake
    removes the outputs of a killed job, and knows nothing of the `.partial` folders.
    """
    folder = Path(f"{output}.partial")
    os.replace(folder / _FIELDS, output)
    os.replace(folder / _TABLE, output.with_suffix(".csv"))
    shutil.rmtree(folder)


class _Block:
    """The channels worked on together, and all that is kept of them until they are finished."""

    def __init__(self, cut: Window, channels: int, k: int, keep: int, device: torch.device):
        self._cut, self._keep = cut, keep
        self._sums = Sums(channels, cut.size, device)
        self._patch = np.zeros((channels, keep, cut.size, cut.size, 3), np.uint8)
        self._gradient = np.zeros((channels, keep, 3, cut.size, cut.size), np.float32)
        self._certificate = np.full((channels, k), np.nan, np.float32)
        self._inside = np.zeros(channels)
        self._energy = np.zeros(channels)

    def run(
        self,
        model: Any,
        prefix: nn.Module,
        images: Any,
        channels: np.ndarray,
        units: Units,
        batch: int,
        partial: store.Partial,
        advance: Any,
    ) -> None:
        finished = self._restore(partial, int(channels[0]))
        saved, cost = time.monotonic(), 0.0
        for number, rounds in enumerate(batches(units, self._cut, batch)):
            size = sum(map(len, rounds))
            if number >= finished:
                for seen_units, seen in look(
                    model, prefix, self._cut, images, channels, units, rounds
                ):
                    self._add(seen_units, seen)
                if time.monotonic() - saved > max(_SAVE_EVERY_S, 20 * cost):
                    begun = time.monotonic()
                    self._save(partial, int(channels[0]), number + 1)
                    saved = time.monotonic()
                    cost = saved - begun
            advance(size)

    def _add(self, units: Units, seen: "Seen") -> None:
        device = seen.gradient.device
        slot, rank = (torch.from_numpy(a).to(device) for a in (units.slot, units.rank))
        self._sums.add(slot, rank, seen.gradient, seen.image.float() / 255, seen.inside)
        inside = seen.gradient.double().square().sum((1, 2, 3)).cpu().numpy()
        np.add.at(self._inside, units.slot, inside)
        np.add.at(self._energy, units.slot, seen.energy.cpu().numpy())
        self._certificate[units.slot, units.rank] = np.abs(seen.value.cpu().numpy() - units.value)
        kept = np.flatnonzero(units.rank < self._keep)
        at = units.slot[kept], units.rank[kept]
        self._patch[at] = seen.image[kept].permute(0, 2, 3, 1).cpu().numpy()
        self._gradient[at] = seen.gradient[kept].cpu().numpy()

    def fields(self) -> dict[str, np.ndarray]:
        """Return the large datasets of the block."""
        return {"patch": self._patch, "gradient": self._gradient, **self._sums.means()}

    def rows(self) -> dict[str, np.ndarray]:
        """Return the small results of the block."""
        size = self._sums.means()["mean_abs_gradient"]
        effective = np.array([effective_rf(one) for one in size]).reshape(-1, 3)
        share = np.divide(
            self._inside,
            self._energy,
            out=np.full_like(self._energy, np.nan),
            where=self._energy > 0,
        )
        return {
            "certificate": self._certificate,
            "energy_inside": share.astype(np.float32),
            "split_half": self._sums.split_half(),
            "erf_sigma": effective[:, 0],
            "erf_r2": effective[:, 1],
            "erf_fraction": effective[:, 2],
        }

    _STATE = ("_patch", "_gradient", "_certificate", "_inside", "_energy")

    def _save(self, partial: store.Partial, block: int, finished: int) -> None:
        arrays = {key: getattr(self, key) for key in self._STATE}
        arrays |= {
            "sums": self._sums.fields.cpu().numpy(),
            "counts": self._sums.counts.cpu().numpy(),
        }
        partial.save("state", {**arrays, "block": np.array(block), "finished": np.array(finished)})

    def _restore(self, partial: store.Partial, block: int) -> int:
        """Take up saved progress of this block; return how many batches are in it."""
        if "state" not in partial.names():
            return 0
        state = partial.load("state")
        if state["block"] != block:
            return 0
        for key in self._STATE:
            setattr(self, key, state[key])
        self._sums.fields.copy_(torch.from_numpy(state["sums"]))
        self._sums.counts.copy_(torch.from_numpy(state["counts"]))
        return int(state["finished"])


def _check_certificate(
    layer: str, channels: np.ndarray, certificate: np.ndarray, value: np.ndarray
) -> None:
    if np.isnan(certificate).all():
        return
    worst = np.unravel_index(np.nanargmax(certificate), certificate.shape)
    if certificate[worst] > _CERTIFICATE_LIMIT * np.abs(value).max():
        raise RfatlasError(
            f"layer {layer}, channel {channels[worst[0]]}: the activation recomputed from the crop "
            f"differs by {certificate[worst]:.3g} from the cached {value[worst]:.6g}; "
            "activations.h5 comes from other weights or images: delete it and rerun that stage"
        )


COLUMNS = (
    "layer", "channel", "n_units", "certificate_max", "energy_inside", "split_half", "erf_sigma",
    "erf_r2", "erf_fraction",
)  # fmt: skip


def _table(
    layer: str, channels: np.ndarray, rows: Mapping[str, np.ndarray], top: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    used = top["image"] >= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(used, rows["certificate"] / np.abs(top["value"]), -np.inf).max(axis=1)
    columns = {
        "layer": layer,
        "channel": channels,
        "n_units": used.sum(axis=1),
        "certificate_max": np.where(used.any(axis=1), relative, np.nan),
        **{key: rows[key] for key in COLUMNS[4:]},
    }
    return pd.DataFrame(columns)[list(COLUMNS)]
