"""Figures of orientation and frequency: what is drawn where, against loops and planted tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import by_script
from legible import cut_off, overlaps
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Wedge
from scipy import stats
from synthetic import tuning

from rfatlas.figures import figures_orientation as drawn
from rfatlas.figures import style
from rfatlas.files import store
from rfatlas.tables import orientation, v1

ROOT = Path(__file__).resolve().parents[2]
R2, SCALE = 0.5, 28
REFERENCE = store.read_table(ROOT / "resources" / "v1_reference.csv")
JOINT = store.read_table(ROOT / "resources" / "v1_nx_ny.csv")
THRESHOLDS = [0.3, 0.4, 0.6, 0.8]
SETTINGS = {"gabor_r2": R2, "pixels_per_degree": SCALE, "pixels_per_degree_sweep": []}
GABOR = ("gabor",)
GRATINGS = ("osi", "circular", "orientation", "bandwidth", "sf_", "f1_", "grating")


def network(layers: int) -> dict[str, int]:
    """Names as long as they get, channels as in a real network but fewer."""
    names = ["conv1", "maxpool", *(f"layer{1 + i // 6}.{i % 6}" for i in range(layers))]
    return {name: 12 + 4 * depth for depth, name in enumerate(names[:layers])}


def off(table: pd.DataFrame, *prefixes: str) -> pd.DataFrame:
    return table[[column for column in table if not column.startswith(prefixes)]]


def figures(table: pd.DataFrame, twin: pd.DataFrame | None = None) -> dict:
    """All figures that the table has columns for."""
    name = "" if twin is None else "demo_random"
    found = orientation.tables(table, THRESHOLDS, 0.5, twin, name)
    found |= v1.tables(table, REFERENCE, SETTINGS, twin, name)
    made = {
        "distribution": drawn.roses(table, "demo", R2, twin, name),
        "frequency": drawn.frequency(table, "demo", R2, SCALE, REFERENCE, twin, name),
        "card": drawn.card(found["properties"], found["scores"], "demo"),
        "v1": drawn.v1(found["histograms"], found["properties"], REFERENCE, "demo", R2),
    }
    if "osi" in table:
        made["selective"] = drawn.selective(found["selective"], "demo")
        made["stability"] = drawn.stability(found["selective"], "demo")
    if "gabor_nx" in table:
        made["nx_ny"] = drawn.nx_ny(table, JOINT, REFERENCE, "demo", R2)
        made["agreement"] = drawn.agreement(table, "demo")
    return made


def dots(axes) -> list[np.ndarray]:
    """The places of what was scattered into the axes, a list per call."""
    kinds = [each for each in axes.collections if isinstance(each, PathCollection)]
    return [np.asarray(kind.get_offsets()) for kind in kinds]


# ---- legible


@pytest.mark.parametrize(
    ("layers", "with_twin"), [(1, False), (3, True), (8, False), (9, False), (18, True)]
)
def test_every_text_can_be_read(layers, with_twin):
    table = tuning(network(layers))
    twin = tuning(network(layers), seed=1, tuned=0.2) if with_twin else None
    for name, figure in figures(table, twin).items():
        figure.set_dpi(style.DPI)
        assert overlaps(figure) == [] and cut_off(figure) == [], name


@pytest.mark.parametrize("missing", [GABOR, GRATINGS])
def test_a_stage_that_was_off_leaves_the_figures_of_the_other(missing):
    made = figures(off(tuning(), *missing), off(tuning(seed=1), *missing))
    assert ("selective" in made) == (missing == GABOR)
    for name, figure in made.items():
        figure.set_dpi(style.DPI)
        assert overlaps(figure) == [] and cut_off(figure) == [], name


def test_layers_without_a_tuned_or_responsive_channel_are_drawn_empty():
    table = tuning({"conv1": 6, "layer1.0": 6})
    second = table["layer"] == "layer1.0"
    for column in table.columns[6:]:
        if column not in ("sf_aliased", "grating_reason"):
            table.loc[second, column] = np.nan
    for figure in figures(table, tuning({"layer1.0": 4})).values():
        figure.canvas.draw()


# ---- distributions


def test_a_rose_counts_circular_bins():
    theta = np.random.default_rng(0).uniform(0, 180, 500)
    theta[:3] = 179.9, 0.1, 7.6
    share = drawn.rose(theta)
    for index, found in enumerate(share):
        centre = 15 * index
        apart = [min(abs(angle - centre + turn) for turn in (-180, 0, 180)) for angle in theta]
        assert found == pytest.approx(np.mean([distance < 7.5 for distance in apart]))
    assert drawn.rose(np.array([179.0, 1.0])).tolist() == [1] + [0] * 11
    assert drawn.rose(np.zeros(0)).tolist() == [0] * 12


def test_a_wedge_points_where_its_channels_do_and_its_area_is_their_share():
    table = tuning({"conv1": 9}).assign(orientation_selective=True)
    table["orientation_deg"] = [45.0] * 8 + [120.0]
    axes = drawn.roses(table, "demo", R2, None, "").axes[0]
    wedges = [patch for patch in axes.patches if isinstance(patch, Wedge)]
    assert [(wedge.theta1, wedge.theta2) for wedge in wedges] == [(37.5, 52.5), (112.5, 127.5)]
    assert (wedges[0].r / wedges[1].r) ** 2 == pytest.approx(8)


def test_the_strokes_on_the_rim_stand_as_the_bars_do():
    axes = drawn.roses(tuning(), "demo", R2, None, "").axes[0]
    strokes = [line.get_xydata() for line in axes.lines if line.get_linewidth() == 2]
    for direction, ends in zip((0, 45, 90, 135, 180), strokes, strict=True):
        middle, along = ends.mean(axis=0), ends[1] - ends[0]
        at = np.degrees(np.arctan2(middle[1], middle[0]))
        assert at == pytest.approx(direction)
        # Modulation across the bars: their direction is at right angles.
        assert along @ [np.cos(np.radians(at)), np.sin(np.radians(at))] == pytest.approx(0)


def test_without_gratings_the_rose_shows_good_gabors():
    table = off(tuning(), *GRATINGS)
    rows = table[table["layer"] == "conv1"]
    expected = [row["gabor_theta_deg"] for _, row in rows.iterrows() if row["gabor_r2"] >= R2]
    assert sorted(drawn.orientations(rows, R2)) == sorted(expected)


def test_frequencies_stand_beside_the_nyquist_frequency_and_the_macaque():
    table = tuning()
    axes = drawn.frequency(table, "demo", R2, SCALE, REFERENCE, None, "").axes[0]
    places = np.concatenate(dots(axes))
    for position, name in enumerate(["conv1", "layer1.0", "layer2.0"]):
        here = places[np.abs(places[:, 0] - position) < 0.4, 1]
        found = table.loc[table["layer"] == name, "sf_cpp"].dropna()
        np.testing.assert_allclose(np.sort(here), np.sort(found))
    dashes = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashes == [0.5, 0.25, 0.125]
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (band.y0, band.y1) == (pytest.approx(1.7 / 28), pytest.approx(4.6 / 28))
    assert "28 pixels" in axes.child_axes[0].get_ylabel()


# ---- fractions


def test_fractions_and_intervals_are_those_of_the_counts():
    table, twin = tuning(), tuning(seed=1, tuned=0.2)
    found = orientation.selective(table, [0.3], 0.5, twin, "demo_random")
    axes = drawn.selective(found, "demo").axes[0]
    bars = {to_hex(bar.get_color()[0]): bar.get_segments() for bar in axes.collections}
    for color, source in ((style.BLUE, table), (style.ORANGE, twin)):
        for segment, (_, rows) in zip(bars[color.lower()], source.groupby("depth"), strict=True):
            count = sum(value is True for value in rows["orientation_selective"])
            interval = stats.binomtest(count, rows["osi"].count()).proportion_ci(method="wilson")
            assert segment[:, 1] == pytest.approx([interval.low, interval.high])
    counts = [text.get_text() for text in axes.texts]
    rows = table[table["layer"] == "conv1"]
    assert counts[0] == f"{sum(v is True for v in rows['orientation_selective'])}/{len(rows) - 1}"


def test_stability_shows_every_threshold_and_marks_the_rule():
    table = tuning()
    found = orientation.selective(table, [0.3, 0.8], 0.5)
    axes = drawn.stability(found, "demo").axes[1]
    rows = table[table["layer"] == "layer1.0"]
    line = next(line for line in axes.lines if line.get_color() == style.BLUE)
    np.testing.assert_allclose(line.get_xdata(), [0.3, 0.5, 0.8])
    expected = [
        ((rows["osi"] >= level) & rows["bandwidth_deg"].notna()).sum() / rows["osi"].count()
        for level in (0.3, 0.5, 0.8)
    ]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in axes.lines)


# ---- beside macaques


def test_histograms_and_medians_stand_at_their_values():
    table = tuning({"conv1": 200})
    figure = figures(table)["v1"]
    axes = figure.axes[0]
    found = table["circular_variance"].dropna()
    counts, _ = np.histogram(found, np.linspace(0, 1, 11))
    heights = np.array([bar.get_height() for bar in axes.patches])
    np.testing.assert_allclose(heights / heights.max(), counts / counts.max())
    median = next(line for line in axes.lines if line.get_color() == style.INK)
    # Ten bins from 0 to 1: x counts bins.
    assert median.get_xdata()[0] == pytest.approx(10 * found.median())


def test_a_published_number_from_memory_is_dashed_and_says_so():
    panels = {axes.get_xlabel().split(";")[0]: axes for axes in figures(tuning())["v1"].axes}
    marks = {}
    for label, axes in panels.items():
        line = next(line for line in axes.lines if line.get_color() == style.VERMILLION)
        texts = [text.get_text() for text in axes.texts if text.get_color() == style.VERMILLION]
        marks[label] = (line.get_linestyle(), texts[0], line.get_xdata()[0])
    assert marks["circular variance"] == ("--", "0.61 (from memory)", pytest.approx(6.1))
    assert marks["spatial-frequency bandwidth (octaves)"][:2] == ("-", "1.44")
    # Bins of 0.2 octaves from 0.
    assert marks["spatial-frequency bandwidth (octaves)"][2] == pytest.approx(1.44 / 0.2)
    assert marks["F1/F0"][:2] == ("-", "complex < 1 < simple")
    # Bins of 0.24 decades; the second begins at 10^-1.48.
    x = marks["Gabor $n_x$ (cycles)"][2]
    assert x == pytest.approx(1 + (np.log10(0.37) + 1.48) / 0.24, abs=0.01)


def test_a_card_has_a_cell_per_property_and_layer_with_its_number():
    table, twin = tuning(), tuning(seed=1, tuned=0.1)
    found = v1.tables(table, REFERENCE, SETTINGS, twin, "demo_random")
    axes = drawn.card(found["properties"], found["scores"], "demo").axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    layers = [label.get_text() for label in axes.get_xticklabels()]
    assert layers == ["conv1", "layer1.0", "layer2.0", "V1"]
    texts = {}
    for text in axes.texts:
        x, y = (round(place) for place in text.get_position())
        texts[labels[y], layers[x]] = text.get_text()
    scores = found["scores"].set_index("layer")
    for row in found["properties"].itertuples():
        if row.reason == "":
            assert texts[row.title, row.layer] == f"{row.similarity:.2f}"
        elif row.reason == "median_only" and np.isfinite(row.median):
            assert texts[f"median: {row.title}", row.layer] == f"{row.median:.3g}"
        else:
            assert (row.title, row.layer) not in texts
    for layer in layers[:3]:
        assert texts["score", layer] == f"{scores.loc[layer, 'score']:.2f}"
        assert texts["score of the twin", layer] == f"{scores.loc[layer, 'twin_score']:.2f}"
    assert texts["median: circular variance", "V1"] == "0.61"
    rows = found["properties"].query("reason == ''")
    certain = (rows["gain_lo"] > 0).sum() + (rows["gain_hi"] < 0).sum()
    certain += (scores["difference_lo"] > 0).sum() + (scores["difference_hi"] < 0).sum()
    marks = [line for line in axes.lines if line.get_marker() in ("^", "v")]
    assert len(marks) == certain


def test_the_nx_ny_plane_has_the_good_fits_filled_where_selective():
    table = tuning()
    axes = drawn.nx_ny(table, JOINT, REFERENCE, "demo", R2).axes[0]
    rows = table[(table["layer"] == "conv1") & (table["gabor_r2"] >= R2)]
    filled = [value is True for value in rows["orientation_selective"]]
    expected = rows[["gabor_nx", "gabor_ny"]].to_numpy()
    hollow, solid = dots(axes)
    np.testing.assert_allclose(solid, expected[filled])
    np.testing.assert_allclose(hollow, expected[~np.array(filled)])
    cross = next(line for line in axes.lines if line.get_color() == style.VERMILLION)
    assert cross.get_xydata().tolist() == [[0.37, 0.45]]
    shades = [patch.get_alpha() for patch in axes.patches]
    assert np.argmax(shades) == JOINT["count"].argmax() and len(shades) == 25


# ---- agreement


def test_distances_below_are_circular_and_of_selective_channels():
    table = tuning({"conv1": 6})
    table["orientation_selective"] = [True, True, True, False, True, np.nan]
    table["orientation_deg"] = [1.0, 90, 30, 30, np.nan, 10]
    table["gabor_theta_deg"] = [179.0, 0, 33, 120, 20, 10]
    figure = drawn.agreement(table, "demo")
    assert sorted(np.concatenate(dots(figure.axes[-1]))[:, 1]) == pytest.approx([2, 3, 90])
    scatter = figure.axes[2]
    assert scatter.get_xlabel() == "mean gradient (°)"
    hollow, filled = (places.tolist() for places in dots(scatter))
    assert filled == [[179, 1], [0, 90], [33, 30]] and hollow == [[120, 30], [10, 10]]


# ---- the script


@pytest.mark.parametrize("with_twin", [True, False])
def test_the_script_draws_the_figures_that_are_asked_for(tmp_path, monkeypatch, with_twin):
    monkeypatch.chdir(tmp_path)
    table, twin = tuning(), tuning(seed=1)
    store.write_table(table, tmp_path / "channels.csv")
    store.write_table(twin, tmp_path / "twin.csv")
    given = (twin, "demo_random") if with_twin else (None, "")
    found = orientation.tables(table, THRESHOLDS, 0.5, *given)
    for name, rows in (found | v1.tables(table, REFERENCE, SETTINGS, *given)).items():
        store.write_table(rows, tmp_path / f"{name}.csv")
    tables = ("selective", "histograms", "properties", "scores")
    inputs = {
        "channels": tmp_path / "channels.csv",
        "twin": tmp_path / "twin.csv" if with_twin else [],
        "tables": [tmp_path / f"{name}.csv" for name in tables],
        "reference": ROOT / "resources" / "v1_reference.csv",
        "joint": ROOT / "resources" / "v1_nx_ny.csv",
    }
    settings = {"run": "demo", "twin": given[1], "gabor_r2": R2, "pixels_per_degree": SCALE}
    assert set(by_script("figures_orientation", tmp_path, inputs, settings)) == {
        "preferred_orientation",
        "preferred_frequency",
        "selective_channels",
        "selective_channels_by_threshold",
        "report_card_for_macaque_V1",
        "compared_with_macaque_V1",
        "size_of_the_Gabors",
        "agreement_of_the_estimates",
    }
