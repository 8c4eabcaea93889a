"""Stage v1: distances against scipy and brute force, each property by hand, published medians from
the published histograms, planted layers in the order of their likeness, and gaps."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import columns_of
from scipy import stats
from synthetic import tuning
from table_scripts import by_script, come_back

from rfatlas.files import store
from rfatlas.tables import v1

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"gabor_r2": 0.5, "pixels_per_degree": 28, "pixels_per_degree_sweep": [14, 28, 56]}
PROPERTIES = {each.name: each for each in v1.PROPERTIES}


@pytest.fixture(scope="module")
def reference() -> pd.DataFrame:
    return store.read_table(ROOT / "resources" / "v1_reference.csv")


@pytest.fixture(scope="module")
def judge(reference) -> v1.Judge:
    return v1.Judge(reference, 0.5)


def neurons(judge: v1.Judge, count: int, seed: int, layer="conv1", depth=0) -> pd.DataFrame:
    """A layer whose channels are drawn from what is published of V1, with 28 pixels per degree."""
    random = np.random.default_rng(seed)

    def draw(name: str) -> np.ndarray:
        known = judge.known[name]
        edges = known.edges.copy()
        edges[np.isinf(edges)] = edges[-2] * 1.2
        return np.interp(random.random(count), known.below, edges)

    sizes = {name: 28 * draw(f"{name}_deg") for name in ("summation", "surround")}
    table = pd.DataFrame(
        {
            "orientation_deg": draw("orientation_deg") % 180,
            "osi": 0.8,
            "bandwidth_deg": 20.0,
            "circular_variance": 0.5,
            "sf_cpp": draw("sf_cpd") / 28,
            "sf_bandwidth_oct": draw("sf_bandwidth_oct"),
            "f1_f0": draw("f1_f0"),
            "suppression_index": draw("suppression_index"),
            "size_summation_px": sizes["summation"],
            "size_surround_px": sizes["surround"],
            "texture_modulation": draw("texture_modulation"),
            "grating_response": draw("grating_rate") - v1.SPONTANEOUS_RATE,
        }
    )
    table["texture_abs_modulation"] = table["texture_modulation"].abs()
    table.loc[: count // 6, "sf_bandwidth_oct"] = np.nan
    return table.assign(layer=layer, depth=depth, channel=np.arange(count))


# ---- distances


def test_a_distance_from_a_sample_in_fine_bins_is_scipys():
    random = np.random.default_rng(0)
    sample, values = random.normal(size=300), random.normal(0.4, 1.3, 80)
    edges = np.sort(np.concatenate([sample, values]))
    edges = np.nextafter(edges, np.inf)
    known = v1.Published(edges, (sample[:, None] < edges).mean(0), 300)
    expected = stats.ks_2samp(sample, values).statistic
    assert float(v1.ks(np.append(values, np.nan), known)) == pytest.approx(expected)


def test_a_distance_in_coarse_bins_is_the_loop_over_edges(judge):
    known = judge.known["sf_cpd"]
    values = np.random.default_rng(1).lognormal(1, 0.7, 50)
    below, apart = 0, 0.0
    total = 363
    counts = np.diff(known.below) * total
    for edge, count in zip(known.edges, [0, *counts], strict=True):
        below += count
        apart = max(apart, abs(below / total - sum(value < edge for value in values) / 50))
    assert float(v1.ks(values, known)) == pytest.approx(apart)
    assert float(v1.ks(np.full(4, np.nan), known)) == 1, "V1's neurons have values"


def test_resampled_distances_are_those_of_the_drawn_channels(judge):
    values = np.random.default_rng(2).lognormal(1, 0.7, 20)
    values[3] = np.nan
    weights = v1.resamplings(20, 5)[:10]
    assert (weights.sum(1) == 20).all()
    drawn = v1.ks(values, judge.known["sf_cpd"], weights)
    for row, found in zip(weights.astype(int), drawn, strict=True):
        assert found == pytest.approx(float(v1.ks(values.repeat(row), judge.known["sf_cpd"])))


def test_intervals_hold_the_true_distance_mostly(judge):
    """Layers of 100 channels from one distribution, whose own distance from V1 is known."""
    known = judge.known["sf_cpd"]
    random = np.random.default_rng(3)
    true = float(v1.ks(random.lognormal(0.5, 0.6, 400_000), known))
    inside = 0
    for _ in range(200):
        values = random.lognormal(0.5, 0.6, 100)
        drawn = v1.ks(values, known, v1.resamplings(100, 0))
        low, high = v1.interval(float(v1.ks(values, known)), drawn)
        inside += low <= true <= high
    assert inside >= 0.88 * 200


def test_the_ceiling_is_what_as_many_neurons_reach(judge):
    known = judge.known["suppression_index"]
    random = np.random.default_rng(4)
    shares = np.diff(known.below)
    middles = (known.edges[:-1] + known.edges[1:]) / 2
    reached = []
    for _ in range(600):
        theirs = random.multinomial(known.n, shares).cumsum() / known.n
        mine = random.choice(middles, 30, p=shares)
        reached.append(1 - max(abs(v1.below(mine, known.edges)[1:] - theirs)))
    assert v1.ceiling(known, 30) == pytest.approx(np.mean(reached), abs=0.01)
    assert v1.ceiling(known, 30) < v1.ceiling(known, 3000) < 1


def test_two_studies_are_as_alike_as_their_bins_say(reference):
    # 66 49 77 54 of 246 against 110 83 100 92 of 385.
    apart = np.abs(np.cumsum([66, 49, 77, 54]) / 246 - np.cumsum([110, 83, 100, 92]) / 385).max()
    assert v1.study_ceiling(reference, "orientation_deg") == pytest.approx(1 - apart)
    assert 0.85 < v1.study_ceiling(reference, "sf_bandwidth_oct") < 0.95
    assert np.isnan(v1.study_ceiling(reference, "f1_f0"))


# ---- properties


def test_each_property_by_hand(judge):
    table = pd.DataFrame(
        {
            "orientation_deg": [170.0, 10, 100, np.nan],
            "osi": [0.6, 0.0, 1.0, np.nan],
            "bandwidth_deg": [20.0, np.nan, 40, np.nan],
            "circular_variance": [0.5, 1.0, 0.0, np.nan],
            "sf_cpp": [0.1, 0.2, 0.05, np.nan],
            "sf_bandwidth_oct": [1.0, np.nan, 2.0, np.nan],
            "suppression_index": [0.5, 0.05, 0.2, np.nan],
            "size_summation_px": [14.0, 28, 56, np.nan],
            "size_surround_px": [28.0, 56, 84, np.nan],
            "grating_response": [1.0, 2, 4, np.nan],
            "texture_max": [2.0, 0, 8, np.nan],
            "noise_max": [0.0, 4, 2, np.nan],
            "gabor_frequency": [0.1, 0.1, 0.2, 0.1],
            "gabor_r2": [0.9, 0.1, 0.5, np.nan],
            "gabor_nx": [0.3, 0.3, 0.4, 0.5],
            "gabor_ny": [0.5, 0.3, 0.4, 0.5],
            **{
                name: [0.1, 0.2, 0.3, np.nan]
                for name in (
                    "f1_f0",
                    "texture_selectivity",
                    "texture_sparseness",
                    "texture_variance_ratio",
                    "texture_modulation",
                    "texture_abs_modulation",
                )
            },
        }
    )
    nan = np.nan
    plain = [0.1, 0.2, 0.3, nan]
    slope = (33.8 - 0.82) / 2
    expected = {
        "orientation_deg": [-10, nan, 100, nan],
        "circular_variance": [0.5, 1, 0, nan],
        "orientation_tuned": [1, 0, 1, nan],
        "bandwidth_deg": [20, nan, 40, nan],
        "orthogonal_ratio": [0.25, 1, 0, nan],
        "cv_bandwidth_ratio": [0.025, nan, 0, nan],
        "orthogonal_ratio_minus_cv": [-0.25, 0, 0, nan],
        "sf_cpd": [2, 4, 1, nan],
        "sf_tuned": [1, 0, 1, nan],
        "sf_bandwidth_oct": [1, nan, 2, nan],
        "texture_selectivity": plain,
        "texture_sparseness": plain,
        "texture_variance_ratio": plain,
        "f1_f0": plain,
        "summation_deg": [0.7, nan, 2.8, nan],
        "surround_deg": [1.4, nan, 4.2, nan],
        "suppression_index": [0.5, 0.05, 0.2, nan],
        "texture_modulation": plain,
        "texture_abs_modulation": plain,
        "grating_rate": [0.82 + slope, 33.8, 0.82 + 4 * slope, nan],
        "texture_rate": [33.8, 0.82, 0.82 + 8 * slope, nan],
        "noise_rate": [0.82, 0.82 + 4 * slope, 33.8, nan],
        "gabor_sf_cpd": [2, nan, 4, nan],
        "gabor_nx": [0.3, nan, 0.4, nan],
        "gabor_ny": [0.5, nan, 0.4, nan],
    }
    assert set(expected) == set(PROPERTIES)
    assert sum(each.battery for each in v1.PROPERTIES) == 22
    for name, values in expected.items():
        found = judge.values(PROPERTIES[name], table, 20)
        assert found == pytest.approx(values, nan_ok=True), name
        assert (
            judge.values(PROPERTIES[name], table.drop(columns=PROPERTIES[name].needs[0]), 20)
            is None
        )


def test_bins_hold_all_that_a_property_can_be_and_those_that_are_published(judge):
    for each in v1.PROPERTIES:
        edges = np.array(each.edges, float)
        assert (np.diff(edges) > 0).all()
        known = judge.known[each.name]
        if known is not None and known.n is not None:
            assert set(known.edges) <= set(edges), each.name


# ---- what is published


def test_what_is_published_is_cited_and_consistent(reference):
    columns = "quantity statistic low high value unit n source certainty".split()
    assert list(reference) == columns
    assert (reference["source"].str.len() > 20).all() and reference["certainty"].notna().all()
    counts = reference[reference["statistic"].isin(["count", "share"])]
    logarithmic = ("sf_cpd", "gabor_nx", "gabor_ny", "summation_deg", "surround_deg")
    for quantity, bins in counts.groupby("quantity", sort=False):
        shares = bins["statistic"].iloc[0] == "share"
        total = bins["value"].sum()
        assert total == pytest.approx(1) if shares else total == bins["n"].iloc[0], quantity
        assert (bins["low"].to_numpy()[1:] == bins["high"].to_numpy()[:-1]).all()
        median = reference[
            (reference["quantity"] == quantity) & (reference["statistic"] == "median")
        ]
        if len(median):
            # The median by interpolation within its bin, on the axis of the published figure.
            cumulative = bins["value"].cumsum().to_numpy()
            at = int(np.searchsorted(cumulative, total / 2))
            inside = 1 - (cumulative[at] - total / 2) / bins["value"].iloc[at]
            low, high = bins["low"].iloc[at], bins["high"].iloc[at]
            log = quantity in logarithmic
            expected = low * (high / low) ** inside if log else low + inside * (high - low)
            assert median["value"].iloc[0] == pytest.approx(expected, rel=0.015), quantity


def test_the_cells_of_all_eccentricities_are_those_near_and_far(reference):
    every, near, far = (
        reference[reference["quantity"] == name].query("statistic == 'count'")["value"].to_numpy()
        for name in ("sf_cpd", "sf_cpd_foveal", "sf_cpd_parafoveal")
    )
    assert (near + far).tolist() == every.tolist()


def test_the_joint_counts_add_up_to_the_single_ones(reference):
    joint = store.read_table(ROOT / "resources" / "v1_nx_ny.csv")
    for axis in ("nx", "ny"):
        sums = joint.groupby([f"{axis}_low", f"{axis}_high"])["count"].sum()
        single = reference[
            (reference["quantity"] == f"gabor_{axis}") & (reference["statistic"] == "count")
        ]
        assert sums.tolist() == single["value"].tolist()
        assert [low for low, _ in sums.index] == single["low"].tolist()


# ---- the tables


def test_histograms_count_what_a_loop_counts(reference, judge):
    table = tuning(seed=1)
    found = v1.histograms(table, judge, 28)
    own = found[found["layer"] != v1.MACAQUE]
    for (layer, name), bins in own.groupby(["layer", "property"]):
        members = table[table["layer"] == layer]
        values = judge.values(PROPERTIES[name], members, 28)
        values = values[np.isfinite(values)]
        for row in bins.itertuples():
            assert row.count == sum(row.low <= value < row.high for value in values)
        assert (bins["n"] == len(values)).all() and bins["count"].sum() == len(values)
    macaque = found[found["layer"] == v1.MACAQUE]
    published = reference[reference["statistic"] == "count"].set_index(["quantity", "low", "high"])
    for row in macaque[macaque["count"].notna()].itertuples():
        name = PROPERTIES[row.property].like or row.property
        one = published.loc[(name, row.low, row.high)]
        assert row.count == one["value"] and row.n == one["n"] and pd.isna(row.depth)
        assert row.fraction == pytest.approx(one["value"] / one["n"])
    assert macaque.groupby("property")["fraction"].sum().to_numpy() == pytest.approx(1)


def test_a_card_says_of_every_property_what_is_known(judge):
    table, twin = tuning(seed=1), tuning({"conv1": 20}, seed=2, tuned=0.1)
    found = v1.card(table, judge, 28, twin)
    assert len(found) == 3 * len(PROPERTIES)
    rows = found[found["layer"] == "conv1"].set_index("property")
    members = table[table["layer"] == "conv1"]
    assert rows.loc["circular_variance", "reason"] == "median_only"
    assert rows.loc["circular_variance", "macaque_median"] == 0.61
    assert rows.loc["circular_variance", "certainty"] == "from memory"
    assert rows.loc["circular_variance", "median"] == members["circular_variance"].median()
    assert rows.loc["orthogonal_ratio", "reason"] == "not_published"
    assert rows.loc["orientation_tuned", "median"] == members["bandwidth_deg"].notna().sum() / 23
    assert rows.loc["sf_tuned", "macaque_median"] == pytest.approx(73 / 87)
    assert rows.loc["texture_modulation", "reason"] == "stage_off"
    assert rows.loc["texture_modulation", "source"].startswith("Freeman, Ziemba")
    assert np.isnan(rows.loc["texture_modulation", "ks"])
    row = rows.loc["sf_cpd"]
    values = 28 * members["sf_cpp"].dropna().to_numpy()
    assert row["reason"] == "" and row["n"] == 23 and row["median"] == np.median(values)
    assert row["ks"] == float(v1.ks(values, judge.known["sf_cpd"]))
    assert row["ks_lo"] <= row["ks"] <= row["ks_hi"]
    twins = float(v1.ks(28 * twin["sf_cpp"].to_numpy(), judge.known["sf_cpd"]))
    assert row["twin_ks"] == twins and row["gain"] == pytest.approx(twins - row["ks"])
    assert row["similarity"] == min(1, (1 - row["ks"]) / row["ceiling"])
    assert row["ceiling"] <= row["study_ceiling"]
    assert found.loc[found["layer"] == "layer1.0", "twin_n"].isna().all()


def test_a_property_that_no_channel_has_counts_as_nothing_alike(judge):
    table = neurons(judge, 40, 0).assign(sf_bandwidth_oct=np.nan)
    row = v1.card(table, judge, 28).set_index("property").loc["sf_bandwidth_oct"]
    assert (row["reason"], row["n"], row["ks"], row["similarity"]) == ("no_channel", 0, 1, 0)


def test_a_layer_of_v1_neurons_scores_above_the_rest_and_near_1(judge):
    alike = neurons(judge, 120, 1)
    # Frequencies four times too high, all of the F1/F0 of linear units, no suppression.
    other = neurons(judge, 120, 2, "layer1.0", 1)
    other["sf_cpp"] *= 4
    other["f1_f0"], other["suppression_index"] = 1.57, 0.0
    table = pd.concat([alike, other], ignore_index=True)
    found = v1.scores(table, judge, 28, [7, 28], table.assign(sf_cpp=0.4), "random")
    stated = found[found["stated"]].set_index("layer")
    assert (found["properties"] == 11).all() and len(found) == 4
    assert stated.loc["conv1", "score"] > 0.97
    assert stated.loc["layer1.0", "score"] < stated.loc["conv1", "score"] - 0.2
    assert (stated["lo"] <= stated["score"]).all() and (stated["score"] <= stated["hi"]).all()
    assert (stated["twin"] == "random").all()
    assert stated["difference"].to_numpy() == pytest.approx(
        (stated["score"] - stated["twin_score"]).to_numpy()
    )
    assert stated.loc["conv1", "difference_lo"] > 0
    # By the mean of the card's similarities.
    card = v1.card(table, judge, 28)
    means = card[card["battery"]].groupby("layer")["similarity"].mean()
    assert stated["score"].to_dict() == pytest.approx(means.to_dict())
    # With seven pixels per degree four times the frequency is right.
    seven = found[found["pixels_per_degree"] == 7].set_index("layer")["score"]
    assert seven["layer1.0"] > stated.loc["layer1.0", "score"]
    assert seven["conv1"] < stated.loc["conv1", "score"]


def test_a_twin_without_a_stage_leaves_both_the_properties_of_the_other(judge):
    table = neurons(judge, 60, 1)
    twin = table.drop(columns=["texture_modulation", "texture_abs_modulation"])
    assert v1.scores(table, judge, 28, [])["properties"].tolist() == [11]
    found = v1.scores(table, judge, 28, [], twin, "r").iloc[0]
    assert found["properties"] == 9 and found["difference"] == 0


def test_degrees_follow_from_the_scale(judge):
    table = neurons(judge, 60, 1)
    found = v1.scales(table, judge, 28, [14, 56]).set_index(["property", "pixels_per_degree"])
    assert found["stated"].tolist() == [False, True, False] * 3
    for name, power in (("sf_cpd", 1), ("summation_deg", -1)):
        medians = found.loc[name, "median"]
        assert medians[56] == pytest.approx(medians[14] * 4.0**power)
        same = found.loc[name, "pixels_per_degree_of_macaque"]
        assert same.to_numpy() == pytest.approx(same.iloc[0])
        there = v1.scales(table, judge, same.iloc[0], []).set_index("property").loc[name]
        assert there["median"] == pytest.approx(there["macaque_median"])
        assert found.loc[name, "ks"].idxmin() == 28


# ---- stages that were off, and the files


def test_stages_that_were_off_leave_gaps_and_nothing_breaks(reference, tmp_path):
    gabors = [name for name in tuning() if name.startswith(("layer", "channel", "depth", "gabor"))]
    for chosen in (gabors, ["layer", "channel", "depth"]):
        found = v1.tables(tuning()[chosen], reference, SETTINGS, tuning(seed=5)[chosen], "r")
        assert found["scores"].empty
        measured = found["properties"].query("reason != 'stage_off'")["property"].unique()
        assert list(measured) == (
            ["gabor_sf_cpd", "gabor_nx", "gabor_ny"] if chosen is gabors else []
        )
        come_back(found, tmp_path)


@pytest.mark.parametrize("with_twin", [True, False])
def test_the_script_writes_the_tables(tmp_path, with_twin):
    store.write_table(tuning(), tmp_path / "channels.csv")
    store.write_table(tuning(seed=4, tuned=0.1), tmp_path / "twin.csv")
    names = ["histograms", "properties", "scores", "scales"]
    given = {
        "channels": str(tmp_path / "channels.csv"),
        "twin": str(tmp_path / "twin.csv") if with_twin else [],
        "reference": ROOT / "resources" / "v1_reference.csv",
    }
    by_script("v1", tmp_path, names, given, settings=SETTINGS, twin="r" if with_twin else "")
    scores = store.read_table(tmp_path / "scores.csv")
    assert scores["difference"].notna().all() == with_twin
    assert scores["pixels_per_degree"].tolist() == [14, 28, 56] * 3
    assert v1.MACAQUE in (tmp_path / "histograms.csv").read_text()


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("histograms", v1.HISTOGRAMS),
        ("properties", v1.CARD),
        ("scores", v1.SCORES),
        ("scales", v1.SCALES),
    ],
)
def test_every_column_is_documented(name, columns):
    assert columns_of(f"v1/{name}.csv") == list(columns)
