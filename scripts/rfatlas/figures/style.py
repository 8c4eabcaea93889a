"""How figures look: one palette, one set of fonts, one way to save.

Colours are Okabe and Ito's (2008), distinct under the common colour-vision deficiencies. Fonts are
matplotlib's own and embedded as TrueType, so a PDF looks and edits the same everywhere.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

if TYPE_CHECKING:
    import pandas as pd

BLUE = "#0072B2"
SKY = "#56B4E9"
GREEN = "#009E73"
ORANGE = "#E69F00"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
INK = "#1a1a1a"
GREY = "#767676"
PALE = "#d9d9d9"

#: Resolution of figures on screen, pixels per inch; a figure of 7.2 in is 1080 px wide.
DPI = 150

#: Shares as percentages on an axis.
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.3g} %")

#: Receptive fields up to this size are shown with their pixels as squares; larger ones smoothly.
PIXELATED = 21
#: Grey level about which the pattern "outside the image" is drawn.
NEUTRAL = 225

#: Inches that a `header` takes.
HEADER = 0.62

_GOLDEN = (5**0.5 - 1) / 2

#: Decorator under which every figure is drawn. The figures know no pyplot, so a
#: notebook's own settings and backend stay as they are.
styled = matplotlib.rc_context(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.labelsize": 9.5,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "savefig.facecolor": "white",
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "svg.fonttype": "none",
    }
)


def minus(text: str) -> str:
    """Return a text with proper minus signs."""
    return text.replace("-", "−")


def figure(width: float, height: float, dpi: int = DPI) -> Figure:
    """Return an empty figure of `width` x `height` inches, of `dpi` pixels per inch on screen."""
    new = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(new)
    return new


@styled
def save(figure: Figure, stem: str | Path) -> None:
    """Write a figure as <stem>.png and <stem>.pdf, byte-identical each time.

    The PNG has no alpha channel. The PDF holds its fonts, and the pixels of sheets as they are.
    """
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    dpi = (figure.dpi, figure.dpi)
    Image.fromarray(np.ascontiguousarray(pixels)).save(f"{stem}.png", dpi=dpi)
    # Everything has its place now; the layout need not be worked out again.
    figure.set_layout_engine("none")
    # Embedding a font logs hundreds of lines.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    figure.savefig(f"{stem}.pdf", metadata={"CreationDate": None})


def layer_axis(axes: Axes, layers: Sequence[str]) -> None:
    """Make x the depth axis: one tick per layer, its name below."""
    axes.set_xlim(-0.6, len(layers) - 0.4)
    # Names at a slant keep clear of each other from about ten layers (of up to 9 letters) on.
    slant = len(layers) * max(map(len, layers)) > 80
    axes.set_xticks(
        range(len(layers)),
        layers,
        rotation=40 if slant else 0,
        ha="right" if slant else "center",
        rotation_mode="anchor" if slant else "default",
    )


def strip(axes: Axes, position: float, values: np.ndarray, color: str, width: float = 0.5) -> None:
    """Draw every value as a dot at x = `position`, spread sideways evenly and reproducibly.

    The median is a bar, the quartiles a box; nothing is drawn without a finite value.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not values.size:
        return
    spread = ((np.arange(values.size) * _GOLDEN) % 1 - 0.5) * width
    size = float(np.clip(220 / values.size, 2.5, 9))
    axes.scatter(position + spread, values, s=size, color=color, alpha=0.35, linewidths=0)
    low, middle, high = np.percentile(values, [25, 50, 75])
    ends = position + (width / 2 + 0.06) * np.array([-1, 1])
    axes.fill_between(ends, low, high, facecolor="none", edgecolor=color, linewidth=1, zorder=3)
    median = {"color": color, "linewidth": 2.4, "solid_capstyle": "butt", "zorder": 4}
    axes.plot(ends, [middle, middle], **median)


def mark(label: str, color: str, marker: str = "", line="", **look) -> Line2D:
    """Return a legend entry: a marker, a line of a style, or both."""
    return Line2D([], [], color=color, marker=marker, linestyle=line, label=label, **look)


def strip_handle(color: str, label: str) -> Line2D:
    """Return the legend entry of a `strip`."""
    return mark(label, color, "o", "-", markersize=4, linewidth=2.4)


def twin_of(table: "pd.DataFrame") -> str:
    """Return the name of the random twin that a table compares with, or ""."""
    names = table["twin"].dropna()
    return next(iter(names[names != ""]), "")


def depth_figure(
    names: Sequence[str], height: float, panels: int
) -> tuple[Figure, Axes | np.ndarray]:
    """Return a figure of `height` inches with the layers along x, and its axes.

    One `Axes` for one panel, an array of them, from top to bottom, for several.
    """
    new = figure(float(np.clip(0.62 * len(names) + 1.2, 7.2, 14)), height)
    new.set_layout_engine("constrained")
    every = new.subplots(panels, 1, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.08})
    for axes in every[:, 0]:
        axes.grid(axis="y")
    layer_axis(every[-1, 0], names)
    every[-1, 0].set_xlabel("layer, in network order")
    return new, every[0, 0] if panels == 1 else every[:, 0]


def shares(axes: Axes, label: str = "", low: float = -0.03, high: float = 1.03) -> None:
    """Make y an axis of percentages, from one share to another."""
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel(label)


def nothing(axes: Axes, text: str) -> None:
    """Say in the place of a panel why there is nothing to draw."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", color=GREY)


def halves(
    layers: Sequence[str], narrowest: float, height: float, columns: int, upper: float, rect: tuple
) -> tuple[Figure, np.ndarray, Axes]:
    """Return a figure of `height` inches with so many panels above, `upper` times as high as the
    one below, which has the layers along x; and these axes. `rect` is what the layout may fill."""
    new = figure(float(np.clip(0.62 * len(layers) + 1.2, narrowest, 14)), height)
    new.set_layout_engine("constrained", rect=rect)
    above, below = new.subfigures(2, 1, height_ratios=(upper, 1))
    panels, axes = above.subplots(1, columns, squeeze=False)[0], below.subplots()
    axes.grid(axis="y")
    layer_axis(axes, layers)
    axes.set_xlabel("layer, in network order")
    return new, panels, axes


def octaves(axis: Axis, text: Callable[[float], str]) -> None:
    """Give a y axis a logarithmic scale to base 2, with `text` saying each tick."""
    axis.axes.set_yscale("log", base=2)
    axis.set_major_locator(LogLocator(base=2, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


def accuracy_figure(names: Sequence[str], spare: float) -> tuple[Figure, Axes]:
    """Return a figure with a row for the accuracy of each network, `spare` inches higher, and its
    axes: shares along x, from the first network on top to the last."""
    new = figure(7.2, spare + 0.62 * len(names))
    new.set_layout_engine("constrained")
    axes = new.add_subplot()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("images whose class comes first, or among the first five")
    return new, axes


def captioned(
    figure: Figure, title: str, subtitle: str, handles: Sequence[Artist], columns: int
) -> Figure:
    """Return a `depth_figure` with a bold title at the left over it, a plain line below that over
    its first panel, and its legend at the bottom."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.axes[0].set_title(subtitle, loc="left", fontsize=9, fontweight="normal", color=GREY)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def headed(
    figure: Figure, title: str, subtitle: str, handles: Sequence[Artist] = (), columns: int = 1
) -> Figure:
    """Return a figure with a bold title and a plain line below it in the `HEADER` at its top left,
    and with a legend of `handles`, if any, at the bottom."""
    width, height = figure.get_size_inches()
    left = 0.1 / width
    figure.text(left, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", va="top")
    figure.text(left, 1 - 0.36 / height, subtitle, fontsize=9, color=GREY, va="top")
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=columns)
    return figure


def spaced(
    width: float, height: float, footer: float = 0, header: float = HEADER, **pads: float
) -> Figure:
    """Return an empty figure that is laid out between what is left, in inches, for a legend below
    and for the title above."""
    new = figure(width, height)
    rect = (0, footer / height, 1, 1 - (footer + header) / height)
    new.set_layout_engine("constrained", rect=rect, **pads)
    return new


def panel_grid(
    panels: int,
    side: tuple[float, float],
    footer: float = 0.5,
    xlabel: str = "",
    ylabel: str = "",
    alike: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `panels` panels of `side` (width, height) inches each, and their axes.

    `footer` inches below them are left for the legend, `HEADER` above them for the title
    (`headed`). At most six panels in a row; labels at the bottom and at the left only, and if the
    panels are `alike` the numbers of the y axis at the left only.
    """
    rows = -(-panels // 6)
    columns = -(-panels // rows)
    width = max(7.2, columns * side[0] + 0.5)
    new = spaced(width, rows * side[1] + HEADER + footer, footer, h_pad=0.06, w_pad=0.06)
    every = new.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in every[panels:]:
        spare.remove()
    for number, axes in enumerate(every[:panels]):
        left, bottom = number % columns == 0, number >= panels - columns
        axes.set_xlabel(xlabel if bottom else "", fontsize=8.5)
        axes.set_ylabel(ylabel if left else "", fontsize=8.5)
        axes.tick_params(labelsize=8, labelleft=left or not alike)
    return new, every[:panels]


# ---- pictures of fields


def evenly(channels: int, limit: int) -> np.ndarray:
    """Return at most `limit` channel indices, spread evenly from the first to the last."""
    return np.unique(np.linspace(0, channels - 1, min(channels, limit)).round().astype(int))


def display_range(field: np.ndarray) -> float:
    """Return the absolute value that is shown at full strength: all but the largest 0.5 % fit.

    Of a small field (up to 200 values) that is its largest value. In a large one single pixels
    tower above the rest, and on the scale of the largest the rest would look empty. NaN are
    ignored; a field of zeros has range 1.
    """
    values = np.abs(field[np.isfinite(field)])
    peak = np.quantile(values, 0.995, method="higher") if values.size else 0
    return float(peak or values.max(initial=0) or 1)


def signed_rgb(field: np.ndarray) -> np.ndarray:
    """Show a signed field (3, S, S) as RGB (S, S, 3) in 0..1: 0 is mid grey, the scale symmetric
    and the field's own (`display_range`)."""
    return np.moveaxis(0.5 + 0.5 * np.nan_to_num(field) / display_range(field), 0, -1).clip(0, 1)


def positive_rgb(field: np.ndarray) -> np.ndarray:
    """Show a field (3, S, S) >= 0 as RGB (S, S, 3) in 0..1: 0 is black, the scale the field's own
    (`display_range`)."""
    return np.moveaxis(np.nan_to_num(field) / display_range(field), 0, -1).clip(0, 1)


def outside(
    yx: np.ndarray, start: np.ndarray, stride: np.ndarray, window: int, image: int
) -> np.ndarray:
    """Return (window, window) bool: which pixels of a unit's window lie outside the image.

    `yx` is the unit's position, `start` and `stride` (y, x) the layer's geometry in pixels; the
    window is centred on the unit's receptive field, to the left and above where it cannot be
    exactly.
    """
    first = np.floor(np.add(start, np.multiply(stride, yx)) - window / 2).astype(int)
    y, x = (position + np.arange(window) for position in first)
    return ((y < 0) | (y >= image))[:, None] | ((x < 0) | (x >= image))


def hatch(side: int) -> np.ndarray:
    """Return the pattern, uint8 (side, side, 3), that means "outside the image"."""
    y, x = np.indices((side, side))
    stripes = np.where((x + y) % 8 < 2, NEUTRAL - 20, NEUTRAL + 10).astype(np.uint8)
    return np.repeat(stripes[..., None], 3, axis=-1)


def tile(picture: np.ndarray, blank: np.ndarray, side: int, coarse: bool = True) -> np.ndarray:
    """Return a picture (S, S, 3) as uint8 (side, side, 3), hatched where `blank` (S, S).

    A picture of floats runs from 0 to 1. `coarse`: large ones keep 33 levels of each colour, which
    makes PNG small; WebP needs all levels for that.
    """
    if picture.dtype != np.uint8:
        picture = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    # Resampling must not draw an edge between the picture and the zeros outside the image.
    image = Image.fromarray(np.where(blank[..., None], np.uint8(NEUTRAL), picture))
    if len(picture) <= PIXELATED:
        shown = np.array(image.resize((side, side), Image.Resampling.NEAREST))
    else:
        shown = np.array(image.resize((side, side), Image.Resampling.BICUBIC))
        if coarse:
            # At this size they look the same.
            shown = np.minimum(shown.astype(int) + 4 & ~7, 255).astype(np.uint8)
    if not blank.any():
        return shown
    mask = np.array(
        Image.fromarray(blank.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    )
    return np.where(mask[..., None] > 0, hatch(side), shown)
