"""Topic virtual_filters of the figures: what the skip connections alone hand on.

A sheet per layer with the virtual filters and the mean gradients; over all layers how well the
two agree, and what share of the gradients comes through the skip connection of the last block, as
the captions in workflow/report/figures_virtual_filters.rst tell them. Drawn from the files of the
stages `virtual_filters` and `receptive_fields`, and from channels.csv.
"""

from collections.abc import Iterator, Mapping

import h5py
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rfatlas.figures import sheets, style
from rfatlas.files import store
from rfatlas.statistics import rows_by_layer

#: About the side of a picture, in pixels: small filters are shown with their pixels as squares.
SIDE = 84
#: How a layer's filters were made, in words.
PATHS = {
    "kernel": "the first layer's own kernels",
    "skip": "through the skip connections",
    "plain": "no skip connection: largest taps",
}
#: Shares beyond are drawn on the edge.
SHARES = (-0.5, 1.5)


def shared(start: float, layer_start: float, extent: int, window: int) -> slice:
    """Return which pixels of a window are those of a filter of `extent` pixels, along one axis.

    Both are centred on the receptive field of a unit, that of unit 0 at `start` by the filter's
    path and at `layer_start` by the layer; where that is not exact, to the left and above.
    """
    first = int(np.floor(start - extent / 2) - np.floor(layer_start - window / 2))
    return slice(*np.clip([first, first + extent], 0, window).tolist())


@style.styled
def sheet(
    group: h5py.Group, fields: h5py.File | None, table: pd.DataFrame, channels: int, title: str
) -> Figure:
    """Draw channels x {virtual filter, mean gradient on its pixels, linear response, mean gradient}
    of one layer, as far as they are there.

    `group` is the layer's in virtual_filters.h5, `fields` its file of the stage `receptive_fields`,
    None where that was off; `table` holds the layer's rows of channels.csv. At most so many
    channels, evenly spread; a layer without virtual filters says why.
    """
    if "filter" not in group:
        reason = f"no virtual filters: {group.attrs['reason']}"
        return sheets.Sheet(sheets.layout(0, 0, SIDE), title, reason, []).finish()
    chosen = sheets.chosen(len(table), channels)
    table = table.set_index("channel")
    kernel = group["filter"][chosen]
    columns = {"virtual\nfilter": kernel}
    facts = f"{sheets.count(len(chosen), len(table))}   |   {PATHS[group.attrs['path']]}"
    if fields is not None:
        gradient = store.aligned(fields["mean_gradient"], fields["channel"], chosen)
        ways = zip(group.attrs["start"], fields.attrs["start"], kernel.shape[2:], strict=True)
        same = (shared(*along, gradient.shape[-1]) for along in ways)
        columns["mean gradient,\nsame pixels"] = gradient[:, :, *same]
    if "linear" in group:
        columns["linear\nresponse"] = group["linear"][chosen]
    if fields is not None:
        columns["mean\ngradient"] = gradient
        facts += "   |   r, lin: correlation of filter, linear response with the mean gradient"
    side = sheets.fitting(kernel.shape[-1], SIDE)
    place = sheets.layout(len(chosen), len(columns), side)
    page = sheets.Sheet(place, title, facts, list(columns))
    for column, pictures in enumerate(columns.values()):
        page.below(column, f"{pictures.shape[-1]} px", arrow=True)
        for row, picture in enumerate(pictures):
            if not np.isnan(picture).all() and picture.any():
                page.put(row, column, style.signed_rgb(_square(picture)))
    for row, channel in enumerate(chosen):
        page.label(row, channel, _label(table.loc[channel]))
    return page.finish()


def _square(picture: np.ndarray) -> np.ndarray:
    """Return a picture (3, h, w) on a square of zeros, where it is not one itself."""
    height, width = picture.shape[1:]
    down, right = max(width - height, 0), max(height - width, 0)
    top, left = down // 2, right // 2
    return np.pad(picture, ((0, 0), (top, down - top), (left, right - left)))


def _label(facts: pd.Series) -> list[sheets.Line]:
    """Return the lines below a channel's number: how filter and linear response agree with the
    mean gradient."""
    lines = []
    for name, column in (("r", "virtual_correlation"), ("lin", "virtual_linear_correlation")):
        if np.isfinite(facts[column]):
            lines.append((style.minus(f"{name} {facts[column]:.2f}"), style.GREY))
    if isinstance(facts["virtual_reason"], str) and facts["virtual_reason"]:
        lines.append(("unreached", style.VERMILLION))
    return lines


# ---- over all layers


def layers_with(table: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """Return the rows of the layers that have a value of `column`, in network order."""
    return {name: rows for name, rows in rows_by_layer(table).items() if rows[column].notna().any()}


@style.styled
def correlation(
    table: pd.DataFrame, run: str, twin: pd.DataFrame | None = None, twin_name: str = ""
) -> Figure:
    """Draw from channels.csv how well virtual filters agree with mean gradients, and with those of
    other channels (the null), against depth."""
    layers = layers_with(table, "virtual_correlation")
    others = {} if twin is None else layers_with(twin, "virtual_correlation")
    figure, panels = style.depth_figure(list(layers), 6, 2)
    names = (("virtual filter", "virtual"), ("linear response", "virtual_linear"))
    for axes, (label, stem) in zip(panels, names, strict=True):
        own, null = f"{stem}_correlation", f"{stem}_correlation_null"
        axes.axhline(0, color=style.GREY, linewidth=0.8)
        for position, (name, rows) in enumerate(layers.items()):
            style.strip(axes, position - 0.2, rows[own].to_numpy(float), style.BLUE, 0.26)
            style.strip(axes, position + 0.2, rows[null].to_numpy(float), style.GREY, 0.26)
            _median(axes, position - 0.2, others.get(name), own)
        axes.set_ylim(-1.05, 1.05)
        axes.set_ylabel(f"{label}\nto mean gradient (r)")
    subtitle = "Pearson correlation on the pixels of filter and linear response"
    handles = [
        style.strip_handle(style.BLUE, "with the channel's own mean gradient"),
        style.strip_handle(style.GREY, "with that of another channel"),
    ]
    if others:
        handles.append(_triangle(f"median of {twin_name}"))
    return style.captioned(figure, f"{run} · virtual filters", subtitle, handles, 3)


@style.styled
def skip_share(
    table: pd.DataFrame, run: str, twin: pd.DataFrame | None = None, twin_name: str = ""
) -> Figure:
    """Draw from channels.csv what share of each gradient comes through the skip connection of the
    layer's block; shares beyond `SHARES` on the edge."""
    layers = layers_with(table, "skip_energy_share")
    others = {} if twin is None else layers_with(twin, "skip_energy_share")
    figure, panels = style.depth_figure(list(layers), 6, 2)
    outside = 0
    for position, (name, rows) in enumerate(layers.items()):
        share = rows["skip_energy_share"].dropna().to_numpy(float)
        outside += int(((share < SHARES[0]) | (share > SHARES[1])).sum())
        shown = (share.clip(*SHARES), rows["skip_residual_cosine"].to_numpy(float))
        columns = ("skip_energy_share", "skip_residual_cosine")
        for axes, values, column in zip(panels, shown, columns, strict=True):
            style.strip(axes, position, values, style.BLUE)
            _median(axes, position, others.get(name), column)
    for share, line in ((0, "-"), (0.5, (0, (4, 3))), (1, "-")):
        panels[0].axhline(share, color=style.GREY, linewidth=0.8, linestyle=line)
    low, high = SHARES[0] - 0.05, SHARES[1] + 0.05
    style.shares(panels[0], "energy through the\nskip connection", low, high)
    panels[0].set_yticks([0, 0.5, 1])
    panels[1].axhline(0, color=style.GREY, linewidth=0.8)
    panels[1].set_ylim(-1.05, 1.05)
    panels[1].set_ylabel("cosine of the parts\n(> 0: they agree)")
    subtitle = "top units, split at the layer's own block"
    if outside:
        subtitle += f"; {outside} channels beyond the axis, on its edge"
    handles = [style.strip_handle(style.BLUE, f"channels of {run}; median and quartiles")]
    if others:
        handles.append(_triangle(f"median of {twin_name}"))
    title = f"{run} · skip connection and residual branch"
    return style.captioned(figure, title, subtitle, handles, 2)


def _median(axes: Axes, position: float, twin: pd.DataFrame | None, column: str) -> None:
    """Mark the median of the twin's rows of a layer, if it has any value."""
    if twin is not None and twin[column].notna().any():
        middle = float(np.clip(twin[column].median(), *SHARES))
        axes.plot(position, middle, "^", color=style.ORANGE, markersize=6, zorder=6)


def _triangle(label: str) -> Line2D:
    return style.mark(label, style.ORANGE, "^", markersize=6)


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield each figure with its name, from the files and settings of its rule."""
    table = store.read_table(given.channels)
    twin = store.read_table(given.twin) if given.twin else None
    for name, column, figure in (
        ("agreement_with_the_mean_gradients", "virtual_correlation", correlation),
        ("share_of_the_skip_connection", "skip_energy_share", skip_share),
    ):
        # Without a linear path, and without blocks, there are no values.
        if column in table and table[column].notna().any():
            yield name, figure(table, params.run, twin, params.twin)
    if given.virtual_filters:
        tables = rows_by_layer(table)
        with store.open(given.virtual_filters, "virtual_filters") as filters:
            for name, layer, fields in sheets.files(given, params.layers, "receptive_fields"):
                title = f"{params.run} · {layer} · virtual filters"
                yield name, sheet(filters[layer], fields, tables[layer], params.channels, title)
