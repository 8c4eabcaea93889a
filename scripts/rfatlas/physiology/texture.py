"""Stage `texture`: responses to naturalistic textures, and to noise of the same spectrum.

After Freeman, Ziemba, Heeger, Simoncelli & Movshon 2013; docs/columns.md has the stimuli and the
definitions. Each picture is shown once, and one pass answers for the centre unit of every layer. It
is a unit as a neuron is one; a mean over positions would be over other samples of the texture, and
how much the samples of a family differ for a unit would be lost.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from rfatlas.files import store
from rfatlas.files.task import Task
from rfatlas.network.devices import room
from rfatlas.network.model import LoadedModel, normalise
from rfatlas.physiology import tuning
from rfatlas.physiology.probe import GREY

#: Root-mean-square contrast of textures and noise, as a share of the range of code values.
CONTRAST = 0.18

#: What is added to both shares of variance, so that their ratio is finite (Marques et al. 2021).
SHARE = 0.02

#: The pictures of a sample, in the order of the files.
KINDS = ("noise", "texture")

COLUMNS = (
    "layer", "channel", "texture_modulation", "texture_abs_modulation", "texture_selectivity",
    "texture_sparseness", "texture_variance_ratio", "texture_max", "noise_max", "texture_reason",
)  # fmt: skip

# More pictures at once gain nothing.
_BATCH = 32


# ---- stimuli


def tiles(sheet: Path, families: Sequence[str]) -> np.ndarray:
    """Return the samples of each family as floats (families, samples, side, side): a row of the
    sheet's square tiles each."""
    with Image.open(sheet) as image:
        pixels = np.asarray(image, float) / 255
    side = len(pixels) // len(families)
    rows = pixels.reshape(len(families), side, -1, side)
    return rows.transpose(0, 2, 1, 3)


def scrambled(tile: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return noise (S, S) with the mean and the amplitude spectrum of a tile, its phases random."""
    phase = np.angle(np.fft.fft2(random.normal(size=tile.shape)))
    phase[0, 0] = 0
    return np.fft.ifft2(np.fft.fft2(tile) * np.exp(1j * (phase - np.angle(np.fft.fft2(tile))))).real


def picture(tile: np.ndarray, size: int) -> np.ndarray:
    """Return a picture (size, size) filled with a tile, as code values around mid grey; the few
    beyond black and white are clipped."""
    values = GREY + CONTRAST * (tile - tile.mean()) / tile.std()
    times = -(-size // len(tile))
    return np.tile(values.clip(0, 1), (times, times))[:size, :size].astype(np.float32)


def pictures(samples: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield mid grey, then for each family and sample (families, samples, S, S) its noise and
    itself (`KINDS`), each (size, size) code values in 0..1. The noise is the same every time."""
    random = np.random.default_rng(0)
    yield np.full((size, size), GREY, np.float32)
    for tile in samples.reshape(-1, *samples.shape[2:]):
        yield picture(scrambled(tile, random), size)
        yield picture(tile, size)


# ---- indices


def modulation(response: np.ndarray) -> np.ndarray:
    """Return (T - N) / (T + N) of each channel (C,), mean over families, of responses (C, families,
    kinds, samples) that are never negative and their means T and N over samples.

    Families that drive neither count for nothing; NaN where there are no others (Freeman et al.
    2013).
    """
    noise, texture = np.moveaxis(response.mean(-1), -1, 0)
    both = texture + noise
    index = np.divide(texture - noise, both, out=np.zeros_like(both), where=both > 0)
    counted = (both > 0).sum(1)
    return np.divide(index.sum(1), counted, out=np.full(len(both), np.nan), where=counted > 0)


def sparseness(response: np.ndarray) -> np.ndarray:
    """Return (1 - mean(r)^2 / mean(r^2)) / (1 - 1 / n) of responses (C, n) -> (C,): 0 for equal
    responses, 1 for a response to one only, NaN for none (Vinje & Gallant 2000)."""
    square, n = (response**2).mean(1), response.shape[1]
    share = np.full(len(square), np.nan)
    np.divide(response.mean(1) ** 2, square, out=share, where=square > 0)
    return (1 - share) / (1 - 1 / n)


def variance_ratio(response: np.ndarray) -> np.ndarray:
    """Return the variance between families over that between the samples of a family, of the square
    roots of responses (C, families, samples) -> (C,); NaN where nothing varies.

    Both are shares of their sum, with 0.02 added (Ziemba et al. 2016; Marques et al. 2021). Of
    spikes the root makes the noise even; here there is none, and it makes the ratio one of
    contrasts of responses, whatever their unit. Variance between families is the mean square
    between them less what the samples bring into it, at least 0.
    """
    root = np.sqrt(response)
    samples = root.shape[2]
    within = root.var(2, ddof=1).mean(1)
    between = (root.mean(2).var(1, ddof=1) - within / samples).clip(0)
    total = within + between
    share = np.divide(between, total, out=np.full(len(total), np.nan), where=total > 0)
    return (share + SHARE) / (1 - share + SHARE)


def columns(response: np.ndarray, blank: np.ndarray) -> dict[str, Any]:
    """Return the columns `COLUMNS` but the key, (C,) each, of activations (C, families, kinds,
    samples) and those to mid grey (C,)."""
    above = tuning.rectify(response.astype(float), blank)
    reason = tuning.driven(above, blank)
    noise, texture = np.moveaxis(above, 2, 0)
    index = modulation(above)
    found = {
        "texture_modulation": index,
        "texture_abs_modulation": np.abs(index),
        "texture_selectivity": sparseness(texture.mean(2)),
        "texture_sparseness": sparseness(texture.reshape(len(texture), -1)),
        "texture_variance_ratio": variance_ratio(texture),
        "texture_max": texture.max((1, 2)),
        "noise_max": noise.max((1, 2)),
    }
    known = reason == ""
    return {name: np.where(known, values, np.nan) for name, values in found.items()} | {
        "texture_reason": reason
    }


# ---- all layers of a run


def measure(
    network: LoadedModel, layers: Sequence[str], samples: Mapping[str, np.ndarray], task: Task
) -> None:
    """Write `texture.h5` (docs/files.md) and its table.

    `samples` maps each family to its tiles (samples, S, S).
    """
    shown = np.stack(list(samples.values()))
    families, count = shown.shape[:2]
    answers = _answers(network, layers, shown, task)
    tables = []
    with store.create(task.output, task.attrs) as file:
        file["family"] = list(samples)
        for layer in layers:
            blank, *rest = answers[layer]
            response = np.array(rest).reshape(families, count, len(KINDS), -1)
            response = response.transpose(3, 0, 2, 1)
            file[f"{layer}/blank"], file[f"{layer}/response"] = blank, response
            key = {"layer": layer, "channel": np.arange(len(blank))}
            tables.append(pd.DataFrame(key | columns(response, blank)))
    store.write_table(pd.concat(tables)[list(COLUMNS)], task.table)


@torch.inference_mode()
def _answers(
    network: LoadedModel, layers: Sequence[str], samples: np.ndarray, task: Task
) -> dict[str, list[np.ndarray]]:
    """The activation (C,) of each layer's centre unit to each of `pictures`."""
    look, size = network.graph.extractor(layers, output=False), network.description["input"]["crop"]
    fits = room(task.memory_mb, network.device) // network.graph.kept_bytes()
    batch = max(1, min(_BATCH, int(fits)))
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    shown, total = pictures(samples, size), 1 + len(KINDS) * samples.shape[0] * samples.shape[1]
    with task.bar(total=total, unit="picture", desc="textures") as progress:
        while some := list(itertools.islice(shown, batch)):
            pixels = torch.as_tensor(np.stack(some), device=network.device)
            pixels = pixels[:, None].expand(-1, 3, -1, -1)
            values = look(normalise(pixels, network.description["input"]))
            for layer in layers:
                value = values[layer]
                if value.ndim == 4:
                    value = value[:, :, value.shape[2] // 2, value.shape[3] // 2]
                found[layer] += list(value.float().cpu().numpy())
            progress.update(len(some))
    return found
