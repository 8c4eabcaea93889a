"""Figures of virtual filters, skip connections and residual branches, against planted fields."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import by_script
from legible import cut_off, overlaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from rfatlas.figures import figures_virtual_filters as drawn
from rfatlas.figures import sheets, style
from rfatlas.files import store

LAYERS = {"conv1": ("kernel", 6), "layer1.0": ("skip", 5), "layer1.1": (None, 5)}


def table(seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    parts = []
    for depth, (layer, (path, channels)) in enumerate(LAYERS.items()):
        part = pd.DataFrame({"layer": layer, "channel": range(channels), "depth": depth})
        for stem in ("virtual", "virtual_linear"):
            for end in ("correlation", "correlation_null"):
                values = random.uniform(-1, 1, channels)
                part[f"{stem}_{end}"] = values if path else np.nan
        part["virtual_reason"] = "" if path else "no skip"
        block = layer.startswith("layer")
        part["skip_energy_share"] = random.uniform(0, 1, channels) if block else np.nan
        part["skip_residual_cosine"] = random.uniform(-1, 1, channels) if block else np.nan
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """virtual_filters.h5 and mean gradients in which a cross marks the filter's pixels."""
    folder = tmp_path_factory.mktemp("run")
    with store.create(
        folder / "virtual_filters.h5", store.provenance("virtual_filters", {})
    ) as file:
        for layer, (path, channels) in LAYERS.items():
            group = file.create_group(layer)
            group.attrs["reason"] = "" if path else "the block has no skip connection"
            if path is None:
                continue
            kernel = np.zeros((channels, 3, 7, 7), np.float32)
            kernel[:, 0] = np.arange(49).reshape(7, 7) - 24
            kernel[1] = 0
            group["filter"] = kernel
            group["linear"] = np.tile(kernel, (1, 1, 2, 2))[..., :11, :11]
            group.attrs.update(path=path, start=[0.5] * 2, stride=[2] * 2, size=7)
    for layer, (size, start) in {
        "conv1": (7, 0.5),
        "layer1.0": (19, 1.5),
        "layer1.1": (35, 1.5),
    }.items():
        channels = LAYERS[layer][1]
        attrs = store.provenance("receptive_fields", {}) | {"start": [start] * 2, "size": size}
        with store.create(folder / "receptive_fields" / f"{layer}.h5", attrs) as file:
            file["channel"] = np.arange(channels - 1, dtype=np.int32)
            y, x = np.indices((size, size))
            file["mean_gradient"] = np.ones((channels - 1, 3, 1, 1)) * (100.0 * y + x)
    store.write_table(table(), folder / "channels.csv")
    return folder


def sheet(folder: Path, layer: str, with_fields: bool = True, channels: int = 32) -> Figure:
    with store.open(folder / "virtual_filters.h5") as file:
        if not with_fields:
            return drawn.sheet(file[layer], None, rows(layer), channels, f"demo · {layer}")
        with store.open(folder / "receptive_fields" / f"{layer}.h5") as fields:
            return drawn.sheet(file[layer], fields, rows(layer), channels, f"demo · {layer}")


def rows(layer: str) -> pd.DataFrame:
    return table()[table()["layer"] == layer]


def dots(axes) -> list[np.ndarray]:
    kinds = [each for each in axes.collections if isinstance(each, PathCollection)]
    return [np.asarray(kind.get_offsets()) for kind in kinds]


# ---- sheets


@pytest.mark.parametrize(
    ("start", "layer_start", "extent", "window"),
    [(0.5, 0.5, 7, 7), (0.5, 1.5, 7, 19), (0.5, 0.5, 7, 4), (2.0, 0.5, 11, 19), (0.5, 9.5, 7, 8)],
)
def test_the_same_pixels_are_those_that_both_windows_hold(start, layer_start, extent, window):
    """In image coordinates, pixel by pixel."""
    mine = np.floor(start - extent / 2) + np.arange(extent)
    theirs = np.floor(layer_start - window / 2) + np.arange(window)
    found = drawn.shared(start, layer_start, extent, window)
    assert theirs[found].tolist() == [pixel for pixel in theirs if pixel in mine]


def test_the_sheet_takes_the_chosen_channels(written):
    texts = [text.get_text() for text in sheet(written, "conv1", channels=2).axes[0].texts]
    assert [text for text in texts if text.isdigit()] == ["0", "5"]
    assert texts[1].startswith("2 of 6 channels   |   the first layer's own kernels")


def test_each_picture_stands_in_its_place(written):
    figure = sheet(written, "layer1.0")
    assert overlaps(figure) == [] and cut_off(figure) == []
    FigureCanvasAgg(figure).draw()
    shown = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    side = sheets.fitting(7, drawn.SIDE)
    place = sheets.layout(5, 4, side)

    def tile(row, column):
        x, y = place.corner(row, column)
        return shown[y : y + side, x : x + side]

    step = side // 7
    with (
        store.open(written / "virtual_filters.h5") as file,
        store.open(written / "receptive_fields" / "layer1.0.h5") as fields,
    ):
        kernel, gradient = file["layer1.0/filter"][0], fields["mean_gradient"][0]
    expected = (style.signed_rgb(kernel) * 255).round()
    assert np.array_equal(tile(0, 0)[::step, ::step], expected)
    # A window of 19 about 1.5 begins at -8, the filter of 7 about 0.5 at -3.
    cut = gradient[:, 5:12, 5:12]
    assert np.array_equal(tile(0, 1)[::step, ::step], (style.signed_rgb(cut) * 255).round())
    assert (tile(1, 0) == 255).all(), "an empty filter has no picture"
    assert (tile(4, 1) == 255).all() and (tile(4, 3) == 255).all(), "no mean gradient"
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "through the skip connections" in texts[1] and {"7 px", "11 px", "19 px"} <= set(texts)
    value = rows("layer1.0")["virtual_correlation"].iloc[0]
    assert f"r {value:.2f}".replace("-", "−") in texts


@pytest.mark.parametrize("with_fields", [True, False])
@pytest.mark.parametrize("layer", list(LAYERS))
def test_every_layer_has_a_sheet(written, layer, with_fields):
    figure = sheet(written, layer, with_fields)
    assert overlaps(figure) == [] and cut_off(figure) == []
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert any("no skip connection" in text for text in texts) == (layer == "layer1.1")
    assert any("mean" in text and "gradient" in text for text in texts[2:]) == (
        with_fields and layer != "layer1.1"
    )


# ---- over all layers


@pytest.mark.parametrize("with_twin", [True, False])
def test_correlations_stand_beside_their_null(with_twin):
    twin = table(1) if with_twin else None
    figure = drawn.correlation(table(), "demo", twin, "demo_random")
    figure.set_dpi(style.DPI)
    assert overlaps(figure) == [] and cut_off(figure) == []
    for axes, stem in zip(figure.axes, ("virtual", "virtual_linear"), strict=True):
        places = np.concatenate(dots(axes))
        for position, layer in enumerate(("conv1", "layer1.0")):
            for side, end in ((-1, "correlation"), (1, "correlation_null")):
                near = np.abs(places[:, 0] - position - 0.2 * side) < 0.2
                expected = rows(layer)[f"{stem}_{end}"]
                np.testing.assert_allclose(np.sort(places[near, 1]), np.sort(expected))
        marks = [line for line in axes.lines if line.get_marker() == "^"]
        medians = table(1).groupby("layer")[f"{stem}_correlation"].median()
        expected = medians[["conv1", "layer1.0"]].tolist() if with_twin else []
        assert [line.get_ydata()[0] for line in marks] == pytest.approx(expected)


def test_shares_are_those_of_blocks_and_beyond_the_axis_on_its_edge():
    mine = table()
    first = mine.index[mine["layer"] == "layer1.0"]
    mine.loc[first[0], "skip_energy_share"] = 7.0
    mine.loc[first[1], "skip_energy_share"] = -2.0
    figure = drawn.skip_share(mine, "demo", table(1), "demo_random")
    figure.set_dpi(style.DPI)
    assert overlaps(figure) == [] and cut_off(figure) == []
    upper, lower = figure.axes
    labels = [label.get_text() for label in lower.get_xticklabels()]
    assert labels == ["layer1.0", "layer1.1"]
    places = dots(upper)[0][:, 1]
    expected = mine.loc[first, "skip_energy_share"].clip(*drawn.SHARES)
    np.testing.assert_allclose(np.sort(places), np.sort(expected))
    assert "2 channels beyond" in upper.get_title(loc="left")
    np.testing.assert_allclose(
        np.sort(dots(lower)[1][:, 1]),
        np.sort(mine.loc[mine["layer"] == "layer1.1", "skip_residual_cosine"]),
    )
    marks = [line.get_ydata()[0] for line in lower.lines if line.get_marker() == "^"]
    medians = table(1).groupby("layer")["skip_residual_cosine"].median()
    assert marks == pytest.approx(medians[["layer1.0", "layer1.1"]].tolist())


def test_a_network_without_blocks_has_no_share(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = store.read_table(written / "channels.csv")
    store.write_table(rows.assign(skip_energy_share=np.nan), tmp_path / "channels.csv")
    given = {
        "channels": tmp_path / "channels.csv",
        "twin": [],
        "virtual_filters": written / "virtual_filters.h5",
        "receptive_fields": [written / "receptive_fields" / "conv1.h5"],
    }
    settings = {"run": "demo", "twin": "", "layers": ["conv1"], "channels": 4}
    found = by_script("figures_virtual_filters", tmp_path, given, settings)
    assert set(found) == {"agreement_with_the_mean_gradients", "00_conv1"}


@pytest.mark.parametrize("on", [True, False])
def test_the_script_draws_what_there_is(written, tmp_path, monkeypatch, on):
    monkeypatch.chdir(tmp_path)
    layers = ["conv1", "layer1.0", "layer1.1"]
    given = {
        "channels": written / "channels.csv",
        "twin": [],
        "virtual_filters": written / "virtual_filters.h5" if on else [],
        "receptive_fields": [written / "receptive_fields" / f"{layer}.h5" for layer in layers],
    }
    if not on:
        rows = store.read_table(given["channels"]).filter(regex="^(?!virtual_)")
        given["channels"] = tmp_path / "channels.csv"
        store.write_table(rows, given["channels"])
    settings = {"run": "demo", "twin": "", "layers": layers, "channels": 4}
    found = by_script("figures_virtual_filters", tmp_path, given, settings)
    names = {f"{depth:02d}_{layer}" for depth, layer in enumerate(layers)}
    names.add("agreement_with_the_mean_gradients")
    assert set(found) == {"share_of_the_skip_connection"} | (names if on else set())
