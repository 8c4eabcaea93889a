"""Part `skip_residual` of the stage `receptive_fields`: how much of a unit's gradient comes through
the skip connection of its block, and how much through the residual branch.

By the chain rule the two parts add up to the gradient, but not their energies, as they are not
orthogonal. docs/columns.md defines the parts and every number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rfatlas import statistics
from rfatlas.fields import crops
from rfatlas.fields.crops import Window
from rfatlas.network.graph import NoPath

COLUMNS = (
    "skip_energy_share", "residual_energy_share", "skip_energy", "residual_energy",
    "skip_residual_cosine", "skip_mean_share", "skip_residual_correlation",
    "skip_activation_share", "skip_radius", "residual_radius", "skip_reason",
)  # fmt: skip

SKIPLESS = "the block has no skip connection"
SILENT = "no image drives the channel"
LEFT_OUT = "left out by receptive_fields.channels"

#: Bytes per pixel of its window that are held of a channel: sums of two parts, means, counts.
PIXEL_BYTES = 2 * 2 * 3 * 8 + 2 * 4

# Sums over the units of a channel, in float64: squared norms of both parts and their inner product
# in the whole image; the skip term and the sum; squared norms in the window, plain and times the
# squared distance from its centre.
_TOTALS = (
    "skip_energy", "residual_energy", "product", "skip_value", "sum_value", "skip_inside",
    "skip_spread", "residual_inside", "residual_spread",
)  # fmt: skip


# ---- units


def split(graph: Any, layer: str) -> tuple[nn.Module | None, str]:
    """Return the network up to a layer as `graph.split_block` gives it, or None and why there is
    nothing to split."""
    try:
        return graph.split_block(layer), ""
    except NoPath as error:
        return None, SKIPLESS if graph.skipless(layer) else str(error)


@dataclass(frozen=True)
class Parts:
    """What some units see through both terms of their block's sum, on a device.

    `skip_value` the skip terms and `sum_value` the sums (n,); in the stored windows `skip` and
    `residual` (n, 3, S, S); `energy` (n, 3) float64: squared norms of the skip and the residual
    part, and their inner product, in the whole image.
    """

    skip_value: torch.Tensor
    sum_value: torch.Tensor
    skip: torch.Tensor
    residual: torch.Tensor
    energy: torch.Tensor


def look(
    output: tuple[torch.Tensor, ...],
    pixels: torch.Tensor,
    at: tuple[torch.Tensor, ...],
    keep: bool,
    corner: tuple[torch.Tensor, torch.Tensor],
    size: int,
) -> Parts:
    """Return the parts of what the units of a round see (see `crops.forward`), from the `output` of
    a split network; their windows of `size` begin at `corner`."""
    value, total, *terms = output
    # The derivative of the activation with respect to the sum: the gate of the ReLU.
    (gate,) = torch.autograd.grad(value[at].sum(), total, retain_graph=True)
    parts = []
    for term, kept in zip(terms, (True, keep), strict=True):
        (gradient,) = torch.autograd.grad(term, pixels, gate, retain_graph=kept)
        parts.append(gradient[: len(at[0])])
    skip, residual = (part.double() for part in parts)
    pairs = ((skip, skip), (residual, residual), (skip, residual))
    return Parts(
        terms[0][at].detach(),
        total[at].detach(),
        *(crops.cut_windows(part, *corner, size) for part in parts),
        torch.stack([(a * b).sum((1, 2, 3)) for a, b in pairs], 1),
    )


def squared_distance(cut: Window) -> np.ndarray:
    """Return the squared distance (S, S), in pixels, of each pixel of a layer's window from the
    centre of the receptive field; NaN where a unit sees the whole image."""
    if cut.geometry is None:
        return np.full((cut.size, cut.size), np.nan)
    y, x = (
        np.arange(cut.size) + 0.5 + np.floor(start - cut.size / 2) - start
        for start in cut.geometry.start
    )
    return y[:, None] ** 2 + x**2


# ---- channels


class Sums:
    """Running sums over the units of `channels` channels, on a device, by name in `held`."""

    def __init__(self, cut: Window, channels: int, device: torch.device):
        window, exact = (cut.size, cut.size), {"dtype": torch.float64, "device": device}
        self._distance = torch.from_numpy(squared_distance(cut)).to(device)
        self.held = {
            "parts": torch.zeros(2, channels, 3, *window, **exact),
            "parts_count": torch.zeros(channels, *window, dtype=torch.int32, device=device),
            "parts_totals": torch.zeros(channels, len(_TOTALS), **exact),
        }

    def add(self, slot: torch.Tensor, parts: Parts, inside: torch.Tensor) -> None:
        """Add units: channel slot (n,), what they see, and which pixels (n, S, S) of their windows
        are in the image."""
        spreads = []
        for total, part in zip(self.held["parts"], (parts.skip, parts.residual), strict=True):
            part = part.double()
            total.index_add_(0, slot, part)
            energy = part.square().sum(1)
            spreads += [energy.sum((1, 2)), (energy * self._distance).sum((1, 2))]
        self.held["parts_count"].index_add_(0, slot, inside.int())
        values = torch.stack([parts.skip_value, parts.sum_value], 1).double()
        totals = torch.cat([parts.energy, values, torch.stack(spreads, 1)], 1)
        self.held["parts_totals"].index_add_(0, slot, totals)

    def means(self) -> dict[str, np.ndarray]:
        """Return `count` and the mean parts `skip` and `residual`."""
        count = self.held["parts_count"].cpu().numpy()
        skip, residual = self.held["parts"].cpu().numpy() / np.maximum(count, 1)[:, None]
        return {"count": count, "skip": skip, "residual": residual}

    def columns(self) -> dict[str, np.ndarray]:
        """Return `COLUMNS` (see the module's head) less the reason, (channels,) each; NaN where
        there is nothing to divide by."""
        total = dict(zip(_TOTALS, self.held["parts_totals"].cpu().numpy().T, strict=True))
        skip, residual, product = (
            total[key] for key in ("skip_energy", "residual_energy", "product")
        )
        means = self.means()
        s, r = (means[key].reshape(len(skip), -1) for key in ("skip", "residual"))
        mean_skip, mean_residual, mean_product = (
            (a * b).sum(1) for a, b in ((s, s), (r, r), (s, r))
        )
        whole = skip + residual + 2 * product
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "skip_energy_share": (skip + product) / whole,
                "residual_energy_share": (residual + product) / whole,
                "skip_energy": skip / whole,
                "residual_energy": residual / whole,
                "skip_residual_cosine": product / np.sqrt(skip * residual),
                "skip_mean_share": (mean_skip + mean_product)
                / (mean_skip + mean_residual + 2 * mean_product),
                "skip_residual_correlation": statistics.correlation(s, r),
                "skip_activation_share": total["skip_value"] / total["sum_value"],
                "skip_radius": np.sqrt(total["skip_spread"] / total["skip_inside"]),
                "residual_radius": np.sqrt(total["residual_spread"] / total["residual_inside"]),
            }


def columns(rows: Mapping[str, np.ndarray], used: np.ndarray, reason: str) -> dict[str, np.ndarray]:
    """Return `COLUMNS` of the channels of a layer, (C,) each.

    `rows` what `Sums.columns` gave of them, empty where there was nothing to split for the given
    `reason`; `used` (C,) whether any image drives the channel.
    """
    found = {name: rows.get(name, np.full(len(used), np.nan)) for name in COLUMNS[:-1]}
    if reason == SKIPLESS:
        for name, share in (("skip", 0.0), ("residual", 1.0)):
            found[f"{name}_energy_share"] = np.where(used, share, np.nan)
            found[f"{name}_energy"] = np.where(used, share, np.nan)
    found["skip_reason"] = np.where(used | (reason != ""), reason, SILENT)
    return found
