"""Topic gabor of the figures: the Gabors fitted to the mean gradients of a layer, a sheet per
layer.

Per channel its mean gradient with the Gabor's outline and the line along its bars, the gradient
along its principal colour, and the Gabor alone. Everything is read from the files of the stages
`gabor` and `receptive_fields`.
"""

from collections.abc import Iterator, Mapping

import h5py
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from rfatlas.fields.gabor_fit import gabors
from rfatlas.figures import sheets, style

#: Side of a picture, in pixels.
SIDE = 80
#: The outline is drawn at so many sigmas: a third of the amplitude.
SIGMAS = 1.5
#: Points of an outline.
POINTS = 73


def outline(parameters: np.ndarray) -> np.ndarray:
    """Return the ellipse (POINTS, 2) of a Gabor at `SIGMAS` sigmas: x to the right and y upwards
    from the middle of the field, in pixels of the field."""
    x, y, sigma_x, sigma_y, theta = parameters[:5]
    angle, turn = np.linspace(0, 2 * np.pi, POINTS), np.radians(theta)
    along, across = SIGMAS * sigma_x * np.cos(angle), SIGMAS * sigma_y * np.sin(angle)
    c, s = np.cos(turn), np.sin(turn)
    return np.stack([x + along * c - across * s, y + along * s + across * c], 1)


def bar(parameters: np.ndarray) -> np.ndarray:
    """Return the line (POINTS, 2) along a Gabor's bars through its centre, as long as `outline`."""
    x, y, _, sigma_y, theta = parameters[:5]
    length = SIGMAS * sigma_y * np.linspace(-1, 1, POINTS)
    turn = np.radians(theta + 90)
    return np.stack([x + length * np.cos(turn), y + length * np.sin(turn)], 1)


def on_page(points: np.ndarray, corner: tuple[int, int], size: int) -> np.ndarray:
    """Return points of a field of `size` pixels (see `outline`) as points of the sheet.

    `corner` is that of the field's picture; points outside it are NaN, where lines break.
    """
    within = (points * [1, -1] / size + 0.5) * SIDE
    within[((within < 0) | (within > SIDE)).any(1)] = np.nan
    return within + corner


def grey(field: np.ndarray, scale: float) -> np.ndarray:
    """Show a signed field (S, S) as RGB (S, S, 3) in 0..1: 0 is mid grey, `scale` is white."""
    shade = (0.5 + 0.5 * field / scale).clip(0, 1)
    return np.repeat(shade[..., None], 3, axis=-1)


@style.styled
def sheet(fits: h5py.Group, fields: h5py.File, channels: int, run: str, layer: str) -> Figure:
    """Draw channels x {mean gradient with outline, along its colour, Gabor} of one layer.

    `fits` is the group `gradient` of the layer's file of the stage `gabor`, `fields` its file of
    the stage `receptive_fields`; at most so many channels, evenly spread. Outlines of blobs are
    dashed and have no line; a channel without a Gabor says why.
    """
    total = len(fits["channel"])
    rows = sheets.chosen(total, channels)
    gradients = fields["mean_gradient"][rows].astype(np.float32)
    channel, colour, fitted, r2 = (
        fits[name][rows] for name in ("channel", "colour", "parameters", "r2")
    )
    reason = fits["reason"].asstr()[rows]
    size = gradients.shape[-1]
    headings = ["mean\ngradient", "along its\nmain colour", "fitted\nGabor"]
    facts = (
        f"{sheets.count(len(rows), total)}, {(reason == '').sum()} oriented   |   direction of "
        f"modulation, R², nx × ny in cycles   |   outline at {SIGMAS:g} sigma"
    )
    place = sheets.layout(len(rows), len(headings), SIDE)
    page = sheets.Sheet(place, f"{run} · {layer} · Gabors", facts, headings)
    solid, dashed = [], []
    for row, (gradient, parameters) in enumerate(zip(gradients, fitted, strict=True)):
        page.label(row, channel[row], *_label(parameters, r2[row], reason[row]))
        if not np.isfinite(colour[row]).all():
            continue
        page.put(row, 0, style.signed_rgb(gradient))
        field = np.tensordot(colour[row], gradient, 1)
        scale = style.display_range(field)
        page.put(row, 1, grey(field, scale))
        if not np.isfinite(parameters).all():
            continue
        page.put(row, 2, grey(gabors(size, parameters[None])[0], scale))
        corner = page.layout.corner(row, 0)
        shapes = [outline(parameters)]
        if not reason[row]:
            shapes.append(bar(parameters))
        lines = [on_page(shape, corner, size) for shape in shapes]
        (dashed if reason[row] else solid).extend(lines)
    # Seen on dark and on bright fields alike.
    for lines, pattern in ((solid, "-"), (dashed, (0, (3, 2)))):
        page.axes.add_collection(LineCollection(lines, color="white", linewidth=2.4))
        page.axes.add_collection(
            LineCollection(lines, color=style.INK, linewidth=1.1, linestyle=pattern)
        )
    page.below(0, f"{size} px", arrow=True)
    return page.finish()


def _label(parameters: np.ndarray, r2: float, reason: str) -> tuple[list[sheets.Line], str]:
    """Return the lines below a channel's number, and the colour of the number."""
    _, _, sigma_x, sigma_y, theta, frequency = parameters[:6]
    if not np.isfinite(theta):
        return [(reason.replace("_", " "), style.VERMILLION)], style.VERMILLION
    fit = f"R² {r2:.2f}", style.GREY
    if reason:
        return [("blob", style.GREY), fit], style.GREY
    cycles = f"{sigma_x * frequency:.2f} × {sigma_y * frequency:.2f}", style.GREY
    return [(f"{round(theta) % 180}°", style.INK), fit, cycles], style.INK


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield the sheet of each layer with its name, from the files and settings of its rule."""
    files = sheets.files(given, params.layers, "gabor", "receptive_fields")
    for name, layer, fits, fields in files:
        yield name, sheet(fits["gradient"], fields, params.channels, params.run, layer)
