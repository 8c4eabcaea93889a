"""Stage compare: counts by loops, planted twins and permuted channels, gaps of every kind."""

import contextlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pages import columns_of
from scipy import stats
from synthetic import Layer, Run, tuning
from table_scripts import by_script

from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.tables import compare, similarity

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("runs", "fractions", "quantities", "matched", "matching", "similarity")
LAYERS = [
    Layer("conv1", 6, 8, 7, 2, 0.5, rectified=False),
    Layer("layer1.0", 5, 4, 19, 4, 0.5),
    Layer("layer2.0", 4, 4, 43, 8, 0.5),
]


def channels(seed=0, layers=None, classes=True) -> pd.DataFrame:
    """An invented channels.csv."""
    table = tuning(
        {"conv1": 24, "layer1.0": 32, "layer2.0": 48} if layers is None else layers, seed
    )
    random = np.random.default_rng(seed + 100)
    n = len(table)
    table["inactive"] = random.random(n) < 0.2
    table["rectified"] = table["layer"] != "conv1"
    table["fraction_active"] = random.random(n)
    table["class_selectivity"] = np.where(random.random(n) < 0.1, np.nan, random.random(n))
    if classes:
        kinds = ["non_opponent", "single_opponent", "double_opponent", "unresponsive", np.nan]
        table["color_class"] = random.choice(np.array(kinds, object), n)
    return table


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Three invented runs on the same images, opened: the reference, one that has its channels in
    another order and its guesses in part, and an unrelated one that lacks a layer."""
    folder = tmp_path_factory.mktemp("group")
    reference = Run(LAYERS, images=60, seed=1, name="first")
    twin = Run(LAYERS, images=60, seed=2, name="twin")
    other = Run([*LAYERS[:2], Layer("layer9.0", 3, 4, 43, 8, 0.5)], images=60, seed=3, name="other")
    order = {}
    for layer in LAYERS:
        order[layer.name] = np.random.default_rng(5).permutation(layer.channels)
        twin.value[layer.name] = 2 * reference.value[layer.name][:, order[layer.name]]
    reference.labels[:7] = -1
    for run in (twin, other):
        run.labels = reference.labels
    twin.logits[:40] = reference.logits[:40]
    made = {"first": reference, "twin": twin, "other": other}
    for name, run in made.items():
        run.write(folder / name)
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(store.open(folder / name / "activations.h5")) for name in made
        }
        described = {name: json.loads((folder / name / "model.json").read_text()) for name in made}
        layers = {name: [layer.name for layer in run.layers] for name, run in made.items()}
        yield SimpleNamespace(
            files=files, described=described, layers=layers, order=order, runs=made, folder=folder
        )


# ---- accuracy


def test_accuracy_is_compared_image_by_image(group):
    found = compare.runs(group.files, group.described).set_index("run")
    labels = group.runs["first"].labels
    known = labels >= 0
    guesses = {name: run.logits.argmax(axis=1) for name, run in group.runs.items()}
    for name in ("twin", "other"):
        own, other = guesses[name] == labels, guesses["first"] == labels
        won = sum(a and not b for a, b in zip(own[known], other[known], strict=True))
        lost = sum(b and not a for a, b in zip(own[known], other[known], strict=True))
        row = found.loc[name]
        assert (row["only_run_right"], row["only_reference_right"]) == (won, lost)
        assert row["difference"] == pytest.approx((won - lost) / known.sum())
        assert row["difference_lo"] < row["difference"] < row["difference_hi"]
        assert row["p"] == pytest.approx(stats.binomtest(won, won + lost, 0.5).pvalue)
        assert row["agreement"] == np.mean(guesses[name] == guesses["first"])
        interval = stats.binomtest(int(own[known].sum()), 53).proportion_ci(method="wilson")
        assert (row["top1_lo"], row["top1_hi"]) == pytest.approx((interval.low, interval.high))
        assert row["labelled"] == 53 and row["weights"] == f"{name}.pth"
    assert found["reference"].tolist() == [True, False, False]
    assert found.loc["first", ["difference", "p", "agreement"]].isna().all()
    assert found.loc["twin", "agreement"] >= 40 / 60


def test_without_labels_only_the_agreement_is_known(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        run = Run(LAYERS[:1], images=12, seed=seed)
        run.labels[:] = -1
        run.write(tmp_path / name)
    described = {name: json.loads((tmp_path / name / "model.json").read_text()) for name in "ab"}
    with (
        store.open(tmp_path / "a" / "activations.h5") as a,
        store.open(tmp_path / "b" / "activations.h5") as b,
    ):
        found = compare.runs({"a": a, "b": b}, described)
    assert found[["top1", "top1_lo", "loss", "difference", "p"]].isna().all(axis=None)
    assert found["labelled"].tolist() == [0, 0]
    assert 0 <= found["agreement"][1] <= 1


def test_runs_on_other_images_are_refused(group, tmp_path):
    Run(LAYERS[:1], images=60, seed=9).write(tmp_path)
    with store.open(tmp_path / "activations.h5") as file:
        with pytest.raises(
            RfatlasError, match=r"run 'odd' has 60 images, run 'first' 60, or their"
        ):
            compare.check_images({"first": group.files["first"], "odd": file})


# ---- fractions and quantities


def kinds(row) -> dict[str, bool | None]:
    """What a channel is, by the words of the documentation; None where it is unknown."""
    known = isinstance(row["color_class"], str) and row["color_class"] != "unresponsive"
    opponent = row["color_class"] in ("single_opponent", "double_opponent")
    return {
        "inactive": bool(row["inactive"]),
        "orientation_selective": None
        if pd.isna(row["orientation_selective"])
        else bool(row["orientation_selective"]),
        "opponent": opponent if known else None,
        "single_opponent": row["color_class"] == "single_opponent" if known else None,
        "double_opponent": row["color_class"] == "double_opponent" if known else None,
    }


def test_fractions_are_the_loop_over_channels():
    tables = {"a": channels(0), "b": channels(1)}
    found = compare.fractions(tables)
    assert len(found) == 2 * 3 * 5
    counted = {}
    for row in found.itertuples():
        members = tables[row.run][tables[row.run]["layer"] == row.layer]
        values = [kinds(member)[row.property] for _, member in members.iterrows()]
        values = [value for value in values if value is not None]
        counted[row.run, row.layer, row.property] = sum(values), len(values)
    for row in found.to_dict("records"):
        count, n = counted[row["run"], row["layer"], row["property"]]
        assert (row["count"], row["n"]) == (count, n)
        assert row["fraction"] == pytest.approx(count / n)
        interval = stats.binomtest(count, n).proportion_ci(method="wilson")
        assert (row["lo"], row["hi"]) == pytest.approx((interval.low, interval.high))
        if row["run"] == "a":
            assert pd.isna(row["difference"]) and pd.isna(row["reference_n"])
        else:
            others, total = counted["a", row["layer"], row["property"]]
            assert (row["reference_count"], row["reference_n"]) == (others, total)
            assert row["difference"] == pytest.approx(count / n - others / total)
            assert row["difference_lo"] < row["difference"] < row["difference_hi"]


def test_a_layer_that_the_reference_lacks_and_a_stage_that_was_off():
    tables = {
        "a": channels(0, {"conv1": 6}),
        "b": channels(1, {"conv1": 6, "layer1.0": 4}, classes=False),
    }
    found = compare.fractions(tables)
    assert set(found.loc[found["run"] == "b", "property"]) == {"inactive", "orientation_selective"}
    alone = found[(found["layer"] == "layer1.0")]
    assert len(alone) == 2 and alone["difference"].isna().all()
    assert alone["fraction"].notna().all()
    sizes = compare.quantities(tables)
    assert sizes.loc[sizes["layer"] == "layer1.0", "reference_n"].isna().all()
    assert "erf_sigma" not in set(sizes["quantity"])


def test_quantities_are_medians_and_the_share_of_pairs():
    tables = {"a": channels(0), "b": channels(1)}
    found = compare.quantities(tables)
    assert {"osi", "rf_size", "class_selectivity", "fraction_active"} <= set(found["quantity"])
    for row in found.to_dict("records"):
        values = {}
        for run, table in tables.items():
            members = table[table["layer"] == row["layer"]]
            if row["quantity"] == "fraction_active":
                members = members[members["rectified"]]
            values[run] = members[row["quantity"]].dropna().to_numpy(float)
        own, other = values[row["run"]], values["a"]
        assert row["n"] == len(own)
        if not len(own):
            assert row["quantity"] == "fraction_active" and row["layer"] == "conv1"
            continue
        assert row["median"] == pytest.approx(np.median(own))
        assert row["q25"] <= row["median"] <= row["q75"]
        if row["run"] == "b":
            assert row["difference"] == pytest.approx(np.median(own) - np.median(other))
            pairs = [(x > y) + (x == y) / 2 for x, y in itertools.product(own, other)]
            assert row["superiority"] == pytest.approx(np.mean(pairs))


# ---- matched channels and similarity


def test_channels_in_another_order_are_found_again(group):
    pairs, summary = compare.matched(group.files, group.layers, seed=0)
    twin = pairs[pairs["run"] == "twin"]
    for layer in LAYERS:
        rows = twin[twin["layer"] == layer.name]
        # Channel k of the twin is channel order[k] of the reference.
        order = group.order[layer.name]
        assert order[rows["run_channel"]].tolist() == rows["channel"].tolist()
        assert rows["correlation"].to_numpy() == pytest.approx(1)
        assert (rows["best_channel"] == rows["run_channel"]).all()
    rows = summary.set_index(["run", "layer"])
    assert (rows.loc["twin", "share_same"] == 1).all()
    assert (rows.loc["twin", "chance_median"] < 0.5).all()
    assert (rows.loc["twin", "chance_share_same"] < 0.3).all()
    assert list(rows.loc["other"].index) == ["conv1", "layer1.0"], "layers of both networks only"
    assert (rows.loc["other", "median"] < 0.5).all()
    assert rows.loc[("other", "conv1"), "matched"] == 6


def test_the_match_is_one_to_one_and_the_best_channel_is_the_best(group):
    pairs, _ = compare.matched(group.files, group.layers)
    for (run, layer), rows in pairs.groupby(["run", "layer"]):
        assert rows["run_channel"].is_unique and rows["channel"].is_unique
        first, second = (group.files[name][layer]["image_max"][:] for name in ("first", run))
        for row in rows.itertuples():
            every = [np.corrcoef(first[:, row.channel], column)[0, 1] for column in second.T]
            assert row.correlation == pytest.approx(every[row.run_channel], abs=1e-6)
            assert row.best_channel == int(np.argmax(every))
            assert row.best_correlation == pytest.approx(max(every), abs=1e-6)


@pytest.mark.parametrize("feature", ["image_mean", "image_max"])
def test_every_layer_meets_every_layer_once(group, feature):
    found = compare.similarity(group.files, group.layers, feature, 0.95)
    assert len(found) == 9 * 10 / 2
    assert not found.duplicated(["run", "layer", "other_run", "other_layer"]).any()
    rows = found.set_index(["run", "layer", "other_run", "other_layer"])
    for layer in group.layers["first"]:
        # Order and scale of the channels do not matter.
        row = rows.loc[("first", layer, "twin", layer)]
        assert row[["cka", "cka_debiased", "svcca"]].tolist() == pytest.approx([1, 1, 1])
        assert row["cka_chance"] < 0.5 and row["svcca_chance"] < 0.7
    x = group.files["twin"]["layer1.0"][feature][:].astype(float)
    y = group.files["other"]["layer9.0"][feature][:].astype(float)
    direct = similarity.Moments([x, y])
    row = rows.loc[("twin", "layer1.0", "other", "layer9.0")]
    assert row["cka"] == pytest.approx(similarity.cka(direct, 0, 1))
    assert row["images"] == 60 and (row["depth"], row["other_depth"]) == (1, 2)


# ---- the files


@pytest.fixture(scope="module")
def written(group, tmp_path_factory):
    """The folder of tables that the script wrote of the invented group."""
    folder = tmp_path_factory.mktemp("tables")
    names = list(group.files)
    for name in names:
        layers = {layer.name: layer.channels for layer in group.runs[name].layers}
        store.write_table(channels(len(name), layers), group.folder / name / "channels.csv")
    given = {
        "channels": [group.folder / name / "channels.csv" for name in names],
        "descriptions": [group.folder / name / "model.json" for name in names],
        "activations": [group.folder / name / "activations.h5" for name in names],
    }
    params = {"runs": names, "feature": "image_mean", "variance": 0.99, "seed": 0}
    by_script("compare", folder, NAMES, given, **params)
    return folder


def test_the_script_writes_all_tables(written):
    assert {path.stem for path in written.glob("*.csv")} == set(NAMES)
    assert store.read_table(written / "matching.csv")["run"].unique().tolist() == ["twin", "other"]
    assert len(store.read_table(written / "similarity.csv")) == 45


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("runs", compare.RUNS),
        ("fractions", compare.FRACTIONS),
        ("quantities", compare.QUANTILES),
        ("matched", compare.MATCHED),
        ("matching", compare.MATCHING),
        ("similarity", compare.SIMILARITY),
    ],
)
def test_every_column_is_documented(written, name, columns):
    assert store.read_table(written / f"{name}.csv").columns.tolist() == list(columns)
    assert columns_of(f"compare/<group>/{name}.csv") == list(columns)
