"""Sheets of tuning to gratings: what is drawn, against planted channels and plain sums."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawing import by_script
from legible import cut_off, overlaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection, LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from rfatlas.figures import figures_gratings as drawn
from rfatlas.figures import style
from rfatlas.files import store
from rfatlas.physiology import tuning

ORIENTATION, FREQUENCY = tuning.orientations(24), tuning.frequencies(11, 6)
CONTRAST = np.array([0.05, 0.1, 0.5, 1.0])
PREFERRED = np.array([0.0, 45.0, 90.0, 120.0, 30.0, 0.0])


def responses() -> np.ndarray:
    """(6, orientation, frequency, phase): four tuned channels, an untuned and a silent one."""
    theta, f, phase = np.meshgrid(ORIENTATION, FREQUENCY, tuning.phases(8), indexing="ij")
    values = []
    for channel, preferred in enumerate(PREFERRED):
        sharp = np.exp(6 * (np.cos(2 * np.radians(theta - preferred)) - 1))
        amplitude = (sharp if channel < 4 else 1) * np.exp(-(np.log2(f / FREQUENCY[2]) ** 2))
        values.append((channel + 1) * amplitude * np.cos(np.radians(phase + 40 * channel)))
    values[5] *= 0
    return np.array(values, np.float32)


def write(folder: Path, with_fields: bool = True) -> pd.DataFrame:
    """Write gratings/conv1.h5 and receptive_fields/conv1.h5; return the table of channels."""
    response = responses()
    attrs = store.provenance("gratings", {}) | {"size": 11, "stride": 2}
    best = np.array([[round(angle / 7.5) % 24, 2] for angle in PREFERRED], np.int16)
    best[5] = -1
    with store.create(folder / "gratings" / "conv1.h5", attrs) as file:
        file["channel"] = np.arange(6, dtype=np.int32)
        file["orientation"], file["frequency"] = ORIENTATION, FREQUENCY
        file["tuned"], file["best"] = tuning.mean_above(response, np.zeros(6)), best
        file["size_diameter"], file["contrast"] = 2.0 ** np.arange(1, 5), CONTRAST
        file["size_response"] = [[1.0, 2, 4, 3 - channel] for channel in range(5)] + [[np.nan] * 4]
        file["contrast_response"] = np.append(np.tile(CONTRAST, (5, 1)), [[np.nan] * 4], 0)
    if with_fields:
        attrs = store.provenance("receptive_fields", {})
        with store.create(folder / "receptive_fields" / "conv1.h5", attrs) as file:
            file["channel"] = np.arange(4, dtype=np.int32)
            field = np.zeros((4, 3, 11, 11))
            field[:, 0, :, 6:] = 1 + np.arange(4)[:, None, None]
            file["mean_gradient"] = field
    silent = [False] * 5 + [True]
    return pd.DataFrame(
        {
            "layer": "conv1",
            "depth": 0,
            "channel": range(6),
            "osi": np.where(silent, np.nan, [0.99] * 4 + [0.0] * 2),
            "bandwidth_deg": [14.0] * 4 + [np.nan] * 2,
            "orientation_deg": np.where(silent, np.nan, PREFERRED),
            "f1_f0": [1.57] * 4 + [np.nan] * 2,
            "orientation_selective": [True] * 4 + [False, np.nan],
            "grating_reason": np.where(silent, "no_response", None),
            "grating_suppressed": [True] * 4 + [False, None],
            "contrast_saturated": [False] * 5 + [None],
        }
    )


def sheet(folder: Path, channels: int = 32, with_fields: bool = True) -> Figure:
    table = write(folder, with_fields)
    with store.open(folder / "gratings" / "conv1.h5") as file:
        if not with_fields:
            return drawn.sheet(file, None, table, channels, "demo · conv1 · gratings")
        with store.open(folder / "receptive_fields" / "conv1.h5") as fields:
            return drawn.sheet(file, fields, table, channels, "demo · conv1 · gratings")


def collections(figure, kind) -> list:
    return [each for each in figure.axes[0].collections if isinstance(each, kind)]


def test_the_sheet_takes_the_chosen_channels(tmp_path):
    figure = sheet(tmp_path, channels=3)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [text for text in texts if text.isdigit()] == ["0", "2", "5"]
    assert texts[1].startswith("3 of 6 channels") and "24 orientations" in texts[1]
    FigureCanvasAgg(figure).draw()
    shown = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    x, y = drawn.sheets.layout(3, 3, drawn.SIDE).corner(2, 0)
    assert (shown[y : y + 80, x : x + 80] == 255).all(), "5 was left out of the receptive fields"


def test_a_curve_points_along_the_modulation_and_comes_twice():
    for preferred in (0.0, 30.0, 97.5, 172.5):
        response = np.exp(4 * (np.cos(2 * np.radians(ORIENTATION - preferred)) - 1))
        outline = drawn.curve(response)
        radius = np.hypot(*outline.T)
        angle = np.degrees(np.arctan2(outline[:, 1], outline[:, 0]))
        assert radius.max() == pytest.approx(1)
        away = angle[radius.argmax()] - preferred
        assert abs((away + 90) % 180 - 90) < 1.01
        np.testing.assert_allclose(outline[: drawn.POINTS], -outline[drawn.POINTS :], atol=1e-12)
        # Through the samples, every 15 of which are a whole number of points apart.
        np.testing.assert_allclose(
            radius[: drawn.POINTS : 15] / radius[0], response[::2] / response[0], rtol=1e-9
        )


def test_a_map_has_orientation_upwards_and_frequency_to_the_right():
    response = np.zeros((4, 5))
    response[1, 3] = 2
    picture = drawn.map_pixels(response)
    side = drawn.SIDE
    bright = matplotlib.colormaps["cividis"](1.0, bytes=True)[:3]
    shown = (picture == bright).all(-1)
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    # The second orientation of four from below, the fourth frequency of five from the left.
    assert (rows[0], rows[-1] + 1) == (side * 2 // 4, side * 3 // 4)
    assert (columns[0], columns[-1] + 1) == (side * 3 // 5, side * 4 // 5)
    assert (picture[0, 0] == matplotlib.colormaps["cividis"](0.0, bytes=True)[:3]).all()


def test_frequencies_have_their_places_in_the_map():
    middle = (np.arange(len(FREQUENCY)) + 0.5) / len(FREQUENCY) * drawn.SIDE
    found = [drawn.place(FREQUENCY, value) for value in FREQUENCY]
    assert found == pytest.approx(middle)
    between = np.sqrt(FREQUENCY[0] * FREQUENCY[1])
    assert drawn.place(FREQUENCY, between) == pytest.approx(middle[:2].mean())


@pytest.mark.parametrize("with_fields", [True, False])
def test_the_sheet_draws_each_channel_in_its_row(tmp_path, with_fields):
    figure = sheet(tmp_path, with_fields=with_fields)
    assert overlaps(figure) == [] and cut_off(figure) == []
    curves = {
        to_rgb(each.get_facecolor()[0][:3]): [path.vertices for path in each.get_paths()]
        for each in collections(figure, PolyCollection)
    }
    selective, other = curves[to_rgb(style.BLUE)], curves[to_rgb(style.GREY)]
    assert len(selective) == 4 and len(other) == 1
    columns = 3 if with_fields else 2
    place = drawn.sheets.layout(6, columns, drawn.SIDE)
    strokes = collections(figure, LineCollection)[0].get_segments()
    for channel in range(4):
        middle = np.add(place.corner(channel, columns - 2), drawn.SIDE / 2)
        away = (selective[channel][:-1] - middle) * [1, -1]
        angle = np.degrees(np.arctan2(away[:, 1], away[:, 0]))[np.hypot(*away.T).argmax()]
        # To within the points of the curve.
        assert abs((angle - PREFERRED[channel] + 90) % 180 - 90) < 1.01
        assert np.hypot(*away.T).max() == pytest.approx(drawn.SIDE / 2 - drawn.RIM)
        along = (strokes[channel][1] - strokes[channel][0]) * [1, -1]
        turned = np.degrees(np.arctan2(along[1], along[0])) - PREFERRED[channel]
        assert abs((turned + 90) % 180 - 90) < 1e-6
    # The untuned channel is a circle.
    middle = np.add(place.corner(4, columns - 2), drawn.SIDE / 2)
    np.testing.assert_allclose(np.hypot(*(other[0] - middle).T), drawn.SIDE / 2 - drawn.RIM)
    for circles in collections(figure, EllipseCollection):
        assert len(circles.get_offsets()) == 5, "none for the silent channel"
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("no response") == 1 and texts.count("OSI 0.99") == 4
    assert texts.count("F1/F0 1.57") == 4 and not any("nan" in text for text in texts)
    # Nyquist of stride 2: 0.25 cycles per pixel, in every map that is drawn.
    dashes = collections(figure, LineCollection)[1].get_segments()
    corner = place.corner(0, columns - 1)
    assert len(dashes) == 5
    assert dashes[0][0, 0] - corner[0] == pytest.approx(drawn.place(FREQUENCY, 0.25))
    (rings,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    expected = [(2.5 / 6) * drawn.SIDE, (1 - 6.5 / 24) * drawn.SIDE]
    corner = place.corner(1, columns - 1)
    np.testing.assert_allclose(rings.get_xydata()[1] - corner, expected)


def test_the_gradient_and_the_map_lie_side_by_side(tmp_path):
    figure = sheet(tmp_path)
    FigureCanvasAgg(figure).draw()
    shown = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    place = drawn.sheets.layout(6, 3, drawn.SIDE)
    x, y = place.corner(1, 0)
    tile = shown[y : y + 80, x : x + 80]
    # Red at the right, mid grey at the left.
    assert (tile[40, 70] == [255, 128, 128]).all() and (tile[40, 10] == 128).all()
    x, y = place.corner(1, 2)
    tile = shown[y : y + 80, x : x + 80]
    # A linear channel is half-rectified above the blank: its mean is its amplitude over pi.
    amplitude = np.hypot(responses()[1, ..., 0], responses()[1, ..., 2])
    expected = drawn.map_pixels(amplitude / np.pi).astype(int)
    same = (np.abs(tile - expected).max(-1) <= 1).mean()
    # But for the ring and the dashed line.
    assert same > 0.9
    x, y = place.corner(5, 2)
    assert (shown[y : y + 80, x : x + 80] == 255).all(), "nothing for the silent channel"


@pytest.mark.parametrize("with_fields", [True, False])
def test_the_script_draws_every_layer(tmp_path, monkeypatch, with_fields):
    monkeypatch.chdir(tmp_path)
    store.write_table(write(tmp_path, with_fields), tmp_path / "channels.csv")
    given = {
        "channels": tmp_path / "channels.csv",
        "gratings": [tmp_path / "gratings" / "conv1.h5"],
        "receptive_fields": [tmp_path / "receptive_fields" / "conv1.h5"] if with_fields else [],
    }
    settings = {"run": "demo", "layers": ["conv1"], "channels": 4}
    found = by_script("figures_gratings", tmp_path, given, settings)
    assert list(found) == ["00_conv1", "contrast", "size"]
    with Image.open(found["00_conv1"]) as image:
        place = drawn.sheets.layout(4, 3 if with_fields else 2, drawn.SIDE)
        assert image.size == (place.width, place.height)


@pytest.mark.parametrize("key", drawn.PARTS)
def test_curves_of_a_layer_are_shares_of_their_largest_value(tmp_path, key):
    table, part = write(tmp_path), drawn.PARTS[key]
    with store.open(tmp_path / "gratings" / "conv1.h5") as file:
        axis, response = file[part.axis][:], file[f"{key}_response"][:]
    flagged = table[part.flag].isin([True]).to_numpy()
    figure = drawn.curves({"conv1": (axis, response, flagged)}, "demo", part)
    assert overlaps(figure) == [] and cut_off(figure) == []
    (panel,) = figure.axes
    assert panel.get_title("left") == f"conv1   {flagged.sum()} of 5"
    shown = {
        to_rgb(each.get_color()[0][:3]): each.get_segments()
        for each in panel.collections
        if len(each.get_segments())
    }
    lines = [line for color in (style.BLUE, style.GREY) for line in shown.get(to_rgb(color), [])]
    assert len(lines) == 5 and len(shown.get(to_rgb(style.BLUE), [])) == flagged.sum()
    for line, row in zip(lines, response, strict=False):
        np.testing.assert_allclose(line, np.stack([axis, row / row.max()], 1))
    median = panel.lines[0].get_xydata()[:, 1]
    expected = response[:5] / response[:5].max(1, keepdims=True)
    np.testing.assert_allclose(median, np.median(expected, 0))
    assert len(panel.lines) == (2 if key == "contrast" else 1)
