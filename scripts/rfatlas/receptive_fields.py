"""Stage `receptive_fields`: what the units that a channel likes best look at, from exact crops of
the network.

For each channel the K strongest units are taken (positions and values come from `activations.h5`).
The gradient of a unit is computed on a crop of its image (see `crops`), where activation and
gradient are those of the whole image. All crops of a layer have one size, so units of different
images, channels and positions share a batch and one backward pass.

Units that lie in the same crop (deep layers, whose crop is the whole image) share its forward pass.
"""

import math
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

from rfatlas import crops, statistics, store
from rfatlas.crops import Plan, Units, Window, batches, cut_windows, gather, list_units, window

# Share of the centre above which a pixel belongs to the effective RF (Luo et al. 2016, where it is
# 1 - 0.9545, the two-sigma level); of a Gaussian, all within 2.49 sigma.
ERF_THRESHOLD = 0.0455

_CPU = torch.device("cpu")

# Progress is saved after so many seconds, or 20 times what a save costs if that is more.
_SAVE_EVERY_S = 30.0


# ---- gradients


def unit_gradients(
    prefix: nn.Module,
    pictures: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    rounds: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield, per round, the activations (n,) of its units and their gradients (n, 3, h, w).

    `pictures` float (B, 3, h, w) are crops: pixels in 0..1, before normalisation with `mean` and
    `std` (3,); the gradient is with respect to them. A round is (channel, y, x), each int64 (n,),
    of units that lie in the first n crops: their sum is differentiated in one backward pass, and no
    crop sees another's unit.
    """
    pixels = pictures.detach().requires_grad_()
    normalised = (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    output = prefix(normalised.contiguous(memory_format=torch.channels_last))
    if output.ndim == 2:
        output = output[:, :, None, None]
    for number, (channel, y, x) in enumerate(rounds):
        values = output[torch.arange(len(channel), device=output.device), channel, y, x]
        last = number == len(rounds) - 1
        (gradient,) = torch.autograd.grad(values.sum(), pixels, retain_graph=not last)
        yield values.detach(), gradient[: len(values)]


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
    pictures = gather(images, cut, units.take(rounds[0]), device)
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
        pictures.float() / 255,
        torch.tensor(input["mean"], device=device),
        torch.tensor(input["std"], device=device),
        [tuple(torch.from_numpy(a).to(device) for a in arrays) for arrays in positions],
    )
    for member, (value, gradient) in zip(members, results, strict=True):
        top, left = (
            torch.from_numpy(cut.window_start(p, axis) - cut.crop_start(p, axis)).to(device)
            for axis, p in enumerate((member.y, member.x))
        )
        pixels = pictures[: len(member)]
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


def plan(
    cut: Window,
    channels: int,
    units: int,
    keep: int,
    crop_bytes: float,
    memory_mb: float,
    device: torch.device = _CPU,
) -> Plan:
    """Return block and batch sizes for a layer (see `crops.plan`) of which `keep` units per channel
    are kept one by one."""
    per_pixel = 5 * 3 * 8 * 2 + 4 * 3 + keep * 3 * 5
    return crops.plan(cut, channels, units, per_pixel, crop_bytes, memory_mb, device)


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
    """Make `<layer>.h5` of design.md section 4 and its table, ready for `store.publish`.

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
        partial.folder / store.FIELDS,
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
    crops.check_certificate(layer, channels, rows["certificate"], top["value"])
    for key in ("certificate", "energy_inside"):
        fields.write(key, 0, rows[key])
    fields.complete()
    store.write_table(_table(layer, channels, rows, top), partial.folder / store.TABLE)


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
