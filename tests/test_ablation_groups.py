"""Groups of channels, their controls and orders, against loops, exhaustive search and planted
tables."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from rfatlas import ablation_groups as stage
from rfatlas.errors import RfatlasError


def layer_rows(channels: int = 8, **columns) -> pd.DataFrame:
    """Rows of channels.csv of one layer, with these columns."""
    return pd.DataFrame({"layer": "conv1", "channel": np.arange(channels), **columns})


# ---- who belongs to a group


def test_groups_are_the_channels_with_the_property():
    rows = layer_rows(
        4,
        inactive=[True, False, False, True],
        color_class=["double_opponent", "non_opponent", None, "double_opponent"],
        orientation_selective=pd.array([True, None, False, True], "boolean"),
    )
    found = stage.groups(rows, "conv1", {"mine": {"conv1": [2, 0, 2]}, "other": {"conv2": [1]}})
    assert {name: members.tolist() for name, members in found.items()} == {
        "inactive": [0, 3],
        "double_opponent": [0, 3],
        "orientation_selective": [0, 3],
        "mine": [0, 2],
    }


def test_columns_as_csv_reads_them(tmp_path):
    rows = layer_rows(3, inactive=[False, True, False], orientation_selective=[True, None, False])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    read = pd.read_csv(tmp_path / "rows.csv")
    found = stage.groups(read, "conv1", {})
    assert found["inactive"].tolist() == [1]
    assert found["orientation_selective"].tolist() == [0]


def test_a_group_without_column_or_members_is_left_out_and_said(caplog):
    caplog.set_level("INFO")
    rows = layer_rows(3, inactive=[False] * 3)
    assert stage.groups(rows, "conv1", {}) == {}
    assert "conv1: no channel is inactive" in caplog.text
    assert "no column color_class" in caplog.text


def test_a_channel_that_the_layer_lacks_is_refused():
    message = r"ablation_groups\.groups\.mine\.conv1: no channel 9; .* 0 to 7"
    with pytest.raises(RfatlasError, match=message):
        stage.groups(layer_rows(8), "conv1", {"mine": {"conv1": [1, 9]}})


# ---- controls


@pytest.mark.parametrize("seed", range(5))
def test_matching_is_as_good_as_any_found_by_trying_all(seed):
    random = np.random.default_rng(seed)
    norms, candidates = random.uniform(0, 1, 3), random.uniform(0, 1, 6)
    chosen = stage.matched(norms, candidates)
    assert len(set(chosen.tolist())) == 3
    least = min(
        np.abs(norms - candidates[list(trial)]).sum()
        for trial in itertools.permutations(range(6), 3)
    )
    assert np.abs(norms - candidates[chosen]).sum() == pytest.approx(least)


def test_controls_are_matched_others_of_the_same_size():
    random = np.random.default_rng(0)
    norms = random.uniform(0.2, 1, 64)
    # Members are the strongest of every neighbouring pair: the others can match them.
    members = np.argsort(norms)[20:52:2]
    found = stage.controls(norms, np.sort(members), 20, 0.25, [0])
    assert (found.kind, found.reason) == ("matched", "")
    assert found.sets.shape == (20, 16)
    assert len({tuple(chosen) for chosen in found.sets.tolist()}) == 20
    for chosen in found.sets:
        assert len(set(chosen.tolist())) == 16 and not set(chosen) & set(members)
    # For sorted sets of one size, pairs in order of size differ least in sum.
    apart = [
        np.abs(np.sort(norms[members]) - np.sort(norms[chosen])).mean() for chosen in found.sets
    ]
    assert found.norm_difference == pytest.approx(np.mean(apart) / norms[members].mean())
    # Drawn without regard to their norms, the pairs are much farther apart.
    others = np.setdiff1d(np.arange(64), members)
    blind = [
        np.abs(
            np.sort(norms[members]) - np.sort(norms[random.choice(others, 16, replace=False)])
        ).mean()
        for _ in range(200)
    ]
    assert np.mean(apart) < 0.7 * np.mean(blind)


def test_a_single_channel_is_matched_with_the_nearest():
    norms = np.linspace(0.5, 1.5, 101)
    found = stage.controls(norms, np.array([50]), 20, 0.25, [0])
    assert found.kind == "matched" and len(found.sets) == 20
    # 20 neighbours on both sides are 0.055 away on the mean, all others 0.25.
    assert np.abs(norms[found.sets] - 1).mean() < 0.12


def test_groups_without_equals_in_norm_get_others_and_the_reason():
    norms = np.full(32, 1.0)
    members = np.arange(4)
    norms[members] = 0.01
    found = stage.controls(norms, members, 25, 0.25, [0])
    assert found.kind == "unmatched" and np.isnan(found.norm_difference)
    assert found.reason == "the nearest filter norms differ by 99 of the group's mean"
    assert found.sets.shape == (25, 4) and found.sets.min() >= 4
    # Every other channel is drawn as often as the next: 100 draws of 28.
    assert len(np.unique(found.sets)) > 20


@pytest.mark.parametrize("norms", [np.full(32, np.nan), np.r_[np.zeros(4), np.ones(28)]])
def test_unknown_norms_and_norms_of_zero_are_not_matched(norms):
    found = stage.controls(norms, np.arange(4), 20, 0.25, [0])
    assert (found.kind, found.reason) == ("unmatched", "filter norms unknown or 0")


def test_few_others_are_complemented_by_members():
    members = np.arange(7)
    found = stage.controls(np.ones(10), members, 20, 0.25, [0])
    assert found.kind == "overlapping"
    assert found.reason == "3 other channels are too few for 20 sets of 7"
    assert found.sets.shape == (20, 7)
    assert members.tolist() not in found.sets.tolist()


def test_a_small_layer_gives_all_its_sets_and_no_more():
    found = stage.controls(np.ones(5), np.arange(3), 20, 0.25, [0])
    assert len(found.sets) == math.comb(5, 3) - 1
    assert stage.controls(np.ones(5), np.arange(5), 20, 0.25, [0]).sets.size == 0


def test_the_seed_decides_the_draws():
    norms = np.random.default_rng(0).uniform(0.5, 1, 40)
    one, again, other = (
        stage.controls(norms, np.arange(6), 20, 0.25, [seed]).sets.tolist() for seed in (1, 1, 2)
    )
    assert one == again != other


# ---- orders


def test_counts_run_from_one_to_all():
    assert stage.counts(64, 10).tolist() == [1, 2, 3, 4, 6, 10, 16, 25, 40, 64]
    assert stage.counts(3, 10).tolist() == [1, 2, 3]
    assert stage.counts(1, 10).tolist() == [1]


def test_channels_stand_in_the_order_of_the_property_and_unknown_ones_last():
    rows = layer_rows(5, filter_norm=[0.3, 0.1, np.nan, 0.5, 0.2], osi=[np.nan] * 5)
    found = stage.orders(rows, "conv1", ["filter_norm", "osi", "activation_mean"], 3, [0])
    assert {key: order.tolist() for key, order in found.items()} == {
        ("filter_norm", "descending", 0): [3, 0, 4, 1, 2],
        ("filter_norm", "ascending", 0): [1, 4, 0, 3, 2],
    }


def test_double_opponents_go_first_and_equals_in_random_order():
    kinds = ["non_opponent", "double_opponent", "single_opponent", None, "unresponsive"] * 6
    rows = layer_rows(30, color_class=kinds)
    found = stage.orders(rows, "conv1", ["color_class"], 0, [0])
    order = found["color_class", "descending", 0]
    expected = ["double_opponent", "single_opponent", "non_opponent", "unresponsive", None]
    assert [kinds[channel] for channel in order] == [kind for kind in expected for _ in range(6)]
    assert order[:6].tolist() != sorted(order[:6].tolist())
    upwards = found["color_class", "ascending", 0]
    assert [kinds[channel] for channel in upwards[:6]] == ["unresponsive"] * 6
    assert [kinds[channel] for channel in upwards[-6:]] == [None] * 6


def test_random_orders_differ_and_hold_every_channel():
    found = stage.orders(layer_rows(20), "conv1", ["random"], 3, [0])
    assert list(found) == [("random", "", number) for number in range(3)]
    assert len({tuple(order) for order in found.values()}) == 3
    assert all(sorted(order) == list(range(20)) for order in found.values())
    again = stage.orders(layer_rows(20), "conv1", ["random"], 2, [0])
    assert all((again[key] == found[key]).all() for key in again)
