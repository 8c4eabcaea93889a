"""Topic compare of the figures: the networks of a group of runs side by side.

Drawn from the tables of the stage `compare`, as the captions in workflow/report/figures_compare.rst
tell them. The first run is the reference. Layers are in the order of the networks; one that only
some networks have has marks of these alone.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from rfatlas.figures import style
from rfatlas.files import store
from rfatlas.statistics import rows_by_layer

#: Colour and marker of each run of a group, in its order; more runs begin again.
RUN_STYLES = (
    (style.BLUE, "o"),
    (style.ORANGE, "s"),
    (style.GREEN, "^"),
    (style.VERMILLION, "D"),
    (style.PURPLE, "v"),
    (style.SKY, "P"),
)

#: Kinds of channels that are drawn, with the label of their axis.
PROPERTIES = {
    "orientation_selective": "orientation-\nselective",
    "opponent": "opponent\nin colour",
    "double_opponent": "double-\nopponent",
    "inactive": "inactive",
}

#: Quantities that are drawn, with the label of their axis; `erf_sigma` shares its panel with
#: `rf_size`.
QUANTITIES = {
    "erf_sigma": "receptive\nfield (px)",
    "fraction_active": "active units",
    "class_selectivity": "class\nselectivity",
    "osi": "OSI",
    "sf_cpp": "frequency\n(cycles/px)",
    "color_selectivity": "colour\nselectivity",
}
LOGARITHMIC = ("erf_sigma", "sf_cpp")

#: How the name of a run is written beside the matrices.
RUN_LABEL = {"va": "center", "fontsize": 9.5, "fontweight": "bold"}

#: Up to this many layers, the cells of a matrix hold their numbers.
NUMBERED = 9


def layer_order(table: pd.DataFrame, runs: Sequence[str]) -> list[str]:
    """Return the layers of all runs, each after the one that it follows in its own network."""
    order: list[str] = []
    for run in runs:
        place = 0
        for layer in rows_by_layer(table[table["run"] == run]):
            if layer in order:
                place = order.index(layer) + 1
            else:
                order.insert(place, layer)
                place += 1
    return order


@style.styled
def accuracy(table: pd.DataFrame, group: str) -> Figure:
    """Draw from runs.csv top-1 and top-5 accuracy of the networks, and beside each but the
    reference the difference of its top-1 accuracy."""
    figure, axes = style.accuracy_figure(table["run"], 1.8)
    beside = axes.secondary_yaxis("right")
    beside.spines["right"].set_visible(False)
    beside.tick_params(length=0, labelsize=8)
    beside.set_yticks(range(len(table)), [_difference(row) for row in table.itertuples()])
    for row in table.itertuples():
        for guesses, shift, color, marker in (
            ("top1", -0.14, style.BLUE, "o"),
            ("top5", 0.14, style.ORANGE, "s"),
        ):
            y = row.Index + shift
            low, high = getattr(row, f"{guesses}_lo"), getattr(row, f"{guesses}_hi")
            axes.hlines(y, low, high, color=color, linewidth=2)
            share = getattr(row, guesses)
            axes.plot(share, y, marker, color=color, markersize=6, clip_on=False)
    subtitle = "95 % Wilson intervals; at the right: difference in top-1, of the same images"
    handles = [
        style.mark("top-1", style.BLUE, "o", line="-", linewidth=2),
        style.mark("top-5", style.ORANGE, "s", line="-", linewidth=2),
    ]
    return style.captioned(figure, f"{group} · accuracy", subtitle, handles, 2)


def _difference(row: tuple) -> str:
    """The difference from the reference in percentage points, in words."""
    if row.reference:
        return "reference"
    if pd.isna(row.difference):
        return "no labels"
    ends = [100 * end for end in (row.difference, row.difference_lo, row.difference_hi)]
    return style.minus("{:+.1f} points\n({:+.1f} to {:+.1f})".format(*ends))


@style.styled
def fractions(table: pd.DataFrame, group: str, runs: Sequence[str]) -> Figure:
    """Draw from fractions.csv the fractions of `PROPERTIES` against depth, a panel each; properties
    of stages that were off have none."""
    names = [name for name in PROPERTIES if (table["property"] == name).any()]
    layers = layer_order(table, runs)
    figure, _ = style.depth_figure(layers, 1.3 + 1.55 * len(names), len(names))
    for axes, name in zip(figure.axes, names, strict=True):
        rows = table[table["property"] == name]
        _series(axes, rows, layers, runs, ("lo", "fraction", "hi"))
        low, high = axes.get_ylim()
        style.shares(axes, PROPERTIES[name], min(0, low), high)
    subtitle = "fraction of the channels of a layer, with 95 % Wilson intervals"
    title = f"{group} · kinds of channels"
    return style.captioned(figure, title, subtitle, _handles(runs), 4)


@style.styled
def quantities(table: pd.DataFrame, group: str, runs: Sequence[str]) -> Figure:
    """Draw from quantities.csv medians and quartiles of `QUANTITIES` by depth, a panel each."""
    names = [name for name in QUANTITIES if (table["quantity"] == name).any()]
    if "erf_sigma" not in names:
        names.insert(0, "erf_sigma")
    layers = layer_order(table, runs)
    figure, _ = style.depth_figure(layers, 1.3 + 1.55 * len(names), len(names))
    handles = _handles(runs)
    for axes, name in zip(figure.axes, names, strict=True):
        rows = table[table["quantity"] == name]
        _series(axes, rows, layers, runs, ("q25", "median", "q75"))
        if name == "erf_sigma":
            sizes = table[table["quantity"] == "rf_size"].drop_duplicates(["layer", "median"])
            x = np.array([layers.index(layer) for layer in sizes["layer"]], float)
            dashes = {"color": style.GREY, "linewidth": 1, "linestyle": "--"}
            axes.hlines(sizes["median"], x - 0.4, x + 0.4, **dashes)
        if name in LOGARITHMIC:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
            axes.yaxis.set_major_formatter("{x:.4g}")
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel(QUANTITIES[name])
    handles.append(style.mark("theoretical field: side", style.GREY, line="--", lw=1))
    subtitle = "median and quartiles over channels; receptive field: σ of the effective one"
    return style.captioned(figure, f"{group} · sizes and indices", subtitle, handles, 4)


@style.styled
def matched(
    table: pd.DataFrame, pairs: pd.DataFrame, group: str, reference: str, runs: Sequence[str]
) -> Figure:
    """Draw how well the channels of the reference are found again in the other networks.

    `table` is matching.csv, `pairs` matched.csv.
    """
    others = [run for run in runs if run != reference]
    layers = list(rows_by_layer(table))
    figure, (upper, lower) = style.depth_figure(layers or ["no layer in common"], 5.6, 2)
    look = _styles(runs)
    width = 0.76 / len(others)
    for number, run in enumerate(others):
        color, marker = look[run]
        shift = (number - (len(others) - 1) / 2) * width
        rows = table[table["run"] == run].set_index("layer").reindex(layers)
        for position, layer in enumerate(layers):
            own = pairs[(pairs["run"] == run) & (pairs["layer"] == layer)]
            style.strip(upper, position + shift, own["correlation"], color, 0.6 * width)
        x = np.arange(len(layers)) + shift
        lower.plot(x, rows["share_same"], marker, color=color, markersize=6)
        for axes, chance in ((upper, "chance_median"), (lower, "chance_share_same")):
            axes.hlines(rows[chance], x - width / 2, x + width / 2, color=style.INK, linewidth=1.4)
    upper.set_ylabel("correlation with the match")
    style.shares(lower, "channels found again")
    subtitle = f"with {reference}, one to one by maxima over each image; below: correlation ≥ 0.5"
    handles = [style.mark(run, *look[run], line="-", linewidth=2.4) for run in others]
    handles.append(style.mark("by chance (permuted)", style.INK, line="-", linewidth=1.4))
    return style.captioned(figure, f"{group} · matched channels", subtitle, handles, 4)


@style.styled
def similarity(table: pd.DataFrame, group: str, runs: Sequence[str], measure: str) -> Figure:
    """Draw from similarity.csv `measure` (`cka` or `svcca`) of every layer with every other, a
    matrix per two runs: those of a run with itself on the diagonal, those of two runs below."""
    count = len(runs)
    itself = table[table["run"] == table["other_run"]]
    order = {run: list(rows_by_layer(itself[itself["run"] == run])) for run in runs}
    longest = max(map(len, order.values()))
    side = float(np.clip(0.3 * longest, 1.6, 3.2))
    size = 7 if longest <= NUMBERED else 5.5
    # Room for the names of layers and runs; letters are about 0.6 of their size wide.
    names = 0.4 + 0.6 * size / 72 * max(len(layer) for run in runs for layer in order[run])
    gap, header = 0.15, 0.65
    width = max(7.2, names + count * (side + gap) + 0.9)
    height = names + count * (side + gap) + header
    figure = style.figure(width, height)
    values = {
        frozenset(((row.run, row.layer), (row.other_run, row.other_layer))): getattr(row, measure)
        for row in table.itertuples()
    }
    for row, run in enumerate(runs):
        for column, other in enumerate(runs):
            if column > row:
                continue
            left = names + column * (side + gap)
            foot = names + (count - 1 - row) * (side + gap)
            axes = figure.add_axes((left / width, foot / height, side / width, side / height))
            rows = [
                [values[frozenset(((run, a), (other, b)))] for b in order[other]]
                for a in order[run]
            ]
            image = _matrix(axes, rows)
            axes.tick_params(length=0, labelsize=size)
            if column == 0:
                axes.set_yticks(range(len(order[run])), order[run])
                middle = (foot + side / 2) / height
                figure.text(0.2 / width, middle, run, rotation=90, ha="center", **RUN_LABEL)
            if row == count - 1:
                axes.set_xticks(range(len(order[other])), order[other], rotation=90)
                middle = (left + side / 2) / width
                figure.text(middle, 0.2 / height, other, ha="center", **RUN_LABEL)
    label = {"cka": "linear CKA", "svcca": "SVCCA"}[measure]
    corner = (names + count * (side + gap)) / width, names / height
    bar = figure.add_axes((*corner, 0.13 / width, min(count * side, 2.4) / height))
    figure.colorbar(image, cax=bar, label=label)
    chance = table[f"{measure}_chance"].dropna()
    subtitle = f"of {int(table['images'].iloc[0]):,} images"
    if len(chance):
        subtitle += f"; by chance (images permuted) {chance.min():.2f} to {chance.max():.2f}"
    return style.headed(figure, f"{group} · {label} of all layers", subtitle)


def _matrix(axes: Axes, rows: Sequence[Sequence[float]]) -> AxesImage:
    """Draw one matrix, with its numbers if it is small; returns the image."""
    matrix = np.array(rows, float)
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if max(matrix.shape) <= NUMBERED:
        for (y, x), value in np.ndenumerate(matrix):
            text = "" if np.isnan(value) else f"{value:.2f}".removeprefix("0")
            ink = "white" if value < 0.5 else style.INK
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color=ink)
    return image


def _styles(runs: Sequence[str]) -> dict[str, tuple[str, str]]:
    return dict(zip(runs, itertools.cycle(RUN_STYLES), strict=False))


def _handles(runs: Sequence[str]) -> list[Line2D]:
    looks = _styles(runs).items()
    return [style.mark(run, *look, line="-", linewidth=2) for run, look in looks]


def _series(
    axes: Axes,
    rows: pd.DataFrame,
    layers: Sequence[str],
    runs: Sequence[str],
    columns: tuple[str, str, str],
) -> None:
    """Draw one run beside the other at each layer: a mark, and a bar from the first to the last of
    `columns`."""
    step = min(0.16, 0.6 / len(runs))
    for number, (run, (color, marker)) in enumerate(_styles(runs).items()):
        own = rows[rows["run"] == run].set_index("layer").reindex(layers)
        x = np.arange(len(layers)) + (number - (len(runs) - 1) / 2) * step
        low, middle, high = (own[column].to_numpy(float) for column in columns)
        axes.vlines(x, low, high, color=color, linewidth=2)
        present = np.isfinite(middle)
        axes.plot(x[present], middle[present], color=color, linewidth=0.8, alpha=0.5)
        axes.plot(x, middle, marker, color=color, markersize=5)


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield each figure with its name, from the files and settings of its rule."""
    group, runs = params.group, params.runs
    tables = {name: store.read_table(path) for name, path in given.items()}
    yield "accuracy", accuracy(tables["runs"], group)
    yield "kinds_of_channels", fractions(tables["fractions"], group, runs)
    yield "sizes_and_indices", quantities(tables["quantities"], group, runs)
    pairs = matched(tables["matching"], tables["matched"], group, runs[0], runs)
    yield "matched_channels", pairs
    for measure in ("cka", "svcca"):
        figure = similarity(tables["similarity"], group, runs, measure)
        yield f"{measure.upper()}_of_all_layers", figure
