"""Stage atlas: what the pages are given, against the files they are made from."""

import base64
import json
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from atlas_site import (
    MARKUP,
    handed_over,
    sources,
    told,
    unpacked,
    write_gratings,
    write_table,
)
from PIL import Image
from synthetic import IMAGE, Layer, Run

from rfatlas.atlas import atlas, pictures
from rfatlas.errors import RfatlasError
from rfatlas.figures import style
from rfatlas.files import store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An invented run with a silent channel and markup in a class name, and its atlas."""
    run = Run()
    run.value["layer1.0"][:, 2] = 0
    run.class_names[1] = MARKUP
    folder = run.write(tmp_path_factory.mktemp("atlas") / run.name)
    table = write_table(run, folder)
    atlas.build(*sources(run, folder, "receptive_fields"), folder / "atlas")
    return run, folder, table


# ---- the table


def test_the_page_gets_the_whole_table(built):
    _, folder, table = built
    overview = handed_over(folder / "atlas", "overview")
    found = {column["name"]: column for column in overview["columns"]}
    assert list(found) == list(table.columns)
    for place, name in enumerate(table):
        wanted = [None if pd.isna(value) else value for value in table[name]]
        values = unpacked(handed_over(folder / "atlas", f"column-{place:03d}"))
        assert values == wanted, name
        assert found[name]["known"] == table[name].notna().sum()
    assert found["inactive"]["kind"] == "boolean"
    assert found["layer"]["kind"] == found["preferred_class"]["kind"] == "choice"
    assert found["filter_norm"]["kind"] == found["n_top"]["kind"] == "number"


def test_passports_hold_the_rows_of_the_table(monkeypatch, tmp_path):
    monkeypatch.setattr(atlas, "BLOCK", 5)
    run = Run(layers=[Layer("conv1", 12, 8, 7, 2, 0.5), Layer("layer1.0", 4, 4, 19, 4, 0.5)])
    folder = run.write(tmp_path / "demo")
    table = write_table(run, folder)
    atlas.build(*sources(run, folder, "receptive_fields"), folder / "atlas")
    row = 0
    for name in ("00-00", "00-01", "00-02", "01-00"):
        data = handed_over(folder / "atlas", f"passports-{name}")
        assert data["first"] == row
        assert len(data["values"]) == len(data["missing"]) == len(data["top"]["units"])
        for values in data["values"]:
            wanted = [None if pd.isna(value) else value for value in table.iloc[row]]
            assert values == wanted
            row += 1
    assert row == len(table)


def test_layers_are_where_their_rows_are(built):
    run, folder, table = built
    overview = handed_over(folder / "atlas", "overview")
    for layer in overview["layers"]:
        rows = table.iloc[layer["first"] : layer["first"] + layer["channels"]]
        assert (rows["layer"] == layer["name"]).all()
        assert rows["channel"].tolist() == list(range(layer["channels"]))
    assert [layer["name"] for layer in overview["layers"]] == [one.name for one in run.layers]


def test_infinities_booleans_and_gaps_survive_json():
    values = pd.Series([1.5, np.inf, -np.inf, np.nan, 3.0, 1 / 3])
    assert atlas.plain_values(values.tolist()) == [1.5, "inf", "-inf", None, 3, 0.333333333]
    mixed = pd.Series([True, np.nan, False], dtype=object)
    assert atlas.plain_values(mixed.tolist()) == [True, None, False]
    assert atlas.kind(mixed) == "boolean"
    assert atlas.kind(pd.Series([np.nan, np.nan])) == "number"
    assert atlas.kind(pd.Series([f"name {i}" for i in range(atlas.MOST_CHOICES + 1)])) == "text"


def test_layers_are_counted_as_the_page_filters():
    table = pd.DataFrame(
        {
            "layer": ["conv1"] * 4 + ["conv2"] * 2,
            "depth": [0] * 4 + [1] * 2,
            "inactive": pd.array([True, False, True, False, False, False], dtype=object),
            "color_class": ["double_opponent", "single_opponent", None, "x", None, None],
            "zero_q": [0.01, 0.05, 0.2, np.nan, np.nan, np.nan],
            "osi": [0.1, 0.3, np.nan, 0.8, 1.0, 0.5],
        }
    )
    found = atlas.layer_measures(table)
    assert [column for _, column, _ in found["measures"]] == [
        "inactive",
        "color_class",
        "color_class",
        "zero_q",
        "osi",
    ]
    assert found["rows"] == [
        [[2, 4], [1, 3], [1, 3], [2, 3], 0.3],
        [[0, 2], None, None, None, 0.75],
    ]


# ---- what the columns mean


def test_packed_columns_keep_their_values():
    numbers = pd.Series([1.5, np.inf, -np.inf, np.nan, 3.0, 0.333333333])
    found = unpacked(atlas.packed(numbers))
    assert found == [1.5, np.inf, -np.inf, None, 3, 0.333333333]
    counts = pd.Series([1, None, 3], dtype="Int64")
    assert unpacked(atlas.packed(counts)) == [1, None, 3]
    flags = pd.Series([True, np.nan, False], dtype=object)
    assert unpacked(atlas.packed(flags)) == [True, None, False]
    texts = pd.Series(["b", np.nan, "a", "b"])
    assert unpacked(atlas.packed(texts)) == ["b", None, "a", "b"]
    many = pd.Series([f"name {i}" for i in range(70_000)])
    assert unpacked(atlas.packed(many)) == many.tolist()


def test_every_column_is_explained(built):
    _, folder, _ = built
    overview = handed_over(folder / "atlas", "overview")
    for column in overview["columns"]:
        assert column["meaning"] and column["section"], column["name"]
        assert "`" not in column["meaning"] + column["formula"]


def test_explanations_are_those_of_the_page():
    text = """
## Tuning (stage `gratings`)

| column | meaning | unit, range | formula | source |
|---|---|---|---|---|
| `osi` | how `tuned` it is | 0 to 1 | (a \\| b) | Someone 1990 |

## Ablation (stages `ablation`, `channels`)

| column | meaning | unit | formula | source |
|---|---|---|---|---|
| `<mode>_delta_top1` | change of accuracy | | | |
| `<mode>_lost`, `<mode>_won` | images | | | |

## Fits (stage `fits`)

* `gabor_`: the gradient (the first
  one);
* `gabor_lum_`, `gabor_dark_`: its luminance, g_R + g_G; and so on

| column | meaning | unit, range | formula | source |
|---|---|---|---|---|
| `gabor_x` | centre | px | | |

## References

* Someone 1990: [A title](https://example.org). A journal.
"""
    columns = atlas.read_columns(text)
    osi = atlas.explain("osi", columns)
    assert osi == atlas.Column(
        "osi", "Tuning", "gratings", "how tuned it is", "0 to 1", "(a | b)", "Someone 1990"
    )
    ablated = atlas.explain("shuffle_delta_top1", columns)
    assert (ablated.section, ablated.stages) == ("Ablation", "ablation, channels")
    assert atlas.explain("mean_won", columns) == atlas.Column(
        "[a-z]+_won", "Ablation", "ablation, channels", "images", "", "", ""
    )
    assert atlas.explain("gabor_x", columns).meaning == "centre"
    assert atlas.explain("gabor_dark_x", columns) == atlas.Column(
        "gabor_dark_x", "Fits", "fits", "centre [its luminance, g_R + g_G]", "px", "", ""
    )
    assert atlas.explain("osi_more", columns) is atlas.UNDOCUMENTED
    assert atlas.read_references(text) == ["Someone 1990: A title. A journal."]


def test_every_column_of_the_page_is_read():
    text = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([\w<>]+)`", cell)]
    columns = atlas.read_columns(text)
    assert len(names) > 100
    for name in [*names, "gabor_lum_x", "gabor_kernel_lum_se_theta_deg", "gabor_virtual_r2"]:
        about = atlas.explain(name.replace("<mode>", "zero"), columns)
        assert about.section and about.stages and about.meaning, name
        assert about is not atlas.UNDOCUMENTED, name
    assert len(atlas.read_references(text)) > 5


# ---- markup


def test_markup_in_names_is_text(built):
    _, folder, _ = built
    for path in (folder / "atlas" / "data").iterdir():
        assert path.read_text().isascii()
    overview = handed_over(folder / "atlas", "overview")
    assert overview["classNames"][1] == MARKUP
    page = atlas.render(
        atlas.TEMPLATE,
        run=MARKUP,
        facts=dict.fromkeys(("images", "channels", "layers", "top1", "weights", "network"), MARKUP),
        runs=[MARKUP],
    )
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=&#34;") == 9
    assert 'href="../../%3Cimg%20src' in page


def test_the_page_asks_for_nothing_from_elsewhere(built):
    _, folder, _ = built
    own = [path for path in atlas.PAGE.iterdir() if path.is_file()]
    for path in [folder / "atlas" / "index.html", *own]:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|\bfetch\(|XMLHttpRequest|innerHTML", text), path
    page = (folder / "atlas" / "index.html").read_text(encoding="utf-8")
    for name in re.findall(r'(?:src|href)="([^"#]+)"', page):
        outside = name in ("data:,", "../findings.html", "../v1/properties.csv")
        assert outside or (folder / "atlas" / name).is_file(), name
    assert "Permission is hereby granted" in (folder / "atlas" / "uplot" / "LICENSE").read_text()


# ---- pictures


def cut(path: Path, index: int, side: int, columns: int) -> np.ndarray:
    """The tile at `index` of a sheet or strip."""
    row, column = index // columns, index % columns
    with Image.open(path) as image:
        assert image.size[0] % side == image.size[1] % side == 0
        assert row < image.size[1] // side and column < image.size[0] // side
        pixels = np.asarray(image.convert("RGB"))
    return pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]


def cut_strip(path: Path, index: int, entry: dict) -> np.ndarray:
    """The tile at `index` of the strip of a passport of a layer."""
    with Image.open(path) as image:
        side, columns, rows = (entry["strip"][key] for key in ("side", "columns", "rows"))
        assert image.size == (columns * side, rows * side)
    return cut(path, index, side, columns)


def thumbnail(site: Path, kind: str, layer: int, channel: int) -> np.ndarray:
    """The thumbnail of a channel in the grid of a site."""
    entry = handed_over(site, "overview")["layers"][layer]
    sprite = entry["sprites"][kind]
    sheet, place = divmod(channel, sprite["tiles"])
    path = site / "sprites" / f"{kind}-{layer:02d}-{sheet:02d}.webp"
    there = min(sprite["tiles"], entry["channels"] - sheet * sprite["tiles"])
    return cut(path, place, sprite["side"], min(sprite["columns"], there))


def test_pictures_of_small_fields_are_exact(built):
    run, folder, _ = built
    overview = handed_over(folder / "atlas", "overview")
    layer, entry = run.layers[0], overview["layers"][0]
    names = entry["strip"]["tiles"]
    assert entry["strip"]["side"] == layer.size == entry["window"]
    with h5py.File(folder / "receptive_fields" / "conv1.h5") as file:
        for channel in (0, 7, 11):
            path = folder / "atlas" / "passports" / "00" / f"{channel}.webp"
            field = file["mean_gradient"][channel]
            wanted = 127.5 + 127.5 * np.moveaxis(field, 0, -1) / np.abs(field).max()
            strip = cut_strip(path, names.index("mean_gradient"), entry)
            np.testing.assert_allclose(strip, wanted.clip(0, 255), atol=1)
            found = thumbnail(folder / "atlas", "mean_gradient", 0, channel)
            np.testing.assert_array_equal(found, strip)
            inside = file["patch"][channel, 3].any(-1)
            patch = cut_strip(path, names.index("patch_3"), entry)
            np.testing.assert_array_equal(patch[inside], file["patch"][channel, 3][inside])


def test_thumbnails_of_many_channels_stand_in_several_sheets(tmp_path):
    run = Run(layers=[Layer("conv1", 70, 2, 7, 2, 0.5)], images=4, top_k=2)
    folder = run.write(tmp_path / "demo")
    write_table(run, folder)
    atlas.build(*sources(run, folder, "receptive_fields"), folder / "atlas")
    sheets = sorted((folder / "atlas" / "sprites").glob("mean_image-00-*.webp"))
    assert len(sheets) == 5
    with h5py.File(folder / "receptive_fields" / "conv1.h5") as file:
        for channel in (0, 15, 16, 63, 64, 69):
            seen = file["count"][channel] > 0
            wanted = 255 * np.moveaxis(file["mean_image"][channel], 0, -1)
            shown = thumbnail(folder / "atlas", "mean_image", 0, channel)
            np.testing.assert_allclose(shown[seen], wanted[seen], atol=1)


def test_pictures_of_large_fields_resemble_them(built):
    run, folder, _ = built
    overview = handed_over(folder / "atlas", "overview")
    entry = overview["layers"][2]
    names = entry["strip"]["tiles"]
    assert entry["strip"]["side"] == pictures.PICTURE
    with h5py.File(folder / "receptive_fields" / "layer2.0.h5") as file:
        for channel in range(6):
            field, count = file["mean_gradient"][channel], file["count"][channel]
            shown = cut_strip(
                folder / "atlas" / "passports" / "02" / f"{channel}.webp",
                names.index("mean_gradient"),
                entry,
            )
            size = field.shape[-1]
            small = np.asarray(Image.fromarray(shown).resize((size, size)), float)
            seen = count > 0
            wanted = np.moveaxis(field, 0, -1)[seen]
            assert np.corrcoef(small[seen].ravel(), wanted.ravel())[0, 1] > 0.9


def test_a_silent_channel_is_hatched_and_has_no_units(built):
    _, folder, _ = built
    overview = handed_over(folder / "atlas", "overview")
    entry = overview["layers"][1]
    path = folder / "atlas" / "passports" / "01" / "2.webp"
    for index in range(len(entry["strip"]["tiles"])):
        shown = cut_strip(path, index, entry)
        np.testing.assert_array_equal(shown, style.hatch(entry["strip"]["side"]))
    layer = handed_over(folder / "atlas", "passports-01-00")
    assert layer["top"]["units"][2] == []
    assert layer["missing"][2] == entry["strip"]["tiles"]
    assert layer["missing"][3] == []
    assert layer["classes"][2] == []


def test_pixels_outside_the_image_are_hatched(built):
    run, folder, _ = built
    overview = handed_over(folder / "atlas", "overview")
    layer, entry = run.layers[0], overview["layers"][0]
    _, _, yx = run.top(layer)
    hatched = style.hatch(layer.size)
    corners = 0
    for channel in range(layer.channels):
        path = folder / "atlas" / "passports" / "00" / f"{channel}.webp"
        for rank in range(9):
            y, x = (layer.start + layer.stride * yx[channel, rank] - layer.size / 2).astype(float)
            rows = np.floor(y) + np.arange(layer.size)
            columns = np.floor(x) + np.arange(layer.size)
            outside = ((rows < 0) | (rows >= IMAGE))[:, None] | (columns < 0) | (columns >= IMAGE)
            shown = cut_strip(path, rank, entry)
            np.testing.assert_array_equal(shown[outside], hatched[outside])
            corners += outside.any()
    assert corners > 5


# ---- units, classes and curves


def test_top_units_name_their_images(built):
    run, folder, _ = built
    for number, layer in enumerate(run.layers):
        data = handed_over(folder / "atlas", f"passports-{number:02d}-00")
        value, image, _ = run.top(layer)
        for channel, units in enumerate(data["top"]["units"]):
            expected = [index for index in image[channel, :9] if index >= 0]
            assert [data["top"]["files"][file] for file, _, _ in units] == [
                f"{index}.png" for index in expected
            ]
            assert [label for _, label, _ in units] == run.labels[expected].tolist()
            shown = [activation for _, _, activation in units]
            assert shown == pytest.approx(value[channel, : len(units)].tolist(), rel=1e-3)


def test_classes_are_those_with_the_largest_means(built):
    run, folder, _ = built
    data = handed_over(folder / "atlas", "passports-02-00")
    value = run.value["layer2.0"].mean((2, 3), dtype=float)
    means = [value[run.labels == label].mean(0) for label in range(run.classes)]
    for channel, bars in enumerate(data["classes"]):
        wanted = sorted(((mean[channel], label) for label, mean in enumerate(means)), reverse=True)
        assert [label for label, _ in bars] == [label for _, label in wanted]
        assert [mean for _, mean in bars] == pytest.approx([mean for mean, _ in wanted], rel=1e-3)


def test_tuning_curves_pass_through_the_best_grating(tmp_path):
    axes = write_gratings(tmp_path / "conv1.h5", 6)
    with store.open(tmp_path / "conv1.h5", "gratings") as file:
        found = atlas.curves({"gratings": file}, 6)
    assert found["orientation"]["axis"] == axes["orientation"].tolist()
    for channel in range(5):
        # Half a cosine has the mean 1 / pi.
        along = np.exp(np.cos(np.radians(2 * (axes["orientation"] - 15 * channel)))) / np.pi
        assert found["orientation"]["values"][channel] == pytest.approx(along, rel=2e-3)
        across = np.exp(1 - np.log2(axes["frequency"] / 0.1) ** 2) / np.pi
        assert found["frequency"]["values"][channel] == pytest.approx(across, rel=2e-3)
        assert len(found["phase"]["values"][channel]) == 24
        for part in ("size", "contrast"):
            assert found[part]["values"][channel] == [[0, 1, 2, 1], [0.1, 1, 1.9, 1.1]]
    assert all(found[name]["values"][5] is None for name in found)
    surface = found["surface"]
    assert surface["frequency"] == axes["frequency"].tolist()
    for channel in range(5):
        shown = np.frombuffer(base64.b64decode(surface["values"][channel]), np.uint8)
        o, f = np.meshgrid(axes["orientation"], axes["frequency"], indexing="ij")
        wanted = np.exp(np.cos(np.radians(2 * (o - 15 * channel))) - np.log2(f / 0.1) ** 2)
        np.testing.assert_allclose(shown.reshape(o.shape), 255 * wanted / wanted.max(), atol=0.6)


def test_curves_of_color_and_its_maps(tmp_path):
    random = np.random.default_rng(0)
    axes = np.array([[1, 1, 1], [1, -0.5, 0], [0, -0.2, 1]])
    looks = random.uniform(0, 1, (360, 3))
    fields = random.normal(0, 1, (3, 3, 7, 7)).astype(np.float32)
    hues = np.arange(360)
    with store.create(tmp_path / "conv1.h5", {"stage": "color"}) as file:
        file["channel"], file["field_channel"] = np.arange(3), np.array([0, 1, 2])
        file["orientation"], file["frequency"] = np.array([0.0, 90]), np.array([0.1, 0.2, 0.4])
        file["hue"], file["blank"] = hues, np.full(3, 0.5)
        file["hue_response"] = 0.5 + np.stack([np.cos(np.radians(hues - d)) for d in (0, 90, 0)])
        file["hue_response"][2] = 0.2
        tuned = random.uniform(0, 1, (3, 6, 2, 3))
        file["direction"] = np.array([0.0, 90])
        file["direction_response"] = np.array([[1.0, 0], [0, 2], [0, 0]])
        file["tuned"], file["place"] = tuned, np.array([[1, 0], [0, 2], [-1, -1]])
        file["field_dkl"] = fields
        file.attrs["axis_change"], file["hue_rgb"] = axes, looks
    with store.open(tmp_path / "conv1.h5", "color") as file:
        found = atlas.curves({"color": file}, 3)
        tiles = pictures.tiles({"color": file}, None, None)
        drawn = [tile.draw(1)[0] for tile in tiles]
    peaks = [found["hue"]["axis"][int(np.argmax(v))] for v in found["hue"]["values"][:2]]
    assert peaks == [0, 90]
    assert found["hue"]["values"][2] is None, "nothing above the blank"
    assert found["axes"]["values"][0] == [
        pytest.approx(list(values), rel=1e-3) for values in tuned[0, :3, 1]
    ]
    assert found["axes"]["values"][2] is None
    assert len(found["hue"]["colours"]) == 36
    assert found["direction"] == {"axis": [0, 90], "values": [[1, 0], [0, 2], None]}
    quarter = found["hue"]["colours"][9]
    shown = [int(quarter[at : at + 2], 16) for at in (1, 3, 5)]
    assert shown == pytest.approx((255 * looks[90]).tolist(), abs=0.51)
    limit = style.display_range(fields[1])
    for axis, picture in enumerate(drawn):
        wanted = 0.5 + 0.5 * fields[1, axis][..., None] / limit * axes[axis]
        np.testing.assert_allclose(picture, wanted.clip(0, 1), atol=1e-6)


def card() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two properties and the scores of two layers of an invented report card."""
    properties = pd.DataFrame(
        {
            "layer": ["conv1"] * 3 + ["layer1.0"] * 3,
            "depth": [0] * 3 + [1] * 3,
            "property": ["sf_cpd", "circular_variance", "f1_f0"] * 2,
            "title": ["preferred frequency", "circular variance", MARKUP] * 2,
            "similarity": [0.5, np.nan, 0.25, 1, np.nan, np.nan],
        }
    )
    scores = pd.DataFrame(
        {
            "layer": ["conv1", "conv1", "layer1.0"],
            "stated": [True, False, True],
            "score": [0.375, 0.9, 1],
            "twin_score": [0.3, 0.9, np.nan],
        }
    )
    return properties, scores


def test_the_report_card_has_a_row_per_layer():
    found = atlas.report_card(*card())
    titles = ["score", "score of the random twin", "preferred frequency", MARKUP]
    assert found == {"titles": titles, "rows": [[0.375, 0.3, 0.5, 0.25], [1, None, 1, None]]}


# ---- ablations, matches, findings


def test_classes_that_lose_most_stand_first():
    change = np.array([[-0.5, 0.25, np.nan, 0, -0.125], [0, 0, np.nan, 0, 0]])
    images = np.array([2, 4, 0, 3, 8])
    assert atlas.class_losses(change, images) == [[[0, -0.5, 2], [4, -0.125, 8], [1, 0.25, 4]], []]
    assert atlas.class_losses(change, images, 1)[0] == [[0, -0.5, 2], [1, 0.25, 4]]


def test_losses_are_those_of_the_first_mode_and_of_its_channels(tmp_path):
    with store.create(tmp_path / "conv1.h5", {"stage": "ablation"}) as file:
        file["channel"], file["label"] = np.array([2, 0]), np.array([0, 1, 1, 1])
        file["mean/class_delta"] = np.array([[0, -1 / 3], [-1, 0]], np.float32)
        file["shuffle/class_delta"] = np.zeros((2, 2), np.float32)
    with store.open(tmp_path / "conv1.h5", "ablation") as file:
        found = atlas.ablated_classes(file, 3)
    losses = {"mode": "mean", "values": [[[0, -1, 1]], None, [[1, -0.3333, 3]]]}
    assert found == {"losses": losses}
    with store.create(tmp_path / "none.h5", {"stage": "ablation"}) as file:
        file["channel"], file["label"] = np.array([0]), np.array([0])
    with store.open(tmp_path / "none.h5", "ablation") as file:
        assert atlas.ablated_classes(file, 3) == {}


def test_matched_channels_are_found_from_both_sides():
    table = pd.DataFrame(
        {
            "run": ["twin", "twin", "other", "twin"],
            "layer": ["conv1", "conv1", "conv1", "conv2"],
            "channel": [0, 1, 1, 0],
            "run_channel": [1, 0, 1, 0],
            "correlation": [0.5, np.nan, 0.25, 1],
        }
    )
    table = ("demo", table)
    assert atlas.matches([table, table], "demo", "conv1", 2) == [
        [["twin", 1, 0.5]],
        [["other", 1, 0.25]],
    ]
    assert atlas.matches([table], "twin", "conv1", 2) == [[], [["demo", 0, 0.5]]]
    assert atlas.matches([table], "third", "conv1", 1) == [[]]


def test_pages_get_findings_and_reasons(tmp_path):
    run = Run(layers=[Layer("conv1", 4, 8, 7, 2, 0.5)])
    folder = run.write(tmp_path / "demo")
    write_table(run, folder)
    claim = {"claim": "c", "question": "Q?", "sentence": "S.", "missing": None, "rule": "r"}
    rows = [{"table": "t/t.csv", "line": 3, "layer": "conv1"}]
    (folder / "findings.json").write_text(json.dumps({"claims": [claim | {"rows": rows}]}))
    about = told({"color": "it is off"})
    files = [folder / "properties.csv", folder / "scores.csv"]
    for table, path in zip(card(), files, strict=True):
        store.write_table(table, path)
    more = {"findings": folder / "findings.json", "card": files}
    given = sources(run, folder, files=more, stages=about, runs=["twin"])
    atlas.build(*given, folder / "atlas")
    overview = handed_over(folder / "atlas", "overview")
    del claim["rule"]
    assert overview["findings"] == [claim | {"lines": [["t/t.csv", 3]]}]
    assert overview["card"] == atlas.report_card(*card())
    reasons = {stage["name"]: stage["absent"] for stage in overview["stages"]}
    assert reasons.pop("color") == "it is off" and not any(reasons.values())
    assert overview["runs"] == ["twin"]
    page = (folder / "atlas" / "index.html").read_text()
    assert '<a href="../../twin/atlas/index.html">twin</a>' in page


def test_the_start_page_leads_to_all_runs(tmp_path):
    run = Run(layers=[Layer("conv1", 4, 8, 7, 2, 0.5)])
    folder = run.write(tmp_path / "demo")
    right = (run.logits.argmax(1) == run.labels).mean()
    entry = {"name": "demo", "network": "net.py:make", "weights": MARKUP, "dataset": "scenes"}
    entry |= {"layers": 1, "channels": 4, "activations": folder / "activations.h5"}
    runs = [
        entry | {"atlas": True, "findings": False, "claims": [], "picture": "00_conv1.png"},
        entry
        | {
            "name": "a b",
            "atlas": False,
            "findings": True,
            "claims": [f"1 of 4. {MARKUP}"],
            "picture": "",
        },
    ]
    page = atlas.start_page(runs, {"pair": ["demo", "a b"]})
    assert f"{100 * right:.1f} %" in page
    assert re.findall('href="(.*?)"', page.split("</style>")[1]) == [
        "demo/atlas/index.html",
        "demo/atlas/index.html",
        "demo/channels.csv",
        "a%20b/findings.html",
        "a%20b/channels.csv",
        "compare/pair/runs.csv",
        "compare/pair/matching.csv",
        "compare/pair/fractions.csv",
    ]
    assert re.findall("<img src=(.*?) ", page) == ['"demo/00_conv1.png"']
    assert "<li>1 of 4. &lt;img" in page


# ---- runs that lack something


def test_without_receptive_fields_there_are_still_pages(tmp_path):
    run = Run(layers=[Layer("conv1", 4, 8, 7, 2, 0.5)])
    folder = run.write(tmp_path / "demo")
    write_table(run, folder)
    atlas.build(*sources(run, folder), folder / "atlas")
    overview = handed_over(folder / "atlas", "overview")
    assert overview["thumbnails"] == {}
    assert overview["layers"][0]["strip"] is None


def test_channels_that_a_stage_left_out_are_hatched(tmp_path):
    run = Run(layers=[Layer("conv1", 4, 8, 7, 2, 0.5)])
    folder = run.write(tmp_path / "demo")
    write_table(run, folder)
    path = folder / "receptive_fields" / "conv1.h5"
    with h5py.File(path, "r+") as file:
        for name in list(file):
            kept = file[name][:2]
            del file[name]
            file[name] = kept
    atlas.build(*sources(run, folder, "receptive_fields"), folder / "atlas")
    shown = [thumbnail(folder / "atlas", "mean_gradient", 0, channel) for channel in range(4)]
    hatched = [(tile == style.hatch(len(tile))).all() for tile in shown]
    assert hatched == [False, False, True, True]


def test_a_layer_that_the_model_lacks_is_named(tmp_path):
    run = Run(layers=[Layer("conv1", 4, 8, 7, 2, 0.5)])
    folder = run.write(tmp_path / "demo")
    table = write_table(run, folder)
    table["layer"] = "conv2"
    store.write_table(table, folder / "channels.csv")
    with pytest.raises(RfatlasError, match=r"activations\.h5: no dataset 'conv2/"):
        atlas.build(*sources(run, folder), folder / "atlas")


@pytest.mark.parametrize(
    ("file", "dataset"),
    [
        ("receptive_fields/conv1.h5", "mean_gradient"),
        ("gratings/conv1.h5", "best_response"),
        ("activations.h5", "conv1/top_per_image_yx"),
        ("images.h5", "names"),
    ],
)
def test_a_renamed_dataset_is_named(tmp_path, file, dataset):
    run = Run(layers=[Layer("conv1", 4, 8, 7, 2, 0.5)])
    folder = run.write(tmp_path / "demo")
    write_gratings(folder / "gratings" / "conv1.h5", 4)
    write_table(run, folder)
    with h5py.File(folder / file, "r+") as changed:
        changed.move(dataset, "something_else")
    given = sources(run, folder, "receptive_fields", "gratings")
    with pytest.raises(RfatlasError, match=rf"{file}: no dataset '{dataset}'"):
        atlas.build(*given, folder / "atlas")


def test_the_same_run_gives_the_same_pages(built, tmp_path):
    run, folder, _ = built
    again = tmp_path / "again"
    atlas.build(*sources(run, folder, "receptive_fields"), again)
    files = [path.relative_to(again) for path in again.rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        assert (again / path).read_bytes() == (folder / "atlas" / path).read_bytes(), path
