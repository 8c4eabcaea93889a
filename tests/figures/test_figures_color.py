"""Figures of colour: what is drawn where, against loops and planted tables and files."""

import h5py
import numpy as np
import pandas as pd
import pytest
from drawing import by_script
from legible import cut_off, overlaps
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from scipy import stats
from synthetic import color_file
from synthetic import opponency as invented

from rfatlas.figures import figures_color as drawn
from rfatlas.figures import sheets, style
from rfatlas.files import store
from rfatlas.tables import opponency

REFERENCE = pd.DataFrame(
    {
        "quantity": ["color_ratio"] * 3 + ["orientation_for_color"] * 3,
        "category": [*opponency.KINDS, *opponency.CONE],
        "value": [100, 48, 19, None, None, None],
        "n": 167,
        "statement": "as published",
        "certainty": "sure",
        "source": "somebody",
    }
)
THRESHOLDS = {
    "sensitivity": [0.3, 0.6, 1, 2],
    "color_ratio": [0.25, 0.5, 1, 2],
    "lowpass": [0.3, 0.5, 0.8],
    "harris_tolerance": [0, 0.01, 0.1],
}
RULES = {"sensitivity": 0.6, "color_ratio": 0.5, "lowpass": 0.5, "harris_tolerance": 0.01}


def network(layers: int) -> dict[str, int]:
    """Names as long as they get, channels as in a real network but fewer."""
    names = ["conv1", "maxpool", *(f"layer{1 + i // 6}.{i % 6}" for i in range(layers))]
    return {name: 12 + 4 * depth for depth, name in enumerate(names[:layers])}


def counted(table: pd.DataFrame, twin: pd.DataFrame | None = None) -> dict[str, pd.DataFrame]:
    name = "" if twin is None else "demo_random"
    return opponency.tables(table, REFERENCE, THRESHOLDS, RULES, 0.5, twin, name)


def read(file: h5py.File, layer: str, limit: int = 32) -> drawn.Answers:
    return drawn.read(file, layer, sheets.chosen(len(file["channel"]), limit))


def figures(table: pd.DataFrame, folder, twin: pd.DataFrame | None = None) -> dict:
    """All figures of a run, with invented files of the stage color."""
    found = counted(table, twin)
    files = {}
    for depth, (layer, rows) in enumerate(table.groupby("layer", sort=False)):
        files[layer] = store.open(color_file(folder / f"{layer}.h5", rows, seed=depth), "color")
    curves = {
        name: [drawn.read(files[layer], layer, np.array([channel])) for layer, channel in members]
        for name, members in drawn.examples(table).items()
    }
    last, rows = list(table.groupby("layer", sort=False))[-1]
    every = [
        drawn.read_hues(files[layer], part) for layer, part in table.groupby("layer", sort=False)
    ]
    return {
        "classes": drawn.classes(found["counts"], found["macaque"], "demo"),
        "stability": drawn.stability(found["stability"], "demo"),
        "confusion": drawn.confusion(found["confusion"], "demo"),
        "orientation": drawn.orientation(found["orientation"], "demo"),
        "tuning": drawn.tuning(curves, "demo", 0.5, 0.5),
        "hue": drawn.hues(every, "demo"),
        "sheet": drawn.sheet(read(files[last], last), rows, "demo"),
    }


@pytest.mark.parametrize(("layers", "with_twin"), [(1, False), (3, True), (18, True)])
def test_every_text_can_be_read(layers, with_twin, tmp_path):
    table = invented(network(layers))
    twin = invented(network(layers), seed=1, colored=0.2) if with_twin else None
    for name, figure in figures(table, tmp_path, twin).items():
        figure.set_dpi(sheets.DPI if name == "sheet" else style.DPI)
        assert overlaps(figure) == [] and cut_off(figure) == [], name


def test_a_network_that_answers_nothing_is_drawn_empty(tmp_path):
    table = invented({"conv1": 6, "layer1.0": 6})
    table.loc[:, "color_ratio":"osi"] = np.nan
    table[["color_class", "color_class_ratio", "color_class_ratio_unrectified"]] = "unresponsive"
    table[["harris_spatial", "harris_spectral", "color_class_energy"]] = np.nan
    for name, figure in figures(table, tmp_path, table).items():
        figure.set_dpi(style.DPI)
        assert overlaps(figure) == [], name


# ---- shares


def test_shares_and_intervals_are_those_of_the_counts():
    table, twin = invented(), invented(seed=1, colored=0.2)
    found = counted(table, twin)
    axes = drawn.classes(found["counts"], found["macaque"], "demo").axes[0]
    bars = iter(axes.collections)
    for name, color in (("single_opponent", style.SKY), ("double_opponent", style.BLUE)):
        for source in (table, twin):
            lines = next(bars)
            assert to_hex(lines.get_color()[0]) == color.lower()
            parts = [*(rows for _, rows in source.groupby("depth")), source]
            for segment, rows in zip(lines.get_segments(), parts, strict=True):
                count = (rows["color_class"] == name).sum()
                total = (rows["color_class"] != "unresponsive").sum()
                interval = stats.binomtest(count, total).proportion_ci(method="wilson")
                assert segment[:, 1] == pytest.approx([interval.low, interval.high])


def test_bars_are_the_kinds_of_the_layers_and_of_the_macaque():
    table = invented()
    found = counted(table)
    axes = drawn.classes(found["counts"], found["macaque"], "demo").axes[1]
    heights = {}
    for bar in axes.patches:
        heights.setdefault(round(bar.get_x() + bar.get_width() / 2), []).append(bar.get_height())
    # Three layers, all of them, and the macaque.
    assert sorted(heights) == [0, 1, 2, 3, 4]
    assert heights[4] == pytest.approx([100 / 167, 48 / 167, 19 / 167])
    ratio = table.loc[table["layer"] == "layer1.0", "color_ratio"].dropna()
    expected = [(ratio < 0.5).mean(), ((ratio >= 0.5) & (ratio < 2)).mean(), (ratio >= 2).mean()]
    assert heights[1] == pytest.approx(expected)
    assert [text.get_text() for text in axes.texts] == ["60 %", "29 %", "11 %"]


def test_stability_shows_every_threshold_and_marks_the_one_in_force():
    table = invented()
    figure = drawn.stability(counted(table)["stability"], "demo")
    axes = figure.axes[1]
    assert axes.get_title(loc="left") == "double-opponent"
    conv1 = axes.lines[0].get_ydata()
    rows = table[(table["layer"] == "conv1") & (table["color_class"] != "unresponsive")]
    own = rows[["color_sensitivity_lm", "color_sensitivity_s"]].max(axis=1)
    own = own.where(rows["color_ratio_rgb"] >= 0.01)
    expected = [
        ((own >= line) & (rows["color_lowpass_contrast"] < 0.5)).mean() for line in (0.3, 0.6, 1, 2)
    ]
    np.testing.assert_allclose(conv1, expected)
    dotted = axes.lines[-1]
    assert dotted.get_color() == style.GREY
    assert list(dotted.get_xdata()) == [1, 1]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == ["0.3", "0.6", "1", "2"]


def test_stability_names_the_twin_only_where_its_line_is_drawn():
    table, other = invented(), invented(seed=1)
    fewer = other[other["layer"] != "layer1.0"]
    for twin, drawn_lines in ((other, 1), (fewer, 0)):
        figure = drawn.stability(counted(table, twin)["stability"], "demo")
        lines = figure.axes[1].lines
        dashed = [line for line in lines if str(line.get_color()) == style.VERMILLION]
        assert len(dashed) == drawn_lines
        assert all(np.isfinite(line.get_ydata()).any() for line in dashed)
        named = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len([text for text in named if "demo_random" in text]) == drawn_lines


# ---- agreement


def test_matrices_show_the_counts_and_frame_what_means_the_same():
    table = invented()
    figure = drawn.confusion(counted(table)["confusion"], "demo")
    axes = figure.axes[0]
    columns = [text.get_text().replace("\n", " ") for text in axes.get_xticklabels()]
    assert columns == ["neither", "spatial only", "spectral only", "both", "unre- sponsive"]
    cells = {text.get_position(): int(text.get_text()) for text in axes.texts}
    harris = opponency.classes(table, "harris")
    for y, cone in enumerate([*opponency.CONE, "unresponsive"]):
        for x, other in enumerate([*opponency.HARRIS, "unresponsive"]):
            assert cells[x, y] == ((table["color_class"] == cone) & (harris == other)).sum()
    frames = {
        (round(patch.get_x() + 0.47), round(patch.get_y() + 0.47))
        for patch in axes.patches
        if isinstance(patch, Rectangle)
    }
    assert frames == {(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)}


def test_classes_without_a_silent_channel_have_no_row_for_it():
    table = invented()
    table = table[table["color_class"] != "unresponsive"]
    axes = drawn.confusion(counted(table)["confusion"], "demo").axes[0]
    assert len(axes.get_xticklabels()) == 4 and len(axes.get_yticklabels()) == 3


# ---- single channels


def test_examples_are_typical_of_their_class():
    table = invented(network(9))
    for name, members in drawn.examples(table).items():
        assert 1 <= len(members) <= drawn.EXAMPLES
        layers = [layer for layer, _ in members]
        assert len(set(layers)) == len(layers)
        for layer, channel in members:
            rows = table[(table["layer"] == layer) & (table["color_class"] == name)]
            strength = rows[list(drawn.SENSITIVITIES)].max(axis=1)
            own = strength[rows["channel"] == channel].iloc[0]
            below = (strength < own).sum()
            assert below == (len(rows) - 1) // 2, "as many below as above, or one less"


def test_curves_are_read_at_the_best_orientation_of_each_axis(tmp_path):
    table = invented({"conv1": 12})
    file = store.open(color_file(tmp_path / "conv1.h5", table), "color")
    for channel in range(12):
        found = drawn.read(file, "conv1", np.array([channel]))
        for axis in range(3):
            best = max(range(4), key=lambda theta: file["tuned"][channel, axis, theta].max())
            np.testing.assert_array_equal(
                found.response[0, axis], file["tuned"][channel, axis, best]
            )
        np.testing.assert_array_equal(found.flicker[0], file["tuned_flicker"][channel, :3])


def test_tuning_has_zero_frequency_apart_and_is_relative_to_the_largest_answer(tmp_path):
    frequency = np.array([0.05, 0.1, 0.2])
    response = np.array([[1, 2, 4], [2, 1, 0], [0, 0, 0.5]], float)
    file = store.open(color_file(tmp_path / "conv1.h5", invented({"conv1": 4})), "color")
    flicker = np.array([[0.4, 8, 0.1]])
    changed = {"frequency": frequency, "response": response[None], "flicker": flicker}
    curves = drawn.read(file, "conv1", np.array([3]))._replace(**changed)
    axes = drawn.tuning({"single_opponent": [curves]}, "demo", 0.5, 0.5).axes[0]
    solid = [
        line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 1
    ]
    for line, expected in zip(solid, response, strict=True):
        np.testing.assert_allclose(line.get_xdata(), np.log2(frequency))
        np.testing.assert_allclose(line.get_ydata(), expected / 8)
    alone = [line for line in axes.lines if len(np.atleast_1d(line.get_xdata())) == 1]
    assert [line.get_ydata()[0] for line in alone] == pytest.approx([0.05, 1, 0.0125])
    assert all(line.get_xdata()[0] < np.log2(0.05) for line in alone)


def test_hue_curves_point_where_the_channels_prefer(tmp_path):
    table = invented({"conv1": 30}, colored=1.0)
    file = store.open(color_file(tmp_path / "conv1.h5", table), "color")
    found, rows = drawn.read_hues(file, table)
    opponent = table["color_class"].str.contains("_opponent") & (
        table["color_class"] != "non_opponent"
    )
    assert len(found.hue) == drawn.CURVES
    preferred = table.loc[opponent, "hue_deg"].to_numpy()
    np.testing.assert_array_equal(rows["hue_deg"], preferred)
    axes = drawn.hues([(found, rows)], "demo").axes[0]
    curves = [line.get_xydata() for line in axes.lines if line.get_linewidth() == 1.3]
    tips = [np.degrees(np.arctan2(*curve[np.hypot(*curve.T).argmax()][::-1])) for curve in curves]
    apart = [np.abs((tip - preferred + 180) % 360 - 180).min() for tip in tips]
    assert max(apart) <= 5, "hues are 10 degrees apart"
    assert all(np.hypot(*curve.T).max() == pytest.approx(1) for curve in curves)


def test_fields_share_a_scale_and_stand_under_their_axis(tmp_path):
    table = invented({"conv1": 4})
    table["color_class"] = ["non_opponent", "single_opponent", "double_opponent", "unresponsive"]
    file = store.open(color_file(tmp_path / "conv1.h5", table, window=7), "color")
    found = read(file, "conv1", 3)
    assert found.channel.tolist() == [0, 2, 3] and found.total == 4
    found.field[:] = 0
    found.field[0, 0, 3, 3], found.field[0, 1, 3, 3] = 2, 1
    figure = drawn.sheet(found, table, "demo")
    canvas = figure.axes[0].images[0].get_array()[::-1]
    middle = {}
    for label in figure.axes[0].texts:
        if label.get_text() in ("L+M", "L−M", "S−(L+M)"):
            x, y = label.get_position()
            middle[label.get_text()] = canvas[round(y + 6 + 36), round(x)].astype(int)
    assert middle["L+M"].tolist() == [255, 255, 255], "at full strength"
    half = (np.array([0xF2] * 3) + [0xD5, 0x5E, 0x00]) / 2
    assert np.abs(middle["L−M"] - half).max() <= 3, "half as strong"
    assert middle["S−(L+M)"].tolist() == [0xF2] * 3, "nothing"
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"non-opp.", "double-opp.", "no answer"} <= set(texts)


def test_a_sheet_draws_the_curves_of_each_channel(tmp_path):
    table = invented({"conv1": 6}, colored=1.0)
    file = store.open(color_file(tmp_path / "conv1.h5", table), "color")
    found = read(file, "conv1", 6)
    figure = drawn.sheet(found, table, "demo")
    lines = figure.axes[0].collections[0].get_segments()
    answering = table.index[table["color_class"] != "unresponsive"]
    assert len(lines) == 4 * len(answering), "three axes and the hues"
    for place, channel in enumerate(answering):
        answer = np.concatenate([found.flicker[channel][:, None], found.response[channel]], 1)
        curves = np.array(lines[4 * place : 4 * place + 3])[..., 1]
        # Downwards: the largest answer stands highest, an answer of nothing lowest.
        low, high = curves.max(), curves.min()
        np.testing.assert_allclose((low - curves) / (low - high), answer / answer.max(), atol=1e-6)
        if table["color_class"][channel] == "non_opponent":
            continue
        tip = lines[4 * place + 3] - np.mean(
            figure.axes[0].collections[1].get_offsets()[36 * place : 36 * (place + 1)], axis=0
        )
        best = tip[np.hypot(*tip.T).argmax()]
        hue = np.degrees(np.arctan2(-best[1], best[0]))
        assert abs((hue - table["hue_deg"][channel] + 180) % 360 - 180) <= 5


def test_without_mean_gradients_a_sheet_has_curves_only(tmp_path):
    table = invented({"conv1": 6})
    path = color_file(tmp_path / "conv1.h5", table)
    with h5py.File(path, "r+") as file:
        del file["field_dkl"], file["field_channel"]
    found = read(store.open(path, "color"), "conv1", 6)
    figure = drawn.sheet(found, table, "demo")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert found.field is None and "L−M" not in texts and "hue" in texts


def test_channels_beyond_those_with_fields_have_empty_places(tmp_path):
    table = invented({"conv1": 6})
    path = color_file(tmp_path / "conv1.h5", table)
    with h5py.File(path, "r+") as file:
        few = {name: file[name][:2] for name in ("field_dkl", "field_channel")}
        for name, values in few.items():
            del file[name]
            file[name] = values
    found = read(store.open(path, "color"), "conv1", 6)
    assert np.isfinite(found.field[:2]).all() and np.isnan(found.field[2:]).all()
    drawn.sheet(found, table, "demo").canvas.draw()


# ---- the script


@pytest.mark.parametrize("with_twin", [True, False])
def test_the_script_draws_all_figures(tmp_path, monkeypatch, with_twin):
    monkeypatch.chdir(tmp_path)
    table = invented({"conv1": 12, "layer1.0": 16})
    store.write_table(table, tmp_path / "channels.csv")
    for name, rows in counted(table, invented(seed=1) if with_twin else None).items():
        store.write_table(rows, tmp_path / f"{name}.csv")
    layers = ["conv1", "layer1.0"]
    for layer in layers:
        color_file(tmp_path / f"{layer}.h5", table[table["layer"] == layer])
    tables = ("counts", "macaque", "stability", "confusion", "orientation")
    given = {
        "channels": tmp_path / "channels.csv",
        "tables": [tmp_path / f"{name}.csv" for name in tables],
        "color": [tmp_path / f"{layer}.h5" for layer in layers],
    }
    settings = {"layers": layers, "channels": 8, "lowpass": 0.5, "sensitivity": 0.6}
    found = by_script("figures_color", tmp_path, given, {"run": "demo", **settings})
    assert set(found) == {
        "00_conv1",
        "01_layer1.0",
        "opponent_channels",
        "classes_by_threshold",
        "agreement_of_the_rules",
        "orientation_for_colour",
        "frequency_tuning_to_colour_and_luminance",
        "tuning_to_hue",
    }
