"""Stage opponency: classes counted by loops, planted disagreements, published examples, gaps."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pages import columns_of
from scipy import stats
from synthetic import opponency as invented
from table_scripts import by_script

from rfatlas.files import store
from rfatlas.physiology import colorspace
from rfatlas.tables import opponency

ROOT = Path(__file__).resolve().parents[2]
THRESHOLDS = {
    "sensitivity": [0.3, 0.6, 1],
    "color_ratio": [0.25, 0.5, 1, 2],
    "lowpass": [0.3, 0.5, 0.8],
    "harris_tolerance": [0, 0.01, 0.1],
}
RULES = {"sensitivity": 0.6, "color_ratio": 0.5, "lowpass": 0.5, "harris_tolerance": 0.01}


@pytest.fixture(scope="module")
def reference() -> pd.DataFrame:
    return store.read_table(ROOT / "resources" / "v1_color.csv")


def planted(cone, harris=None, energy=None, layer="conv1", depth=0, **columns) -> pd.DataFrame:
    """A layer whose channels have these classes; Harris' as pairs (spatial, spectral)."""
    rows = pd.DataFrame({"color_class": cone, "color_class_ratio": cone, "color_reason": ""})
    if harris is not None:
        rows["harris_spatial"], rows["harris_spectral"] = zip(*harris, strict=True)
    if energy is not None:
        rows["color_class_energy"] = energy
    return rows.assign(layer=layer, channel=np.arange(len(rows)), depth=depth, **columns)


def loop_class(row: pd.Series, sensitivity=0.6, lowpass=0.5) -> str:
    """The cone rule for one channel, written down once more."""
    if row["color_class"] == "unresponsive":
        return "unresponsive"
    single = row["color_lowpass_contrast"] >= lowpass
    ends = ("", "_same_sf") if single else ("",)
    every = [row[f"color_sensitivity_{axis}{end}"] for axis in ("lm", "s") for end in ends]
    if max(every) < sensitivity or row["color_ratio_rgb"] < 0.01:
        return "non_opponent"
    return "single_opponent" if single else "double_opponent"


def loop_ratio(row: pd.Series, color_ratio=0.5) -> str:
    """The ratio of responses for one channel."""
    if row["color_class_ratio"] == "unresponsive":
        return "unresponsive"
    colored = row["color_ratio"] >= color_ratio or row["color_ratio_s"] >= color_ratio
    if not colored or row["color_ratio_rgb"] < 0.01:
        return "non_opponent"
    return "single_opponent" if row["color_lowpass"] >= 0.5 else "double_opponent"


def loop_harris(row: pd.Series, tolerance=0.01) -> str:
    margins = row["harris_spatial_margin"], row["harris_spectral_margin"]
    if np.isnan(margins).any():
        return "unresponsive"
    names = {(0, 0): "neither", (1, 0): "spatial", (0, 1): "spectral", (1, 1): "double"}
    return names[tuple(int(margin > tolerance) for margin in margins)]


def each_layer(table: pd.DataFrame):
    """Every layer and all of them together."""
    yield from table.groupby("layer", sort=False)
    yield opponency.ALL, table


# ---- classes


def test_classes_are_those_of_the_loop_over_channels():
    table = invented(seed=2)
    for rule, alone in (("cone", loop_class), ("ratio", loop_ratio), ("harris", loop_harris)):
        expected = [alone(row) for _, row in table.iterrows()]
        assert opponency.classes(table, rule).tolist() == expected
        assert len(set(expected)) == (5 if rule == "harris" else 4)


def test_noise_is_of_no_class_and_counted():
    """What the cone rule would say of it, too: that is the layer's chance level in a twin."""
    kinds = ["double_opponent"] * 5 + ["non_opponent"] * 4 + ["unresponsive"] * 3
    reason = ["noise"] * 2 + [""] * 4 + ["noise"] + [""] * 2 + ["noise"] * 3
    table = planted(kinds, [(True, True)] * 12, gabor_reason=reason, split_half=0.9)
    table.loc[10, ["color_class", "color_reason"]] = ["", "saturated"]
    found = opponency.counts(table, table, "r").query("layer == 'conv1' and rule == 'cone'")
    found = found.set_index("class")
    assert found["count"].to_dict() == {
        "non_opponent": 3, "single_opponent": 0, "double_opponent": 3, "noise": 3,
    }  # fmt: skip
    assert (found["responsive"] == 9).all() and (found["saturated"] == 1).all()
    assert found["chance"].dropna().tolist() == [4 / 9, 0, 5 / 9]
    again = opponency.classified(
        table.assign(
            color_sensitivity_lm=9.0, color_sensitivity_s=0.0,
            color_sensitivity_lm_same_sf=9.0, color_sensitivity_s_same_sf=0.0,
            color_lowpass_contrast=0.0, color_ratio_rgb=1.0,
        ), "cone", RULES,
    )  # fmt: skip
    assert Counter(again) == {"double_opponent": 6, "noise": 3, "unresponsive": 3}


def test_a_table_that_was_written_and_read_has_the_same_classes(tmp_path):
    table = invented(seed=4)
    store.write_table(table, tmp_path / "channels.csv")
    back = store.read_table(tmp_path / "channels.csv")
    for rule in opponency.RULES:
        assert (opponency.classes(back, rule) == opponency.classes(table, rule)).all()
    assert (opponency.kinds(back) == opponency.kinds(table)).all()


def test_what_sees_grey_only_is_never_opponent():
    names = [f"color_sensitivity_{axis}{end}" for axis in ("lm", "s") for end in ("", "_same_sf")]
    ratios = {"color_ratio": 3.0, "color_ratio_s": 3.0, "color_lowpass": 0.2}
    ratios |= dict.fromkeys(names, 3.0) | {"color_lowpass_contrast": 0.2}
    table = planted(["non_opponent", "double_opponent"], **ratios)
    table["color_ratio_rgb"] = [0.0099, 0.01]
    expected = ["non_opponent", "double_opponent"]
    for rule in ("cone", "ratio"):
        assert opponency.classified(table, rule, RULES).tolist() == expected


def test_half_an_answer_is_no_class_of_harris():
    table = planted(["non_opponent"] * 3, [(True, np.nan), (np.nan, True), (True, True)])
    assert opponency.classes(table, "harris").tolist() == ["unresponsive"] * 2 + ["double"]


# ---- confusion


def test_confusion_is_the_count_of_pairs():
    table = invented(seed=1)
    found = opponency.confusion(table)
    assert set(found["rule"]) == {"ratio", "harris", "energy", "unrectified"}
    for (layer, rule), cells in found.groupby(["layer", "rule"]):
        members = dict(each_layer(table))[layer]
        second = {
            "harris": [loop_harris(row) for _, row in members.iterrows()],
            "energy": members["color_class_energy"].fillna("unresponsive"),
            "ratio": [loop_ratio(row) for _, row in members.iterrows()],
            "unrectified": members["color_class_ratio_unrectified"],
        }[rule]
        pairs = Counter(zip(members["color_class"], second, strict=True))
        for cell in cells.itertuples():
            assert cell.count == pairs.pop((cell.cone_class, cell.rule_class), 0)
            own = (members["color_class"] == cell.cone_class).sum()
            assert cell.cone_channels == own
            assert cell.share == pytest.approx(cell.count / own) if own else np.isnan(cell.share)
        assert not pairs, "no pair is left out"
        assert cells["count"].sum() == len(members) == cells["channels"].iloc[0]


def test_kappa_is_cohens_published_example():
    # Two readers, 50 proposals, both yes 20, both no 15, yes/no 5, no/yes 10: 0.7 and 0.4.
    cone = ["non_opponent"] * 25 + ["double_opponent"] * 25 + ["unresponsive"] * 9
    harris = [(True, False)] * 20 + [(True, True)] * 5 + [(False, False)] * 10 + [(True, True)] * 24
    cells = opponency.confusion(planted(cone, harris)).query("rule == 'harris'")
    assert (cells["both"] == 50).all(), "what has no class by one rule is not compared"
    assert cells["agreement"].iloc[0] == pytest.approx(0.7)
    assert cells["kappa"].iloc[0] == pytest.approx(0.4)


def test_what_means_the_same_is_marked():
    found = opponency.confusion(invented())
    marked = found[found["same"] & (found["rule"] == "harris")]
    assert set(zip(marked["cone_class"], marked["rule_class"], strict=True)) == {
        ("non_opponent", "neither"),
        ("non_opponent", "spatial"),
        ("single_opponent", "spectral"),
        ("double_opponent", "double"),
        ("unresponsive", "unresponsive"),
    }
    # The planted network's cone rule does not change before the ReLU.
    same = found[(found["rule"] == "unrectified") & (found["count"] > 0)]
    assert same["same"].all() and (same["kappa"] == 1).all()


def test_one_class_alone_has_no_kappa():
    cells = opponency.confusion(planted(["non_opponent"] * 4, [(True, False)] * 4))
    assert (cells["agreement"] == 1).all() and cells["kappa"].isna().all()
    nothing = opponency.confusion(planted(["unresponsive"] * 2, [(np.nan, np.nan)] * 2))
    assert (nothing["both"] == 0).all() and nothing["agreement"].isna().all()


# ---- counts


def test_counts_and_intervals_are_those_of_scipy():
    table, twin = invented(seed=3), invented(seed=5, colored=0.1)
    found = opponency.counts(table, twin, "demo_random")
    layers, others = dict(each_layer(table)), dict(each_layer(twin))
    assert len(found) == 4 * (4 + 3 + 4 + 3 + 3)
    for row in found[found["rule"] == "cone"].itertuples():
        name = row[found.columns.get_loc("class") + 1]
        own = [loop_class(channel) for _, channel in layers[row.layer].iterrows()]
        other = [loop_class(channel) for _, channel in others[row.layer].iterrows()]
        responsive = len(own) - own.count("unresponsive")
        assert (row.channels, row.responsive) == (len(own), responsive)
        assert (row.count, row.twin_count) == (own.count(name), other.count(name))
        assert row.twin == "demo_random"
        for count, total, low, high in (
            (row.count, row.responsive, row.lo, row.hi),
            (row.twin_count, row.twin_responsive, row.twin_lo, row.twin_hi),
        ):
            interval = stats.binomtest(count, total).proportion_ci(method="wilson")
            assert (low, high) == (pytest.approx(interval.low), pytest.approx(interval.high))
        assert row.difference == pytest.approx(row.fraction - row.twin_fraction)
        # Newcombe's interval is that of the two Wilson intervals, as distances.
        down = np.hypot(row.fraction - row.lo, row.twin_hi - row.twin_fraction)
        up = np.hypot(row.hi - row.fraction, row.twin_fraction - row.twin_lo)
        assert row.difference_lo == pytest.approx(row.difference - down)
        assert row.difference_hi == pytest.approx(row.difference + up)
    sums = found.groupby(["layer", "rule"])["count"].sum()
    np.testing.assert_array_equal(
        sums, found.groupby(["layer", "rule"])["responsive"].first(), "classes exclude each other"
    )


def test_the_difference_from_the_twin_is_newcombes_published_example():
    table = planted(["double_opponent"] * 56 + ["non_opponent"] * 14)
    twin = planted(["double_opponent"] * 48 + ["single_opponent"] * 32 + ["unresponsive"] * 5)
    found = opponency.counts(drop_harris(table), drop_harris(twin), "r")
    row = found[(found["class"] == "double_opponent") & (found["layer"] == "conv1")].iloc[0]
    assert row["twin_responsive"] == 80, "silent channels do not count"
    assert row["difference"] == pytest.approx(0.2)
    assert row["difference_lo"] == pytest.approx(0.0524, abs=6e-5)
    assert row["difference_hi"] == pytest.approx(0.3339, abs=6e-5)


def drop_harris(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a class by Harris' rule for no channel."""
    return table.assign(harris_spatial=np.nan, harris_spectral=np.nan)


def test_layers_are_compared_that_both_have():
    table = invented({"conv1": 8, "layer1.0": 8})
    twin = invented({"layer1.0": 8, "extra": 8}, seed=1)
    found = opponency.counts(table, twin, "r").query("rule == 'cone'").set_index("layer")
    assert (found.loc["conv1", "twin"] == "").all() and (found.loc["layer1.0", "twin"] == "r").all()
    assert (found.loc[opponency.ALL, "twin"] == "").all(), "not all of its layers"
    twin = invented({"conv1": 8, "layer1.0": 8, "extra": 8}, seed=1)
    found = opponency.counts(table, twin, "r").query("rule == 'cone'").set_index("layer")
    assert (found.loc[opponency.ALL, "twin_responsive"] == 14).all(), "without what the run lacks"


# ---- stability


def test_stability_classifies_every_channel_anew():
    table, twin = invented(seed=6), invented(seed=7)
    found = opponency.stability(table, THRESHOLDS, RULES, twin, "r")
    layers, others = dict(each_layer(table)), dict(each_layer(twin))
    for row in found.itertuples():
        name = row[found.columns.get_loc("class") + 1]
        for members, count in ((layers, row.count), (others, row.twin_count)):
            if row.varied == "harris_tolerance":
                again = [
                    loop_harris(one, row.threshold) for _, one in members[row.layer].iterrows()
                ]
            else:
                alone = loop_ratio if row.varied == "color_ratio" else loop_class
                line = {row.varied: row.threshold}
                again = [alone(one, **line) for _, one in members[row.layer].iterrows()]
            assert count == again.count(name), (row.layer, row.varied, row.threshold, name)
    assert found.groupby(["layer", "varied"]).size().tolist() == [12, 12, 12, 12] * 4


def test_the_line_that_classes_go_by_is_marked_and_always_there():
    table = invented(seed=6)
    rules = RULES | {"color_ratio": 0.7}
    found = opponency.stability(table, THRESHOLDS, rules)
    stated = found[found["rule"]].groupby("varied")["threshold"].unique()
    assert {name: values.tolist() for name, values in stated.items()} == {
        name: [value] for name, value in rules.items()
    }
    assert found["twin_count"].isna().all() and (found["twin"] == "").all()
    # At the line itself, the counts are those of the classes.
    rows = found[found["rule"] & (found["varied"] == "harris_tolerance")]
    counts = opponency.counts(table).query("rule == 'harris'")
    assert rows["count"].tolist() == counts["count"].tolist()


# ---- beside macaques


def test_kinds_have_the_published_bounds():
    ratio = [0, 0.4999, 0.5, 1.99, 2, np.inf, np.nan]
    table = planted(["non_opponent"] * 6 + ["unresponsive"], color_ratio=ratio)
    expected = ["luminance"] * 2 + ["color_luminance"] * 2 + ["color_preferring"] * 2
    assert opponency.kinds(table).tolist() == [*expected, "unresponsive"]


def test_macaque_shares_stand_beside_those_of_the_layers(reference):
    table = invented(seed=8)
    found = opponency.macaque(table, reference, invented(seed=9), "r")
    for layer, members in each_layer(table):
        rows = found[found["layer"] == layer].set_index("kind")
        ratio = members["color_ratio"].dropna()
        assert rows.loc["luminance", "count"] == (ratio < 0.5).sum()
        assert rows.loc["color_luminance", "count"] == ((ratio >= 0.5) & (ratio < 2)).sum()
        assert rows.loc["color_preferring", "count"] == (ratio >= 2).sum()
        assert rows["fraction"].sum() == pytest.approx(1)
        percent = (100 * rows["macaque_fraction"]).round().tolist()
        assert percent == [60, 29, 11] and rows["macaque_count"].sum() == 167
        assert rows["certainty"].str.contains("from memory").all()
    interval = stats.binomtest(19, 167).proportion_ci(method="wilson")
    assert rows.loc["color_preferring", "macaque_lo"] == pytest.approx(interval.low)


def test_what_is_published_is_cited_and_consistent(reference):
    assert (reference["source"].str.contains("doi:10.")).all()
    assert reference["certainty"].notna().all() and reference["statement"].notna().all()
    kinds = reference[reference["quantity"] == "color_ratio"]
    bounds = dict(
        zip(kinds["category"], zip(kinds["low"], kinds["high"], strict=True), strict=True)
    )
    assert bounds == opponency.KINDS
    assert kinds["value"].sum() == kinds["n"].iloc[0]
    tuned = reference[reference["quantity"] == "orientation_for_color"]
    assert tuned["category"].tolist() == list(opponency.CONE)


# ---- orientation for colour


def test_oriented_channels_are_those_of_the_loop(reference):
    table, twin = invented(seed=10), invented(seed=11)
    found = opponency.orientation(table, reference, 0.5, twin, "r")

    def loop(members: pd.DataFrame, name: str) -> tuple[int, int]:
        chosen = [row for _, row in members.iterrows() if row["color_class"] == name]
        known = [row for row in chosen if np.isfinite(row["color_osi"])]
        tuned = [row for row in known if row["color_osi"] >= 0.5 and row["color_bandwidth_deg"] > 0]
        return len(tuned), len(known)

    others = dict(each_layer(twin))
    for layer, members in each_layer(table):
        rows = found[found["layer"] == layer].set_index("class")
        for name in opponency.CONE:
            row = rows.loc[name]
            assert (row["oriented"], row["n"]) == loop(members, name)
            assert (row["twin_oriented"], row["twin_n"]) == loop(others[layer], name)
            chosen = members[members["color_class"] == name]
            assert row["color_osi_median"] == pytest.approx(chosen["color_osi"].median())
            assert row["osi_median"] == pytest.approx(chosen["osi"].median())
            assert row["n_bandwidth"] == chosen["color_bandwidth_deg"].count()
        apart = rows.loc["double_opponent", "fraction"] - rows.loc["single_opponent", "fraction"]
        assert rows.loc["double_opponent", "difference"] == pytest.approx(apart)
        assert np.isnan(rows.loc["single_opponent", "difference"])
    together = found[found["layer"] == opponency.ALL].set_index("class")
    assert together.loc["double_opponent", "difference_lo"] > 0, "planted: band-pass is oriented"
    assert together.loc["single_opponent", "macaque"].startswith("not orientation-selective")


def test_without_gratings_there_is_no_luminance_to_compare(reference):
    found = opponency.orientation(invented().drop(columns="osi"), reference, 0.5)
    assert found["osi_median"].isna().all() and found["fraction"].notna().any()


# ---- the files


@pytest.mark.parametrize("with_twin", [True, False])
def test_the_script_writes_the_tables(tmp_path, with_twin):
    store.write_table(invented(), tmp_path / "channels.csv")
    store.write_table(invented(seed=4, colored=0.1), tmp_path / "twin.csv")
    names = ["confusion", "stability", "counts", "macaque", "orientation"]
    given = {
        "channels": str(tmp_path / "channels.csv"),
        "twin": str(tmp_path / "twin.csv") if with_twin else [],
        "reference": ROOT / "resources" / "v1_color.csv",
    }
    params = {"rules": RULES, "orientation_osi": 0.5, "twin": "r" if with_twin else ""}
    by_script("opponency", tmp_path, names, given, thresholds=THRESHOLDS, **params)
    counts = store.read_table(tmp_path / "counts.csv")
    assert counts["difference"].notna().any() == with_twin
    together = counts[(counts["layer"] == opponency.ALL) & (counts["rule"] == "cone")]
    assert together["count"].sum() == (invented()["color_class"] != "unresponsive").sum()
    stability = store.read_table(tmp_path / "stability.csv")
    assert set(stability["varied"]) == set(THRESHOLDS)


@pytest.mark.parametrize("with_twin", [True, False])
def test_tables_survive_their_files(tmp_path, reference, with_twin):
    given = (invented(seed=1), "r") if with_twin else (None, "")
    found = opponency.tables(invented(), reference, THRESHOLDS, RULES, 0.5, *given)
    for name, rows in found.items():
        assert list(rows) == list(getattr(opponency, name.upper()))
        store.write_table(rows, tmp_path / f"{name}.csv")
        back = store.read_table(tmp_path / f"{name}.csv")
        assert list(back) == list(rows) and len(back) == len(rows)
        assert back["layer"].tolist() == rows["layer"].tolist()
        if "difference" in rows and name != "orientation":
            assert back["difference"].notna().any() == with_twin


def test_a_layer_that_answers_nothing_has_no_fractions(reference):
    table = invented({"conv1": 6, "layer1.0": 6})
    second = table["layer"] == "layer1.0"
    table.loc[second, "color_ratio":"osi"] = np.nan
    names = ["color_class", "color_class_ratio", "color_class_ratio_unrectified"]
    table.loc[second, names] = "unresponsive"
    table.loc[second, ["harris_spatial", "harris_spectral", "color_class_energy"]] = np.nan
    found = opponency.tables(table, reference, THRESHOLDS, RULES, 0.5, table, "r")
    for name in ("counts", "stability", "macaque"):
        rows = found[name][found[name]["layer"] == "layer1.0"]
        assert (rows["responsive"] == 0).all() and rows["fraction"].isna().all()
        assert rows["difference_lo"].isna().all() and (rows["channels"] == 6).all()
    rows = found["orientation"][found["orientation"]["layer"] == "layer1.0"]
    assert (rows["n"] == 0).all() and rows["color_osi_median"].isna().all()


@pytest.mark.parametrize("name", ["confusion", "stability", "counts", "macaque", "orientation"])
def test_every_column_is_documented(name):
    assert columns_of(f"opponency/{name}.csv") == list(getattr(opponency, name.upper()))


# ---- the page for vision scientists


def page() -> str:
    return (ROOT / "docs" / "color.md").read_text(encoding="utf-8")


def test_the_page_has_the_cone_contrasts_of_the_code():
    rows = re.findall(r"^\| \S+ \| (\S+) \| (\S+) \| (\S+) \|$", page(), flags=re.MULTILINE)
    told = [[float(number.replace("−", "-")) for number in row] for row in rows]
    np.testing.assert_allclose(told, colorspace.space().contrast, atol=5e-4)
    assert f"{100 * colorspace.space().grey:.1f} % of the light" in page()


def test_the_page_scores_a_grey_unit_as_the_stimuli_do():
    """A kernel of equal weights, drifting gratings of small contrast, made as stimuli are."""
    space = colorspace.space()
    carrier = 0.01 * torch.sin(torch.arange(0, 2 * np.pi, 2 * np.pi / 64))
    answer = []
    for axis in space.axes:
        pixels = colorspace.paint(carrier.reshape(1, 8, 8).double(), axis[None])
        answer.append(np.ptp(pixels.sum(1).numpy()))
    lm, s = answer[1] / answer[0], answer[2] / answer[0]
    assert f"with {lm:.2f} of its answer" in page() and f"with {s:.2f} to S" in page()
    contrast = np.abs(space.contrast[1])
    mean, rms = contrast[:2].mean(), np.sqrt((contrast**2).mean())
    for factor, score in ((1 / mean, lm / mean), (1 / rms, lm / rms)):
        assert f"{factor:.1f}" in page() and f"{score:.2f}" in page()
    assert lm / mean > opponency.KINDS["color_preferring"][0], "mislabelled"
    assert "(0.23, −0.07, 0.00)" in page() and "3.4 times" in page()
    np.testing.assert_allclose(space.code_per_axis[:, 1], [0.23, -0.07, 0.00], atol=0.005)
    assert space.luminance[1] / space.luminance[0] == pytest.approx(3.4, abs=0.05)
