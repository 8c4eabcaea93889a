"""Sheets of fitted Gabors: what is drawn, against planted Gabors of known place and turn."""

from pathlib import Path

import numpy as np
import pytest
from drawing import by_script
from legible import cut_off, overlaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from rfatlas.fields import gabor_fit
from rfatlas.figures import figures_gabor as drawn
from rfatlas.files import store

#: x, y, sigma_x, sigma_y, theta, frequency, phase, amplitude, offset; the third is a blob. Upright
#: bars may have an angle just below 180 degrees, which is 0, too.
PLANTED = np.array(
    [
        (0, 0, 3, 4, 179.8, 0.15, 0, 1, 0),
        (4, 2, 2, 3, 60, 0.2, 90, 1, 0),
        (-3, -3, 3, 2, 20, 0.02, 0, 1, 0),
        (8, 0, 3, 5, 135, 0.15, 0, 1, 0.2),
        (np.nan,) * 9,
        (np.nan,) * 9,
    ]
)
REASONS = ["", "", "blob", "", "noise", "blank"]
SIZE = 21


def write(folder: Path) -> None:
    """Write gabor/conv1.h5 and receptive_fields/conv1.h5; channel 5 of six sees nothing."""
    colour = np.tile([0.6, 0, -0.8], (6, 1))
    fields = np.zeros((6, 3, SIZE, SIZE))
    fields[:4] = np.einsum("nc,nyx->ncyx", colour[:4], gabor_fit.gabors(SIZE, PLANTED[:4]))
    fields[4] = np.random.default_rng(0).normal(size=(3, SIZE, SIZE))
    colour[5] = np.nan
    with store.create(folder / "gabor" / "conv1.h5", store.provenance("gabor", {})) as file:
        group = file.create_group("gradient")
        group["channel"] = np.arange(6, dtype=np.int32)
        group["parameters"], group["colour"] = PLANTED, colour
        group["r2"] = np.array([0.99, 0.9, 0.95, 0.8, 0.1, np.nan])
        group["reason"] = np.array(REASONS, object)
    attrs = store.provenance("receptive_fields", {})
    with store.create(folder / "receptive_fields" / "conv1.h5", attrs) as file:
        file["channel"], file["mean_gradient"] = np.arange(6, dtype=np.int32), fields


def sheet(folder: Path, channels: int = 32) -> Figure:
    write(folder)
    with (
        store.open(folder / "gabor" / "conv1.h5") as fits,
        store.open(folder / "receptive_fields" / "conv1.h5") as fields,
    ):
        return drawn.sheet(fits["gradient"], fields, channels, "demo", "conv1")


def test_the_sheet_takes_the_chosen_channels(tmp_path):
    texts = [text.get_text() for text in sheet(tmp_path, 3).axes[0].texts]
    assert [text for text in texts if text.isdigit()] == ["0", "2", "5"]
    assert texts[1].startswith("3 of 6 channels, 1 oriented")
    assert {"0°", "blob", "blank", "R² 0.99", "R² 0.95", f"{SIZE} px"} <= set(texts)


@pytest.mark.parametrize("index", range(4))
def test_the_outline_is_where_the_envelope_has_fallen(index):
    """To exp(-1.5^2 / 2) of the amplitude; along the bars the carrier does not change."""
    x, y, sigma_x, sigma_y, theta, *_ = PLANTED[index]
    turn = np.radians(theta)
    for points in (drawn.outline(PLANTED[index]), drawn.bar(PLANTED[index])[[0, -1]]):
        dx, dy = (points - [x, y]).T
        along = dx * np.cos(turn) + dy * np.sin(turn)
        across = -dx * np.sin(turn) + dy * np.cos(turn)
        np.testing.assert_allclose((along / sigma_x) ** 2 + (across / sigma_y) ** 2, 1.5**2)
    assert np.abs(along).max() < 1e-9


def test_points_lie_on_the_pixels_that_they_mean():
    # The middle of the top right pixel of a field of 5; y is up in the field, down on the page.
    found = drawn.on_page(np.array([[2.0, 2.0], [0, 0], [3, 0], [0, -2.6]]), (100, 200), 5)
    side = drawn.SIDE
    np.testing.assert_allclose(found[0], [100 + 0.9 * side, 200 + 0.1 * side])
    np.testing.assert_allclose(found[1], [100 + side / 2, 200 + side / 2])
    assert np.isnan(found[2:]).all(), "outside the picture"


def test_the_sheet_draws_each_channel_in_its_row(tmp_path):
    figure = sheet(tmp_path)
    assert overlaps(figure) == [] and cut_off(figure) == []
    axes = figure.axes[0]
    _, solid, _, dashed = (
        each.get_segments() for each in axes.collections if isinstance(each, LineCollection)
    )
    assert len(solid) == 6 and len(dashed) == 1, "three Gabors with bars, and a blob's outline"
    place = drawn.sheets.layout(6, 3, drawn.SIDE)
    # Around its own centre, to the right of and above the picture's middle.
    ellipse = solid[2]
    middle = np.nanmean(ellipse[:-1], 0) - place.corner(1, 0)
    expected = (np.array([4, -2]) / SIZE + 0.5) * drawn.SIDE
    np.testing.assert_allclose(middle, expected, atol=1e-6)
    texts = [text.get_text() for text in axes.texts]
    assert {"0°", "60°", "135°", "noise", "blank", "R² 0.90", "0.40 × 0.60"} <= set(texts)
    assert texts.count("blob") == 1 and "20°" not in texts


def test_the_gabor_alone_looks_like_the_field(tmp_path):
    figure = sheet(tmp_path)
    FigureCanvasAgg(figure).draw()
    shown = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    place = drawn.sheets.layout(6, 3, drawn.SIDE)

    def picture(row, column):
        x, y = place.corner(row, column)
        return shown[y : y + drawn.SIDE, x : x + drawn.SIDE]

    for row in range(4):
        # The field along (0.6, 0, -0.8) of a field of just that colour is the planted Gabor.
        np.testing.assert_allclose(picture(row, 1), picture(row, 2), atol=9)
        assert np.ptp(picture(row, 2)) > 150 or row == 2
    assert (picture(4, 2) == 255).all() and np.ptp(picture(4, 1)) > 100, "noise has no Gabor"
    assert (picture(5, 0) == 255).all(), "nothing to see"


def test_the_script_draws_every_layer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    given = {name: [tmp_path / name / "conv1.h5"] for name in ("gabor", "receptive_fields")}
    settings = {"run": "demo", "layers": ["conv1"], "channels": 4}
    found = by_script("figures_gabor", tmp_path, given, settings)
    with Image.open(found["00_conv1"]) as image:
        place = drawn.sheets.layout(4, 3, drawn.SIDE)
        assert image.size == (place.width, place.height)
