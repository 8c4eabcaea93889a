"""Topic gabor of the figures: the Gabors fitted to the mean gradients of a layer, a sheet per
layer.

Per channel its mean gradient with the Gabor's outline and the line along its bars, the gradient
along its principal colour, and the Gabor alone. Everything is read from the files of the stages
`gabor` and `receptive_fields`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Fitted:
    """What a sheet shows of one layer, for the chosen channels only (n of them).

    `channel` (n,); `gradient` (n, 3, S, S) and their principal `colour` (n, 3); `parameters` (n, 9)
    as `gabor_fit.PARAMETERS`, NaN where there is no Gabor; `r2` (n,); `reason` (n,) str, "blob" for
    a Gabor without orientation; `total` channels that were fitted.
    """

    channel: np.ndarray
    gradient: np.ndarray
    colour: np.ndarray
    parameters: np.ndarray
    r2: np.ndarray
    reason: np.ndarray
    total: int


def read(fits: h5py.File, fields: h5py.File, channels: int) -> Fitted:
    """Read what a sheet shows of a layer: at most so many channels, evenly spread.

    `fits` is the layer's file of the stage `gabor`, `fields` that of the stage `receptive_fields`.
    """
    group = fits["gradient"]
    rows = sheets.chosen(len(group["channel"]), channels)
    return Fitted(
        group["channel"][rows],
        fields["mean_gradient"][rows].astype(np.float32),
        group["colour"][rows],
        group["parameters"][rows],
        group["r2"][rows],
        group["reason"].asstr()[rows],
        len(group["channel"]),
    )


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
def sheet(found: Fitted, run: str, layer: str) -> Figure:
    """Draw channels x {mean gradient with outline, along its colour, Gabor} of one layer.

    Outlines of blobs are dashed and have no line; a channel without a Gabor says why.
    """
    size = found.gradient.shape[-1]
    headings = ["mean\ngradient", "along its\nmain colour", "fitted\nGabor"]
    place = sheets.layout(len(found.channel), len(headings), SIDE)
    page = sheets.Sheet(place, f"{run} · {layer} · Gabors", _facts(found), headings)
    solid, dashed = [], []
    for row, channel in enumerate(found.channel):
        page.label(row, channel, *_label(found, row))
        parameters = found.parameters[row]
        known = np.isfinite(found.colour[row]).all()
        if not known:
            continue
        page.put(row, 0, style.signed_rgb(found.gradient[row]))
        field = np.tensordot(found.colour[row], found.gradient[row], 1)
        scale = style.display_range(field)
        page.put(row, 1, grey(field, scale))
        if not np.isfinite(parameters).all():
            continue
        page.put(row, 2, grey(gabors(size, parameters[None])[0], scale))
        corner = page.layout.corner(row, 0)
        shapes = [outline(parameters)]
        if not found.reason[row]:
            shapes.append(bar(parameters))
        lines = [on_page(shape, corner, size) for shape in shapes]
        (dashed if found.reason[row] else solid).extend(lines)
    # Seen on dark and on bright fields alike.
    for lines, pattern in ((solid, "-"), (dashed, (0, (3, 2)))):
        page.axes.add_collection(LineCollection(lines, color="white", linewidth=2.4))
        page.axes.add_collection(
            LineCollection(lines, color=style.INK, linewidth=1.1, linestyle=pattern)
        )
    page.below(0, f"{size} px", arrow=True)
    return page.finish()


def _label(found: Fitted, row: int) -> tuple[list[sheets.Line], str]:
    """Return the lines below a channel's number, and the colour of the number."""
    reason, r2 = found.reason[row], found.r2[row]
    _, _, sigma_x, sigma_y, theta, frequency = found.parameters[row, :6]
    if not np.isfinite(theta):
        return [(reason.replace("_", " "), style.VERMILLION)], style.VERMILLION
    lines = [("blob", style.GREY) if reason else (f"{round(theta) % 180}°", style.INK)]
    lines.append((f"R² {r2:.2f}", style.GREY))
    lines.append((f"{sigma_x * frequency:.2f} × {sigma_y * frequency:.2f}", style.GREY))
    return lines, style.GREY if reason else style.INK


def _facts(found: Fitted) -> str:
    oriented = int((found.reason == "").sum())
    return (
        f"{sheets.count(found)}, {oriented} oriented   |   direction of modulation, R², nx × ny in "
        f"cycles   |   outline at {SIGMAS:g} sigma"
    )


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield the sheet of each layer with its name, from the files and settings of its rule."""
    files = sheets.files(given, params.layers, "gabor", "receptive_fields")
    for name, layer, fits, fields in files:
        yield name, sheet(read(fits, fields, params.channels), params.run, layer)
