"""Topic overview of the figures: what a run looks like.

Per layer a montage (what drives its channels), and per run the receptive-field size, the sparsity
and the accuracy, as the captions in workflow/report/figures_overview.rst tell them. Everything is
read from files: the channel table, model.json, the activations and the receptive fields.
"""

import json
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rfatlas.figures import sheets, style
from rfatlas.files import store
from rfatlas.statistics import rows_by_layer, wilson

#: Side of a montage tile in pixels: large enough to judge a filter, small enough that a screen
#: shows the 32 channels of a layer at once. Tiles of small receptive fields are whole multiples.
TILE = 64
#: No montage is wider, in pixels.
MAX_WIDTH = 4000

#: A Gaussian that fits worse than this describes no effective receptive field.
GOOD_FIT = 0.5
#: Where a Gaussian has fallen to 4.55 % of its peak, in sigma (Luo et al. 2016, section 3).
EDGE_SIGMA = float(np.sqrt(-2 * np.log(1 - 0.9545)))

#: Reasons of inactivity in channels.csv: how they are told, and their colour.
INACTIVE = {
    "weak": ("hardly drives the next layer", style.ORANGE),
    "constant": ("never changes", style.VERMILLION),
}

PANELS = ("mean\nimage", "mean\ngradient", "effective\nRF")


def arranged(channels: int, patches: int, window: int) -> sheets.Layout:
    """Return the layout of a montage of that many channels and patches, at most MAX_WIDTH wide."""
    columns = patches + len(PANELS)
    side = TILE if window > style.PIXELATED else window * (TILE // window)
    blocks = 1 if channels <= 8 else 2 if channels <= 48 else 3
    place = sheets.Layout(channels, columns, side, blocks, patches)
    while place.blocks > 1 and place.width > MAX_WIDTH:
        place = replace(place, blocks=place.blocks - 1)
    excess = max(0, place.width - MAX_WIDTH)
    return replace(place, side=side - -(-excess // columns))


@style.styled
def montage(
    fields: h5py.File,
    table: pd.DataFrame,
    top: h5py.Group,
    source: str,
    channels: int,
    patches: int,
    title: str,
) -> Figure:
    """Draw channels x {top patches, mean image, mean gradient, effective RF} of one layer.

    `fields` is the layer's file of the stage `receptive_fields`, `table` its rows of channels.csv,
    `top` its group in activations.h5 with the positions of the units, which are in the list
    `source`; at most so many channels, evenly spread, and patches.
    """
    table = table.set_index("channel")
    rows = sheets.chosen(len(fields["channel"]), channels)
    chosen, count = fields["channel"][rows], fields["count"][rows]
    patches, window = min(patches, fields["patch"].shape[1]), fields["patch"].shape[2]
    exists = top[f"{source}_image"][chosen, :patches] >= 0
    yx = top[f"{source}_yx"][chosen, :patches]
    means = [
        np.where(count[:, None] == 0, np.nan, fields[name][rows])
        for name in ("mean_image", "mean_gradient", "effective")
    ]
    shows = (sheets.plain, style.signed_rgb, style.positive_rgb)
    first = f"top {patches} images, best first" if patches > 1 else "top\nimage"
    page = sheets.Sheet(
        arranged(len(rows), patches, window),
        title,
        f"{sheets.count(len(rows), len(table))}   |   "
        f"{_field(fields.attrs, window, table['rf_kind'].iloc[0])}\n"
        "r: split-half correlation of the mean gradient   |   hatched: outside the image",
        [first, *[""] * (patches - 1), *PANELS],
    )
    for row, channel in enumerate(chosen):
        responds = exists[row].any()
        page.label(row, channel, *_montage_label(table.loc[channel], responds))
        for rank in np.flatnonzero(exists[row]):
            page.put(row, rank, *sheets.patch(fields, rows[row], rank, yx[row, rank]))
        for column, (show, mean) in enumerate(zip(shows, means, strict=True), patches):
            if responds:
                page.put(row, column, show(mean[row]), count[row] == 0)
    page.below(0, f"{window} px", arrow=True)
    return page.finish()


def _field(place: Mapping, window: int, kind: str) -> str:
    """Say how large a receptive field is, by the attributes of its file and the column rf_kind."""
    local = "local " if kind == "local" else ""
    size = f"{local}receptive field {place['size']} × {place['size']} px"
    if place["whole_image"]:
        return f"units see the whole image ({place['image_size']} px)"
    if place["size"] > window:
        return f"{size}, more than the image: shown are {window} px about its centre"
    return f"{size}, stride {' × '.join(map(str, dict.fromkeys(place['stride'])))} px"


def _montage_label(facts: pd.Series, responds: bool) -> tuple[list[sheets.Line], str]:
    """Return the lines below a channel's number (the reliability of its gradient, and what is wrong
    with it), and the colour of the number."""
    lines = []
    if not responds:
        lines.append(("silent", style.VERMILLION))
    elif np.isfinite(facts.get("split_half", np.nan)):
        lines.append((style.minus(f"r {facts['split_half']:z.2f}"), style.GREY))
    if facts["inactive"]:
        lines.append(("inactive", style.VERMILLION))
    return lines, style.VERMILLION if facts["inactive"] or not responds else style.INK


@style.styled
def rf_size(table: pd.DataFrame, image_size: int, run: str) -> Figure:
    """Draw the size of receptive fields against depth, in pixels on a logarithmic scale.

    `table` is channels.csv, `image_size` the side of the network's input in pixels. Effective ones
    are drawn where the stage `receptive_fields` ran.
    """
    layers = _layers(table)
    names = layers["layer"].tolist()
    size = layers["rf_size"].to_numpy(float, na_value=np.nan)
    figure, axes = style.depth_figure(names, 4.6, 1)
    theory, effective = "theoretical: side of the box", "effective: diameter of the fitted Gaussian"
    handles = [
        style.mark(theory, style.INK, "s", line="-", markersize=5),
        style.mark(f"image: {image_size} px", style.GREY, line=(0, (4, 3))),
    ]
    axes.axhline(image_size, color=style.GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(size, color=style.INK, marker="s", markersize=5, linewidth=1.4, zorder=5)
    if np.isnan(size).any():
        look = {"color": style.INK, "marker": "s", "markersize": 6, "markerfacecolor": "white"}
        axes.plot(np.where(np.isnan(size), image_size, np.nan), linestyle="", zorder=5, **look)
        handles.append(style.mark("theoretical: whole image", **look))
    subtitle = "theoretical"
    if "erf_sigma" in table:
        good = table[table["erf_r2"] >= GOOD_FIT]
        for position, name in enumerate(names):
            sigma = good.loc[good["layer"] == name, "erf_sigma"].to_numpy(float)
            style.strip(axes, position, 2 * EDGE_SIGMA * sigma, style.BLUE)
        handles.append(style.strip_handle(style.BLUE, effective))
        fitted = int(table["erf_r2"].notna().sum())
        subtitle = (
            f"theoretical and effective; effective where the fit has R² ≥ {GOOD_FIT:g}: "
            f"{len(good)} of {fitted} channels"
        )
    style.octaves(axes.yaxis, lambda value: f"{value:g}")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 1.1)
    axes.set_ylabel("receptive field (px)")
    columns = 3 if len(handles) < 4 else 2
    return style.captioned(figure, f"{run} · receptive-field size", subtitle, handles, columns)


@style.styled
def sparsity(table: pd.DataFrame, run: str) -> Figure:
    """Draw from channels.csv, against depth, how often channels are active, and how many are
    inactive and why."""
    layers = _layers(table)
    names = layers["layer"].tolist()
    figure, (upper, lower) = style.depth_figure(names, 6, 2)
    for position, (name, rectified) in enumerate(zip(names, layers["rectified"], strict=True)):
        share = table.loc[table["layer"] == name, "fraction_active"].to_numpy(float)
        style.strip(upper, position, share, style.BLUE if rectified else style.GREY)
    style.shares(upper, "active positions (> 0)", -0.02, 1.02)
    handles = [style.strip_handle(style.BLUE, "channels; median and quartiles")]
    if not layers["rectified"].all():
        handles.append(style.strip_handle(style.GREY, "the same, layer without ReLU"))

    total = table.groupby("layer").size().reindex(names).to_numpy()
    base = np.zeros(len(names))
    for reason, (label, color) in INACTIVE.items():
        members = table[table["inactive_reason"] == reason]
        share = members.groupby("layer").size().reindex(names, fill_value=0).to_numpy() / total
        lower.bar(range(len(names)), share, bottom=base, color=color, width=0.6)
        handles.append(Patch(color=color, label=f"inactive: {label}"))
        base += share
    for position, share in enumerate(base):
        text = f"{round(share * total[position])}/{total[position]}"
        above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        lower.annotate(text, (position, share), fontsize=8, **above)
    style.shares(lower, "inactive channels", 0, max(0.1, base.max() * 1.25))
    subtitle = f"{len(table)} channels in {len(names)} layers"
    return style.captioned(figure, f"{run} · sparsity", subtitle, handles, 3)


#: How often a run is right: `top1` and `top5` of `images` labelled images, of `classes`. `images`
#: is 0 without labels and `classes` 0 without a classifier.
Score = namedtuple("Score", ("run", "images", "classes", "top1", "top5"))


def score(run: str, activations: h5py.File) -> Score:
    """Return the accuracy that stage `activations` counted."""
    output = activations["output"]
    if "logits" not in output:
        return Score(run, 0, 0, 0, 0)
    images = int(output.attrs["labelled"])
    right = [round(output.attrs[name] * images) if images else 0 for name in ("top1", "top5")]
    return Score(run, images, output["logits"].shape[1], *right)


@style.styled
def accuracy(scores: Sequence[Score]) -> Figure:
    """Draw top-1 and top-5 accuracy of runs with 95 % Wilson intervals and chance level."""
    names = [f"{entry.run}\nn = {entry.images:,}" for entry in scores]
    figure, axes = style.accuracy_figure(names, 1.75)
    for row, entry in enumerate(scores):
        kinds = [(1, entry.top1, -0.16, style.BLUE, "o"), (5, entry.top5, 0.16, style.ORANGE, "s")]
        for guesses, right, offset, color, marker in kinds:
            if not entry.images or (guesses > 1 and entry.classes <= guesses):
                continue
            y = row + offset
            share = right / entry.images
            low, high = (float(end) for end in wilson(right, entry.images))
            axes.plot([low, high], [y, y], color=color, linewidth=2, solid_capstyle="butt")
            axes.plot(share, y, marker, color=color, markersize=6, clip_on=False, zorder=4)
            chance = guesses / entry.classes
            axes.plot([chance] * 2, [y - 0.13, y + 0.13], color=style.INK, linewidth=1.4, zorder=5)
            text = f"{share:.1%}  [{low:.1%}, {high:.1%}]".replace("%", " %")
            beside = {"xytext": (10, 0), "textcoords": "offset points", "annotation_clip": False}
            axes.annotate(text, (1, y), va="center", fontsize=8.5, **beside)
        if not entry.images:
            reason = "no labels" if entry.classes else "no classifier"
            axes.text(0.02, row, reason, va="center", color=style.GREY)
    handles = [
        style.mark("top-1, 95 % interval", style.BLUE, "o", line="-", linewidth=2),
        style.mark("top-5, 95 % interval", style.ORANGE, "s", line="-", linewidth=2),
        style.mark("chance", style.INK, "|", markersize=9),
    ]
    title = f"{scores[0].run} · accuracy" if len(scores) == 1 else "Accuracy of all runs"
    return style.captioned(figure, title, "n labelled images; Wilson intervals", handles, 3)


def _layers(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per layer, in network order."""
    return table.sort_values("depth", kind="stable").drop_duplicates("layer")


def draw(given: Mapping, params) -> Iterator[tuple[str, Figure]]:
    """Yield each figure with its name, from the files and settings of its rule.

    Without a channel table the accuracy alone, of one run or of several.
    """
    scores = []
    for path in given.activations:
        with store.open(path, "activations") as activations:
            scores.append(score(Path(path).parent.name, activations))
    yield "accuracy", accuracy(scores)
    if not given.get("channels"):
        return
    table = store.read_table(given.channels)
    tables = rows_by_layer(table)
    description = json.loads(Path(given.description).read_text(encoding="utf-8"))
    yield "receptive_field_size", rf_size(table, description["input"]["crop"], params.run)
    yield "sparsity", sparsity(table, params.run)
    if given.receptive_fields:
        with store.open(given.activations[0], "activations") as activations:
            shown = params.source, params.channels, params.patches
            for name, layer, fields in sheets.files(given, params.layers, "receptive_fields"):
                own = fields, tables[layer], activations[layer]
                yield name, montage(*own, *shown, f"{params.run} · {layer}")
