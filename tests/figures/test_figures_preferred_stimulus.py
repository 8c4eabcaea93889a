"""Sheets of preferred stimuli: which picture stands where, against planted ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import by_script
from legible import cut_off, overlaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from synthetic import Run

from rfatlas.figures import figures_preferred_stimulus as drawn
from rfatlas.figures import sheets, style
from rfatlas.files import store

#: Channels of layer1.0 (8 in all) that have stimuli; nothing drives 2, nothing suppresses 6.
MEASURED = [0, 2, 3, 6]
SIZE = 19


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """A run of which layer1.0 has stimuli of one colour each: channel 3 is most like red."""
    run = Run()
    run.value["layer1.0"][:, 2] = 0
    # The best unit of channel 3 is at the corner of an image.
    run.value["layer1.0"][7, 3, 0, 0] = 99
    folder = run.write(tmp_path_factory.mktemp("run"))
    image = np.zeros((4, 3, SIZE, SIZE), np.float32)
    image[2, 0], image[3, 1] = 1, 1
    with store.create(
        folder / "preferred_stimulus" / "layer1.0.h5", store.provenance("preferred_stimulus", {})
    ) as file:
        file["channel"] = np.array(MEASURED, np.int32)
        file["image"], file["off_image"] = image, 1 - image
    table = pd.DataFrame({"layer": "layer1.0", "channel": range(8), "depth": 1})
    numbers = {
        "stimulus_activation": [2.0, np.nan, 5.0, 3.0],
        "off_activation": [-1.0, np.nan, -2.0, np.nan],
        "stimulus_gain": [1.5, np.nan, 0.97, 2.25],
        "stimulus_gradient": [0.5, np.nan, -0.25, np.nan],
        "stimulus_converged": [True, None, True, False],
    }
    for name, values in numbers.items():
        table[name] = pd.Series(values, MEASURED).reindex(range(8)).to_numpy()
    reasons = pd.Series(["", "silent", "", ""], MEASURED)
    table["stimulus_reason"] = reasons.reindex(range(8), fill_value="not_measured").to_numpy()
    store.write_table(table, folder / "channels.csv")
    return folder, store.read_table(folder / "channels.csv")


def sheet(folder: Path, table: pd.DataFrame, channels=32, with_fields=True) -> Figure:
    with (
        store.open(folder / "preferred_stimulus" / "layer1.0.h5") as file,
        store.open(folder / "receptive_fields" / "layer1.0.h5") as fields,
        store.open(folder / "activations.h5") as activations,
    ):
        top, source = activations["layer1.0"], "top_per_image"
        given = fields if with_fields else None
        title = "demo · layer1.0 · preferred stimuli"
        return drawn.sheet(file, table, given, top, source, channels, title)


def pixels(figure) -> np.ndarray:
    FigureCanvasAgg(figure).draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def test_the_sheet_takes_the_chosen_channels(written):
    texts = [text.get_text() for text in sheet(*written, channels=2).axes[0].texts]
    assert [text for text in texts if text.isdigit()] == ["0", "6"]
    assert texts[1].startswith("2 of 8 channels (4 measured)")


def test_each_picture_stands_in_its_place(written):
    folder, table = written
    figure = sheet(folder, table)
    assert overlaps(figure) == [] and cut_off(figure) == []
    shown = pixels(figure)
    side = sheets.fitting(SIZE, drawn.SIDE)
    assert side % SIZE == 0
    place = sheets.layout(4, 4, side)

    def tile(row, column):
        x, y = place.corner(row, column)
        return shown[y : y + side, x : x + side]

    assert (tile(2, 2) == [255, 0, 0]).all() and (tile(2, 3) == [0, 255, 255]).all()
    assert (tile(3, 2) == [0, 255, 0]).all()
    for row, column in ((1, 0), (1, 1), (1, 2), (1, 3), (3, 3)):
        assert (tile(row, column) == 255).all(), "nothing there"
    step = side // SIZE
    with store.open(folder / "receptive_fields" / "layer1.0.h5") as fields:
        patches, gradients = fields["patch"][:, 0], fields["mean_gradient"][:]
    for row in (0, 2, 3):
        expected = (style.signed_rgb(gradients[MEASURED[row]]) * 255).round()
        assert np.array_equal(tile(row, 1)[::step, ::step], expected)
    # A window of 19 pixels about (0.5, 0.5): nine rows and columns lie above and left of the image.
    patch, shown_patch = patches[MEASURED[2]], tile(2, 0)[::step, ::step]
    assert np.array_equal(shown_patch[9:, 9:], patch[9:, 9:])
    assert shown_patch[:9].min() >= 200 and np.ptp(shown_patch[:9], axis=-1).max() == 0
    assert shown_patch[:, :9].min() >= 200
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"gain 1.50", "gain 0.97", "gain ≥ 2.25", "silent", "r 0.50", "r −0.25"} <= set(texts)
    weak = next(text for text in figure.axes[0].texts if text.get_text() == "gain 0.97")
    assert weak.get_color() == style.VERMILLION
    assert "4 of 8 channels (4 measured)" in texts[1]


def test_without_receptive_fields_there_are_the_stimuli_alone(written):
    folder, table = written
    figure = sheet(folder, table, with_fields=False)
    shown, side = pixels(figure), sheets.fitting(SIZE, drawn.SIDE)
    x, y = sheets.layout(4, 2, side).corner(2, 0)
    assert (shown[y : y + side, x : x + side] == [255, 0, 0]).all()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert not any("top" in text for text in texts)


@pytest.mark.parametrize("with_fields", [True, False])
def test_the_script_draws_every_layer(written, tmp_path, monkeypatch, with_fields):
    monkeypatch.chdir(tmp_path)
    folder, _ = written
    given = {
        "channels": folder / "channels.csv",
        "activations": folder / "activations.h5",
        "preferred_stimulus": [folder / "preferred_stimulus" / "layer1.0.h5"],
        "receptive_fields": [folder / "receptive_fields" / "layer1.0.h5"] if with_fields else [],
    }
    settings = {"run": "demo", "layers": ["layer1.0"], "channels": 32, "source": "top_per_image"}
    found = by_script("figures_preferred_stimulus", tmp_path, given, settings)
    with Image.open(found["00_layer1.0"]) as image:
        columns = 4 if with_fields else 2
        place = sheets.layout(4, columns, sheets.fitting(SIZE, drawn.SIDE))
        assert image.size == (place.width, place.height)
