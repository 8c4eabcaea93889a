"""Stage orientation: layers counted by loops, planted fractions, a published example, and gaps."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import columns_of
from scipy import stats
from synthetic import tuning
from table_scripts import by_script, come_back

from rfatlas.files import store
from rfatlas.tables import channels, findings, orientation

ROOT = Path(__file__).resolve().parents[2]
THRESHOLDS = [0.3, 0.5, 0.8]


def planted(osi, bandwidth=20.0, layer="conv1", depth=0, **columns) -> pd.DataFrame:
    """A layer whose channels have these indices."""
    rows = pd.DataFrame({"osi": np.array(osi, float), "bandwidth_deg": bandwidth} | columns)
    return rows.assign(layer=layer, channel=np.arange(len(rows)), depth=depth)


def without(table: pd.DataFrame, *stems: str) -> pd.DataFrame:
    """The table that stages leave behind of which some were off."""
    gratings = ["osi", "circular", "orientation", "bandwidth", "sf_", "f1_", "grating"]
    known = {"gabor": ["gabor"], "gratings": gratings}
    dropped = tuple(prefix for stem in stems for prefix in known[stem])
    return table[[column for column in table if not column.startswith(dropped)]]


# ---- agreement


def test_agreement_is_the_loop_over_channels():
    table = tuning(seed=3)
    found = orientation.agreement(table)
    columns = {
        "kernel": "gabor_kernel_theta_deg",
        "gradient": "gabor_theta_deg",
        "gratings": "orientation_deg",
    }
    assert len(found) == 3 * 3 * 2
    for row in found.itertuples():
        members = table[table["layer"] == row.layer]
        if row.channels == "selective":
            members = members[[value is True for value in members["orientation_selective"]]]
        apart = []
        for _, channel in members.iterrows():
            a, b = channel[columns[row.first]], channel[columns[row.second]]
            if np.isfinite(a) and np.isfinite(b):
                apart.append(min(abs(a - b + turn) for turn in (-180, 0, 180)))
        assert row.n == len(apart)
        if not apart:
            assert row.layer != "conv1" and "kernel" in (row.first, row.second)
            assert np.isnan([row.median_deg, row.p90_deg, row.share_within_10_deg]).all()
            continue
        assert row.median_deg == pytest.approx(np.median(apart))
        assert row.p90_deg == pytest.approx(np.percentile(apart, 90))
        assert row.share_within_10_deg == pytest.approx(sum(d <= 10 for d in apart) / len(apart))
        assert row.circular_correlation > 0.95


def test_agreement_across_the_end_of_the_circle():
    table = planted([0.9] * 4, gabor_theta_deg=[179.0, 1, 90, 5], orientation_deg=[1.0, 179, 0, 5])
    found = orientation.agreement(table)
    assert found[["first", "second", "channels"]].values.tolist() == [
        ["gradient", "gratings", "all"]
    ]
    row = found.iloc[0]
    assert row["n"] == 4 and row["median_deg"] == 2 and row["share_within_10_deg"] == 0.75
    assert row["p90_deg"] == pytest.approx(np.quantile([0, 2, 2, 90], 0.9))


def test_unrelated_orientations_look_unrelated():
    random = np.random.default_rng(0)
    first, second = random.uniform(0, 180, (2, 4000))
    table = planted([0.9] * 4000, gabor_theta_deg=first, orientation_deg=second)
    row = orientation.agreement(table).iloc[0]
    assert row["median_deg"] == pytest.approx(45, abs=2)
    assert row["share_within_10_deg"] == pytest.approx(20 / 180, abs=0.02)
    assert row["circular_correlation"] == pytest.approx(0, abs=0.05)


# ---- selective channels


def test_fractions_are_those_that_were_planted():
    osi = [0.9] * 6 + [0.45] * 2 + [0.1] * 2 + [np.nan] * 5
    found = orientation.selective(planted(osi), [0.3, 0.95], 0.5)
    assert found["selective"].tolist() == [8, 6, 0]
    assert found["rule"].tolist() == [False, True, False]
    assert found["responsive"].tolist() == [10] * 3 and found["channels"].tolist() == [15] * 3
    np.testing.assert_allclose(found["fraction"], [0.8, 0.6, 0])
    for row in found.itertuples():
        expected = stats.binomtest(row.selective, 10).proportion_ci(method="wilson")
        assert (row.lo, row.hi) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found["twin_selective"].isna().all() and found["difference"].isna().all()


def test_a_channel_without_a_bandwidth_is_not_selective():
    found = orientation.selective(planted([0.9, 0.9], [20.0, np.nan]), [0.5], 0.5)
    assert found["selective"].tolist() == [1]


def test_colour_counts_and_noise_does_not():
    """Tuned for luminance, for colour, both, neither; of colour only what is opponent; two fields
    of noise, one that nothing drives and one that is weak."""
    table = planted([0.9, 0.1, 0.9, 0.1, 0.1, 0.9, 0.1, np.nan, np.nan], split_half=0.5)
    table["color_osi"] = [0.1, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, np.nan, np.nan]
    table["color_bandwidth_deg"] = 20.0
    grey, double = "non_opponent", "double_opponent"
    table["color_class"] = [grey, double, double, double, grey, grey, double, "unresponsive", grey]
    table["gabor_reason"] = [""] * 5 + ["noise"] * 2 + [""] * 2
    table["gabor_theta_deg"] = np.where(table["gabor_reason"] == "noise", np.nan, 30)
    table["grating_reason"] = [""] * 7 + ["no_response", "weak"]
    row = orientation.selective(table, [], 0.5, table, "r").iloc[0]
    assert (row["selective"], row["responsive"], row["channels"]) == (3, 7, 9)
    assert row[["luminance", "color", "both"]].tolist() == [1, 1, 1]
    assert row[["noise", "no_response", "weak"]].tolist() == [2, 1, 1]
    assert row["twin_selective"] == 3 and row["twin_responsive"] == 7
    derived = channels.derived(table, 0.5)["orientation_selective"]
    assert derived.tolist() == [True, True, True, False, False, False, False, pd.NA, pd.NA]


def test_a_field_that_is_not_known_is_not_called_noise():
    """A complex channel: tuned, with a mean gradient in which nothing is left."""
    table = planted([0.9] * 3, gabor_reason="noise", gabor_theta_deg=np.nan)
    table["split_half"] = [0.1, np.nan, 0.9]
    row = orientation.selective(table, [], 0.5).iloc[0]
    assert (row["selective"], row["noise"]) == (2, 1)


def test_the_threshold_itself_is_enough():
    found = orientation.selective(planted([0.3, 0.5, np.nextafter(0.5, 0)]), [0.3], 0.5)
    assert found["selective"].tolist() == [3, 1]


def test_the_difference_from_the_twin_is_newcombes_published_example():
    table = planted([0.9] * 56 + [0.1] * 14)
    twin = planted([0.9] * 48 + [0.1] * 32 + [np.nan] * 5)
    row = orientation.selective(table, [0.5], 0.5, twin, "demo_random").iloc[0]
    assert row["twin"] == "demo_random" and row["twin_selective"] == 48
    assert row["twin_responsive"] == 80, "silent channels do not count"
    assert row["difference"] == pytest.approx(0.2)
    assert row["difference_lo"] == pytest.approx(0.0524, abs=6e-5)
    assert row["difference_hi"] == pytest.approx(0.3339, abs=6e-5)


def test_a_layer_that_the_twin_lacks_has_no_comparison():
    table = pd.concat([planted([0.9, 0.1]), planted([0.9], layer="layer1.0", depth=1)])
    twin = planted([0.9, 0.1, 0.1], layer="layer1.0", depth=0)
    found = orientation.selective(table, [0.5], 0.5, twin, "r")
    assert found["twin"].tolist() == ["", "r"]
    assert found["twin_responsive"].tolist() == [pd.NA, 3]
    assert found["difference"].tolist()[1] == pytest.approx(1 - 1 / 3)


def test_oriented_gabors_are_counted_beside_the_index():
    """Of the first network two of four fields have one; of its twin one of three, one unknown."""
    nothing = np.nan
    own = planted([0.9] * 5, gabor_reason=[nothing, "", "blob", "noise", "not_measured"])
    own["split_half"] = 0.9
    own["gabor_theta_deg"] = [10.0, 20.0, nothing, nothing, nothing]
    twin = planted([0.9] * 3, gabor_reason=["", "noise", "poor"])
    twin["gabor_theta_deg"], twin["split_half"] = [30.0, nothing, nothing], 0.9
    row = orientation.selective(own, [], 0.5, twin, "r").iloc[0]
    assert row[list(orientation.GABOR)].tolist() == [4, 2, 3, 1]
    alone = orientation.selective(own, [], 0.5).iloc[0]
    assert alone[list(orientation.GABOR)].tolist() == [4, 2, pd.NA, pd.NA]
    sentence = findings.orientation(orientation.selective(own, [], 0.5, twin, "r"))["sentence"]
    assert sentence.endswith(
        " An oriented Gabor function fits the mean gradients of 2 of 4 better than noise, with "
        "random weights 1 of 3."
    )


def test_a_layer_that_answers_nothing_has_no_fraction():
    found = orientation.selective(planted([np.nan, np.nan]), [0.5], 0.5, planted([0.9]), "r").iloc[
        0
    ]
    assert found["responsive"] == 0 and np.isnan(found["fraction"])
    assert np.isnan([found["lo"], found["difference"], found["difference_lo"]]).all()


# ---- stages that were off, and the files


@pytest.mark.parametrize("off", [("gabor",), ("gratings",), ("gabor", "gratings")])
def test_stages_that_were_off_leave_gaps_and_nothing_breaks(off, tmp_path):
    table = without(tuning(), *off)
    twin = without(tuning(seed=5), *off)
    found = orientation.tables(table, THRESHOLDS, 0.5, twin, "r")
    pairs = found["agreement"][["first", "second"]].drop_duplicates().values.tolist()
    assert pairs == ([["kernel", "gradient"]] if off == ("gratings",) else [])
    assert found["selective"].empty == ("gratings" in off)
    come_back(found, tmp_path)


@pytest.mark.parametrize("with_twin", [True, False])
def test_the_script_writes_the_tables(tmp_path, with_twin):
    store.write_table(tuning(), tmp_path / "channels.csv")
    store.write_table(tuning(seed=4, tuned=0.1), tmp_path / "twin.csv")
    names = ["agreement", "selective"]
    given = {
        "channels": str(tmp_path / "channels.csv"),
        "twin": str(tmp_path / "twin.csv") if with_twin else [],
    }
    params = {"thresholds": THRESHOLDS, "orientation_osi": 0.5, "twin": "r" if with_twin else ""}
    by_script("orientation", tmp_path, names, given, **params)
    selective = store.read_table(tmp_path / "selective.csv")
    assert selective["difference"].notna().all() == with_twin
    assert (selective["osi_threshold"].unique() == THRESHOLDS).all()
    if with_twin:
        assert (selective.query("osi_threshold == 0.5")["difference_lo"] > 0).all()


@pytest.mark.parametrize(
    ("name", "columns"),
    [("agreement", orientation.AGREEMENT), ("selective", orientation.SELECTIVE)],
)
def test_every_column_is_documented(name, columns):
    assert columns_of(f"orientation/{name}.csv") == list(columns)
