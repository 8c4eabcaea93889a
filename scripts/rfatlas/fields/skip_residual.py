"""Stage `skip_residual`: how much of a unit's gradient comes through the skip connection of its
block, and how much through the residual branch.

A block adds its input, handed on through the skip connection, to what its residual branch makes of
it; a ReLU follows. The gradient of a unit at the block's end is therefore a sum of two parts. Each
is computed with the other branch detached and the ReLU's gate as it was, so they add up to the
gradient of stage `receptive_fields`, of the same units, by the chain rule. Both go on through all
earlier layers with both their branches: the split is that of the last block alone.

Shares of energy need care, since the parts are no orthogonal ones: |s + r|^2 = |s|^2 + |r|^2 +
2 <s, r>. The share of the skip part is <s, s + r> / |s + r|^2. It and its counterpart add up to 1;
one is negative, the other above 1, where the larger part is partly cancelled by the smaller.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from rfatlas import statistics
from rfatlas.fields import crops
from rfatlas.fields.crops import Units, Window
from rfatlas.files import store
from rfatlas.files.task import Task
from rfatlas.network.graph import NoPath

COLUMNS = (
    "layer", "channel", "skip_energy_share", "residual_energy_share", "skip_energy",
    "residual_energy", "skip_residual_cosine", "skip_mean_share", "skip_residual_correlation",
    "skip_activation_share", "skip_radius", "residual_radius", "skip_reason",
)  # fmt: skip

SKIPLESS = "the block has no skip connection"
SILENT = "no image drives the channel"
LEFT_OUT = "left out by receptive_fields.channels"

# Sums over the units of a channel, in float64: squared norms of both parts and their inner product
# in the whole image; the skip term and the sum; squared norms in the window, plain and times the
# squared distance from its centre.
_TOTALS = (
    "skip_energy", "residual_energy", "product", "skip_value", "sum_value", "skip_inside",
    "skip_spread", "residual_inside", "residual_spread",
)  # fmt: skip


# ---- units


@dataclass(frozen=True)
class Parts:
    """What some units see through both terms of their block's sum, on a device.

    Activations `value`, terms `skip_value` and sums `sum_value` (n,); in the stored windows `skip`
    and `residual` (n, 3, S, S) and `inside` (n, S, S), 1 in the image; `energy` (n, 3) float64:
    squared norms of the skip and the residual part, and their inner product, in the whole image.
    """

    value: torch.Tensor
    skip_value: torch.Tensor
    sum_value: torch.Tensor
    skip: torch.Tensor
    residual: torch.Tensor
    inside: torch.Tensor
    energy: torch.Tensor


def part_gradients(
    split: nn.Module,
    pictures: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    rounds: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield, per round, values (n, 3) of its units (activation, skip term, sum) and the gradients
    (n, 3, h, w) through the skip connection and through the residual branch.

    `split` as `graph.split_block` gives it; pictures, normalisation and rounds as those of
    `receptive_fields.unit_gradients`.
    """
    for pixels, output, at, keep in crops.forward(split, pictures, mean, std, rounds):
        value, total, skip, residual = output
        # The derivative of the activation with respect to the sum: the gate of the ReLU.
        (gate,) = torch.autograd.grad(value[at].sum(), total, retain_graph=True)
        (through_skip,) = torch.autograd.grad(skip, pixels, gate, retain_graph=True)
        (through_residual,) = torch.autograd.grad(residual, pixels, gate, retain_graph=keep)
        values = torch.stack([value[at], skip[at], total[at]], 1).detach()
        n = len(values)
        yield values, through_skip[:n], through_residual[:n]


def look(
    model: Any,
    split: nn.Module,
    cut: Window,
    images: Any,
    channels: np.ndarray,
    units: Units,
    rounds: list[np.ndarray],
) -> Iterator[tuple[Units, Parts]]:
    """Yield, per round of one batch (see `crops.batches`), its units and the parts of what they
    see.

    `images` uint8 (N, H, H, 3) is indexed by the units' image; `channels` maps their slots to
    channels of the layer.
    """
    batch = crops.load_batch(model, cut, images, channels, units, rounds)
    results = part_gradients(
        split, batch.pictures.float() / 255, batch.mean, batch.std, batch.places
    )
    for member, corner, (values, skip, residual) in zip(
        batch.members, batch.corners, results, strict=True
    ):
        ones = torch.ones_like(skip[:, :1])
        one, other = skip.double(), residual.double()
        pairs = ((one, one), (other, other), (one, other))
        yield (
            member,
            Parts(
                *values.unbind(1),
                crops.cut_windows(skip, *corner, cut.size),
                crops.cut_windows(residual, *corner, cut.size),
                crops.cut_windows(ones, *corner, cut.size)[:, 0],
                torch.stack([(a * b).sum((1, 2, 3)) for a, b in pairs], 1),
            ),
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


class _Block(crops.Block):
    """The channels worked on together, and all that is summed up of them."""

    def __init__(self, cut: Window, channels: int, k: int, device: torch.device):
        super().__init__(cut)
        size = cut.size
        self._fields = torch.zeros(2, channels, 3, size, size, dtype=torch.float64, device=device)
        self._count = torch.zeros(channels, size, size, dtype=torch.int32, device=device)
        self._distance = torch.from_numpy(squared_distance(cut)).to(device)
        self._totals = np.zeros((channels, len(_TOTALS)))
        self._certificate = np.full((channels, k), np.nan, np.float32)

    def add(self, units: Units, seen: Parts) -> None:
        slot = torch.from_numpy(units.slot).to(seen.skip.device)
        spreads = []
        for number, part in enumerate((seen.skip.double(), seen.residual.double())):
            self._fields[number].index_add_(0, slot, part)
            energy = part.square().sum(1)
            spreads += [energy.sum((1, 2)), (energy * self._distance).sum((1, 2))]
        self._count.index_add_(0, slot, seen.inside.int())
        values = torch.stack([seen.skip_value, seen.sum_value], 1).double()
        totals = torch.cat([seen.energy, values, torch.stack(spreads, 1)], 1)
        np.add.at(self._totals, units.slot, totals.cpu().numpy())
        difference = np.abs(seen.value.cpu().numpy() - units.value)
        self._certificate[units.slot, units.rank] = difference

    def fields(self) -> dict[str, np.ndarray]:
        """Return `count` and the mean parts `skip` and `residual`."""
        count = self._count.cpu().numpy()
        skip, residual = self._fields.cpu().numpy() / np.maximum(count, 1)[:, None]
        return {"count": count, "skip": skip, "residual": residual}

    def rows(self) -> dict[str, np.ndarray]:
        """Return totals, certificates, and the products of the mean parts."""
        means = self.fields()
        skip, residual = (means[key].reshape(len(means[key]), -1) for key in ("skip", "residual"))
        return {
            "totals": self._totals,
            "certificate": self._certificate,
            "mean_products": np.stack(
                [(a * b).sum(1) for a, b in ((skip, skip), (residual, residual), (skip, residual))],
                1,
            ),
            "mean_correlation": statistics.correlation(skip, residual),
        }

    def state(self) -> dict[str, np.ndarray]:
        return {
            "fields": self._fields.cpu().numpy(),
            "count": self._count.cpu().numpy(),
            "totals": self._totals,
            "certificate": self._certificate,
        }

    def resume(self, state: Mapping[str, np.ndarray]) -> None:
        self._fields.copy_(torch.from_numpy(state["fields"]))
        self._count.copy_(torch.from_numpy(state["count"]))
        self._totals, self._certificate = state["totals"], state["certificate"]


# ---- one layer


def measure(
    model: Any,
    layer: str,
    images: Any,
    channels: np.ndarray,
    top: Mapping[str, np.ndarray],
    task: Task,
) -> str:
    """Write `<layer>.h5` (docs/files.md) and its table; return why there is nothing to split, or
    "".

    `images` uint8 (N, H, H, 3); `channels` (C,) the channels to analyse; `top` their `value` (C,
    K), `image` (C, K) and `yx` (C, K, 2). The file holds the mean parts `skip` and `residual` (C,
    3, S, S), divided by `count` (C, S, S) as the mean gradients of stage `receptive_fields` are.
    Killed, the work resumes from `<output>.partial`. Raises RfatlasError if recomputed activations
    are not the cached ones.
    """
    try:
        split, reason = model.graph.split_block(layer), ""
    except NoPath as error:
        split = None
        reason = SKIPLESS if model.graph.skipless(layer) else str(error)
    image_size = model.description["input"]["crop"]
    cut = crops.window(model.graph.geometry(layer), image_size)
    n, k, s = *top["image"].shape, cut.size
    kept = model.graph.kept_bytes(layer) * (cut.crop / image_size) ** 2
    # Held of a channel: sums of two parts and their means, counts.
    held = 2 * 2 * 3 * 8 + 2 * 4
    scheme = crops.plan(cut, n, k, held, kept, task.memory_mb, model.device)
    partial = store.Partial(
        task.output,
        task.fingerprint(block=scheme.block, batch=scheme.batch, channels=channels.tolist()),
    )
    datasets = {"channel": ((n,), np.int32)}
    if split is not None:
        datasets["count"] = ((n, s, s), np.int32)
        datasets["skip"] = datasets["residual"] = ((n, 3, s, s), np.float32)
    fields = store.Allocated(
        partial.folder / store.FIELDS,
        datasets,
        {**task.attrs, **crops.attributes(cut), "reason": reason},
    )
    fields.write("channel", 0, channels)
    rows = None
    if split is not None:
        rows = crops.run_blocks(
            lambda size: _Block(cut, size, k, model.device),
            lambda *work: look(model, split, cut, images, *work),
            scheme,
            channels,
            top,
            partial,
            fields,
            task.bar,
        )
        crops.check_certificate(layer, channels, rows["certificate"], top["value"])
    fields.complete()
    used = (top["image"] >= 0).any(axis=1)
    rows = table(layer, channels, used, rows, reason, model.graph.shape(layer)[0])
    store.write_table(rows, partial.folder / store.TABLE)
    store.publish(task.output)
    return reason


def table(
    layer: str,
    channels: np.ndarray,
    used: np.ndarray,
    rows: Mapping[str, np.ndarray] | None,
    reason: str,
    every: int,
) -> pd.DataFrame:
    """Return the columns of all channels of a layer (`every` of them), of which `channels` (C,)
    were looked at.

    `used` (C,) bool: whether any image drives the channel; `rows`: what was summed up of them, None
    where there was nothing to split, for the given `reason`.
    """
    columns: dict[str, Any] = {"layer": layer, "channel": channels}
    columns |= {name: np.full(len(channels), np.nan) for name in COLUMNS[2:-1]}
    if rows is not None:
        columns |= shares(rows)
    elif reason == SKIPLESS:
        for name, share in (("skip", 0.0), ("residual", 1.0)):
            columns[f"{name}_energy_share"] = np.where(used, share, np.nan)
            columns[f"{name}_energy"] = np.where(used, share, np.nan)
    columns["skip_reason"] = np.where(used | (reason != ""), reason, SILENT)
    result = pd.DataFrame(columns)[list(COLUMNS)].set_index("channel").reindex(range(every))
    result["layer"] = layer
    result["skip_reason"] = result["skip_reason"].fillna(LEFT_OUT)
    return result.reset_index()[list(COLUMNS)]


def shares(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns that follow from sums over units (see the module's head), (C,) each.

    `totals` (C, 9), `mean_products` (C, 3: |s|^2, |r|^2, <s, r> of the mean parts) and
    `mean_correlation` (C,). NaN where there is nothing to divide by.
    """
    total = dict(zip(_TOTALS, rows["totals"].T, strict=True))
    skip, residual, product = (total[key] for key in ("skip_energy", "residual_energy", "product"))
    mean_skip, mean_residual, mean_product = rows["mean_products"].T
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
            "skip_residual_correlation": rows["mean_correlation"],
            "skip_activation_share": total["skip_value"] / total["sum_value"],
            "skip_radius": np.sqrt(total["skip_spread"] / total["skip_inside"]),
            "residual_radius": np.sqrt(total["residual_spread"] / total["residual_inside"]),
        }
