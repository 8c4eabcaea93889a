"""Stage `gabor`: Gabor functions fitted to what channels see.

To the mean gradient of every channel of every layer and to the kernels of the first layer, each
along its principal colour and as a luminance image; and to the virtual filters along their
principal colour. `gabor_fit` says how.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from safetensors import safe_open

from rfatlas.fields.gabor_fit import PARAMETERS, Fits, fit
from rfatlas.files import store
from rfatlas.files.task import Task

#: What is fitted: group in `<layer>.h5` -> prefix of the columns.
SOURCES = {
    "gradient": "gabor",
    "gradient_lum": "gabor_lum",
    "kernel": "gabor_kernel",
    "kernel_lum": "gabor_kernel_lum",
    "virtual": "gabor_virtual",
}

#: Columns of one source, without its prefix.
NAMES = (
    *PARAMETERS, "nx", "ny", "aspect", "osi", "r2", *(f"se_{name}" for name in PARAMETERS),
    "converged", "n_starts_agreeing", "window", "color_share", "reason",
)  # fmt: skip

#: Columns of the mean gradient along its principal colour, in the order of the table.
COLUMNS = ("layer", "channel", *(f"gabor_{name}" for name in NAMES))

#: A field whose root mean square is below this share of the layer's largest is not fitted.
WEAK = 1e-4

# Pixels of the fields that are read together.
_BLOCK = 2**20


# ---- fields


def principal(fields: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the fields (n, 3, S, S) along their principal colour (n, S, S), that colour (n, 3) of
    length 1, and the share of the field's energy in it (n,).

    The colour is the first singular vector of the (colour x pixel) matrix; its sign makes the sum
    of its components positive, or where that is 0 the largest component. NaN colours and shares of
    fields of zeros.
    """
    n = len(fields)
    flat = fields.reshape(n, 3, -1)
    value, vector = np.linalg.eigh(flat @ flat.swapaxes(1, 2))
    colour, total = vector[:, :, -1], value.sum(1)
    side = colour.sum(1)
    largest = np.take_along_axis(colour, np.abs(colour).argmax(1)[:, None], 1)[:, 0]
    colour = colour * np.where(np.abs(side) > 1e-6, np.sign(side), np.sign(largest))[:, None]
    along = np.einsum("nc,ncp->np", colour, flat).reshape(n, *fields.shape[2:])
    with np.errstate(invalid="ignore"):
        share = value[:, -1] / total
    return along, np.where(total[:, None] > 0, colour, np.nan), share


# ---- one layer


@dataclass(frozen=True)
class Source:
    """What one source gave for the channels `channel` (n,): their Gabors, and unless it is
    luminance the colours (n, 3) of the fields and their shares of the energy (n,)."""

    channel: np.ndarray
    fits: Fits
    colour: np.ndarray | None = None
    share: np.ndarray | None = None


def fit_fields(
    channel: np.ndarray, fields: Any, with_luminance: bool
) -> tuple[Source, Source | None]:
    """Fit fields (n, 3, S, S), an array or an open dataset, of the channels `channel` (n,).

    Each along its principal colour, and its luminance image if that is asked for. A field that is
    weak compared with the layer's strongest, or not finite, has no fit.
    """
    rows = max(1, _BLOCK // (fields.shape[2] * fields.shape[3]))
    found = []
    for first in range(0, len(channel), rows):
        block = np.asarray(fields[first : first + rows], float)
        block = np.where(np.isfinite(block).all((1, 2, 3), keepdims=True), block, 0)
        image, colour, share = principal(block)
        # Luminance: what a pixel does whose three colours change together.
        light = fit(block.sum(1)) if with_luminance else None
        strength = np.sqrt(np.square(block).mean((1, 2, 3)))
        found.append((fit(image), light, colour, share, strength))
    along, light, colours, shares, strength = zip(*found, strict=True)
    strong = np.concatenate(strength)
    weak = (strong > 0) & (strong < WEAK * strong.max())
    chromatic = Source(
        channel, _joined(along, weak), np.concatenate(colours), np.concatenate(shares)
    )
    return chromatic, Source(channel, _joined(light, weak)) if with_luminance else None


def _joined(parts: Sequence[Fits], weak: np.ndarray) -> Fits:
    """Return the fits of all blocks, without those of weak fields."""
    found = Fits(*map(np.concatenate, zip(*parts, strict=True)))
    found.reason[weak] = "weak"
    for array in (found.parameters, found.errors, found.r2, found.osi):
        array[weak] = np.nan
    return found


def kernels(weights: str | Path, layer: str, size: int) -> np.ndarray | None:
    """Return the gradients (C, 3, size, size) of a first-layer convolution: its kernels over std.

    `weights`: the run's model.safetensors; `size`: edge of the layer's receptive field. None for a
    layer that is no square convolution of the image's three colours.
    """
    with safe_open(weights, "np") as file:
        name = f"{layer}.weight"
        if name not in file.keys():
            return None
        weight = file.get_tensor(name).astype(float)
        std = json.loads(file.metadata()["rfatlas"])["input"]["std"]
    if weight.shape[1:] != (3, size, size):
        return None
    return weight / np.array(std)[:, None, None]


def columns(prefix: str, source: Source | None, channels: int) -> dict[str, Any]:
    """Return the columns of one source for all channels of a layer, empty where it has none."""
    numbers = np.full((channels, len(NAMES)), np.nan)
    found = dict(zip(NAMES, numbers.T, strict=True))
    reason = np.full(channels, "not_measured", object)
    known = np.zeros(channels, bool)
    if source is not None:
        rows, fits = source.channel, source.fits
        reason[rows] = fits.reason
        blob = fits.reason == "blob"
        for index, name in enumerate(PARAMETERS):
            found[name][rows] = fits.parameters[:, index]
            found[f"se_{name}"][rows] = fits.errors[:, index]
        # A blob has a frequency and a size, but nowhere to point, nor a length along its bars.
        for name in ("theta_deg", "se_theta_deg"):
            found[name][rows[blob]] = np.nan
        oriented = np.where(np.isnan(found["theta_deg"]), np.nan, 1)
        found["nx"] = oriented * found["sigma_x"] * found["frequency"]
        found["ny"] = oriented * found["sigma_y"] * found["frequency"]
        found["aspect"] = oriented * found["sigma_y"] / found["sigma_x"]
        found["r2"][rows], found["osi"][rows] = fits.r2, fits.osi
        known[rows] = np.isfinite(fits.osi)
        for name, values in (
            ("converged", fits.converged),
            ("n_starts_agreeing", fits.agreeing),
            ("window", fits.window),
        ):
            found[name][rows] = values
        if source.share is not None:
            found["color_share"][rows] = source.share
    found["converged"] = pd.array(np.where(known, found["converged"] == 1, None), "boolean")
    for name in ("n_starts_agreeing", "window"):
        found[name] = pd.array(np.where(known, found[name], np.nan), "Int64")
    found["reason"] = reason
    return {f"{prefix}_{name}": values for name, values in found.items()}


def measure(
    layer: str,
    channels: int,
    fields: h5py.File,
    weights: str | Path,
    virtual: h5py.File | None,
    task: Task,
) -> None:
    """Write `<layer>.h5` (docs/files.md) and its table.

    `channels` of the layer; `fields` its open receptive_fields/<layer>.h5; `weights` the run's
    model.safetensors; `virtual` the open file of virtual filters, None where that stage is off.
    """
    found: dict[str, Source | None] = dict.fromkeys(SOURCES)
    found["gradient"], found["gradient_lum"] = fit_fields(
        fields["channel"][:], fields["mean_gradient"], True
    )
    kernel = kernels(weights, layer, int(fields.attrs["size"]))
    every = np.arange(channels)
    if kernel is not None:
        found["kernel"], found["kernel_lum"] = fit_fields(every, kernel, True)
    if virtual is not None and "filter" in virtual[layer]:
        filters = virtual[layer]["filter"]
        if filters.shape[2] == filters.shape[3]:
            found["virtual"], _ = fit_fields(every, filters, False)
    with store.create(task.output, task.attrs) as file:
        file.attrs["parameters"] = PARAMETERS
        for name, source in found.items():
            if source is not None:
                _write(file.create_group(name), source)
    rows: dict[str, Any] = {"layer": layer, "channel": every}
    for name, source in found.items():
        if name != "virtual" or virtual is not None:
            rows |= columns(SOURCES[name], source, channels)
    store.write_table(pd.DataFrame(rows), task.table)


def _write(group: h5py.Group, source: Source) -> None:
    group["channel"] = source.channel.astype(np.int32)
    fits = source.fits
    for name in ("parameters", "errors", "r2", "osi", "converged", "window"):
        group[name] = getattr(fits, name)
    group["n_starts_agreeing"] = fits.agreeing
    group["reason"] = fits.reason.astype(h5py.string_dtype())
    if source.colour is not None:
        group["colour"], group["colour_share"] = source.colour, source.share
