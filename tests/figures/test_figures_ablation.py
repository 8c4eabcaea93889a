"""Figures of ablations: what is drawn where, against invented tables."""

import numpy as np
import pandas as pd
import pytest
from legible import cut_off, overlaps
from matplotlib.collections import LineCollection, PathCollection
from scipy import stats
from synthetic import ablation

from rfatlas.figures import figures_ablation as drawn
from rfatlas.figures import style


def network(layers: int) -> dict[str, int]:
    """Names as long as they get, channels as in a real network but fewer."""
    names = ["conv1", "maxpool", *(f"layer{1 + i // 6}.{i % 6}" for i in range(layers))]
    return {name: 12 + 4 * depth for depth, name in enumerate(names[:layers])}


def changes(channels: list[tuple[str, int]], classes: int) -> dict[tuple[str, int], np.ndarray]:
    random = np.random.default_rng(0)
    return {channel: random.normal(0, 0.1, classes) for channel in channels}


def figures(tables: tuple, classes: int = 12, mode: str = "zero") -> dict:
    table, groups, curves = tables
    names = [f"class {index}" for index in range(classes)]
    return {
        "effects": drawn.effects(table, "demo", mode),
        "estimates": drawn.estimates(table, "demo", mode),
        "properties": drawn.properties(table, "demo", mode),
        "cumulative": drawn.cumulative(curves, "demo", mode),
        "groups": drawn.groups(groups, "demo"),
        "classes": drawn.classes(changes(drawn.chosen(table, mode), classes), names, "demo", mode),
    }


@pytest.mark.parametrize(
    ("layers", "modes", "classes"),
    [(1, ("zero",), 2), (3, ("zero", "mean", "shuffle", "weight"), 12), (18, ("zero",), 1000)],
)
def test_every_text_can_be_read(layers, modes, classes):
    tables = ablation(network(layers), modes)
    for mode in modes:
        for name, figure in figures(tables, classes, mode).items():
            figure.set_dpi(style.DPI)
            assert overlaps(figure) == [] and cut_off(figure) == [], (name, mode)


def test_where_there_is_nothing_to_draw_the_figure_says_why():
    table, groups, curves = (each.iloc[:0] for each in ablation())
    for name, figure in figures((table, groups, curves)).items():
        texts = [text.get_text() for text in figure.texts]
        assert len(texts) == 2 and "no " in texts[1], name
        figure.canvas.draw()


def test_estimates_are_drawn_against_effects():
    table, _, _ = ablation()
    figure = drawn.estimates(table, "demo", "mean")
    rows = table[table["layer"] == "layer1.0"]
    axes = figure.axes[1]
    dots = axes.lines[1].get_xydata()
    expected = rows[["mean_estimate_loss", "mean_delta_loss"]].to_numpy()
    np.testing.assert_allclose(dots, expected)
    assert axes.get_title(loc="left") == f"layer1.0  r {np.median(rows['mean_estimate_r']):.2f}"


def test_effects_are_sorted_with_their_intervals_and_significant_ones_marked():
    table, _, _ = ablation()
    axes = drawn.effects(table, "demo", "mean").axes[1]
    rows = table[table["layer"] == "layer1.0"]
    expected = sorted(zip(rows["mean_delta_top1"], rows["mean_q"], strict=True))
    line = next(line for line in axes.lines if line.get_color() == style.BLUE)
    np.testing.assert_allclose(line.get_xdata(), np.arange(1, 25))
    np.testing.assert_allclose(line.get_ydata(), [change for change, _ in expected])
    bars = next(each for each in axes.collections if isinstance(each, LineCollection))
    for segment, (change, _) in zip(bars.get_segments(), expected, strict=True):
        np.testing.assert_allclose(segment[:, 1], [change - 0.01, change + 0.01])
    dots = next(line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_ydata(), [change for change, q in expected if q <= 0.05])
    assert axes.get_title(loc="left") == f"layer1.0  {len(dots.get_ydata())}/24"


def test_layers_that_were_not_swept_in_a_mode_are_left_out():
    table, _, _ = ablation()
    table.loc[table["layer"] != "conv1", "mean_delta_top1"] = np.nan
    assert len(drawn.effects(table, "demo", "mean").axes) == 1
    assert {layer for layer, _ in drawn.chosen(table, "mean")} == {"conv1"}


def test_properties_show_every_known_channel_and_its_rank_correlation():
    table, _, _ = ablation()
    table.loc[3, "filter_norm"] = np.nan
    panels = drawn.properties(table, "demo", "zero").axes
    rows = table[(table["layer"] == "conv1") & table["filter_norm"].notna()]
    dots = next(each for each in panels[0].collections if isinstance(each, PathCollection))
    np.testing.assert_allclose(
        dots.get_offsets(), rows[["filter_norm", "zero_delta_loss"]].to_numpy()
    )
    rho = stats.spearmanr(rows["filter_norm"], rows["zero_delta_loss"]).statistic
    assert panels[0].get_title(loc="right") == f"ρ = {rho:.2f}".replace("-", "−")
    assert panels[0].get_xlabel() == "" and panels[8].get_xlabel() == "filter norm"
    # No class selectivity before a ReLU.
    assert panels[3].get_title(loc="right") == "no values"


def test_properties_without_a_column_are_left_out():
    table, _, _ = ablation(network(8), ("shuffle",))
    table = table.drop(columns=["osi", "color_class"])
    figure = drawn.properties(table, "demo", "shuffle")
    assert len(figure.axes) == 6 * 2
    figure.set_dpi(style.DPI)
    assert cut_off(figure) == []


def test_curves_run_over_their_counts_and_random_ones_make_a_band():
    _, _, curves = ablation()
    axes = drawn.cumulative(curves, "demo", "zero").axes[2]
    rows = curves[curves["layer"] == "layer2.0"]
    for direction, solid in (("descending", True), ("ascending", False)):
        wanted = rows[(rows["order"] == "osi") & (rows["direction"] == direction)]
        line = next(
            line
            for line in axes.lines
            if line.get_color() == style.GREEN and (line.get_linestyle() == "-") == solid
        )
        np.testing.assert_allclose(line.get_xydata(), wanted[["n_removed", "top1"]])
    random = rows[rows["order"] == "random"].groupby("n_removed")["top1"]
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(random.min().min())
    assert band[:, 1].max() == pytest.approx(random.max().max())
    middle = next(line for line in axes.lines if line.get_color() == style.GREY)
    np.testing.assert_allclose(middle.get_ydata(), random.median())


def test_a_group_stands_beside_its_controls():
    _, groups, _ = ablation()
    first, axes, _ = drawn.groups(groups, "demo").axes
    labels = [text.get_text() for text in first.get_yticklabels()]
    assert labels[4] == "layer1.0 · double-opponent (4)"
    rows = groups[
        (groups["layer"] == "layer1.0")
        & (groups["group"] == "double_opponent")
        & (groups["mode"] == "mean")
    ]
    dots = np.asarray(axes.collections[4].get_offsets())
    np.testing.assert_allclose(dots[:, 0], rows.loc[rows["role"] == "control", "delta_top1"])
    assert np.all(np.abs(dots[:, 1] - 4) < 0.5)
    marks = [line for line in axes.lines if line.get_marker() == "D"]
    assert marks[4].get_xdata()[0] == rows["delta_top1"].iloc[0]
    assert axes.texts[4].get_text() == f"{rows['p_more_top1'].iloc[0]:.2f}"


def test_a_group_without_controls_has_no_p():
    _, groups, _ = ablation({"conv1": 16}, ("zero",))
    alone = groups[groups["role"] == "group"].assign(p_more_top1=np.nan)
    axes = drawn.groups(alone, "demo").axes[0]
    assert len(axes.texts) == 0
    assert [len(each.get_offsets()) for each in axes.collections] == [0, 0, 0]


def test_the_strongest_channels_of_every_layer_are_chosen():
    table, _, _ = ablation()
    found = drawn.chosen(table, "zero", 6)
    expected = []
    for layer in ("conv1", "layer1.0", "layer2.0"):
        rows = table[table["layer"] == layer]
        size = {row["channel"]: abs(row["zero_delta_top1"]) for _, row in rows.iterrows()}
        expected += [(layer, channel) for channel in sorted(size, key=size.get)[::-1][:2]]
    assert found == expected


def test_the_heat_map_shows_the_classes_that_change_most_and_not_those_without_images():
    values = changes([("conv1", 3), ("layer1.0", 5)], 60)
    for row in values.values():
        row[7] = np.nan
        row[[11, 40]] = 0.9
    names = [f"class {index}" for index in range(60)]
    axes = drawn.classes(values, names, "demo", "zero").axes[0]
    shown = np.asarray(axes.images[0].get_array())
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert shown.shape == (2, 24) and len(labels) == 24
    assert {"class 11", "class 40"} <= set(labels) and "class 7" not in labels
    for row, change in zip(shown, values.values(), strict=True):
        np.testing.assert_allclose(row, change[[names.index(label) for label in labels]])
    moved = sum(np.abs(row) for row in changes([("a", 0), ("b", 0)], 60).values())
    assert pd.Series(moved).idxmax() in (names.index(label) for label in labels)
