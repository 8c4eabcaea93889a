"""Topic preferred_stimulus of the figures: what drives the channels of a layer most, a sheet per
layer.

Per channel the photograph's patch that drives it most, its mean gradient, and the stimuli that the
ascent found: the most and the least preferred. Everything is read from the files of the stages
`preferred_stimulus` and, where it was on, `receptive_fields`.
"""

from collections.abc import Iterator, Mapping

import h5py
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rfatlas.figures import sheets, style
from rfatlas.files import store
from rfatlas.statistics import rows_by_layer

#: About the side of a picture, in pixels: small stimuli are shown with their pixels as squares.
SIDE = 92


@style.styled
def sheet(
    file: h5py.File,
    table: pd.DataFrame,
    fields: h5py.File | None,
    top: h5py.Group,
    source: str,
    channels: int,
    title: str,
) -> Figure:
    """Draw channels x {top patch, mean gradient, best stimulus, off stimulus} of one layer.

    `file` is the layer's of the stage `preferred_stimulus`; the rest as for `figures.montage`, but
    `fields` is None where its stage was off, and at most so many of the measured channels are
    shown. Stimuli are shown as they are; a mean gradient about mid grey on its own scale. Places of
    stimuli that there are not stay empty.
    """
    table = table.set_index("channel")
    measured = len(file["channel"])
    rows = sheets.chosen(measured, channels)
    best, off = file["image"][rows], file["off_image"][rows]
    headings = ["best\nstimulus", "least preferred\nstimulus"]
    where = {}
    if fields is not None:
        headings = ["top\nimage", "mean\ngradient", *headings]
        where = {channel: index for index, channel in enumerate(fields["channel"][:].tolist())}
    facts = sheets.count(len(rows), len(table))
    facts += f" ({measured} measured)" if measured < len(table) else ""
    facts += "   |   gain: activation over the largest that any image reaches"
    facts += "   |   r: with the mean gradient" if fields is not None else ""
    window = best.shape[-1]
    place = sheets.layout(len(rows), len(headings), sheets.fitting(window, SIDE))
    page = sheets.Sheet(place, title, facts, headings)
    at = len(headings) - 2
    for row, channel in enumerate(file["channel"][rows].tolist()):
        if channel in where and top[f"{source}_image"][channel, 0] >= 0:
            yx = top[f"{source}_yx"][channel, 0]
            page.put(row, 0, *sheets.patch(fields, where[channel], 0, yx))
            gradient = fields["mean_gradient"][where[channel]].astype(np.float32)
            page.put(row, 1, style.signed_rgb(gradient))
        stimuli = (("stimulus_activation", best), ("off_activation", off))
        for column, (activation, pictures) in enumerate(stimuli, at):
            if pd.notna(table.loc[channel, activation]):
                page.put(row, column, sheets.plain(pictures[row]))
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
        rising = facts["stimulus_converged"] is not pd.NA and not facts["stimulus_converged"]
        text = f"gain {'≥ ' * rising}{facts['stimulus_gain']:.2f}"
        lines.append((text, style.VERMILLION if weak else style.GREY))
    if np.isfinite(facts["stimulus_gradient"]):
        lines.append((style.minus(f"r {facts['stimulus_gradient']:.2f}"), style.GREY))
    return lines, color


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield the sheet of each layer with its name, from the files and settings of its rule."""
    tables = rows_by_layer(store.read_table(given.channels))
    files = sheets.files(given, params.layers, "preferred_stimulus", "receptive_fields")
    with store.open(given.activations, "activations") as activations:
        for name, layer, file, fields in files:
            read = file, tables[layer], fields, activations[layer]
            title = f"{params.run} · {layer} · preferred stimuli"
            yield name, sheet(*read, params.source, params.channels, title)
