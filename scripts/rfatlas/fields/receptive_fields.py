"""Stage `receptive_fields`: what the units that a channel likes best look at, from exact crops of
the network.

For each channel the K strongest units are taken (positions and values come from `activations.h5`).
The gradient of a unit is computed on a crop of its image (see `crops`), where activation and
gradient are those of the whole image. All crops of a layer have one size, so units of different
images, channels and positions share a batch and one backward pass.

Units that lie in the same crop (deep layers, whose crop is the whole image) share its forward pass.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import optimize
from torch import nn

from rfatlas import statistics
from rfatlas.fields import crops
from rfatlas.fields.crops import Plan, Units, Window, cut_windows, window
from rfatlas.files import store
from rfatlas.files.task import Task

# Share of the centre above which a pixel belongs to the effective RF (Luo et al. 2016, where it is
# 1 - 0.9545, the two-sigma level); of a Gaussian, all within 2.49 sigma.
ERF_THRESHOLD = 0.0455

_CPU = torch.device("cpu")


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
    for pixels, output, at, keep in crops.forward(prefix, pictures, mean, std, rounds):
        output = output[:, :, None, None] if output.ndim == 2 else output
        values = output[at]
        (gradient,) = torch.autograd.grad(values.sum(), pixels, retain_graph=keep)
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
    """Yield, per round of one batch (see `crops.batches`), its units and what they see.

    `images` uint8 (N, H, H, 3) is indexed by the units' image; `channels` maps their slots to
    channels of the layer that `prefix` computes.
    """
    batch = crops.load_batch(model, cut, images, channels, units, rounds)
    results = unit_gradients(
        prefix, batch.pictures.float() / 255, batch.mean, batch.std, batch.places
    )
    for member, corner, (value, gradient) in zip(
        batch.members, batch.corners, results, strict=True
    ):
        pixels = batch.pictures[: len(member)]
        yield (
            member,
            Seen(
                value,
                cut_windows(gradient, *corner, cut.size),
                cut_windows(pixels, *corner, cut.size),
                cut_windows(torch.ones_like(pixels[:, :1]), *corner, cut.size)[:, 0] > 0,
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
        """Return `count` and the mean fields (zero where no unit has the pixel)."""
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
    keep: int,
    task: Task,
) -> None:
    """Write `<layer>.h5` (docs/files.md) and its table.

    `images` uint8 (N, H, H, 3); `channels` (C,) the channels to analyse; `top` their `value` (C,
    K), `image` (C, K) and `yx` (C, K, 2); `keep` (P): patches and gradients kept per channel.
    Killed, the work resumes from `<output>.partial`. Raises RfatlasError if recomputed activations
    are not the cached ones.
    """
    image_size = model.description["input"]["crop"]
    cut = window(model.graph.geometry(layer), image_size)
    k = top["image"].shape[1]
    keep = min(keep, k)
    ratio = (cut.crop / image_size) ** 2
    kept_bytes = model.graph.kept_bytes(layer) * ratio
    scheme = plan(cut, len(channels), k, keep, kept_bytes, task.memory_mb, model.device)
    partial = store.Partial(
        task.output,
        task.fingerprint(block=scheme.block, batch=scheme.batch, channels=channels.tolist()),
    )
    n, s = len(channels), cut.size
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
        {**task.attrs, **crops.attributes(cut), "whole_image": cut.geometry is None},
    )
    fields.write("channel", 0, channels)
    prefix = model.graph.prefix(layer)
    rows = crops.run_blocks(
        lambda size: _Block(cut, size, k, keep, model.device),
        lambda *work: look(model, prefix, cut, images, *work),
        scheme,
        channels,
        top,
        partial,
        fields,
        task.bar,
    )
    crops.check_certificate(layer, channels, rows["certificate"], top["value"])
    for key in ("certificate", "energy_inside"):
        fields.write(key, 0, rows[key])
    fields.complete()
    store.write_table(_table(layer, channels, rows, top), partial.folder / store.TABLE)
    store.publish(task.output)


class _Block(crops.Block):
    """The channels worked on together, and all that is kept of them until they are finished."""

    def __init__(self, cut: Window, channels: int, k: int, keep: int, device: torch.device):
        super().__init__(cut)
        self._keep = keep
        self._sums = Sums(channels, cut.size, device)
        self._patch = np.zeros((channels, keep, cut.size, cut.size, 3), np.uint8)
        self._gradient = np.zeros((channels, keep, 3, cut.size, cut.size), np.float32)
        self._certificate = np.full((channels, k), np.nan, np.float32)
        self._inside = np.zeros(channels)
        self._energy = np.zeros(channels)

    def add(self, units: Units, seen: Seen) -> None:
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
        return {"patch": self._patch, "gradient": self._gradient, **self._sums.means()}

    def rows(self) -> dict[str, np.ndarray]:
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

    def state(self) -> dict[str, np.ndarray]:
        return {key: getattr(self, key) for key in self._STATE} | {
            "sums": self._sums.fields.cpu().numpy(),
            "counts": self._sums.counts.cpu().numpy(),
        }

    def resume(self, state: Mapping[str, np.ndarray]) -> None:
        for key in self._STATE:
            setattr(self, key, state[key])
        self._sums.fields.copy_(torch.from_numpy(state["sums"]))
        self._sums.counts.copy_(torch.from_numpy(state["counts"]))


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
