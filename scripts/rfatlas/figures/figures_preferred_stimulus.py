"""Topic preferred_stimulus of the figures: what drives the channels of a layer most, a sheet per
layer.

Per channel the photograph's patch that drives it most, its mean gradient, and the stimuli that the
ascent found: the most and the least preferred. Everything is read from the files of the stages
`preferred_stimulus` and, where it was on, `receptive_fields`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import h5py
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rfatlas.figures import sheets, style
from rfatlas.files import store
from rfatlas.statistics import rows_by_layer

#: About the side of a picture, in pixels: small stimuli are shown with their pixels as squares.
SIDE = 92


@dataclass(frozen=True)
class Stimuli:
    """What a sheet shows of one layer, for the chosen channels only (n of them).

    `channel` (n,); `best` and `off` (n, 3, S, S), code values in 0..1, of which `has_best` and
    `has_off` (n,) say whether there is one; `patch` (n, S, S, 3) uint8, `blank` (n, S, S) its
    pixels outside the image, and `gradient` (n, 3, S, S), NaN for a channel without, or all three
    None; `measured` of `total` channels have stimuli.
    """

    channel: np.ndarray
    best: np.ndarray
    off: np.ndarray
    has_best: np.ndarray
    has_off: np.ndarray
    patch: np.ndarray | None
    blank: np.ndarray | None
    gradient: np.ndarray | None
    measured: int
    total: int


def read(
    file: h5py.File,
    table: pd.DataFrame,
    fields: h5py.File | None,
    top: h5py.Group | None,
    channels: int,
    source: str = "top_per_image",
) -> Stimuli:
    """Read what a sheet shows of a layer: at most so many of the measured channels, evenly spread.

    Parameters
    ----------
    file
        The layer's open file of the stage `preferred_stimulus`.
    table
        The layer's rows of channels.csv.
    fields, top
        That of the stage `receptive_fields` and the layer's group in activations.h5 (for the
        positions of the units); None where that stage was off.
    source
        Which list of units the receptive fields were made from, as configured.
    """
    measured = len(file["channel"])
    rows = sheets.chosen(measured, channels)
    chosen = file["channel"][rows]
    facts = table.set_index("channel").loc[chosen]
    patch = blank = gradient = None
    if fields is not None:
        n, size, extent = len(rows), fields["mean_gradient"].shape[-1], fields.attrs["image_size"]
        patch = np.zeros((n, size, size, 3), np.uint8)
        blank = np.ones((n, size, size), bool)
        gradient = np.full((n, 3, size, size), np.nan, np.float32)
        where = {channel: index for index, channel in enumerate(fields["channel"][:].tolist())}
        for row, channel in enumerate(chosen.tolist()):
            if channel not in where or top[f"{source}_image"][channel, 0] < 0:
                continue
            patch[row] = fields["patch"][where[channel], 0]
            gradient[row] = fields["mean_gradient"][where[channel]]
            start, stride = fields.attrs["start"], fields.attrs["stride"]
            blank[row] = False
            if stride:
                yx = top[f"{source}_yx"][channel, 0]
                blank[row] = style.outside(yx, start, stride, size, extent)
    return Stimuli(
        chosen,
        file["image"][rows],
        file["off_image"][rows],
        facts["stimulus_activation"].notna().to_numpy(),
        facts["off_activation"].notna().to_numpy(),
        patch,
        blank,
        gradient,
        measured,
        len(table),
    )


@style.styled
def sheet(found: Stimuli, table: pd.DataFrame, run: str, layer: str) -> Figure:
    """Draw channels x {top patch, mean gradient, best stimulus, off stimulus} of one layer.

    `table` holds the layer's rows of channels.csv. Stimuli are shown as they are; a mean gradient
    about mid grey on its own scale. Places of stimuli that there are not stay empty.
    """
    table = table.set_index("channel")
    headings = ["best\nstimulus", "least preferred\nstimulus"]
    if found.patch is not None:
        headings = ["top\nimage", "mean\ngradient", *headings]
    window = found.best.shape[-1]
    side = sheets.fitting(window, SIDE)
    place = sheets.layout(len(found.channel), len(headings), side)
    page = sheets.Sheet(place, f"{run} · {layer} · preferred stimuli", _facts(found), headings)
    at = len(headings) - 2
    for row, channel in enumerate(found.channel):
        if found.patch is not None and not np.isnan(found.gradient[row]).all():
            page.put(row, 0, found.patch[row], found.blank[row])
            page.put(row, 1, style.signed_rgb(found.gradient[row]))
        stimuli = ((found.best, found.has_best), (found.off, found.has_off))
        for column, (pictures, there) in enumerate(stimuli):
            if there[row]:
                page.put(row, at + column, np.moveaxis(pictures[row], 0, -1))
        page.label(row, channel, *_label(table.loc[channel]))
    page.below(at, f"{window} px", arrow=True)
    return page.finish()


def _label(facts: pd.Series) -> tuple[list[sheets.Line], str]:
    """Return the lines below a channel's number, and the colour of the number."""
    reason, lines, color = facts["stimulus_reason"], [], style.INK
    if isinstance(reason, str) and reason:
        lines.append((reason.replace("_", " "), style.VERMILLION))
        color = style.VERMILLION
    if np.isfinite(facts["stimulus_gain"]):
        weak = facts["stimulus_gain"] < 1
        text = f"gain {facts['stimulus_gain']:.2f}"
        lines.append((text, style.VERMILLION if weak else style.GREY))
    if np.isfinite(facts["stimulus_gradient"]):
        lines.append((style.minus(f"r {facts['stimulus_gradient']:.2f}"), style.GREY))
    return lines, color


def _facts(found: Stimuli) -> str:
    measured = f" ({found.measured} measured)" if found.measured < found.total else ""
    correlation = "   |   r: with the mean gradient" if found.patch is not None else ""
    return (
        f"{sheets.count(found)}{measured}   |   gain: activation over the largest that any image "
        f"reaches{correlation}"
    )


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield the sheet of each layer with its name, from the files and settings of its rule."""
    tables = rows_by_layer(store.read_table(given.channels))
    files = sheets.files(given, params.layers, "preferred_stimulus", "receptive_fields")
    with store.open(given.activations, "activations") as activations:
        for name, layer, file, fields in files:
            rows, top = tables[layer], activations[layer]
            found = read(file, rows, fields, top, params.channels, params.source)
            yield name, sheet(found, rows, params.run, layer)
