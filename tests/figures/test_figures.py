"""Stage figures: what is drawn where, against planted pictures and independent formulas."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import by_script
from legible import cut_off, overlaps
from PIL import Image
from scipy import stats
from synthetic import IMAGE, Layer, Run

from rfatlas.errors import RfatlasError
from rfatlas.figures import figures, sheets, style
from rfatlas.files import store
from rfatlas.tables import channels

CHANNELS = 24
RED = np.array([255, 0, 0], np.uint8)


def montage(folder: Path, table: pd.DataFrame, name: str, channels: int = 32, patches: int = 9):
    with (
        store.open(folder / "receptive_fields" / f"{name}.h5") as fields,
        store.open(folder / "activations.h5") as activations,
    ):
        rows, top = table[table["layer"] == name], activations[name]
        title = f"demo · {name}"
        return figures.montage(fields, rows, top, "top_per_image", channels, patches, title)


def table_of(run: Run, folder: Path, with_fields: bool = True) -> pd.DataFrame:
    names = [layer.name for layer in run.layers]
    table = channels.build(
        folder / "activations.h5",
        folder / "model.json",
        folder / "images.h5",
        names,
        [folder / "receptive_fields" / f"{name}.csv" for name in names] if with_fields else [],
        0.1,
        0.001,
        0.5,
    )
    store.write_table(table, folder / "channels.csv")
    return store.read_table(folder / "channels.csv")


def pixels(figure, stem: Path) -> np.ndarray:
    style.save(figure, stem)
    with Image.open(f"{stem}.png") as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def montage_pixels(run: Run, folder: Path, name: str, **limits) -> tuple[np.ndarray, sheets.Layout]:
    shown = pixels(montage(folder, table_of(run, folder), name, **limits), folder / name)
    with store.open(folder / "receptive_fields" / f"{name}.h5") as fields:
        have, patches, window = fields["patch"].shape[:3]
    layout = figures.arranged(
        min(have, limits.get("channels", 32)), min(patches, limits.get("patches", 9)), window
    )
    assert shown.shape[:2] == (layout.height, layout.width)
    return shown, layout


def tile_of(picture: np.ndarray, layout: sheets.Layout, row: int, column: int) -> np.ndarray:
    x, y = layout.corner(row, column)
    return picture[y : y + layout.side, x : x + layout.side]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Run, Path]:
    """A run whose layer1.0 has a silent channel, one with three units and one with a red patch."""
    run = Run()
    run.value["layer1.0"][:, 2] = 0
    run.value["layer1.0"][3:, 5] = 0
    run.filter_norm["layer1.0"][2] = 0
    # The best unit of channel 6 lies inside the image, and all of that image is red.
    run.pixels[7] = RED
    run.value["layer1.0"][:, 6] = np.minimum(run.value["layer1.0"][:, 6], 4)
    run.value["layer1.0"][7, 6, 4, 4] = 9
    # Everything in channel 7 happens at the corner, where half of the window is outside.
    run.value["layer1.0"][:, 7] = 0
    run.value["layer1.0"][:, 7, 0, 0] = np.linspace(1, 2, run.images)
    return run, run.write(tmp_path_factory.mktemp("run"))


# ---- pieces


def test_channels_are_chosen_evenly_from_end_to_end():
    assert style.evenly(6, 32).tolist() == [0, 1, 2, 3, 4, 5]
    for channels_, limit in ((64, 32), (512, 32), (65, 32), (3, 2), (7, 1)):
        chosen = style.evenly(channels_, limit)
        assert len(chosen) == limit and chosen[0] == 0
        if limit > 1:
            assert chosen[-1] == channels_ - 1
            assert np.ptp(np.diff(chosen)) <= 1


@pytest.mark.parametrize(
    ("yx", "start", "stride", "window"),
    [((0, 0), 0.5, 4, 19), ((7, 3), 0.5, 4, 19), ((3, 0), 0.5, 8, 32), ((2, 2), 2.0, 3, 8)],
)
def test_pixels_outside_the_image_are_found(yx, start, stride, window):
    found = style.outside(np.array(yx), start, stride, window, IMAGE)
    for row, column in np.ndindex(window, window):
        y = int(np.floor(start + stride * yx[0] - window / 2)) + row
        x = int(np.floor(start + stride * yx[1] - window / 2)) + column
        assert found[row, column] == (not (0 <= y < IMAGE and 0 <= x < IMAGE))


def test_the_window_is_centred_as_the_stored_counts_are(written):
    run, folder = written
    for layer in run.layers:
        _, image, yx = run.top(layer)
        with store.open(folder / "receptive_fields" / f"{layer.name}.h5") as file:
            count, window = file["count"][:], file["patch"].shape[2]
        for channel in range(layer.channels):
            inside = sum(
                ~style.outside(yx[channel, rank], layer.start, layer.stride, window, IMAGE)
                for rank in range(run.top_k)
                if image[channel, rank] >= 0
            )
            np.testing.assert_array_equal(inside, count[channel])


def test_a_gradient_is_shown_about_mid_grey_on_its_own_scale():
    field = np.zeros((3, 3, 3))
    field[0, 0, 0], field[1, 2, 2] = -4, 2
    shown = style.signed_rgb(field)
    assert shown[0, 0].tolist() == [0, 0.5, 0.5]
    assert shown[2, 2].tolist() == [0.5, 0.75, 0.5]
    assert (style.signed_rgb(np.zeros((3, 2, 2))) == 0.5).all()
    assert style.positive_rgb(np.full((3, 2, 2), 3.0)).max() == 1


def test_a_few_towering_pixels_do_not_set_the_scale_of_a_large_field():
    field = np.full((3, 40, 40), 1.0)
    field[:, 3, 4:10] = 50
    assert style.display_range(field) == 1
    field[:, 3:10] = 50
    assert style.display_range(field) == 50
    assert style.display_range(np.full((3, 2, 2), np.nan)) == 1
    sparse = np.zeros((3, 40, 40))
    sparse[0, 0, 0] = 7
    assert style.display_range(sparse) == 7


def test_no_dark_edge_is_drawn_where_the_image_ends():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:, 20:] = 200
    blank = np.arange(40)[None] < np.full((40, 1), 20)
    assert style.tile(picture, blank, 64).min() > 195


@pytest.mark.parametrize("patches", [1, 9, 100])
@pytest.mark.parametrize("number", [1, 8, 32, 64, 1000])
@pytest.mark.parametrize("window", [1, 7, 21, 22, 224])
def test_tiles_neither_overlap_nor_leave_the_picture(patches, number, window):
    layout = figures.arranged(number, patches, window)
    assert layout.width <= figures.MAX_WIDTH and layout.side >= 16
    x, y = np.array(
        [
            layout.corner(row, column)
            for row in range(number)
            for column in range(patches + len(figures.PANELS))
        ]
    ).T
    assert x.min() >= 0 and x.max() + layout.side <= layout.width
    assert y.min() >= 0 and y.max() + layout.side <= layout.height
    places = np.unique(np.stack((x, y), 1), axis=0)
    assert len(places) == len(x)
    for axis in (0, 1):
        steps = np.diff(np.unique(places[:, axis]))
        assert (steps >= layout.side).all()


# ---- the montage


def test_a_planted_red_patch_appears_in_the_row_of_its_channel_only(written):
    run, folder = written
    picture, layout = montage_pixels(run, folder, "layer1.0")
    assert (tile_of(picture, layout, 6, 0) == RED).all()
    red = (picture == RED).all(axis=-1)
    _, image, _ = run.top(run.layers[1])
    expected = np.zeros(red.shape, bool)
    for row, rank in np.argwhere(image[:, :9] == 7):
        x, y = layout.corner(row, rank)
        expected[y : y + layout.side, x : x + layout.side] = True
    assert expected.any() and not (red & ~expected).any()


def test_the_mean_gradient_panel_is_mid_grey_where_nothing_happens(written):
    run, folder = written
    picture, layout = montage_pixels(run, folder, "conv1")
    with store.open(folder / "receptive_fields" / "conv1.h5") as fields:
        gradients = fields["mean_gradient"][:]
    for row in range(12):
        panel = tile_of(picture, layout, row, layout.apart + 1)
        size = layout.side // 7
        for place in np.ndindex(7, 7):
            pixel = panel[place[0] * size + size // 2, place[1] * size + size // 2].astype(int)
            gradient = gradients[row][:, place[0], place[1]]
            value = 127.5 + 127.5 * gradient / np.abs(gradients[row]).max()
            assert np.abs(pixel - value).max() <= 1
        # The first third of the channels has grey Gabors, which must not come out coloured.
        if row % 3 == 0:
            assert np.ptp(panel.astype(int), axis=-1).max() <= 1


def test_pixels_outside_the_image_are_hatched_not_black(written):
    run, folder = written
    picture, layout = montage_pixels(run, folder, "layer1.0")
    row = 7
    scale = layout.side // 19
    for column in range(layout.apart):
        shown = tile_of(picture, layout, row, column).astype(int)
        for y, x in ((0, 0), (0, 18), (18, 0), (8, 8)):
            pixel = shown[y * scale + 1, x * scale + 1]
            assert np.ptp(pixel) == 0 and pixel.min() >= 200
        inside = shown[9 * scale + 1 :, 9 * scale + 1 :]
        expected = run.pixels[39 - column, :10, :10].astype(int).repeat(scale, 0).repeat(scale, 1)
        assert np.abs(inside - expected[1:, 1:]).max() == 0
    mean = tile_of(picture, layout, row, layout.apart).astype(int)
    assert mean[: 9 * scale].min() >= 200


def test_missing_units_and_silent_channels_stay_white_and_are_named(written):
    run, folder = written
    picture, layout = montage_pixels(run, folder, "layer1.0")
    for column in range(layout.apart + 3):
        assert (tile_of(picture, layout, 2, column) == 255).all()
    for column in range(3, layout.apart):
        assert (tile_of(picture, layout, 5, column) == 255).all()
    for column in (0, 1, 2, layout.apart):
        assert (tile_of(picture, layout, 5, column) != 255).any()
    figure = montage(folder, table_of(run, folder), "layer1.0")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("silent") == 1 and texts.count("inactive") == 1
    assert not overlaps(figure)


def test_the_title_says_which_of_how_many_and_the_size_of_the_field(written):
    run, folder = written
    table = table_of(run, folder)
    table.loc[table["layer"] == "conv1", "rf_kind"] = "local"
    cases = {
        "conv1": ("5 of 12 channels", "local receptive field 7 × 7 px, stride 2 px", "7 px"),
        "layer2.0": ("5 of 6 channels", "43 × 43 px, more than the image: shown are 32", "32 px"),
    }
    for name, wanted in cases.items():
        figure = montage(folder, table, name, channels=5, patches=4)
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert f"demo · {name}" in texts
        for part in wanted:
            assert any(part in text for text in texts), part
        shown = style.evenly((table["layer"] == name).sum(), 5)
        assert [str(index) for index in shown] == [t for t in texts if t.isdigit()]
        assert not overlaps(figure) and not cut_off(figure)


def test_an_unbounded_field_shows_the_whole_image(tmp_path):
    run = Run(layers=[Layer("conv1", 4, 4, 7, 2, 0.5), Layer("avgpool", 4, 1, None, 1, IMAGE / 2)])
    folder = run.write(tmp_path)
    with store.open(folder / "receptive_fields" / "avgpool.h5") as fields:
        picture, blank = sheets.patch(fields, 0, 0, np.zeros(2, int))
    assert len(picture) == IMAGE and not blank.any()
    table = table_of(run, folder)
    figure = montage(folder, table, "avgpool")
    assert any("whole image" in text.get_text() for text in figure.axes[0].texts)
    assert not overlaps(figure) and not cut_off(figure)
    figure = figures.rf_size(table, IMAGE, "demo")
    assert any("whole" in text.get_text() for text in figure.legends[0].get_texts())
    drawn = [np.asarray(line.get_ydata(), float) for line in figure.axes[0].lines]
    assert any(np.array_equal(y, [np.nan, IMAGE], equal_nan=True) for y in drawn)
    assert not overlaps(figure)


def test_a_large_montage_is_small_enough_for_a_report(tmp_path):
    random = np.random.default_rng(0)
    # Smooth noise compresses about as badly as photographs of that size do.
    coarse = random.integers(0, 256, (32 * 12, 8, 8, 3), np.uint8)
    patch = np.stack([np.array(Image.fromarray(one).resize((224, 224))) for one in coarse])
    patch = patch.reshape(32, 12, 224, 224, 3)
    means = np.moveaxis(patch[:, 9:] / 255.0, -1, 2)
    path = tmp_path / "layer4.2.h5"
    with store.create(path, store.provenance("receptive_fields", {})) as file:
        file["channel"], file["patch"] = np.arange(32), patch[:, :9]
        file["count"] = np.full((32, 224, 224), 9)
        for index, name in enumerate(("mean_image", "mean_gradient", "effective")):
            file[name] = means[:, index]
        file.attrs.update(size=899, stride=[32] * 2, start=[112] * 2)
        file.attrs.update(image_size=224, whole_image=False)
    top = {"top_image": np.ones((32, 9), int), "top_yx": np.zeros((32, 9, 2), int)}
    table = pd.DataFrame({"channel": np.arange(512), "inactive": False, "rf_kind": "exact"})
    stem = tmp_path / "montage"
    with store.open(path) as fields:
        figure = figures.montage(fields, table, top, "top", 32, 9, "big · layer4.2")
    picture = pixels(figure, stem)
    assert picture.shape[1] <= figures.MAX_WIDTH
    assert stem.with_suffix(".png").stat().st_size < 2e6


# ---- the line figures


def many_layers(layers: int = 18) -> pd.DataFrame:
    """A table like that of a ResNet-34, names at their longest."""
    random = np.random.default_rng(3)
    rows = []
    for depth in range(layers):
        for channel in range(CHANNELS):
            rows.append(
                {
                    "layer": f"layer{depth // 5}.{depth % 5}.block",
                    "channel": channel,
                    "depth": depth,
                    "rectified": depth > 0,
                    "rf_size": 7 + 60 * depth if depth < layers - 1 else np.nan,
                    "inactive_reason": random.choice(["", "", "weak", "constant"]),
                    "fraction_active": random.uniform(),
                    "erf_sigma": random.uniform(1, 2 + 5 * depth),
                    "erf_r2": random.uniform(),
                }
            )
    return pd.DataFrame(rows)


def scores() -> list[figures.Score]:
    return [
        figures.Score("a_run_with_quite_a_long_name", 50_000, 1000, 36_655, 45_710),
        figures.Score("demo", 1000, 24, 910, 990),
        figures.Score("perfect", 10, 10, 10, 10),
        figures.Score("few_classes", 100, 4, 50, 100),
        figures.Score("unlabelled", 0, 24, 0, 0),
        figures.Score("headless", 0, 0, 0, 0),
    ]


def drawn(name: str, layers: int = 18):
    table, run = many_layers(layers), "resnet34_imagenet"
    return {
        "rf_size": lambda: figures.rf_size(table, 224, run),
        "sparsity": lambda: figures.sparsity(table, run),
        "accuracy": lambda: figures.accuracy(scores()),
        "accuracy of one": lambda: figures.accuracy(scores()[:1]),
    }[name]()


@pytest.mark.parametrize("name", ["rf_size", "sparsity", "accuracy", "accuracy of one"])
def test_no_text_overlaps_and_none_is_cut_off(name):
    figure = drawn(name)
    assert not overlaps(figure)
    assert not cut_off(figure)


@pytest.mark.parametrize("name", ["rf_size", "sparsity", "accuracy"])
def test_files_are_readable_not_blank_reproducible_and_hold_their_fonts(name, tmp_path):
    for stem in ("one", "two"):
        figure = drawn(name, layers=3)
        picture = pixels(figure, tmp_path / stem)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert 0.01 < (picture < 250).any(axis=-1).mean() < 0.9
    for suffix in ("png", "pdf"):
        one, two = ((tmp_path / f"{stem}.{suffix}").read_bytes() for stem in ("one", "two"))
        assert one == two
    assert one.startswith(b"%PDF") and b"/FontFile2" in one and b"/Type3" not in one


def test_axes_name_their_quantities_and_units():
    figure = figures.rf_size(many_layers(), 224, "demo")
    assert "px" in figure.axes[0].get_ylabel()
    assert figure.axes[0].get_xlabel()
    upper, lower = figures.sparsity(many_layers(), "demo").axes
    assert upper.get_ylabel() and lower.get_ylabel() and lower.get_xlabel()


def test_the_effective_diameter_is_that_of_the_fitted_gaussian():
    table = pd.DataFrame(
        {
            "layer": "conv1",
            "channel": [0, 1],
            "depth": 0,
            "rf_size": 40,
            "erf_sigma": [3.0, 30.0],
            "erf_r2": [0.9, 0.2],
        }
    )
    dots = figures.rf_size(table, 64, "demo").axes[0].collections[0].get_offsets()
    assert len(dots) == 1
    # Half the drawn diameter from the centre the Gaussian has fallen to 4.55 % of its peak.
    assert np.exp(-((dots[0][1] / 2) ** 2) / (2 * 3.0**2)) == pytest.approx(0.0455, rel=1e-6)


def test_without_receptive_fields_the_sizes_are_the_theoretical_ones(written):
    run, folder = written
    axes = figures.rf_size(table_of(run, folder, with_fields=False), IMAGE, "demo").axes[0]
    assert not axes.collections
    assert any(line.get_ydata().tolist() == [7, 19, 43] for line in axes.lines[1:])


def test_inactive_bars_count_the_reasons():
    table = many_layers()
    figure = figures.sparsity(table, "demo")
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    assert sum(heights) * CHANNELS == pytest.approx((table["inactive_reason"] != "").sum())
    written = [text.get_text() for text in figure.axes[1].texts]
    for depth, text in enumerate(written):
        rows = table[table["depth"] == depth]
        assert text == f"{(rows['inactive_reason'] != '').sum()}/{CHANNELS}"


def test_accuracy_intervals_are_wilsons_and_chance_is_marked():
    entry = figures.Score("demo", 200, 24, 150, 190)
    lines = figures.accuracy([entry]).axes[0].lines
    drawn = [(line.get_xdata()[0], line.get_xdata()[-1]) for line in lines]
    for right, guesses in ((150, 1), (190, 5)):
        interval = stats.binomtest(right, 200).proportion_ci(method="wilson")
        assert any(pair == pytest.approx((interval.low, interval.high)) for pair in drawn)
        assert (right / 200, right / 200) in drawn
        assert (guesses / 24, guesses / 24) in drawn


def test_a_score_is_read_as_it_was_counted(written):
    run, folder = written
    with store.open(folder / "activations.h5") as file:
        score = figures.score("demo", file)
    order = np.argsort(-run.logits, axis=1, kind="stable")
    top1 = (order[:, 0] == run.labels).sum()
    assert score == figures.Score("demo", run.images, run.classes, top1, run.images)


def test_runs_without_labels_or_classifier_have_no_score(tmp_path):
    run = Run(images=6)
    run.labels[:] = -1
    folder = run.write(tmp_path)
    with store.open(folder / "activations.h5") as file:
        assert figures.score("demo", file).images == 0
    with store.create(tmp_path / "headless.h5", store.provenance("activations", {})) as file:
        file.create_group("output")
    with store.open(tmp_path / "headless.h5") as file:
        score = figures.score("demo", file)
    texts = [text.get_text() for text in figures.accuracy([score]).axes[0].texts]
    assert texts == ["no classifier"]


def test_a_damaged_channel_table_is_refused(tmp_path):
    (tmp_path / "channels.csv").write_text("")
    with pytest.raises(RfatlasError, match=r"channels\.csv"):
        store.read_table(tmp_path / "channels.csv")


# ---- the scripts


@pytest.mark.parametrize("with_fields", [True, False])
def test_the_script_draws_every_figure_of_a_run(written, tmp_path, monkeypatch, with_fields):
    run, folder = written
    monkeypatch.chdir(tmp_path)
    table_of(run, folder, with_fields)
    names = [layer.name for layer in run.layers]
    fields = [folder / "receptive_fields" / f"{name}.h5" for name in names]
    given = {
        "channels": folder / "channels.csv",
        "description": folder / "model.json",
        "activations": [folder / "activations.h5"],
        "receptive_fields": fields if with_fields else [],
    }
    settings = {"layers": names, "channels": 4, "patches": 3, "source": "top_per_image"}
    found = by_script("figures", tmp_path, given, {"run": "demo", **settings})
    drawn = {f"{depth:02d}_{name}" for depth, name in enumerate(names)} if with_fields else set()
    assert set(found) == {"receptive_field_size", "sparsity", "accuracy"} | drawn


def test_the_script_compares_the_runs(written, tmp_path, monkeypatch):
    _, folder = written
    monkeypatch.chdir(tmp_path)
    given = {"activations": [folder / "activations.h5"] * 2}
    assert set(by_script("figures", tmp_path, given, {})) == {"accuracy"}
