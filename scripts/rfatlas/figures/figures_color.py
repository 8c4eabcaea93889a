"""Topic color of the figures: opponency and tuning to colour over the layers of a run.

Drawn from channels.csv, the tables of the stage `opponency` and the files of the stage `color`. The
captions in workflow/report/figures_color.rst say what each figure shows.
"""

from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence

import h5py
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from rfatlas.figures import sheets, style
from rfatlas.files import store
from rfatlas.statistics import rows_by_layer

#: What the tables call all layers together.
ALL = "all layers"
MACAQUE = "macaque V1"

#: Classes of the cone rule: label and colour.
CLASSES = {
    "non_opponent": ("non-opponent", style.GREY),
    "single_opponent": ("single-opponent", style.SKY),
    "double_opponent": ("double-opponent", style.BLUE),
}
#: Classes of the other rules: how they are told on an axis.
LABELS = {
    "non_opponent": "non-\nopponent",
    "single_opponent": "single-\nopponent",
    "double_opponent": "double-\nopponent",
    "neither": "neither",
    "spatial": "spatial\nonly",
    "spectral": "spectral\nonly",
    "double": "both",
    "noise": "noise",
    "unresponsive": "unre-\nsponsive",
}
KINDS = {
    "luminance": ("luminance", style.PALE),
    "color_luminance": ("colour-luminance", style.ORANGE),
    "color_preferring": ("colour-preferring", style.VERMILLION),
}
#: The other rules: label and look.
RULES = {
    "harris": ("Harris' rule", {"color": style.BLUE, "marker": "o"}),
    "energy": ("rule on the linear field", {"color": style.GREEN, "marker": "s"}),
    "ratio": ("ratio of responses", {"color": style.VERMILLION, "marker": "v"}),
    "unrectified": ("ratio before the ReLU", {"color": style.ORANGE, "marker": "^"}),
}
#: What is varied: label of the axis, and the classes whose shares are shown.
VARIED = {
    "sensitivity": ("opponent from this sensitivity on", ("single_opponent", "double_opponent")),
    "color_ratio": ("opponent from this ratio on", ("single_opponent", "double_opponent")),
    "lowpass": ("single-opponent from this share on", ("single_opponent", "double_opponent")),
    "harris_tolerance": ("Harris' tolerance (share of the range)", ("spectral", "double")),
}

#: The axes of cone space as the files have them: label, colours of minus and plus. Red and green
#: look alike to many people; vermillion and bluish green do not.
AXES = {
    "L+M": ("L+M", "black", "white"),
    "L-M": ("L−M", style.GREEN, style.VERMILLION),
    "S-(L+M)": ("S−(L+M)", style.ORANGE, style.BLUE),
}
#: What a channel's opponency is read from, of L-M and of S-(L+M).
SENSITIVITIES = ("color_sensitivity_lm_same_sf", "color_sensitivity_s_same_sf")
#: Of each class at most so many examples of tuning are drawn, from as many layers.
EXAMPLES = 5
#: Hue curves drawn per layer.
CURVES = 12

#: Side of the pictures of a sheet, in pixels.
SIDE = 72
#: Dots on the rim of a sheet's circle of hues.
RIM_DOTS = 90


def layers_of(table: pd.DataFrame) -> list[str]:
    """Return the layers of one of the tables in network order, without `ALL`."""
    return list(rows_by_layer(table[table["layer"] != ALL]))


@style.styled
def classes(counts: pd.DataFrame, macaque: pd.DataFrame, run: str) -> Figure:
    """Draw the share of each class against depth, with the twin's and the macaque's.

    `counts` and `macaque` are the tables of these names; all layers together are at the right.
    """
    names, twin = layers_of(counts), style.twin_of(counts)
    rows = [*names, ALL]
    figure, (upper, lower) = style.depth_figure([*rows, MACAQUE], 6.6, 2)
    cone = counts[counts["rule"] == "cone"].set_index(["class", "layer"])
    shift = {"single_opponent": -0.12, "double_opponent": 0.12}
    for name, offset in shift.items():
        label, color = CLASSES[name]
        for prefix, marker, aside in (("", "o", 0.0), ("twin_", "s", 0.1)):
            part = cone.loc[name].loc[rows]
            share = part[f"{prefix}fraction"].to_numpy(float)
            x = np.arange(len(rows)) + offset + aside
            face, line, width = ("white", "--", 1) if prefix else (color, "-", 2)
            upper.vlines(x, part[f"{prefix}lo"], part[f"{prefix}hi"], color=color, linewidth=width)
            upper.plot(x[:-1], share[:-1], line, color=color, linewidth=0.9, alpha=0.6)
            upper.plot(x, share, marker, color=color, markerfacecolor=face, markersize=5, zorder=4)
    style.shares(upper, "of the channels that respond")
    handles = [style.mark(CLASSES[name][0], CLASSES[name][1], "o", line="-") for name in shift]
    if twin:
        look = {"markerfacecolor": "white", "linewidth": 0.9}
        handles.append(style.mark(f"the same of {twin}", style.INK, "s", line="--", **look))
    kinds = macaque.set_index(["kind", "layer"])
    x = np.arange(len(rows))
    own_base, other_base, base = np.zeros(len(rows)), np.zeros(len(rows)), 0.0
    shift, wide = (0.14, 0.5) if twin else (0, 0.7)
    for kind, (_, color) in KINDS.items():
        part = kinds.loc[kind].loc[rows]
        own = np.nan_to_num(part["fraction"].to_numpy(float))
        lower.bar(x - shift, own, wide, own_base, color=color, edgecolor="white")
        own_base += own
        if twin:
            other = np.nan_to_num(part["twin_fraction"].to_numpy(float))
            lower.bar(x + 0.26, other, 0.2, other_base, color=color, alpha=0.55, linewidth=0)
            other_base += other
        share = part["macaque_fraction"].iloc[-1]
        lower.bar(len(rows), share, 0.7, base, color=color, edgecolor=style.INK, linewidth=0.8)
        text = f"{100 * share:.0f} %"
        lower.text(len(rows), base + share / 2, text, ha="center", va="center", fontsize=8)
        base += share
    style.shares(lower, "of the channels that respond", 0, 1)
    for axes in (upper, lower):
        axes.axvline(len(names) - 0.5, color=style.GREY, linewidth=0.8)
        axes.axvline(len(names) + 0.5, color=style.GREY, linewidth=0.8)
    bars = [Patch(color=color, label=label) for label, color in KINDS.values()]
    if twin:
        bars.append(Patch(color=style.GREY, alpha=0.55, label=f"narrow: {twin}"))
    subtitle = (
        "above: classes of the cone rule, 95 % Wilson intervals; below: kinds by the ratio of L−M "
        "to L+M"
    )
    return style.captioned(figure, f"{run} · opponent channels", subtitle, handles + bars, 3)


@style.styled
def stability(table: pd.DataFrame, run: str) -> Figure:
    """Draw from stability.csv how the share of opponent classes depends on each threshold."""
    # All layers together have a twin only where it has the same layers.
    names, twin = layers_of(table), style.twin_of(table[table["layer"] == ALL])
    figure = style.figure(7.6, 10.6)
    figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.88), hspace=0.06)
    panels = figure.subplots(len(VARIED), 2, sharey=True)
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for row, (varied, (label, kinds)) in zip(panels, VARIED.items(), strict=True):
        for axes, name in zip(row, kinds, strict=True):
            part = table[(table["varied"] == varied) & (table["class"] == name)]
            part = part.sort_values("threshold")
            places = part["threshold"].unique()
            x = np.arange(len(places))
            for layer, color in zip(names, shades, strict=True):
                share = part.loc[part["layer"] == layer, "fraction"]
                axes.plot(x, share, color=color, linewidth=1)
            whole = part[part["layer"] == ALL]
            axes.fill_between(x, whole["lo"], whole["hi"], color=style.INK, alpha=0.15, linewidth=0)
            axes.plot(x, whole["fraction"], color=style.INK, linewidth=2.2, marker="o", ms=3)
            if twin:
                axes.plot(x, whole["twin_fraction"], "--", color=style.VERMILLION, linewidth=1.8)
            stated = part.loc[part["rule"].astype(bool), "threshold"].iloc[0]
            axes.axvline(np.searchsorted(places, stated), color=style.GREY, linestyle=(0, (1, 2)))
            # Thresholds are listed, not measured: evenly spaced, whatever their distance.
            axes.set_xticks(x, [f"{place:g}" for place in places])
            style.shares(axes)
            axes.grid(axis="y")
            axes.set_title(LABELS[name].replace("\n", " ").replace("- ", "-"), fontsize=9)
            axes.set_xlabel(label, fontsize=8.5)
            axes.tick_params(labelsize=8)
    norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
    shown = ScalarMappable(norm, ListedColormap(shades))
    bar = figure.colorbar(shown, ax=panels, aspect=45, pad=0.02, ticks=range(len(names)))
    bar.set_ticklabels(names, fontsize=8)
    bar.ax.invert_yaxis()
    bar.ax.tick_params(which="both", length=0)
    bar.outline.set_visible(False)
    handles = [style.mark(ALL, style.INK, "o", line="-", linewidth=2.2, ms=3)]
    if twin:
        handles.append(style.mark(f"{twin}, {ALL}", style.VERMILLION, line="--"))
    handles.append(style.mark("in force", style.GREY, line=(0, (1, 2))))
    subtitle = "share of the channels that respond"
    return style.headed(figure, f"{run} · classes by threshold", subtitle, handles, 3)


@style.styled
def confusion(table: pd.DataFrame, run: str) -> Figure:
    """Draw from confusion.csv where the rules agree: matrices over all layers, and the agreement
    against depth."""
    names = layers_of(table)
    rules = [rule for rule in RULES if rule in set(table["rule"])]
    rect = (0, 0.04, 1, 0.87)
    figure, matrices, axes = style.halves(names, 12.4, 6.9, len(rules), 1.15, rect)
    for matrix, rule in zip(matrices, rules, strict=True):
        cells = table[(table["rule"] == rule) & (table["layer"] == ALL)]
        _matrix(matrix, cells, RULES[rule][0])
    matrices[0].set_ylabel("cone rule")
    for matrix in matrices[1:]:
        matrix.set_yticklabels([])
    handles = []
    x = np.arange(len(names))
    for rule in rules:
        label, look = RULES[rule]
        part = table[table["rule"] == rule].drop_duplicates("layer").set_index("layer").loc[names]
        axes.plot(x, part["agreement"], "--", linewidth=1, mfc="white", ms=5, **look)
        axes.plot(x, part["kappa"], "-", linewidth=1.6, ms=5, **look)
        handles.append(style.mark(label, line="-", **look))
    axes.axhline(0, color=style.GREY, linewidth=0.8)
    low = np.nanmin([-0.05, table["kappa"].min()])
    axes.set_ylim(low - 0.03, 1.04)
    axes.set_ylabel("agreement with the cone rule")
    handles += [
        style.mark("beyond chance (κ)", style.INK, line="-"),
        style.mark("share of channels", style.INK, line="--"),
    ]
    title = f"{run} · do the rules of opponency agree?"
    subtitle = (
        "above: channels of all layers, shaded by their share of the row; framed: what means the "
        "same"
    )
    return style.headed(figure, title, subtitle, handles, 6)


@style.styled
def orientation(table: pd.DataFrame, run: str) -> Figure:
    """Draw from orientation.csv the share of channels that are tuned to the orientation of coloured
    gratings, by class."""
    rows = [*layers_of(table), ALL]
    figure, axes = style.depth_figure(rows, 4.4, 1)
    handles = []
    for (name, (label, color)), offset in zip(CLASSES.items(), (-0.2, 0, 0.2), strict=True):
        part = table[table["class"] == name].set_index("layer").loc[rows]
        x = np.arange(len(rows)) + offset
        axes.vlines(x, part["lo"], part["hi"], color=color, linewidth=2)
        axes.plot(x, part["fraction"], "o", color=color, markersize=6)
        handles.append(style.mark(label, color, "o"))
    axes.axvline(len(rows) - 1.5, color=style.GREY, linewidth=0.8)
    style.shares(axes, "oriented for colour")
    title = f"{run} · are opponent channels oriented?"
    subtitle = (
        "tuned to the orientation of coloured gratings, by class of the cone rule; 95 % Wilson "
        "intervals"
    )
    return style.captioned(figure, title, subtitle, handles, 3)


#: How some channels (n) of one `layer` answer to colour: `channel` (n,) of `total`; `frequency`
#: (F,) in cycles per pixel; `response` (n, 3, F) to gratings along the three axes of cone space,
#: each at the orientation at which it drives the channel most; `flicker` (n, 3) to zero frequency;
#: `degrees` (H,), directions in the plane of L−M (0) and S−(L+M) (90), `color` (H, 3) how they
#: look, 0 to 1, and `hue` (n, H), answers to uniform fields of them; all answers above the blank.
#: `field` (n, 3, S, S), NaN where unknown, or None without mean gradients.
Answers = namedtuple(
    "Answers", "layer channel total frequency response flicker degrees color hue field"
)


def read(file: h5py.File, layer: str, chosen: np.ndarray) -> Answers:
    """Read what is drawn of some channels of a layer from its file of the stage `color`."""
    tuned = file["tuned"][chosen, : len(AXES)]
    best = tuned.max(axis=3).argmax(axis=2)[..., None, None]
    above = file["hue_response"][chosen] - file["blank"][chosen][:, None]
    field = None
    if "field_dkl" in file:
        field = store.aligned(file["field_dkl"], file["field_channel"], chosen).astype(float)
    return Answers(
        layer=layer,
        channel=chosen,
        total=len(file["channel"]),
        frequency=file["frequency"][:],
        response=np.take_along_axis(tuned, best, 2)[:, :, 0],
        flicker=file["tuned_flicker"][chosen, : len(AXES)],
        degrees=file["hue"][:],
        color=file["hue_rgb"][:],
        hue=np.maximum(above, 0),
        field=field,
    )


def examples(table: pd.DataFrame) -> dict[str, list[tuple[str, int]]]:
    """Choose the channels whose tuning is drawn: by class, (layer, channel) in network order.

    Of each class at most `EXAMPLES` layers, evenly spread over those that have it, and of each the
    channel with the median of the larger of its two `SENSITIVITIES` (the lower of two): typical
    ones, not the best.
    """
    chosen = {}
    for name in CLASSES:
        members = table[table["color_class"] == name]
        layers = [rows for _, rows in members.groupby("depth", sort=True)]
        chosen[name] = []
        for index in style.evenly(len(layers), EXAMPLES) if layers else ():
            rows = layers[index]
            strength = rows[list(SENSITIVITIES)].max(axis=1).to_numpy(float)
            middle = rows.iloc[np.argsort(strength, kind="stable")[(len(rows) - 1) // 2]]
            chosen[name].append((middle["layer"], int(middle["channel"])))
    return chosen


@style.styled
def tuning(
    curves: Mapping[str, Sequence[Answers]], run: str, lowpass: float, sensitivity: float
) -> Figure:
    """Draw chromatic and achromatic frequency tuning of `examples` of each class, read one by one.

    `lowpass` and `sensitivity` are the lines of the cone rule, told in the subtitle.
    """
    kinds = {name: curves[name] for name in CLASSES if curves.get(name)}
    columns = max((len(members) for members in kinds.values()), default=1)
    height = 1.75 * max(len(kinds), 1) + 1.35
    figure = style.spaced(max(7.2, 1.75 * columns + 0.9), height, 0.4, 0.65)
    panels = figure.subplots(max(len(kinds), 1), columns, sharey=True, squeeze=False)
    for row, (name, members) in zip(panels, kinds.items(), strict=False):
        for axes, found in zip(row, members, strict=False):
            _tuning(axes, found)
        for axes in row[len(members) :]:
            axes.set_axis_off()
        row[0].set_ylabel(CLASSES[name][0])
    if not kinds:
        style.nothing(panels[0, 0], "no channel responds")
    for column in range(columns):
        used = [row[column] for row in panels if row[column].axison]
        if used:
            used[-1].set_xlabel("cycles per pixel", fontsize=8.5)
    handles = [
        style.mark(label, color, "o", line="-", ms=3)
        for (label, *_), color in zip(AXES.values(), _INKS, strict=True)
    ]
    title = f"{run} · frequency tuning to colour and luminance"
    subtitle = (
        f"typical channels; opponent: sensitivity to colour ≥ {sensitivity:g}; "
        f"single-opponent: color_lowpass_contrast ≥ {lowpass:g}"
    )
    return style.headed(figure, title, subtitle, handles, 3)


#: Colours of curves along the three axes.
_INKS = (style.INK, style.VERMILLION, style.BLUE)


def _tuning(axes: Axes, found: Answers) -> None:
    """Draw the answers of the first channel."""
    top = max(found.response[0].max(), found.flicker[0].max(), 1e-12)
    x = np.log2(found.frequency)
    zero = x[0] - _apart(x)
    for response, flicker, color in zip(found.response[0], found.flicker[0], _INKS, strict=True):
        axes.plot(x, response / top, color=color, linewidth=1.5, marker="o", ms=2.5)
        axes.plot([zero, x[0]], [flicker / top, response[0] / top], ":", color=color, linewidth=1)
        axes.plot(zero, flicker / top, "o", color=color, ms=3.5)
    ticks = np.arange(np.ceil(x[0]), np.floor(x[-1]) + 1)
    ticks = ticks[:: -(-len(ticks) // 3)]
    axes.set_xticks([zero, *ticks], ["0", *(f"1/{2**-tick:g}" for tick in ticks)], fontsize=8)
    axes.set_ylim(-0.04, 1.06)
    axes.set_yticks([0, 0.5, 1])
    axes.grid(axis="y")
    axes.tick_params(labelsize=8)
    axes.set_title(f"{found.layer} · {found.channel[0]}", fontsize=8.5)


def read_hues(file: h5py.File, rows: pd.DataFrame) -> tuple[Answers, pd.DataFrame]:
    """Read what is drawn of the hues of one layer, whose rows of channels.csv are `rows`: at most
    `CURVES` of the opponent channels that have a hue, evenly spread; also the rows of all opponent
    channels."""
    opponent = rows[rows["color_class"].isin(["single_opponent", "double_opponent"])]
    known = opponent.loc[opponent["hue_deg"].notna(), "channel"].to_numpy(int)
    chosen = known[style.evenly(len(known), CURVES)] if len(known) else known
    return read(file, rows["layer"].iloc[0], chosen), opponent


@style.styled
def hues(layers: Sequence[tuple[Answers, pd.DataFrame]], run: str) -> Figure:
    """Draw which hues drive the opponent channels of every layer (`read_hues`), a circle each in
    the equiluminant plane."""
    figure, panels = style.panel_grid(len(layers), (1.75, 1.85), 0.42)
    for axes, (found, opponent) in zip(panels, layers, strict=True):
        ring = _ring(found.degrees)
        axes.scatter(*(1.12 * ring.T), s=14, color=found.color, linewidths=0)
        axes.plot(*ring[_closed(ring)].T, color=style.PALE, linewidth=0.8)
        axes.plot([-1, 1], [0, 0], color=style.PALE, linewidth=0.8)
        axes.plot([0, 0], [-1, 1], color=style.PALE, linewidth=0.8)
        for response in found.hue[found.hue.max(1) > 0]:
            curve = ((response / response.max())[:, None] * ring)[_closed(ring)]
            axes.plot(*curve.T, color=found.color[response.argmax()], linewidth=1.3, alpha=0.9)
        for hue in np.radians(opponent["hue_deg"].dropna().to_numpy(float)):
            ends = np.outer([1.22, 1.38], [np.cos(hue), np.sin(hue)])
            axes.plot(*ends.T, color=style.INK, linewidth=0.9, alpha=0.55)
        axes.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
        axes.set_axis_off()
        axes.set_title(f"{found.layer}  {len(opponent)}", fontsize=9, loc="center")
    note, y = "right: +(L−M)   ·   up: +(S−(L+M))   ·   rim: the hues as shown", 0.16
    figure.text(0.5, y / figure.get_size_inches()[1], note, ha="center", fontsize=8.5)
    subtitle = (
        "opponent channels; lines: answers to uniform fields, each to its peak; ticks: what all "
        "prefer"
    )
    return style.headed(figure, f"{run} · tuning to hue", subtitle)


@style.styled
def sheet(found: Answers, table: pd.DataFrame, run: str) -> Figure:
    """Draw what is known of the colour of a layer's channels, a row per channel: fields along the
    axes of cone space, frequency tuning along them, tuning to hue. `table` are the layer's rows of
    channels.csv."""
    headings = ["frequency", "hue"]
    if found.field is not None:
        headings = [*(label for label, *_ in AXES.values()), *headings]
    facts = (
        f"{sheets.count(len(found.channel), found.total)}   |   excites / inhibits: L+M white / "
        "black, L−M vermillion / green, S blue / orange   |   curves: L+M black, L−M vermillion, "
        "S blue"
    )
    place = sheets.layout(len(found.channel), len(headings), SIDE)
    page = sheets.Sheet(place, f"{run} · {found.layer} · colour", facts, headings)
    table = table.set_index("channel")
    shades = [_diverging(minus, plus) for _, minus, plus in AXES.values()]
    lines, inks, dots, dot_inks = [], [], [], []
    # More dots than pixels on the rim take time and show nothing.
    step = max(1, len(found.degrees) // RIM_DOTS)
    for row, channel in enumerate(found.channel):
        facts = table.loc[channel]
        page.label(row, channel, *_sheet_label(facts))
        if found.field is not None and np.isfinite(found.field[row]).any():
            scale = style.display_range(found.field[row])
            for column, (shade, plane) in enumerate(zip(shades, found.field[row], strict=True)):
                picture = shade(0.5 + 0.5 * np.nan_to_num(plane) / scale)[..., :3]
                page.put(row, column, picture)
        for column in (len(headings) - 2, len(headings) - 1):
            page.paint(row, column, np.full((SIDE, SIDE, 3), 255, np.uint8))
        if facts["color_class"] not in CLASSES:
            continue
        corner = np.array(page.layout.corner(row, len(headings) - 2))
        for curve, ink in zip(_cell_curves(found, row), _INKS, strict=True):
            lines.append(corner + curve)
            inks.append(ink)
        middle = np.array(page.layout.corner(row, len(headings) - 1)) + SIDE / 2
        ring = _ring(found.degrees) * (1, -1)
        dots.append(middle + (SIDE / 2 - 4) * ring[::step])
        dot_inks.append(found.color[::step])
        if found.hue[row].max() > 0:
            radius = (SIDE / 2 - 8) * found.hue[row] / found.hue[row].max()
            lines.append(middle + (radius[:, None] * ring)[_closed(ring)])
            inks.append(style.INK)
    page.axes.add_collection(LineCollection(lines, colors=inks, linewidths=1.2))
    if dots:
        dots, colors = np.concatenate(dots), np.concatenate(dot_inks)
        page.axes.scatter(*dots.T, s=2.5, color=colors, linewidths=0)
    if found.field is not None:
        page.below(0, f"{found.field.shape[-1]} px", arrow=True)
    frequency = found.frequency
    page.below(len(headings) - 2, f"{frequency[0]:.2g}–{frequency[-1]:.2g}\n1/px; left: 0")
    page.below(len(headings) - 1, "right L−M\nup S")
    return page.finish()


def _sheet_label(facts: pd.Series) -> tuple[list[sheets.Line], str]:
    """Return the lines below a channel's number, and the colour of the number."""
    if facts["color_class"] not in CLASSES:
        return [("no answer", style.VERMILLION)], style.VERMILLION
    label, color = CLASSES[facts["color_class"]]
    # The whole word has no room beside the pictures.
    lines = [(label.replace("opponent", "opp."), color)]
    for name, column in zip(("L−M", "S"), SENSITIVITIES, strict=True):
        lines.append((f"{name} {facts[column]:.2f}", style.GREY))
    return lines, style.INK


def _cell_curves(found: Answers, row: int) -> list[np.ndarray]:
    """Return the frequency tuning of a channel as lines in a cell of a sheet, zero frequency at its
    left."""
    answer = np.column_stack([found.flicker[row], found.response[row]])
    x = np.log2(found.frequency)
    x = np.concatenate([[x[0] - _apart(x)], x])
    x = 5 + (SIDE - 10) * (x - x[0]) / (x[-1] - x[0])
    y = SIDE - 5 - (SIDE - 10) * answer / max(answer.max(), 1e-12)
    return [np.column_stack([x, curve]) for curve in y]


def _apart(x: np.ndarray) -> float:
    """How far zero frequency is from the lowest of the others, on their axis (octaves)."""
    return max(1.0, 0.25 * (x[-1] - x[0]))


def _ring(degrees: np.ndarray) -> np.ndarray:
    turn = np.radians(degrees)
    return np.stack([np.cos(turn), np.sin(turn)], 1)


def _closed(ring: np.ndarray) -> list[int]:
    return [*range(len(ring)), 0]


def _diverging(minus: str, plus: str) -> LinearSegmentedColormap:
    """From one colour through the grey of zero to another."""
    zero = "#808080" if "white" in (minus, plus) else "#f2f2f2"
    # An odd number of shades: zero has one of its own.
    return LinearSegmentedColormap.from_list("axis", [minus, zero, plus], N=257)


def _matrix(axes: Axes, cells: pd.DataFrame, title: str) -> None:
    """Draw one confusion matrix; channels without a class by either rule have their row and column
    where there are any."""
    grid = cells.pivot(index="cone_class", columns="rule_class", values="count")
    order = list(LABELS).index
    grid = grid.loc[sorted(grid.index, key=order), sorted(grid, key=order)]
    grid = grid.loc[_shown(grid.T), _shown(grid)]
    first, second = list(grid.index), list(grid)
    # A class without channels has no shares; its row stays white.
    share = grid.div(grid.sum(axis=1).replace(0, 1), axis=0).to_numpy(float)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for y, x in np.ndindex(grid.shape):
        ink = "white" if share[y, x] > 0.6 else style.INK
        text = f"{grid.iat[y, x]}"
        axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=9)
    same = cells[cells["same"].astype(bool)]
    for pair in zip(same["cone_class"], same["rule_class"], strict=True):
        if pair[0] in first and pair[1] in second:
            corner = second.index(pair[1]) - 0.47, first.index(pair[0]) - 0.47
            frame = Rectangle(corner, 0.94, 0.94, fill=False, color=style.VERMILLION, lw=1.4)
            axes.add_patch(frame)
    axes.set_xticks(range(len(second)), [LABELS[name] for name in second], fontsize=8)
    axes.set_yticks(range(len(first)), [LABELS[name] for name in first], fontsize=8)
    axes.tick_params(length=0)
    kappa = cells["kappa"].iloc[0]
    known = style.minus(f", κ = {kappa:.2f}") if np.isfinite(kappa) else ""
    axes.set_title(title + known, fontsize=9)


def _shown(grid: pd.DataFrame) -> list[str]:
    """The columns of a matrix that are drawn: all classes, and what has none where there is any."""
    rare = ("noise", "unresponsive")
    return [name for name in grid if name not in rare or grid[name].any()]


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield each figure with its name, from the files and settings of its rule."""
    run, table = params.run, store.read_table(given.channels)
    tables = rows_by_layer(table)
    counts, macaque, varied, confused, oriented = map(store.read_table, given.tables)
    yield "opponent_channels", classes(counts, macaque, run)
    yield "classes_by_threshold", stability(varied, run)
    yield "agreement_of_the_rules", confusion(confused, run)
    yield "orientation_for_colour", orientation(oriented, run)
    members = {pair: name for name, pairs in examples(table).items() for pair in pairs}
    curves: dict[str, list[Answers]] = {name: [] for name in CLASSES}
    found = []
    for name, layer, file in sheets.files(given, params.layers, "color"):
        chosen = sheets.chosen(len(file["channel"]), params.channels)
        yield name, sheet(read(file, layer, chosen), tables[layer], run)
        found.append(read_hues(file, tables[layer]))
        for (where, channel), kind in members.items():
            if where == layer:
                curves[kind].append(read(file, layer, np.array([channel])))
    figure = tuning(curves, run, params.lowpass, params.sensitivity)
    yield "frequency_tuning_to_colour_and_luminance", figure
    yield "tuning_to_hue", hues(found, run)
