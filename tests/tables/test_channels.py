"""Stage channels: its formulas against loops and closed forms, and what the join refuses."""

import importlib
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import Layer, Run
from torch import nn

from rfatlas import stages
from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.network import graph
from rfatlas.tables import channels

ROOT = Path(__file__).resolve().parents[2]
NORM, DRIVE, OSI = 0.1, 0.03, 0.5


def layer_tables(folder: Path) -> list[Path]:
    return sorted((folder / "receptive_fields").glob("*.csv"))


def build(run: Run, folder: Path, tables=None, layers=None, first=None) -> pd.DataFrame:
    return channels.build(
        folder / "activations.h5",
        folder / "model.json",
        folder / "images.h5",
        layers or [layer.name for layer in run.layers],
        layer_tables(folder) if tables is None else tables,
        NORM,
        DRIVE,
        OSI,
        first,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Run, Path]:
    run = Run()
    run.value["layer1.0"][:, 2] = 0
    run.value["layer1.0"][4:, 5] = 0
    return run, run.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def table(written) -> pd.DataFrame:
    return build(*written)


# ---- the stage's own columns


def test_rows_stand_in_network_order(written, table):
    run, _ = written
    expected = [(layer.name, index) for layer in run.layers for index in range(layer.channels)]
    assert list(zip(table["layer"], table["channel"], strict=True)) == expected
    assert table["depth"].tolist() == [
        depth for depth, layer in enumerate(run.layers) for _ in range(layer.channels)
    ]
    assert tuple(table.columns[: len(channels.COLUMNS)]) == channels.COLUMNS


def test_only_the_analysed_layers_appear(written):
    run, folder = written
    only = build(run, folder, tables=[], layers=["layer2.0", "conv1"])
    assert only["layer"].unique().tolist() == ["conv1", "layer2.0"]
    assert only["depth"].unique().tolist() == [0, 1]


def test_class_selectivity_is_the_loop_over_classes(written, table):
    run, _ = written
    for layer in run.layers[1:]:
        rows = table[table["layer"] == layer.name].reset_index()
        for channel in range(layer.channels):
            value = run.value[layer.name][:, channel].astype(float)
            means = [value[run.labels == label].mean() for label in range(run.classes)]
            best = int(np.argmax(means))
            rest = np.mean([mean for label, mean in enumerate(means) if label != best])
            found = rows.loc[channel]
            if means[best] == 0:
                assert np.isnan(found["class_selectivity"])
                assert found["preferred_class"] == "" and pd.isna(found["preferred_label"])
                continue
            expected = (means[best] - rest) / (means[best] + rest)
            assert found["class_selectivity"] == pytest.approx(expected, rel=1e-12)
            assert found["preferred_label"] == best
            assert found["preferred_class"] == f"class {best}"
    # Without a ReLU the index has no meaning; the class that drives a channel most still has.
    signed = table[~table["rectified"]]
    assert signed["class_selectivity"].isna().all() and signed["preferred_label"].notna().all()


def test_class_selectivity_in_closed_form():
    # One class only: 1. All alike: 0. Three times the rest: (3 - 1) / (3 + 1) = 1/2.
    means = np.array([[2.0, 5, 3, -1], [0, 5, 1, 4], [0, 5, 1, 4]])
    index, preferred = channels.class_selectivity(means, np.array([1, 1, 1]))
    np.testing.assert_allclose(index[:3], [1, 0, 0.5])
    assert np.isnan(index[3])
    assert preferred.tolist() == [0, -1, 0, 1]


def test_classes_without_images_are_ignored():
    means = np.array([[np.nan], [1.0], [np.nan], [3.0]])
    index, preferred = channels.class_selectivity(means, np.array([0, 4, 0, 2]))
    assert index == pytest.approx([0.5]) and preferred.tolist() == [3]
    index, preferred = channels.class_selectivity(means, np.array([0, 4, 0, 0]))
    assert np.isnan(index).all() and preferred.tolist() == [-1]
    index, preferred = channels.class_selectivity(means, np.zeros(4, int))
    assert np.isnan(index).all() and preferred.tolist() == [-1]


def test_n_top_classes_is_the_brute_count(written, table):
    run, _ = written
    for layer in run.layers:
        _, image, _ = run.top(layer)
        rows = table[table["layer"] == layer.name]
        for channel, row in enumerate(image):
            used = [index for index in row if index >= 0]
            assert rows["n_top"].iloc[channel] == len(used)
            assert rows["n_top_classes"].iloc[channel] == len({run.labels[i] for i in used})
    assert table.loc[table["layer"] == "layer1.0", "n_top"].tolist()[2] == 0
    assert table.loc[table["layer"] == "layer1.0", "n_top"].tolist()[5] <= 4


def test_n_top_classes_stops_at_a_hundred_and_skips_unknown_labels():
    labels = np.arange(150)
    labels[[3, 4]] = -1
    image = np.arange(150)[None]
    total, distinct = channels.top_classes(image, labels)
    assert total.tolist() == [150] and distinct.tolist() == [98]


def test_without_labels_the_class_columns_are_empty(tmp_path):
    run = Run(images=12)
    run.labels[:] = -1
    table = build(run, run.write(tmp_path))
    for column in ("class_selectivity", "preferred_label", "n_top_classes"):
        assert table[column].isna().all(), column
    assert (table["preferred_class"] == "").all()
    assert (table["n_top"] > 0).all()


def test_planted_inactive_channels_are_found_and_no_others(tmp_path):
    run = Run()
    run.filter_norm["layer1.0"][:] = 1
    run.filter_norm["layer1.0"][[1, 3]] = 0.099, 0.101
    run.value["layer1.0"][:, 4] *= 1e-3
    run.next_norm["layer1.0"][5] = 0.001
    run.value["layer1.0"][:, 6] = 0
    # Weak, but heard.
    run.value["layer1.0"][:, 7] *= 1e-3
    run.next_norm["layer1.0"][7] = 1e3
    table = build(run, run.write(tmp_path))
    rows = table[table["layer"] == "layer1.0"]
    expected = ["", "", "", "", "weak", "weak", "constant", ""]
    assert rows["inactive_reason"].tolist() == expected
    assert rows["weak_filter"].tolist() == [False, True] + [False] * 6
    assert (table["inactive"] == (table["inactive_reason"] != "")).all()
    assert table["inactive"].sum() == 3


def test_inactive_where_the_rule_is_degenerate():
    # One channel that varies does not make itself inactive, nor do those that never change pass.
    variance = np.array([0.0, 0.0, 1.0])
    drive = channels.next_drive(variance, np.ones(3))
    assert drive.tolist() == [0, 0, 1]
    assert channels.inactive(variance, drive, DRIVE).tolist() == ["constant", "constant", ""]
    # Layers that filters do not read have no norms: only the variance counts.
    variance = np.array([1, 1, 1e-4])
    drive = channels.next_drive(variance, np.full(3, np.nan))
    assert channels.inactive(variance, drive, DRIVE).tolist() == ["", "", "weak"]
    assert channels.weak_filter(np.full(2, np.nan), NORM).isna().all()


def test_a_factor_that_moves_to_the_next_layer_makes_no_channel_inactive():
    """Filter norms of 0.3 to 100 by factors that the next layer undoes; two channels are silent."""
    torch.manual_seed(0)
    first, norm, second = nn.Conv2d(3, 18, 5), nn.BatchNorm2d(18), nn.Conv2d(18, 8, 3)
    network = nn.Sequential(OrderedDict(conv1=first, bn=norm, relu=nn.ReLU(), conv2=second)).eval()
    images = torch.rand(4, 3, 32, 32)
    factor = torch.logspace(np.log10(0.3), 1, 18)
    factor[17] = 100
    with torch.no_grad():
        first.weight /= first.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        first.weight[4] *= 1e-3
        second.weight[:, 9] *= 1e-3
        # No ReLU is always shut.
        first.bias.fill_(0.5)
    found, outputs = [], []
    for _ in range(2):
        traced = graph.trace(network, images[:1])
        with torch.no_grad():
            variance = traced.extractor(["relu"], False)(images)["relu"].var((0, 2, 3)).numpy()
            outputs.append(network(images))
        drive = channels.next_drive(variance, traced.next_norms("relu").numpy())
        weak = channels.weak_filter(traced.filter_norms("relu").numpy(), NORM)
        found.append((drive, channels.inactive(variance, drive, DRIVE), weak))
        with torch.no_grad():
            first.weight *= factor.view(-1, 1, 1, 1)
            first.bias *= factor
            second.weight /= factor.view(1, -1, 1, 1)
    torch.testing.assert_close(*outputs)
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    for _, reasons, _ in found:
        assert np.flatnonzero(reasons != "").tolist() == [4, 9]
    assert found[0][2].sum() == 1 and found[1][2].sum() >= 13


def test_geometry_statistics_and_unbounded_fields(tmp_path):
    run = Run(layers=[Layer("conv1", 3, 4, 7, 2, 0.5), Layer("avgpool", 3, 1, None, None, None)])
    for layer in run.layers:
        layer.stride, layer.start = layer.stride or 1, layer.start or 16
    table = build(run, run.write(tmp_path))
    assert table["rf_size"].isna().tolist() == [False] * 3 + [True] * 3
    assert table["rf_local_size"].isna().tolist() == table["rf_size"].isna().tolist()
    assert table["rf_kind"].tolist() == ["exact"] * 3 + ["global"] * 3
    assert table["rf_size"].iloc[0] == 7 and table["rf_stride"].iloc[0] == 2
    for layer in run.layers:
        value, rows = run.value[layer.name].astype(float), table[table["layer"] == layer.name]
        np.testing.assert_allclose(rows["activation_mean"], value.mean((0, 2, 3)))
        np.testing.assert_allclose(rows["activation_var"], value.var((0, 2, 3)))
        np.testing.assert_allclose(rows["activation_max"], value.max((0, 2, 3)))
        np.testing.assert_allclose(rows["fraction_active"], (value > 0).mean((0, 2, 3)))
        np.testing.assert_allclose(rows["filter_norm"], run.filter_norm[layer.name])


# ---- the join


def test_columns_of_any_stage_join_by_key_not_by_order(written):
    run, folder = written
    other = folder / "gratings"
    other.mkdir(exist_ok=True)
    paths = []
    for layer in run.layers:
        order = np.random.default_rng(1).permutation(layer.channels)
        rows = pd.DataFrame({"osi": order / 10, "channel": order, "layer": layer.name})
        paths.append(other / f"{layer.name}.csv")
        rows.to_csv(paths[-1], index=False)
    table = build(run, folder, tables=layer_tables(folder) + paths)
    np.testing.assert_allclose(table["osi"], table["channel"] / 10)
    assert list(table.columns[-2:]) == ["erf_r2", "osi"]
    np.testing.assert_allclose(table["split_half"].dropna().iloc[0], 0.9)


def test_without_other_stages_the_table_is_its_own_columns(written):
    run, folder = written
    assert tuple(build(run, folder, tables=[]).columns) == channels.COLUMNS


def test_a_stage_may_look_at_the_first_channels_only(written, tmp_path):
    run, folder = written
    tables = []
    for path in layer_tables(folder):
        rows = pd.read_csv(path)
        tables.append(tmp_path / "receptive_fields" / path.name)
        tables[-1].parent.mkdir(exist_ok=True)
        rows[rows["channel"] < 4].to_csv(tables[-1], index=False)
    table = build(run, folder, tables=tables, first={"receptive_fields": 4})
    assert table.loc[table["channel"] >= 4, "n_units"].isna().all()
    assert table.loc[table["channel"] < 4, "n_units"].notna().all()
    with pytest.raises(RfatlasError, match="no row for layer 'conv1' channel 4"):
        build(run, folder, tables=tables)


def test_a_layer_may_be_called_as_a_stage(tmp_path):
    """As the stage of its own table, and as one with a table of all layers."""
    layers = tuple(Layer(name, 4, 8, 19, 4, 0.5) for name in ("gabor", "virtual_filters", "output"))
    run = Run(layers=layers)
    folder = run.write(tmp_path)
    paths = [folder / "gabor" / f"{layer.name}.csv" for layer in layers]
    paths[0].parent.mkdir()
    for place, (path, layer) in enumerate(zip(paths, layers, strict=True)):
        rows = pd.DataFrame({"layer": layer.name, "channel": range(4), "gabor_r2": place / 4})
        rows.to_csv(path, index=False)
    rows = [{"layer": one.name, "channel": i, "virtual_r2": i} for one in layers for i in range(4)]
    pd.DataFrame(rows).to_csv(folder / "virtual_filters.csv", index=False)
    table = build(run, folder, tables=[*paths, folder / "virtual_filters.csv"])
    assert table["gabor_r2"].tolist() == [0] * 4 + [0.25] * 4 + [0.5] * 4
    assert table["virtual_r2"].tolist() == [0, 1, 2, 3] * 3


def test_a_stage_may_look_at_some_layers_only(written, tmp_path):
    run, folder = written
    path = tmp_path / "ablation" / "conv1.csv"
    path.parent.mkdir()
    rows = pd.DataFrame({"layer": "conv1", "channel": range(run.layers[0].channels), "zero_p": 0.5})
    rows.to_csv(path, index=False)
    table = build(run, folder, tables=[path])
    assert table.loc[table["layer"] == "conv1", "zero_p"].eq(0.5).all()
    assert table.loc[table["layer"] != "conv1", "zero_p"].isna().all()


BREAK = {
    "missing channel": (lambda t: t.drop(3), r"no row for layer 'conv1' channel 3"),
    "unknown channel": (
        lambda t: pd.concat([t, t.tail(1).assign(channel=99)]),
        r"layer 'conv1' channel 99, which is not analysed",
    ),
    "repeated row": (lambda t: pd.concat([t, t.iloc[[2]]]), r"not a one-to-one merge"),
    "wrong layer": (lambda t: t.assign(layer="conv2"), r"no row for layer 'conv1' channel 0"),
    "taken column": (lambda t: t.assign(filter_norm=1), r"columns overlap.*'filter_norm'"),
}


@pytest.mark.parametrize("fault", BREAK)
def test_a_table_that_does_not_fit_is_refused_by_name(written, tmp_path, fault):
    run, folder = written
    change, message = BREAK[fault]
    tables = []
    for path in layer_tables(folder):
        rows = pd.read_csv(path)
        tables.append(tmp_path / "receptive_fields" / path.name)
        tables[-1].parent.mkdir(exist_ok=True)
        everywhere = fault == "taken column"
        changed = change(rows) if everywhere or path.stem == "conv1" else rows
        changed.to_csv(tables[-1], index=False)
    with pytest.raises((RfatlasError, ValueError), match=message):
        build(run, folder, tables=tables)


@pytest.mark.parametrize("text", [None, ""])
def test_an_unreadable_table_is_refused(tmp_path, text):
    path = tmp_path / "conv1.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RfatlasError, match=r"conv1\.csv"):
        store.read_table(path)


# ---- what compares stages


def test_selective_needs_both_the_index_and_the_bandwidth():
    table = pd.DataFrame({"osi": [0.5, 0.49, 0.9, np.nan], "bandwidth_deg": [20, 20, np.nan, 20.0]})
    found = channels.derived(table, 0.5)
    assert found.columns.tolist() == ["orientation_selective"]
    assert found["orientation_selective"].tolist() == [True, False, False, pd.NA]
    assert channels.derived(table, 0.4)["orientation_selective"].tolist()[1]


def test_orientations_differ_across_the_end_of_the_circle():
    table = pd.DataFrame({"gabor_theta_deg": [179.0, 10, np.nan], "orientation_deg": [1.0, 100, 3]})
    found = channels.derived(table, OSI)
    assert found.columns.tolist() == ["orientation_gradient_gratings_deg"]
    np.testing.assert_allclose(found.iloc[:, 0], [2, 90, np.nan])
    found = channels.derived(table.assign(gabor_kernel_theta_deg=[0.5, 12, 5]), OSI)
    assert found.columns.tolist() == list(channels.DERIVED[1:])
    np.testing.assert_allclose(found["orientation_kernel_gradient_deg"], [1.5, 2, np.nan])
    np.testing.assert_allclose(found["orientation_kernel_gratings_deg"], [0.5, 88, 2])


def test_comparisons_stand_last_and_survive_the_file(written, tmp_path):
    run, folder = written
    paths = []
    for layer in run.layers:
        rows = pd.DataFrame({"layer": layer.name, "channel": np.arange(layer.channels)})
        rows = rows.assign(osi=rows["channel"] / 10, bandwidth_deg=20.0)
        rows.loc[2, "osi"] = np.nan
        paths.append(tmp_path / "gratings" / f"{layer.name}.csv")
        paths[-1].parent.mkdir(exist_ok=True)
        rows.to_csv(paths[-1], index=False)
    table = build(run, folder, tables=layer_tables(folder) + paths)
    assert table.columns[-1] == "orientation_selective"
    store.write_table(table, tmp_path / "t.csv")
    back = store.read_table(tmp_path / "t.csv").query("layer == 'layer1.0'")
    selective = back["orientation_selective"].fillna("unknown").tolist()
    assert selective == [False, False, "unknown", False, False, True, True, True]


# ---- the file


def test_the_file_comes_back_as_it_was(written, table, tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    store.write_table(table, first)
    back = store.read_table(first)
    assert list(back.columns) == list(table.columns)
    for column in table.columns:
        if pd.api.types.is_numeric_dtype(table[column]):
            left, right = (frame[column].astype("Float64") for frame in (back, table))
            left, right = (side.to_numpy(float, na_value=np.nan) for side in (left, right))
            np.testing.assert_allclose(left, right, rtol=1e-8, err_msg=column)
        else:
            assert back[column].fillna("").tolist() == table[column].tolist(), column
    store.write_table(back, second)
    assert first.read_bytes() == second.read_bytes()


def test_names_that_look_like_missing_values_survive(tmp_path):
    table = pd.DataFrame({"layer": ["NA", "1"], "channel": [0, 0], "preferred_class": ["null", ""]})
    store.write_table(table.assign(other_layer=["0", "3"]), tmp_path / "t.csv")
    back = store.read_table(tmp_path / "t.csv")
    assert back["layer"].tolist() == ["NA", "1"]
    assert back["other_layer"].tolist() == ["0", "3"]
    assert back["preferred_class"].tolist()[0] == "null" and pd.isna(back["preferred_class"][1])


def test_numbers_have_nine_digits_and_nan_is_empty(tmp_path):
    table = pd.DataFrame({"layer": "a", "channel": [0, 1], "x": [np.float64(1) / 3, np.nan]})
    store.write_table(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "layer,channel,x\na,0,0.333333333\na,1,\n"


def test_every_column_is_documented_and_no_other(table):
    text = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    modules = {path.stem: path for path in (ROOT / "scripts" / "rfatlas").glob("*/*.py")}
    joined = []
    for stage in stages.STAGES:
        # The names of the columns of ablation begin with a mode.
        if stage.columns and stage.name != "ablation":
            place = modules[stage.name].relative_to(ROOT / "scripts").with_suffix("")
            joined += importlib.import_module(".".join(place.parts)).COLUMNS
    joined = [name for name in joined if name not in channels.KEY]
    assert documented == [*channels.COLUMNS, *joined, *channels.DERIVED]


def test_every_column_of_ablation_is_documented_and_no_other():
    from rfatlas.ablation import ablation

    text = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`<mode>_[^|]*) \|", text, flags=re.MULTILINE)
    documented = [name for cell in cells for name in re.findall(r"`<mode>_(\w+)`", cell)]
    assert sorted(documented) == sorted(ablation.COLUMNS + ablation.ESTIMATE_COLUMNS)
