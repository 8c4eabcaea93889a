"""Topic orientation of the figures: tuning to orientation and frequency over the layers of a run.

Drawn from channels.csv (the run's and its random twin's) and the tables of the stages `orientation`
and `v1`. The captions in workflow/report/figures_orientation.rst say what each figure shows.

Orientations are directions of modulation, degrees counter-clockwise from the right: at 0 the bars
are vertical.
"""

from collections.abc import Iterator, Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle, Wedge
from matplotlib.ticker import NullLocator

from rfatlas.figures import style
from rfatlas.files import store
from rfatlas.statistics import circular_difference, rows_by_layer

#: Bins of the distributions of orientation: 15 degrees, centred on the cardinal directions.
BINS = 12

#: Name of what is published in the column `layer`.
MACAQUE = "macaque V1"

#: Quantities that are compared with macaque V1, with label and ticks of their axis.
QUANTITIES = {
    "circular_variance": ("circular variance", (0, 0.25, 0.5, 0.75, 1)),
    "bandwidth_deg": ("orientation half-bandwidth (°)", (0, 15, 30, 45, 60, 75, 90)),
    "f1_f0": ("F1/F0", (0, 0.5, 1, 1.5, 2)),
    "sf_bandwidth_oct": ("spatial-frequency bandwidth (octaves)", (0, 0.5, 1, 1.5, 2, 2.5)),
    "gabor_nx": ("Gabor $n_x$ (cycles)", (0.1, 0.3, 1)),
    "gabor_ny": ("Gabor $n_y$ (cycles)", (0.1, 0.3, 1)),
    "summation_deg": ("grating summation field (°)", (0.125, 0.5, 2, 8)),
    "suppression_index": ("surround suppression", (0, 0.5, 1)),
    "texture_modulation": ("texture modulation", (-0.4, -0.2, 0, 0.2, 0.4)),
}
#: Those whose bins are equally wide on a logarithmic scale.
LOGARITHMIC = ("gabor_nx", "gabor_ny", "summation_deg")

ESTIMATES = {
    "kernel": ("gabor_kernel_theta_deg", "kernel"),
    "gradient": ("gabor_theta_deg", "mean gradient"),
    "gratings": ("orientation_deg", "best grating"),
}
PAIRS = (("kernel", "gradient"), ("kernel", "gratings"), ("gradient", "gratings"))

#: Estimates within this many degrees are drawn as agreeing.
CLOSE = 10


def is_true(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Return where a column of True, False and empty is True; nowhere without the column."""
    if column not in rows:
        return np.zeros(len(rows), bool)
    return rows[column].astype("boolean").fillna(False).to_numpy(bool)


def orientations(rows: pd.DataFrame, gabor_r2: float) -> np.ndarray:
    """Return the orientations (degrees) of the channels that have one.

    Those of the best gratings of orientation-selective channels; without gratings those of Gabors
    that explain at least the share `gabor_r2` of their field's variance.
    """
    if "orientation_deg" in rows:
        chosen = is_true(rows, "orientation_selective")
        found = rows["orientation_deg"].to_numpy(float)[chosen]
    else:
        good = (rows["gabor_r2"] >= gabor_r2).to_numpy()
        found = rows["gabor_theta_deg"].to_numpy(float)[good]
    return found[np.isfinite(found)] % 180


def rose(theta: np.ndarray) -> np.ndarray:
    """Return the share of orientations in each of `BINS` bins, the first centred on 0 degrees.

    The bin around 0 holds what lies just below 180, too.
    """
    width = 180 / BINS
    bins = np.floor((theta + width / 2) / width).astype(int) % BINS
    return np.bincount(bins, minlength=BINS) / max(theta.size, 1)


def frequencies(rows: pd.DataFrame, gabor_r2: float) -> np.ndarray:
    """Return the preferred frequencies in cycles per pixel: of gratings, else of good Gabors."""
    if "sf_cpp" in rows:
        found = rows["sf_cpp"].to_numpy(float)
    else:
        found = rows["gabor_frequency"].where(rows["gabor_r2"] >= gabor_r2).to_numpy(float)
    return found[np.isfinite(found) & (found > 0)]


@style.styled
def roses(
    table: pd.DataFrame, run: str, gabor_r2: float, twin: pd.DataFrame | None, twin_name: str
) -> Figure:
    """Draw the distribution of preferred orientations in every layer, and the twin's."""
    gratings = "orientation_deg" in table
    whose = "orientation-selective channels" if gratings else f"Gabor fits with R² ≥ {gabor_r2:g}"
    layers = list(rows_by_layer(table).items())
    others = rows_by_layer(twin) if twin is not None else {}
    figure, panels = style.panel_grid(len(layers), (1.75, 1.4))
    for axes, (name, rows) in zip(panels, layers, strict=True):
        theta = orientations(rows, gabor_r2)
        share = rose(theta)
        other = rose(orientations(others[name], gabor_r2)) if name in others else np.zeros(BINS)
        top = np.sqrt(max(share.max(), other.max(), 1e-9))
        _rose(axes, np.sqrt(share) / top)
        if name in others:
            axes.plot(*_outline(np.sqrt(other) / top), color=style.INK, linewidth=0.9)
        if theta.size:
            even = np.full(BINS, np.sqrt(1 / BINS) / top)
            axes.plot(*_outline(even), color=style.ORANGE, linestyle=(0, (3, 2)), linewidth=1.1)
        for direction in (0, 45, 90, 135, 180):
            _bar(axes, direction)
        axes.plot([-1, 1], [0, 0], color=style.GREY, linewidth=0.7)
        axes.set(xlim=(-1.3, 1.3), ylim=(-0.15, 1.3), aspect="equal")
        axes.set_axis_off()
        axes.set_title(name, loc="center", fontsize=9)
        axes.text(0, -0.08, f"{theta.size} of {len(rows)}", ha="center", va="top", fontsize=8)
    handles = [
        Patch(color=style.BLUE, alpha=0.75, label=run),
        style.mark("all directions alike", style.ORANGE, line=(0, (3, 2))),
    ]
    if others:
        handles.insert(1, style.mark(twin_name, style.INK, line="-", linewidth=1))
    subtitle = (
        f"{whose}; area is the share of channels; strokes on the rim: the bars of the grating"
    )
    return style.headed(figure, f"{run} · preferred orientation", subtitle, handles, 3)


def _rose(axes: Axes, radius: np.ndarray) -> None:
    """Draw a wedge per bin, `radius` long; that around 0 is half at the right, half at the left."""
    width = 180 / BINS
    for index, length in enumerate(radius):
        edges = [(index * width - width / 2, index * width + width / 2)]
        if index == 0:
            edges = [(0, width / 2), (180 - width / 2, 180)]
        for low, high in edges if length > 0 else ():
            wedge = Wedge((0, 0), length, low, high, color=style.BLUE, alpha=0.75, linewidth=0)
            axes.add_patch(wedge)


def _outline(radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the line around a rose, from the right to the left."""
    degrees = np.linspace(0, 180, 181)
    bins = np.floor(degrees / (180 / BINS) + 0.5).astype(int) % BINS
    angle = np.radians(degrees)
    return radius[bins] * np.cos(angle), radius[bins] * np.sin(angle)


def _bar(axes: Axes, direction: float) -> None:
    """Draw a stroke on the rim along the bars of a grating modulated along `direction`."""
    angle = np.radians(direction)
    centre, along = 1.14 * np.array([np.cos(angle), np.sin(angle)]), np.radians(direction + 90)
    half = 0.09 * np.array([np.cos(along), np.sin(along)])
    (x0, y0), (x1, y1) = centre - half, centre + half
    axes.plot([x0, x1], [y0, y1], color=style.INK, linewidth=2, solid_capstyle="butt")


@style.styled
def frequency(
    table: pd.DataFrame,
    run: str,
    gabor_r2: float,
    pixels_per_degree: float,
    reference: pd.DataFrame,
    twin: pd.DataFrame | None,
    twin_name: str,
) -> Figure:
    """Draw the preferred spatial frequency against depth, with the twin's and the macaque's, which
    is where `pixels_per_degree` puts it."""
    layers = list(rows_by_layer(table).items())
    others = rows_by_layer(twin) if twin is not None else {}
    figure, axes = style.depth_figure([name for name, _ in layers], 4.8, 1)
    published = reference[reference["quantity"] == "sf_cpd"].set_index("statistic")["value"]
    low, middle, high = (published[name] / pixels_per_degree for name in ("q25", "median", "q75"))
    axes.axhspan(low, high, color=style.PALE, alpha=0.6, linewidth=0)
    axes.axhline(middle, color=style.GREY, linewidth=1)
    shift = 0.2 if others else 0
    for position, (name, rows) in enumerate(layers):
        own = frequencies(rows, gabor_r2)
        style.strip(axes, position - shift, own, style.BLUE, 0.26 if others else 0.5)
        if name in others:
            other = frequencies(others[name], gabor_r2)
            style.strip(axes, position + shift, other, style.ORANGE, 0.26)
        stride = rows["rf_stride"].iloc[0]
        if not pd.isna(stride):
            nyquist = 0.5 / float(stride)
            axes.plot([position - 0.42, position + 0.42], [nyquist] * 2, "--", color=style.INK)
    style.octaves(axes.yaxis, lambda value: f"1/{1 / value:.4g}")
    axes.set_ylabel("cycles per pixel")
    degrees = axes.secondary_yaxis(
        "right", functions=(lambda f: f * pixels_per_degree, lambda f: f / pixels_per_degree)
    )
    style.octaves(degrees.yaxis, lambda value: f"{value:.2g}")
    degrees.set_ylabel(f"cycles per degree, if {pixels_per_degree:g} pixels are one")
    source = "best grating" if "sf_cpp" in table else f"Gabor fits with R² ≥ {gabor_r2:g}"
    handles = [style.strip_handle(style.BLUE, run)]
    if others:
        handles.append(style.strip_handle(style.ORANGE, twin_name))
    handles += [
        style.mark("Nyquist frequency of the stride", style.INK, line="--"),
        Patch(color=style.PALE, label="macaque V1: quartiles (De Valois et al. 1982)"),
    ]
    return style.captioned(figure, f"{run} · preferred spatial frequency", source, handles, 2)


@style.styled
def selective(counts: pd.DataFrame, run: str) -> Figure:
    """Draw from selective.csv the fraction of orientation-selective channels against depth, with
    the twin's."""
    rows = counts[is_true(counts, "rule")].reset_index(drop=True)
    figure, axes = style.depth_figure(rows["layer"].tolist(), 4.2, 1)
    twin = style.twin_of(rows)
    shift = 0.12 if twin else 0
    kinds = [("", -shift, style.BLUE, "o", run)]
    if twin:
        kinds.append(("twin_", shift, style.ORANGE, "s", twin))
    handles = []
    for prefix, offset, color, marker, label in kinds:
        x, share = np.arange(len(rows)) + offset, rows[f"{prefix}fraction"].to_numpy(float)
        axes.vlines(x, rows[f"{prefix}lo"], rows[f"{prefix}hi"], color=color, linewidth=2)
        axes.plot(x, share, color=color, linewidth=0.8, alpha=0.5)
        axes.plot(x, share, marker, color=color, markersize=6)
        handles.append(style.mark(label, color, marker, line="-", linewidth=2))
    for position, row in rows.iterrows():
        text, size = f"{row['selective']}/{row['responsive']}", 7 if len(rows) > 12 else 8
        axes.annotate(text, (position, 1.06), ha="center", fontsize=size, color=style.BLUE)
    style.shares(axes, "orientation-selective channels", -0.02, 1.14)
    axes.set_yticks(np.linspace(0, 1, 6))
    threshold = rows["osi_threshold"].iloc[0]
    subtitle = (
        f"OSI ≥ {threshold:g} and a defined bandwidth, of the channels that respond to gratings; "
        "95 % Wilson intervals"
    )
    return style.captioned(figure, f"{run} · orientation-selective channels", subtitle, handles, 2)


@style.styled
def stability(counts: pd.DataFrame, run: str) -> Figure:
    """Draw from selective.csv how the fraction of selective channels depends on the threshold, a
    panel per layer."""
    layers = list(rows_by_layer(counts).items())
    figure, panels = style.panel_grid(len(layers), (1.7, 1.6), xlabel="OSI threshold", alike=True)
    for axes, (name, rows) in zip(panels, layers, strict=True):
        rows = rows.sort_values("osi_threshold")
        x = rows["osi_threshold"].to_numpy(float)
        for prefix, color, line in (("twin_", style.ORANGE, "--"), ("", style.BLUE, "-")):
            low, high = (rows[f"{prefix}{end}"].to_numpy(float) for end in ("lo", "hi"))
            axes.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
            share = rows[f"{prefix}fraction"].to_numpy(float)
            axes.plot(x, share, line, color=color, marker="o", markersize=3)
        stated = x[is_true(rows, "rule")][0]
        axes.axvline(stated, color=style.GREY, linewidth=1, linestyle=(0, (1, 2)))
        style.shares(axes)
        axes.set_yticks([0, 0.5, 1])
        axes.grid(axis="y")
        axes.set_title(name, fontsize=9)
    handles = [style.mark(run, style.BLUE, "o", line="-", markersize=3)]
    if twin := style.twin_of(counts):
        handles.append(style.mark(twin, style.ORANGE, "o", line="--", markersize=3))
    title = f"{run} · orientation-selective channels by threshold"
    subtitle = "fraction of the channels that respond to gratings; bands: 95 % Wilson intervals"
    return style.headed(figure, title, subtitle, handles, 2)


@style.styled
def card(properties: pd.DataFrame, scores: pd.DataFrame, run: str) -> Figure:
    """Draw the report card: how alike each layer and macaque V1 are, property by property.

    `properties` is properties.csv, `scores` scores.csv.
    """
    reason = properties["reason"].fillna("")
    compared, medians = (
        list(properties.loc[reason.isin(reasons), "property"].unique())
        for reasons in (["", "no_channel"], ["median_only"])
    )
    title = properties.groupby("property")["title"].first()
    layers = list(rows_by_layer(properties))
    stated = scores[is_true(scores, "stated")].set_index("layer")
    twin = bool(stated["twin_score"].notna().any())
    first = 1 + twin
    rows = first + len(compared) + len(medians)
    width = max(7.2, 2.6 + 0.58 * len(layers))
    figure = style.spaced(width, 0.27 * rows + 1.9, 0.42, 0.8)
    axes = figure.subplots()
    by_place = properties.set_index(["property", "layer"])
    for x, layer in enumerate(layers):
        if layer in stated.index:
            score = stated.loc[layer]
            _cell(axes, x, 0, score["score"], bold=True, mark=_certain(score, "difference"))
            if np.isfinite(score["twin_score"]):
                _cell(axes, x, 1, score["twin_score"])
        for y, name in enumerate(compared, first):
            row = by_place.loc[(name, layer)]
            _cell(axes, x, y, row["similarity"], mark=_certain(row, "gain"))
        for y, name in enumerate(medians, first + len(compared)):
            value = by_place.loc[(name, layer), "median"]
            text = f"{value:.3g}" if np.isfinite(value) else "–"
            axes.text(x, y, text, ha="center", va="center", fontsize=8)
    for y, name in enumerate(medians, first + len(compared)):
        known = by_place.loc[(name, layers[0]), "macaque_median"]
        words = {"ha": "center", "va": "center", "fontsize": 8, "color": style.GREY}
        axes.text(len(layers), y, f"{known:g}", **words)
    labels = ["score", *["score of the twin"][:twin], *title[compared]]
    labels += [f"median: {name}" for name in title[medians]]
    axes.set_yticks(range(rows), labels, fontsize=8.5)
    axes.get_yticklabels()[0].set_fontweight("bold")
    style.layer_axis(axes, layers + (["V1"] if medians else []))
    for y in (first - 0.5, first - 0.5 + len(compared)):
        axes.axhline(y, color=style.INK, linewidth=0.8)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["left", "bottom"]].set_visible(False)
    subtitle = "1 − Kolmogorov–Smirnov distance, as a share of what as many V1 neurons would reach"
    if len(stated):
        one = stated.iloc[0]
        subtitle += f"\n{one['properties']} properties in the score"
        subtitle += f"; {one['pixels_per_degree']:g} pixels per degree"
    handles = [
        style.mark("closer to V1 than the random twin", style.INK, "^", markersize=5),
        style.mark("farther from it", style.INK, "v", markersize=5),
    ]
    heading = f"{run} · report card for macaque V1"
    return style.headed(figure, heading, subtitle, handles if twin else (), 2)


def _certain(row: pd.Series, name: str) -> str:
    """A triangle where a number is above or below 0 by its interval."""
    return "^" if row[f"{name}_lo"] > 0 else "v" if row[f"{name}_hi"] < 0 else ""


def _cell(axes: Axes, x: float, y: float, value: float, bold: bool = False, mark: str = "") -> None:
    """Draw a cell of the card: shaded by a similarity from 0 to 1, with its number."""
    if not np.isfinite(value):
        return
    shade = matplotlib.colormaps["Blues"](0.85 * float(value))
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=shade, linewidth=0))
    ink = "white" if value > 0.72 else style.INK
    text = f"{value:.2f}"
    weight = "bold" if bold else "normal"
    axes.text(x - 0.06, y, text, ha="center", va="center", fontsize=8, color=ink, fontweight=weight)
    if mark:
        axes.plot(x + 0.36, y, mark, color=ink, markersize=3.2)


@style.styled
def v1(
    histograms: pd.DataFrame,
    properties: pd.DataFrame,
    reference: pd.DataFrame,
    run: str,
    gabor_r2: float,
) -> Figure:
    """Draw histograms of the tuning of every layer and the published ones of macaque V1.

    `histograms` is histograms.csv, `properties` properties.csv, `reference` the published numbers.
    """
    medians = properties[properties["reason"] != "stage_off"]
    quantities = [name for name in QUANTITIES if name in set(medians["property"])]
    layers = list(rows_by_layer(medians))
    lines = -(-len(quantities) // 3)
    width = -(-len(quantities) // lines)
    lines = -(-len(quantities) // width)
    height = 0.95 + (0.24 * (len(layers) + 1) + 0.85) * lines + 0.5
    figure = style.spaced(max(7.2, 3.1 * width + 0.9), height, 0.5, 0.65, w_pad=0.1, h_pad=0.08)
    panels = figure.subplots(lines, width, squeeze=False).ravel()
    names = [MACAQUE, *layers]
    for axes, quantity in zip(panels, quantities, strict=False):
        _ridges(axes, histograms, medians, reference, quantity, names)
    for axes in panels[len(quantities) :]:
        axes.remove()
    for axes in panels[: len(quantities)][::width]:
        axes.set_yticks(-np.arange(len(names)), names, fontsize=8.5)
    subtitle = "channels per bin, each layer to its own height; right: channels behind it" + (
        f"; Gabor fits with R² ≥ {gabor_r2:g}" if "gabor_nx" in quantities else ""
    )
    handles = [
        Patch(color=style.BLUE, alpha=0.7, label=run),
        Patch(color=style.GREY, label="macaque V1, published histogram"),
        style.mark("median", style.INK, "|", markersize=8),
        style.mark("published median", style.VERMILLION, line="-"),
        style.mark("the same, from memory", style.VERMILLION, line="--"),
    ]
    if medians["twin_median"].notna().any():
        handles.insert(3, style.mark("median of the random twin", style.ORANGE, "^", markersize=5))
    return style.headed(figure, f"{run} · compared with macaque V1", subtitle, handles, 3)


def _ridges(
    axes: Axes,
    histograms: pd.DataFrame,
    medians: pd.DataFrame,
    reference: pd.DataFrame,
    quantity: str,
    names: list[str],
) -> None:
    """Draw the histograms of one quantity, the first name on top; x counts bins."""
    rows = histograms[histograms["property"] == quantity]
    own = rows[rows["layer"] != MACAQUE]
    edges = np.sort(own["low"].unique())
    last = own["high"].max()
    finite = [*edges, last] if np.isfinite(last) else list(edges)
    if quantity in LOGARITHMIC:
        # The first bin reaches down to 0: on this axis it is as wide as the others.
        finite[0] = finite[1] ** 2 / finite[2]

    def place(value: float) -> float:
        scale = np.log if quantity in LOGARITHMIC else np.asarray
        return float(np.interp(scale(value), scale(finite), np.arange(len(finite))))

    for row, name in enumerate(names):
        members = rows[rows["layer"] == name].sort_values("low")
        base = -row - 0.3
        axes.plot([0, len(edges)], [base] * 2, color=style.PALE, linewidth=0.8, zorder=1)
        if len(members) and members["count"].sum():
            start = np.searchsorted(edges, members["low"].to_numpy(float))
            tall = 0.8 * members["count"] / members["count"].max()
            color = style.GREY if name == MACAQUE else style.BLUE
            look = {"color": color, "alpha": 0.7, "linewidth": 0, "zorder": 2}
            axes.bar(start + 0.5, tall, bottom=base, width=1, **look)
        if name == MACAQUE:
            found = None
            note = f"{members['n'].iloc[0]:.0f}" if len(members) else "no histogram"
        else:
            found = medians[(medians["property"] == quantity) & (medians["layer"] == name)].iloc[0]
            note = f"{found['n']}"
        axes.text(len(edges) + 0.15, base, note, fontsize=7, color=style.GREY, va="bottom")
        if found is None:
            continue
        if np.isfinite(found["median"]):
            axes.plot([place(found["median"])] * 2, [base, base + 0.85], color=style.INK, zorder=4)
        if np.isfinite(found["twin_median"]):
            x = place(found["twin_median"])
            axes.plot(x, base, "^", color=style.ORANGE, markersize=4, zorder=5)
    known = reference[reference["quantity"] == quantity]
    for statistic in ("median", "boundary"):
        for _, line in known[known["statistic"] == statistic].iterrows():
            sure = line["certainty"] != "from memory"
            x, dashes = place(line["value"]), "-" if sure else "--"
            axes.axvline(x, color=style.VERMILLION, linewidth=1.1, linestyle=dashes, zorder=3)
            text = f"{line['value']:g}" + ("" if sure else " (from memory)")
            if statistic == "boundary":
                text = "complex < 1 < simple"
            axes.text(x, 0.62, text, color=style.VERMILLION, fontsize=7.5, ha="center", va="bottom")
    label, ticks = QUANTITIES[quantity]
    axes.set_xticks([place(tick) for tick in ticks], [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.set_xlim(0, len(edges))
    axes.set_xlabel(label + ("" if np.isfinite(last) else "; last bin open"), fontsize=9)
    axes.set_ylim(-len(names) + 0.6, 0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


@style.styled
def nx_ny(
    table: pd.DataFrame, joint: pd.DataFrame, reference: pd.DataFrame, run: str, gabor_r2: float
) -> Figure:
    """Draw the (nx, ny) plane of every layer: the size of Gabors in cycles, and macaque V1's.

    A dot per channel whose fit explains at least the share `gabor_r2`. Grey squares are the counts
    of Ringach 2002 (`joint`).
    """
    layers = list(rows_by_layer(table).items())
    figure, panels = style.panel_grid(
        len(layers), (1.75, 1.8), xlabel="$n_x$", ylabel="$n_y$", alike=True
    )
    low, high = 0.03, 3.0
    medians = reference[reference["statistic"] == "median"].set_index("quantity")["value"]
    for axes, (name, rows) in zip(panels, layers, strict=True):
        for cell in joint.itertuples():
            sides = cell.nx_high - cell.nx_low, cell.ny_high - cell.ny_low
            shade = {"color": style.INK, "alpha": 0.45 * cell.count / joint["count"].max()}
            axes.add_patch(Rectangle((cell.nx_low, cell.ny_low), *sides, linewidth=0, **shade))
        good = rows[(rows["gabor_r2"] >= gabor_r2) & (rows["gabor_nx"] > 0)]
        x, y = (good[f"gabor_{axis}"].to_numpy(float).clip(low, high) for axis in ("nx", "ny"))
        chosen = is_true(good, "orientation_selective")
        size = float(np.clip(500 / max(len(good), 1), 5, 14))
        open_dots = {"facecolor": "white", "edgecolor": style.BLUE, "lw": 0.7}
        axes.scatter(x[~chosen], y[~chosen], s=size, **open_dots)
        axes.scatter(x[chosen], y[chosen], s=size, color=style.BLUE, alpha=0.7, linewidths=0)
        cross = medians["gabor_nx"], medians["gabor_ny"]
        axes.plot(*cross, "+", color=style.VERMILLION, ms=10, mew=2)
        axes.plot([low, high], [low, high], color=style.GREY, linewidth=0.7, linestyle=(0, (1, 2)))
        ends = low * 0.93, high * 1.07
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([0.1, 1])
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
            axis.label.set_size(9.5)
            axis.labelpad = 1
        axes.set_title(f"{name}  {len(good)}/{len(rows)}", fontsize=9)
        # Between the rows there is no room for the labels of ticks, and all panels have the same.
        axes.tick_params(labelbottom=bool(axes.get_xlabel()))
    handles = [
        *_selective_handles(),
        Patch(color=style.INK, alpha=0.4, label="macaque V1 (Ringach 2002)"),
        style.mark("its medians", style.VERMILLION, "+", markeredgewidth=2, markersize=9),
    ]
    if "orientation_selective" not in table:
        handles = handles[1:]
    title = f"{run} · size of the Gabors in cycles"
    which = f"Gabor fits with R² ≥ {gabor_r2:g}"
    subtitle = f"{which}; $n_x$ along the modulation, $n_y$ along the bars"
    return style.headed(figure, title, subtitle, handles, 4)


def _selective_handles() -> list[Line2D]:
    return [
        style.mark("orientation-selective", style.BLUE, "o"),
        style.mark("other channels", style.BLUE, "o", markerfacecolor="white"),
    ]


@style.styled
def agreement(table: pd.DataFrame, run: str) -> Figure:
    """Draw each two estimates of orientation against each other, in the first layer that has both,
    and how far mean gradient and best grating are apart in every layer (without gratings: kernel
    and mean gradient)."""
    layers = list(rows_by_layer(table).items())
    pairs = [
        (pair, found)
        for pair in PAIRS
        if {ESTIMATES[name][0] for name in pair} <= set(table)
        for found in [next((entry for entry in layers if len(_both(entry[1], pair)[0])), None)]
        if found
    ]
    names, rect = [name for name, _ in layers], (0, 0.06, 1, 0.85)
    figure, panels, axes = style.halves(names, 8.4, 6.6, max(len(pairs), 1), 1.25, rect)
    if not pairs:
        style.nothing(panels[0], "no channel has two estimates")
    for panel, (pair, (name, rows)) in zip(panels, pairs, strict=False):
        _scatter(panel, pair, name, rows)
    pair = ("gradient", "gratings") if "orientation_deg" in table else ("kernel", "gradient")
    axes.axhspan(0, CLOSE, color=style.PALE, alpha=0.6, linewidth=0)
    axes.axhline(45, color=style.GREY, linewidth=1, linestyle=(0, (4, 3)))
    for position, (_, rows) in enumerate(layers):
        chosen = is_true(rows, "orientation_selective")
        if not chosen.any() and "orientation_selective" not in rows:
            chosen = np.ones(len(rows), bool)
        first, second, _ = _both(rows[chosen], pair)
        style.strip(axes, position, circular_difference(first, second), style.BLUE)
    axes.set_ylim(-2, 92)
    axes.set_yticks([0, 10, 45, 90])
    labels = [ESTIMATES[name][1] for name in pair]
    axes.set_ylabel(f"{labels[0]} to\n{labels[1]} (°)")
    handles = [
        *_selective_handles(),
        Patch(color=style.PALE, label=f"within {CLOSE}°"),
        style.mark("median by chance", style.GREY, line=(0, (4, 3))),
    ]
    title = f"{run} · do the estimates agree?"
    subtitle = (
        "preferred orientation by three estimates; below: orientation-selective channels, median "
        "and quartiles"
    )
    return style.headed(figure, title, subtitle, handles, 4)


def _both(rows: pd.DataFrame, pair: tuple[str, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two estimates of the channels that have both, and which these are."""
    columns = [ESTIMATES[name][0] for name in pair]
    if not set(columns) <= set(rows):
        return np.zeros(0), np.zeros(0), np.zeros(len(rows), bool)
    first, second = (rows[column].to_numpy(float) for column in columns)
    both = np.isfinite(first) & np.isfinite(second)
    return first[both], second[both], both


def _scatter(axes: Axes, pair: tuple[str, str], name: str, rows: pd.DataFrame) -> None:
    first, second, both = _both(rows, pair)
    chosen = is_true(rows, "orientation_selective")[both]
    line = np.array([0, 180])
    # Orientations are a circle: the band goes on in the corners.
    for turn in (-180, 0, 180):
        low, high = line + turn - CLOSE, line + turn + CLOSE
        axes.fill_between(line, low, high, color=style.PALE, alpha=0.6, linewidth=0)
    axes.plot(line, line, color=style.GREY, linewidth=0.8)
    open_dots = {"facecolor": "white", "edgecolor": style.BLUE, "lw": 0.8}
    axes.scatter(first[~chosen], second[~chosen], s=14, **open_dots)
    axes.scatter(first[chosen], second[chosen], s=16, color=style.BLUE, alpha=0.75, linewidths=0)
    ticks = [0, 45, 90, 135, 180]
    axes.set(xlim=(-3, 183), ylim=(-3, 183), xticks=ticks, yticks=ticks, aspect="equal")
    axes.set_xlabel(f"{ESTIMATES[pair[0]][1]} (°)")
    axes.set_ylabel(f"{ESTIMATES[pair[1]][1]} (°)", labelpad=1)
    axes.set_title(f"{name}, {len(first)} channels", fontsize=9)


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield each figure with its name, from the files and settings of its rule."""
    run, r2 = params.run, params.gabor_r2
    table, reference = store.read_table(given.channels), store.read_table(given.reference)
    twin = store.read_table(given.twin) if given.twin else None
    counts, histograms, properties, scores = map(store.read_table, given.tables)
    yield "preferred_orientation", roses(table, run, r2, twin, params.twin)
    yield (
        "preferred_frequency",
        frequency(table, run, r2, params.pixels_per_degree, reference, twin, params.twin),
    )
    yield "report_card_for_macaque_V1", card(properties, scores, run)
    yield "compared_with_macaque_V1", v1(histograms, properties, reference, run, r2)
    if "osi" in table:
        yield "selective_channels", selective(counts, run)
        yield "selective_channels_by_threshold", stability(counts, run)
    if "gabor_r2" in table:
        joint = store.read_table(given.joint)
        yield "size_of_the_Gabors", nx_ny(table, joint, reference, run, r2)
        yield "agreement_of_the_estimates", agreement(table, run)
