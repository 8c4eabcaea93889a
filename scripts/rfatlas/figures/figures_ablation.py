"""Topic ablation of the figures: what the network loses without a channel or a group of them.

Drawn from channels.csv, ablation_groups.csv, ablation_cumulative.csv and the changes per class in
ablation/<layer>.h5, as the captions in workflow/report/figures_ablation.rst tell them. A change is
ablated minus intact: what is lost is negative in accuracy and positive in loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from scipy import stats

from rfatlas.figures import style
from rfatlas.files import store
from rfatlas.statistics import rows_by_layer

#: What replaces a channel, in words.
MODES = {
    "zero": "replaced by 0",
    "mean": "replaced by its mean",
    "shuffle": "replaced by another image's map",
    "weight": "filter set to 0",
}

#: Channels whose q is at most this are drawn as having an effect.
SIGNIFICANT = 0.05

#: Properties that effects are drawn against: column and label.
PROPERTIES = {
    "filter_norm": "filter norm",
    "osi": "OSI",
    "color_class": "colour class",
    "class_selectivity": "class selectivity",
}
COLOR_CLASSES = {
    "unresponsive": "unresp.",
    "non_opponent": "non",
    "single_opponent": "single",
    "double_opponent": "double",
}

#: Colour and label of each order of the cumulative curves.
ORDERS = {
    "filter_norm": (style.BLUE, "filter norm"),
    "osi": (style.GREEN, "OSI"),
    "color_class": (style.VERMILLION, "colour class"),
    "class_selectivity": (style.PURPLE, "class selectivity"),
    "activation_mean": (style.ORANGE, "mean activation"),
}
RANDOM = "random"
#: Dots on the curves: between them nothing was measured.
TRIED = {"marker": "o", "markersize": 2.4}

#: At most so many layers are drawn against properties, and classes and channels in the heat map.
LAYERS, CLASSES, CHANNELS = 6, 24, 24

#: Losses are orange, gains blue, no change white.
CHANGES = LinearSegmentedColormap.from_list(
    "changes", [style.VERMILLION, "#f2b58a", "white", style.SKY, style.BLUE]
)

POINTS = FuncFormatter(lambda share, _: style.minus(f"{100 * share:.3g}"))


def swept(table: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Return the rows of channels.csv that were ablated in a mode; none where it was off."""
    column = f"{mode}_delta_top1"
    return table[table[column].notna()] if column in table else table.iloc[:0]


def _interval(rows: pd.DataFrame, column: str) -> tuple[np.ndarray, ...]:
    """Return a change and the ends of its interval, (C,) each."""
    return tuple(rows[f"{column}{end}"].to_numpy(float) for end in ("", "_lo", "_hi"))


@style.styled
def effects(table: pd.DataFrame, run: str, mode: str) -> Figure:
    """Draw the change of top-1 accuracy without each channel, sorted, a panel per layer."""
    layers = list(rows_by_layer(swept(table, mode)).items())
    title = f"{run} · accuracy without one channel"
    if not layers:
        return _empty(title, f"no channel was {MODES[mode]}")
    figure, panels = style.panel_grid(
        len(layers), (1.9, 1.7), 0.55, "channels, by effect", "percentage points"
    )
    for axes, (name, rows) in zip(panels, layers, strict=True):
        rows = rows.sort_values(f"{mode}_delta_top1", kind="stable")
        change, low, high = _interval(rows, f"{mode}_delta_top1")
        rank = np.arange(1, len(rows) + 1)
        width = np.clip(90 / len(rows), 0.4, 3)
        axes.vlines(rank, low, high, color=style.SKY, linewidth=width, alpha=0.6)
        axes.axhline(0, color=style.GREY, linewidth=0.8)
        axes.plot(rank, change, color=style.BLUE, linewidth=1.2)
        sure = (rows[f"{mode}_q"] <= SIGNIFICANT).to_numpy()
        axes.plot(rank[sure], change[sure], "o", color=style.VERMILLION, markersize=3.5)
        axes.set_title(f"{name}  {sure.sum()}/{len(rows)}", fontsize=9)
        axes.yaxis.set_major_formatter(POINTS)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.set_xlim(0, len(rows) + 1)
        axes.grid(axis="y")
    significant = f"q ≤ {SIGNIFICANT:g} (Benjamini-Hochberg); counted in the title"
    handles = [
        style.mark("change", style.BLUE, line="-"),
        Patch(color=style.SKY, alpha=0.6, label="95 % interval"),
        style.mark(significant, style.VERMILLION, "o", markersize=4),
    ]
    subtitle = f"each channel {MODES[mode]}; change of top-1 accuracy, sorted; 95 % intervals"
    return style.headed(figure, title, subtitle, handles, 3)


@style.styled
def estimates(table: pd.DataFrame, run: str, mode: str) -> Figure:
    """Draw the effect on the loss of each channel against its first-order estimate, a panel per
    layer; only where there are estimates."""
    layers = list(rows_by_layer(swept(table, mode)).items())
    title = f"{run} · first-order estimates against effects"
    if not layers:
        return _empty(title, f"no channel was {MODES[mode]}")
    figure, panels = style.panel_grid(
        len(layers), (1.9, 1.8), 0.55, "estimate (nats)", "effect on the loss (nats)"
    )
    for axes, (name, rows) in zip(panels, layers, strict=True):
        x = rows[f"{mode}_estimate_loss"].to_numpy(float)
        y, low, high = _interval(rows, f"{mode}_delta_loss")
        ends = [np.nanmin([x, y]), np.nanmax([x, y])]
        axes.plot(ends, ends, color=style.GREY, linewidth=0.8)
        axes.vlines(x, low, high, color=style.SKY, linewidth=1, alpha=0.6)
        axes.plot(x, y, "o", color=style.BLUE, markersize=2.5)
        r = rows[f"{mode}_estimate_r"].median()
        shown = "" if np.isnan(r) else style.minus(f"  r {r:.2f}")
        axes.set_title(f"{name}{shown}", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid()
    handles = [
        style.mark("channel", style.BLUE, "o", markersize=3),
        Patch(color=style.SKY, alpha=0.6, label="95 % interval of the effect"),
        style.mark("estimate = effect", style.GREY, line="-"),
    ]
    subtitle = f"each channel {MODES[mode]}; r: over images, median of the layer's channels"
    return style.headed(figure, title, subtitle, handles, 3)


@style.styled
def properties(table: pd.DataFrame, run: str, mode: str) -> Figure:
    """Draw the change of the loss without each channel against its properties.

    A row of panels per layer, a column per property that channels.csv has. At most `LAYERS` layers,
    evenly from the first to the last.
    """
    rows = swept(table, mode)
    every = list(rows_by_layer(rows).items())
    title = f"{run} · which channels matter"
    if not every:
        return _empty(title, f"no channel was {MODES[mode]}")
    layers = [every[index] for index in style.evenly(len(every), LAYERS)]
    columns = [name for name in PROPERTIES if name in rows and rows[name].notna().any()]
    width, height = max(7.2, 1.9 * len(columns) + 0.9), 1.5 * len(layers) + 1.05
    figure = style.spaced(width, height, w_pad=0.06, h_pad=0.05)
    panels = figure.subplots(len(layers), len(columns), squeeze=False)
    for row, (name, members) in enumerate(layers):
        change = members[f"{mode}_delta_loss"].to_numpy(float)
        for axes, column in zip(panels[row], columns, strict=True):
            values = members[column]
            if column == "color_class":
                values = values.map({kind: rank for rank, kind in enumerate(COLOR_CLASSES)})
            _against(axes, values.to_numpy(float), change, column == "color_class")
            axes.tick_params(labelsize=8, labelleft=axes is panels[row][0])
            axes.sharey(panels[row][0])
            if row == len(layers) - 1:
                axes.set_xlabel(PROPERTIES[column])
        panels[row][0].set_ylabel(f"{name}\nchange of loss", fontsize=8.5)
        panels[row][0].yaxis.set_major_locator(MaxNLocator(4))
    which = "" if len(layers) == len(every) else f"; {len(layers)} of {len(every)} layers"
    subtitle = f"change of the loss without each channel ({MODES[mode]}); ρ is Spearman's{which}"
    return style.headed(figure, title, subtitle)


def _against(axes: Axes, values: np.ndarray, change: np.ndarray, classes: bool) -> None:
    known = np.isfinite(values)
    x, y = values[known], change[known]
    axes.axhline(0, color=style.GREY, linewidth=0.8)
    size = float(np.clip(500 / max(len(x), 1), 4, 14))
    if not len(x):
        axes.xaxis.set_major_locator(NullLocator())
    elif classes:
        for rank in range(len(COLOR_CLASSES)):
            style.strip(axes, rank, y[x == rank], style.BLUE)
        axes.set_xticks(range(len(COLOR_CLASSES)), COLOR_CLASSES.values())
        axes.set_xlim(-0.6, len(COLOR_CLASSES) - 0.4)
    else:
        axes.scatter(x, y, s=size, color=style.BLUE, alpha=0.5, linewidths=0)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    text = "no values"
    if len(x):
        varied = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
        rho = stats.spearmanr(x, y).statistic if varied else np.nan
        text = style.minus(f"ρ = {rho:.2f}") if varied else "ρ undefined"
    axes.set_title(text, loc="right", fontsize=8, fontweight="normal")
    axes.grid(axis="y")


@style.styled
def cumulative(curves: pd.DataFrame, run: str, mode: str) -> Figure:
    """Draw from ablation_cumulative.csv top-1 accuracy against the number of channels taken out, a
    panel per layer."""
    rows = curves[curves["mode"] == mode]
    title = f"{run} · accuracy without more and more channels"
    if not len(rows):
        return _empty(title, "no layer has an order of its channels")
    intact = float((rows["top1"] - rows["delta_top1"]).iloc[0])
    layers = list(rows_by_layer(rows).items())
    figure, panels = style.panel_grid(
        len(layers), (2.1, 1.9), 0.8, "channels taken out", alike=True
    )
    present = [name for name in ORDERS if name in set(rows["order"])]
    for axes, (name, members) in zip(panels, layers, strict=True):
        axes.axhline(intact, color=style.INK, linewidth=0.8, linestyle=(0, (1, 2)))
        random = members[members["order"] == RANDOM].pivot(
            index="n_removed", columns="number", values="top1"
        )
        if len(random):
            x, low, high = random.index.to_numpy(), random.min(axis=1), random.max(axis=1)
            axes.fill_between(x, low, high, color=style.PALE, linewidth=0)
            axes.plot(x, random.median(axis=1), color=style.GREY, linewidth=1.4, **TRIED)
        for order in present:
            for direction, line in (("descending", "-"), ("ascending", (0, (3, 1.5)))):
                curve = members[(members["order"] == order) & (members["direction"] == direction)]
                x, y = curve.sort_values("n_removed")[["n_removed", "top1"]].to_numpy().T
                look = {"color": ORDERS[order][0], "linestyle": line, "linewidth": 1.3}
                axes.plot(x, y, **look, **TRIED)
        channels = int(members["n_removed"].max())
        axes.set_xscale("log")
        # The number of all channels in place of the power of four that is close to it.
        ticks = [*(4**power for power in range(8) if 4**power < channels / 2), channels]
        axes.set_xticks(ticks, map(str, ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(0.9, channels * 1.1)
        style.shares(axes, low=-0.02, high=1.02)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y")
        axes.set_title(name, fontsize=9)
    handles = [
        style.mark(label, color, line="-") for color, label in (ORDERS[name] for name in present)
    ]
    handles += [
        style.mark("random, median", style.GREY, line="-", linewidth=1.4),
        Patch(color=style.PALE, label="random, range"),
        style.mark("largest first", style.INK, line="-"),
        style.mark("smallest first", style.INK, line=(0, (3, 1.5))),
        style.mark("intact", style.INK, line=(0, (1, 2)), linewidth=0.8),
    ]
    subtitle = f"top-1 accuracy against the number of channels {MODES[mode]}, in several orders"
    return style.headed(figure, title, subtitle, handles, 5)


@style.styled
def groups(table: pd.DataFrame, run: str) -> Figure:
    """Draw from ablation_groups.csv the change of top-1 accuracy without each group and without its
    controls: a line per layer and group, a column per mode."""
    title = f"{run} · groups of channels and control sets of the same size"
    if not len(table):
        return _empty(title, "no layer has a channel of any group")
    modes = [mode for mode in MODES if mode in set(table["mode"])]
    names = table.loc[table["role"] == "group", ["depth", "layer", "group"]].drop_duplicates()
    lines = [tuple(line) for line in names.sort_values("depth", kind="stable").to_numpy()]
    width, height = max(7.2, 2.3 * len(modes) + 2.4), 0.34 * len(lines) + 1.75
    figure = style.spaced(width, height, 0.45, w_pad=0.08)
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
        labels = []
        axes.axvline(0, color=style.GREY, linewidth=0.8)
        for place, (_, layer, group) in enumerate(lines):
            rows = table[(table["layer"] == layer) & (table["group"] == group)]
            count = int(rows["n_channels"].iloc[0])
            labels.append(f"{layer} · {group.replace('_', '-')} ({count})")
            _null(axes, place, rows[rows["mode"] == mode])
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(POINTS)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(mode, fontsize=9)
        axes.set_xlabel("change (points)", fontsize=8.5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(lines)), labels, fontsize=8.5)
    handles = [
        style.mark("the group, 95 % interval", style.VERMILLION, "D", line="-"),
        style.mark("control, same norms", style.GREY, "o"),
        style.mark("control, any norms", style.GREY, "o", markerfacecolor="white"),
        style.mark("median", style.INK, "|", markersize=9),
    ]
    subtitle = (
        "change of top-1 accuracy; at the right p, the share of sets, the group among them, that "
        "lose as much"
    )
    return style.headed(figure, title, subtitle, handles, 4)


def _null(axes: Axes, place: int, rows: pd.DataFrame) -> None:
    """Draw one group in one mode with its controls; nothing where it was not tested."""
    group, drawn = rows[rows["role"] == "group"], rows[rows["role"] == "control"]
    if not len(group):
        return
    group = group.iloc[0]
    change = drawn["delta_top1"].to_numpy(float)
    face = style.GREY if group["control"] == "matched" else "white"
    y = place + 0.16 + 0.2 * ((np.arange(len(change)) * 0.618) % 1)
    axes.scatter(change, y, s=11, facecolor=face, edgecolor=style.GREY, linewidths=0.6)
    if len(change):
        axes.plot(np.median(change), place + 0.26, "|", color=style.INK, markersize=9, mew=1.6)
    low, high = group["delta_top1_lo"], group["delta_top1_hi"]
    axes.plot([low, high], [place - 0.1] * 2, color=style.VERMILLION, linewidth=1.8)
    axes.plot(group["delta_top1"], place - 0.1, "D", color=style.VERMILLION, markersize=4.5)
    if np.isfinite(group["p_more_top1"]):
        at_right = {"xycoords": ("axes fraction", "data"), "fontsize": 7.5, "va": "center"}
        axes.annotate(f"{group['p_more_top1']:.2f}", (1.01, place), color=style.GREY, **at_right)


def chosen(table: pd.DataFrame, mode: str, count: int = CHANNELS) -> list[tuple[str, int]]:
    """Return the (layer, channel) whose loss moves top-1 accuracy most, as many of every layer.

    At most `count`, at least one per layer; in network order, within a layer the largest effect
    first.
    """
    layers = list(rows_by_layer(swept(table, mode)).items())
    each = max(1, count // max(len(layers), 1))
    found = []
    for name, rows in layers:
        change = rows[f"{mode}_delta_top1"].abs()
        best = rows.loc[change.sort_values(ascending=False, kind="stable").index[:each]]
        found += [(name, int(channel)) for channel in best["channel"]]
    return found


@style.styled
def classes(class_delta: Mapping, class_names: Sequence[str], run: str, mode: str) -> Figure:
    """Draw the change of every class's accuracy without some channels as a heat map.

    `class_delta` maps (layer, channel) to (n_classes,) changes, NaN for classes without images. Of
    many classes those that change most over these channels are drawn, in their own order.
    """
    title = f"{run} · which classes need which channel"
    if not class_delta:
        return _empty(title, f"no channel was {MODES[mode]}")
    values = np.array(list(class_delta.values()))
    seen = np.flatnonzero(np.isfinite(values).any(axis=0))
    moved = np.nan_to_num(np.abs(values[:, seen])).sum(axis=0)
    columns = np.sort(seen[np.argsort(-moved, kind="stable")[:CLASSES]])
    shown = values[:, columns]
    limit = max(float(np.nanmax(np.abs(shown), initial=0)), 0.01)
    names = [
        class_names[index] if index < len(class_names) and class_names[index] else f"{index}"
        for index in columns
    ]
    names = [name if len(name) <= 22 else name[:21] + "…" for name in names]
    width = max(7.2, 0.27 * len(columns) + 2.6)
    height = 0.2 * len(shown) + 0.055 * max(map(len, names)) + 1.5
    figure = style.spaced(width, height)
    axes = figure.subplots()
    axes.set_facecolor(style.PALE)
    picture = axes.imshow(shown, cmap=CHANGES, vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(columns)), names, rotation=90, fontsize=8)
    labels = [f"{layer} · {channel}" for layer, channel in class_delta]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set(visible=True, color=style.PALE)
    bar = figure.colorbar(picture, ax=axes, pad=0.015, format=POINTS, shrink=0.9)
    bar.set_label("change of accuracy (points)", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    which = f"the {len(columns)} classes (of {len(seen)}) that change most"
    which = "all classes" if len(columns) == len(seen) else which
    subtitle = f"accuracy of each class without the channel ({MODES[mode]}); strongest channels, "
    return style.headed(figure, title, subtitle + which)


def _empty(title: str, reason: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    return style.headed(style.figure(7.2, 1.6), title, reason)


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield each figure with its name, from the files and settings of its rule."""
    run, first = params.run, params.mode
    table = store.read_table(given.channels)
    for mode in params.modes:
        yield f"each_channel_{mode}", effects(table, run, mode)
    if f"{first}_estimate_loss" in table:
        yield "estimates_and_effects", estimates(table, run, first)
    yield "which_channels_matter", properties(table, run, first)
    files = {Path(path).stem: path for path in given.ablation}
    class_delta = {}
    for layer, channel in chosen(table, first):
        with store.open(files[layer], "ablation") as file:
            class_delta[layer, channel] = file[f"{first}/class_delta"][channel]
    with store.open(given.images, "images") as file:
        class_names = [str(name) for name in file.attrs["class_names"]]
    yield "which_classes_need_them", classes(class_delta, class_names, run, first)
    yield "groups_of_channels", groups(store.read_table(given.groups), run)
    curves = store.read_table(given.cumulative)
    for mode in params.curves["modes"] if params.curves["orders"] else ():
        yield f"more_and_more_{mode}", cumulative(curves, run, mode)
