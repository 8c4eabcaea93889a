"""Stage `virtual_filters`: what a layer would see if its blocks did nothing.

Followed from the input to a layer, the skip connections make a short linear network. Two readings
of it are made for every channel: the `filter` of Kobayashi & Shouno 2020 (arXiv 2006.01645), a
mixture of the first layer's kernels, and the exact `linear` response, only where there is a skip
connection or a single convolution; docs/columns.md defines both. (With the centre tap of a max
pooling in the place of its average, the linear response of a ResNet's path is the filter again.)

Both are with respect to pixels in 0 to 1, before normalisation, as the gradients are, and both are
compared with the layer's mean gradients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from scipy import linalg

from rfatlas.fields import crops
from rfatlas.network import graph, operations
from rfatlas.network.geometry import Geometry
from rfatlas.network.graph import NoPath

COLUMNS = (
    "layer", "channel", "virtual_path", "virtual_convolutions", "virtual_norm", "virtual_kernels",
    "virtual_main_kernel", "virtual_main_share", "virtual_correlation", "virtual_correlation_null",
    "virtual_match", "virtual_window_share", "virtual_linear_correlation",
    "virtual_linear_correlation_null", "virtual_linear_match", "virtual_reason",
)  # fmt: skip

UNREACHED = "no first-layer kernel reaches the channel"


# ---- composition


def largest_taps(weight: np.ndarray, groups: int = 1) -> np.ndarray:
    """Return the matrix (O, I) of a convolution's taps of largest magnitude, sign kept.

    `weight` (O, I / groups, h, w); of equal taps the first counts. A 1 x 1 convolution is returned
    as it is.
    """
    taps = weight.reshape(*weight.shape[:2], -1)
    best = np.abs(taps).argmax(axis=2)
    picked = np.take_along_axis(taps, best[..., None], axis=2)[..., 0]
    return linalg.block_diag(*np.split(picked, groups))


def compose(steps: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[np.ndarray, np.ndarray]:
    """Return how a path mixes its first kernels: weights (C, K) and kernels (K, 3, h, w).

    `steps` as `graph.LinearPath` has them; the filter of a channel is its row of weights times the
    kernels. A batch norm before the first convolution scales the kernels' colours. Raises NoPath
    if there is no convolution, or if something before the first changes what it sees.
    """
    weights = kernels = None
    colours = np.ones(3)
    for step, a in steps:
        if step == "batch_norm":
            scale = graph.batch_norm_scale(a).cpu().numpy()
            if weights is None:
                colours = colours * scale
            else:
                weights = scale[:, None] * weights
        elif step == "conv2d":
            weight = a["weight"].cpu().double().numpy()
            if weights is None:
                if a["groups"] != 1:
                    raise NoPath("the first convolution has groups")
                kernels = weight * colours[:, None, None]
                weights = np.eye(len(weight))
            else:
                weights = largest_taps(weight, a["groups"]) @ weights
        elif weights is None:
            if step not in operations.PADDINGS:
                raise NoPath("the first operation is no convolution")
        elif step in operations.PADDINGS:
            before, after = [*a.get("pad", a.get("padding")), *(0,) * 6][4:6]
            weights = np.pad(weights, ((before, after), (0, 0)))
        elif step == "slice" and a["dim"] == 1:
            weights = weights[a["start"] : a["end"] : a["step"]]
    if weights is None:
        raise NoPath("there is no convolution before it")
    return weights, kernels


# ---- linear response


def linear_response(
    traced: graph.Graph, image_size: int, memory_mb: float
) -> tuple[np.ndarray, Geometry | None]:
    """Return the gradient (C, 3, S, S), float64, of the centre units of a linear network in double
    precision, and its geometry.

    Of the last layer, with respect to the network's input; S is the edge of the receptive field, at
    most the image's, and the window lies as those of stage `receptive_fields` do.
    """
    layer = traced.layers()[-1]
    channels, height, width = traced.shape(layer)
    cut = crops.window(traced.field(layer), image_size)
    kept = 2 * traced.kept_bytes(layer) * (cut.crop / image_size) ** 2
    _, size = crops.plan(cut, channels, 1, 3 * 8, kept, memory_mb)
    prefix = traced.prefix(layer)
    centre = [np.array([extent // 2]) for extent in (height, width)]
    y, x = (int(cut.position_in_crop(place, axis)[0]) for axis, place in enumerate(centre))
    corner = [
        int((cut.window_start(place, axis) - cut.crop_start(place, axis))[0])
        for axis, place in enumerate(centre)
    ]
    fields = np.zeros((channels, 3, cut.size, cut.size))
    for first in range(0, channels, size):
        chosen = torch.arange(first, min(first + size, channels))
        shape = (len(chosen), 3, cut.crop, cut.crop)
        pixels = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        values = prefix(pixels)[torch.arange(len(chosen)), chosen, y, x]
        (gradient,) = torch.autograd.grad(values.sum(), pixels)
        top, left = (torch.full((len(chosen),), place) for place in corner)
        fields[first : first + size] = crops.cut_windows(gradient, top, left, cut.size)
    return fields, cut.geometry


# ---- one layer


@dataclass(frozen=True)
class Virtual:
    """The virtual filters of one layer, in units of the layer per unit of pixel in 0..1.

    `path`: "kernel" (a single convolution), "skip" (through at least one skip connection) or
    "plain" (several convolutions, none skipped); `convolutions` on it. `weights` (C, K) of the
    first layer's kernels (K, 3, h, w); `filter` (C, 3, h, w); `linear` (C, 3, S, S) or None;
    `geometry` that of the path.
    """

    path: str
    convolutions: int
    weights: np.ndarray
    kernels: np.ndarray
    filter: np.ndarray
    linear: np.ndarray | None
    geometry: Geometry


def virtual(model: Any, layer: str, memory_mb: float) -> Virtual:
    """Return the virtual filters of a layer; raises NoPath where the network has no linear path to
    it."""
    found = model.graph.linear_path(layer)
    weights, kernels = compose(found.steps)
    input = model.description["input"]
    std = np.array(input["std"])[:, None, None]
    convolutions = sum(step == "conv2d" for step, _ in found.steps)
    path = "skip" if found.sums else "kernel" if convolutions == 1 else "plain"
    kernels = kernels / std
    linear = None
    if path == "plain":
        geometry = model.graph.field(layer).local
    else:
        linear, geometry = linear_response(found.graph, input["crop"], memory_mb)
        linear = linear / std
    if geometry is None:
        raise NoPath("a unit sees the whole image, wherever it lies")
    filters = np.tensordot(weights, kernels, 1)
    return Virtual(path, convolutions, weights, kernels, filters, linear, geometry)


def mixture(weights: np.ndarray, kernels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how many kernels each channel mixes, which contributes most, and the share of it.

    A kernel contributes e = (weight x norm of the kernel)^2. The number is the participation ratio
    (sum e)^2 / sum e^2: n where n kernels contribute alike. `weights` (C, K), `kernels`
    (K, 3, h, w) -> (C,) each; NaN (and -1 for the kernel) where nothing contributes.
    """
    energy = np.square(weights * np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1))
    total = energy.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        number = total**2 / np.square(energy).sum(axis=1)
        share = energy.max(axis=1) / total
    return number, np.where(total > 0, energy.argmax(axis=1), -1), share


# ---- comparison with mean gradients


def overlap(
    geometry: Geometry, shape: tuple[int, int], layer: Geometry, size: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return which (rows, columns) of a filter and of a layer's windows are the same pixels.

    The filter of `shape` is centred on the receptive field of `geometry`, the windows of `size` on
    that of `layer`; where that is not exact, to the left and above. Their strides are the same, so
    any unit will do.
    """
    ours, theirs = [], []
    for axis, extent in enumerate(shape):
        start = math.floor(geometry.start[axis] - extent / 2)
        start -= math.floor(layer.start[axis] - size / 2)
        low, high = max(start, 0), min(start + extent, size)
        ours.append(slice(low - start, high - start))
        theirs.append(slice(low, high))
    return tuple(ours), tuple(theirs)


def correlations(filters: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation (n, n) of every filter (n, ...) with every gradient (n, ...);
    NaN where one is constant."""
    rows = []
    for fields in (filters, gradients):
        flat = fields.reshape(len(fields), -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(flat, axis=1, keepdims=True)
        # What is left of a constant field is rounding.
        constant = norm[:, 0] <= 1e-12 * np.abs(fields).reshape(len(fields), -1).max(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            rows.append(np.where(constant[:, None], np.nan, flat / norm))
    return rows[0] @ rows[1].T


def agreement(filters: np.ndarray, gradients: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Return how filters (n, ...) agree with mean gradients (n, ...) on the same pixels, (n,) each.

    `correlation` of a channel's filter with its own mean gradient; `correlation_null` with that of
    another channel, its successor in a shuffled ring of the channels that have both; `match`: share
    of the other channels whose mean gradient the filter correlates with less (half for ties), 0.5
    by chance.
    """
    every = correlations(filters, gradients)
    n = len(every)
    own, null, match = np.diag(every).copy(), np.full(n, np.nan), np.full(n, np.nan)
    usable = np.flatnonzero(np.isfinite(own))
    if len(usable) >= 2:
        ring = np.random.default_rng(seed).permutation(usable)
        null[ring] = every[ring, np.roll(ring, 1)]
        others = every[np.ix_(usable, usable)]
        mine = own[usable, None]
        less = (others < mine) + 0.5 * (others == mine)
        np.fill_diagonal(less, 0)
        match[usable] = less.sum(axis=1) / (len(usable) - 1)
    return {"correlation": own, "correlation_null": null, "match": match}


def energies(dataset: Any, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return the energy of fields (n, 3, S, S) in the given pixels, and in all; read in pieces."""
    inside, total = np.zeros(len(dataset)), np.zeros(len(dataset))
    for part, piece in crops.pieces(dataset):
        energy = np.square(piece)
        total[part] = energy.sum((1, 2, 3))
        inside[part] = energy[:, :, rows, columns].sum((1, 2, 3))
    return inside, total


def compare(
    found: Virtual, layer: Geometry, channel: np.ndarray, mean_gradient: Any
) -> dict[str, np.ndarray]:
    """Return the columns that need mean gradients, (C,) each, NaN for channels without any.

    `mean_gradient` (n, 3, S, S), an array or open dataset, holds those of the channels `channel`
    (n,) of a layer with the geometry `layer`.
    """
    columns = {}
    for prefix, filters in (("virtual", found.filter), ("virtual_linear", found.linear)):
        if filters is None:
            continue
        ours, theirs = overlap(found.geometry, filters.shape[2:], layer, mean_gradient.shape[-1])
        result = agreement(
            filters[channel][:, :, *ours], np.asarray(mean_gradient[:, :, *theirs], float)
        )
        if prefix == "virtual":
            inside, total = energies(mean_gradient, *theirs)
            with np.errstate(invalid="ignore"):
                result["window_share"] = inside / total
        for name, values in result.items():
            column = columns[f"{prefix}_{name}"] = np.full(len(filters), np.nan)
            column[channel] = values
    return columns


# ---- files


def table(
    layer: str, channels: int, found: Virtual | None, compared: Mapping[str, Any], reason: str = ""
) -> pd.DataFrame:
    """Return the rows of one layer: its virtual filters (None where `reason` says why), and what
    `compare` found."""
    rows: dict[str, Any] = {"layer": layer, "channel": np.arange(channels)}
    rows |= {"virtual_path": "", "virtual_reason": reason}
    if found is not None:
        number, main, share = mixture(found.weights, found.kernels)
        rows |= {
            "virtual_path": found.path,
            "virtual_convolutions": pd.array([found.convolutions] * channels, "Int64"),
            "virtual_norm": np.linalg.norm(found.filter.reshape(channels, -1), axis=1),
            "virtual_kernels": number,
            "virtual_main_kernel": pd.array(np.where(main < 0, np.nan, main), "Int64"),
            "virtual_main_share": share,
            "virtual_reason": np.where(main < 0, UNREACHED, ""),
            **compared,
        }
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def write(group: h5py.Group, found: Virtual | None, reason: str = "") -> None:
    """Write one layer's virtual filters to its group; its attribute `reason` says why there are
    none."""
    group.attrs["reason"] = reason
    if found is None:
        return
    group["filter"] = found.filter.astype(np.float32)
    group["weights"] = found.weights.astype(np.float32)
    group.attrs.update(
        path=found.path,
        convolutions=found.convolutions,
        size=max(found.geometry.size),
        stride=found.geometry.stride,
        start=found.geometry.start,
    )
    if found.linear is not None:
        group["linear"] = found.linear.astype(np.float32)
