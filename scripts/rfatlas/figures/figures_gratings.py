"""Topic gratings of the figures: how the channels of a layer are tuned, a sheet per layer, and how
all of them answer to gratings of all sizes and contrasts.

Per channel its mean gradient, the polar tuning curve at its best frequency, and the map of its
responses over orientation and frequency; the caption in workflow/report/figures_gratings.rst says
how to read them. Everything is read from the files of the stages `gratings` and, where it was on,
`receptive_fields`.
"""

from collections import namedtuple
from collections.abc import Iterator, Mapping

import h5py
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.collections import EllipseCollection, LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from rfatlas.figures import sheets, style
from rfatlas.files import store
from rfatlas.physiology import tuning
from rfatlas.statistics import rows_by_layer

#: Side of a picture, in pixels.
SIDE = 80
#: Between the largest response of a curve and the edge of its picture.
RIM = 8
#: Points of a drawn curve, over 180 degrees.
POINTS = 180


def curve(response: np.ndarray) -> np.ndarray:
    """Return the outline (2 * POINTS, 2), x to the right and y upwards, of a polar tuning curve.

    `response` (O,) at orientations evenly spaced over 180 degrees from 0. An orientation has two
    directions, so the curve is drawn twice. Interpolated as the indices are; the largest radius is
    1.
    """
    fine = np.tile(tuning.periodic(response, POINTS).clip(0), 2)
    angle = np.pi * np.arange(2 * POINTS) / POINTS
    return fine[:, None] / fine.max() * np.stack([np.cos(angle), np.sin(angle)], 1)


def map_pixels(response: np.ndarray) -> np.ndarray:
    """Return responses (O, F) as a picture, uint8 (SIDE, SIDE, 3): frequency to the right,
    orientation upwards; dark is no response, bright the channel's largest."""
    o, f = (np.arange(SIDE) * count // SIDE for count in response.shape)
    share = response[np.ix_(o[::-1], f)] / response.max()
    return matplotlib.colormaps["cividis"](share, bytes=True)[..., :3]


def place(frequency: np.ndarray, value: float) -> float:
    """Return how far right in a map, in pixels, a frequency is: the middle of a grid point's
    column for its own."""
    step = np.log(frequency[1] / frequency[0])
    return (np.log(value / frequency[0]) / step + 0.5) * SIDE / len(frequency)


@style.styled
def sheet(
    file: h5py.File, fields: h5py.File | None, table: pd.DataFrame, channels: int, title: str
) -> Figure:
    """Draw channels x {mean gradient, tuning curve, map} of one layer.

    `file` is the layer's of the stage `gratings`, `fields` that of the stage `receptive_fields`,
    None where it was off; `table` holds the layer's rows of channels.csv. At most so many channels,
    evenly spread; one that no grating drives has no curve and says why.
    """
    table = table.set_index("channel")
    total, orientations = len(file["channel"]), len(file["orientation"])
    rows = sheets.chosen(total, channels)
    chosen, frequency = file["channel"][rows], file["frequency"][:]
    response, best = file["tuned"][rows].astype(float), file["best"][rows].astype(int)
    stride = int(file.attrs["stride"])
    headings = ["tuning\ncurve", "orientation ×\nfrequency"]
    gradient = np.full((len(rows), 1), np.nan)
    if fields is not None:
        headings.insert(0, "mean\ngradient")
        gradient = store.aligned(fields["mean_gradient"], fields["channel"], chosen)
    at = len(headings) - 2
    facts = (
        f"{sheets.count(len(rows), total)}   |   {orientations} orientations from the right (0°) "
        f"counter-clockwise, maps from 0° upwards   |   field {file.attrs['size']} px"
    )
    layout = sheets.layout(len(rows), len(headings), SIDE)
    page = sheets.Sheet(layout, title, facts, headings)
    blue, grey, thin, dashed, middles, marks = [], [], [], [], [], []
    for row, channel in enumerate(chosen):
        facts = table.loc[channel]
        if not np.isnan(gradient[row]).all():
            page.put(row, 0, style.signed_rgb(gradient[row]))
        selective = facts.get("orientation_selective") in (True, "True")
        page.label(row, channel, *_label(facts, selective))
        o, f = best[row]
        if o < 0:
            continue
        page.paint(row, at, np.full((SIDE, SIDE, 3), 255, np.uint8))
        page.paint(row, at + 1, map_pixels(response[row]))
        middle = np.add(page.layout.corner(row, at), SIDE / 2)
        radius = SIDE / 2 - RIM
        shape = curve(response[row, :, f])
        (blue if selective else grey).append(middle + radius * shape * [1, -1])
        middles.append(middle)
        angle = np.radians(facts["orientation_deg"])
        arm = (SIDE / 2 - 2) * np.array([np.cos(angle), -np.sin(angle)])
        if selective:
            thin.append([middle - arm, middle + arm])
        corner = np.array(page.layout.corner(row, at + 1))
        right, up = (f + 0.5) / len(frequency), (o + 0.5) / orientations
        marks.append(corner + [right * SIDE, (1 - up) * SIDE])
        if stride:
            x = place(frequency, 0.5 / stride)
            if 0 <= x <= SIDE:
                dashed.append(corner + [[x, 0], [x, SIDE]])
    for shapes, color in ((blue, style.BLUE), (grey, style.GREY)):
        page.axes.add_collection(
            PolyCollection(shapes, facecolor=color, edgecolor=color, alpha=0.6, linewidth=0.8)
        )
    for share, line in ((1, "-"), (1 / np.sqrt(2), (0, (2, 2)))):
        across = np.full(len(middles), 2 * share * (SIDE / 2 - RIM))
        page.axes.add_collection(
            EllipseCollection(
                across, across, 0, units="xy", offsets=np.reshape(middles, (-1, 2)),
                offset_transform=page.axes.transData, facecolor="none", edgecolor=style.GREY,
                linewidth=0.5, linestyle=line,
            )
        )  # fmt: skip
    page.axes.add_collection(LineCollection(thin, color=style.INK, linewidth=0.8))
    page.axes.add_collection(
        LineCollection(dashed, color="white", linewidth=0.9, linestyle=(0, (3, 2)))
    )
    if marks:
        page.axes.plot(*np.transpose(marks), "o", mfc="none", mec=style.VERMILLION, ms=4.5, mew=1.1)
    if fields is not None:
        page.below(0, f"{gradient.shape[-1]} px", arrow=True)
    low, high = frequency[[0, -1]]
    page.below(at + 1, f"{low:.2g} to {high:.2g}\ncycles per px")
    return page.finish()


def _label(facts: pd.Series, selective: bool) -> tuple[list[sheets.Line], str]:
    """Return the lines below a channel's number, and the colour of the number."""
    reason = facts["grating_reason"]
    if isinstance(reason, str) and reason:
        return [(reason.replace("_", " "), style.VERMILLION)], style.VERMILLION
    lines = [(f"OSI {facts['osi']:.2f}", style.INK if selective else style.GREY)]
    if np.isfinite(facts["bandwidth_deg"]):
        lines.append((f"± {facts['bandwidth_deg']:.0f}°", style.GREY))
    if np.isfinite(facts["f1_f0"]):
        lines.append((f"F1/F0 {facts['f1_f0']:.2f}", style.GREY))
    return lines, style.INK


# ---- curves of a whole layer


#: A part of the stage gratings whose curves are drawn: the title of its figure, the name of the
#: curves' axis in the file and its label, the column that flags channels, what it calls them and
#: what that means, and whether a linear channel's answers are as large as the axis says.
Part = namedtuple("Part", ("title", "axis", "label", "flag", "flagged", "meaning", "linear"))

PARTS = {
    "size": Part(
        "Size tuning", "size_diameter", "diameter (px)", "grating_suppressed",
        "suppressed", "by more than a tenth in their whole field", False,
    ),
    "contrast": Part(
        "Responses to contrast", "contrast", "contrast", "contrast_saturated",
        "saturated", "half of the maximum at a quarter of full contrast", True,
    ),
}  # fmt: skip


@style.styled
def curves(
    layers: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], run: str, part: Part
) -> Figure:
    """Draw the curves of all channels, a panel per layer, each as a share of its largest value.

    `layers` hold by name their axis (n,), rising, responses (C, n), NaN for channels without, and
    which channels are flagged, bool (C,).
    """
    figure, panels = style.panel_grid(
        len(layers), (1.75, 1.5), 0.5, part.label, "response / largest", alike=True
    )
    for panel, (name, (axis, response, flagged)) in zip(panels, layers.items(), strict=True):
        known = np.nanmax(response, 1, initial=0) > 0
        shares, marked = response[known] / response[known].max(1, keepdims=True), flagged[known]
        alpha = float(np.clip(12 / max(len(shares), 1), 0.08, 0.5))
        for rows, color in ((shares[~marked], style.GREY), (shares[marked], style.BLUE)):
            lines = np.stack([np.broadcast_to(axis, rows.shape), rows], 2)
            panel.add_collection(LineCollection(lines, color=color, linewidth=0.6, alpha=alpha))
        if len(shares):
            panel.plot(axis, np.median(shares, 0), color=style.INK, linewidth=1.8)
        if part.linear:
            panel.plot(axis, axis, color=style.ORANGE, linestyle=(0, (3, 2)))
        panel.set(xscale="log", xlim=axis[[0, -1]], ylim=(0, 1.05))
        marks = (1,) if axis[-1] / axis[0] > 50 else (1, 2, 5)
        panel.xaxis.set_major_locator(LogLocator(base=10, subs=marks, numticks=6))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(f"{name}   {marked.sum()} of {len(shares)}", fontsize=8.5)
    handles = [
        style.mark(part.flagged, style.BLUE, line="-"),
        style.mark("other channels", style.GREY, line="-"),
        style.mark("median", style.INK, line="-", linewidth=1.8),
    ]
    if part.linear:
        handles.append(style.mark("a linear channel", style.ORANGE, line=(0, (3, 2))))
    facts = f"Each channel's own grating; {part.flagged}: {part.meaning}"
    return style.headed(figure, f"{run} · {part.title}", facts, handles, len(handles))


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield the sheet of each layer with its name, and the figures of the parts that were on, from
    the files and settings of its rule."""
    tables = rows_by_layer(store.read_table(given.channels))
    files = sheets.files(given, params.layers, "gratings", "receptive_fields")
    found: dict[str, dict[str, tuple]] = {name: {} for name in PARTS}
    for name, layer, file, fields in files:
        title = f"{params.run} · {layer} · gratings"
        yield name, sheet(file, fields, tables[layer], params.channels, title)
        for key, part in PARTS.items():
            if part.axis in file:
                flagged = tables[layer][part.flag].isin([True, "True"]).to_numpy()
                found[key][layer] = file[part.axis][:], file[f"{key}_response"][:], flagged
    for key, layers in found.items():
        if layers:
            yield key, curves(layers, params.run, PARTS[key])
