"""Groups of channels, their controls and orders, against loops, exhaustive search and planted
tables."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pages import columns_of
from scipy import stats
from tasks import task
from test_receptive_fields import loaded
from torch import nn

from rfatlas.ablation import ablate
from rfatlas.ablation import ablation_groups as stage
from rfatlas.files import store

ROOT = Path(__file__).resolve().parents[2]


def layer_rows(channels: int = 8, **columns) -> pd.DataFrame:
    """Rows of channels.csv of one layer, with these columns."""
    return pd.DataFrame({"layer": "conv1", "channel": np.arange(channels), **columns})


# ---- who belongs to a group


def test_groups_are_the_channels_with_the_property():
    rows = layer_rows(
        4,
        weak_filter=[True, False, False, True],
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
    rows = layer_rows(
        3, weak_filter=[False, True, False], orientation_selective=[True, None, False]
    )
    rows.to_csv(tmp_path / "rows.csv", index=False)
    read = pd.read_csv(tmp_path / "rows.csv")
    found = stage.groups(read, "conv1", {})
    assert found["inactive"].tolist() == [1]
    assert found["orientation_selective"].tolist() == [0]


def test_a_group_without_column_or_members_is_left_out_and_said(caplog):
    caplog.set_level("INFO")
    rows = layer_rows(3, weak_filter=[False] * 3)
    assert stage.groups(rows, "conv1", {}) == {}
    assert "conv1: no channel is inactive" in caplog.text
    assert "no column color_class" in caplog.text


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


# ---- a planted network


class Planted(nn.Module):
    """Eight channels: red above 0.3 (the signal), a constant 0.5 (what the signal is compared
    with), nothing, and five more of green and blue that hardly matter."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.conv1.weight.zero_()
            self.conv1.weight[0, 0] = 1.0
            self.conv1.weight[3:, 1:] = torch.rand(5, 2, 1, 1, generator=random)
            self.conv1.bias.copy_(torch.tensor([-0.3, 0.5, -1.0, 0, 0, 0, 0, 0]))
            self.conv2.weight.zero_()
            self.conv2.weight[range(8), range(8), 1, 1] = 1.0
            self.conv2.bias.zero_()
            self.fc.weight.zero_()
            self.fc.weight[1, :2] = torch.tensor([10.0, -8])
            self.fc.weight[:, 3:] = 0.2 * torch.rand(3, 5, generator=random)
            self.fc.bias.copy_(torch.tensor([0.0, 0.0, -1.0]))

    def forward(self, x):
        return self.fc(self.conv2(self.relu(self.conv1(x))).mean((2, 3)))


LAYER = "relu"
SETTINGS = {
    "groups": {"constant": {LAYER: [1]}, "nothing": {LAYER: [2]}, "several": {LAYER: [0, 3, 5]}},
    "modes": ["zero", "mean", "shuffle", "weight"],
    "controls": 5,
    "norm_tolerance": 0.25,
    "cumulative": {
        "orders": ["filter_norm", "osi", "random"],
        "modes": ["zero", "mean"],
        "steps": 4,
        "random": 2,
    },
}


@dataclass
class Case:
    """The planted network, its images and what the stage made of them."""

    network: object
    images: np.ndarray
    labels: np.ndarray
    mean: np.ndarray
    order: np.ndarray
    rows: pd.DataFrame
    path: Path

    def values(self) -> torch.Tensor:
        """The layer's values of all images."""
        module = self.network.module
        with torch.no_grad():
            return module.relu(module.conv1(self.network.preprocess(self.images)))

    def plain(self, channels, mode: str) -> np.ndarray:
        """Logits of the images in order with the channels replaced one by one."""
        value, module = self.values()[self.order], self.network.module
        intact = value.clone()
        for channel in channels:
            if mode == "zero":
                value[:, channel] = 0
            elif mode == "mean":
                value[:, channel] = float(self.mean[channel])
            elif mode == "weight":
                value[:, channel] = max(float(module.conv1.bias[channel]), 0)
            else:
                for place in range(len(value)):
                    value[place, channel] = intact[(place + 1) % len(value), channel]
        with torch.no_grad():
            return module.fc(module.conv2(value).mean((2, 3))).numpy()


def measure(case: Case, settings=None) -> None:
    ablator = ablate.Ablator(case.network, LAYER, case.mean)
    filters = ablator.replacement.has_filters()
    plan = stage.plan(case.rows, LAYER, settings or SETTINGS, filters, 0)
    work = task("ablation_groups", case.path)
    stage.measure(ablator, plan, case.images, case.labels, case.order, work)


def planted(folder: Path, inactive: tuple[int, ...] = (1, 2)) -> Case:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (70, 6, 6, 3))
    images[..., 0] = random.integers(0, 256, 70)[:, None, None]
    images = images.astype(np.uint8)
    labels = (images[:, 0, 0, 0] / 255 - 0.3 > 0.4).astype(int)
    # Some labels that the network gets wrong, some unknown.
    labels[:6] = 2
    labels[6:10] = -1
    network = loaded(Planted().eval(), 6)
    network.description["input"] |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    norms = network.module.conv1.weight.flatten(1).norm(dim=1).tolist()
    rows = layer_rows(
        8,
        depth=0,
        filter_norm=norms,
        weak_filter=[channel in inactive for channel in range(8)],
        osi=random.uniform(0, 1, 8),
    ).assign(layer=LAYER)
    order = ablate.sequence(labels, None, 0)
    case = Case(network, images, labels, None, order, rows, folder / f"{LAYER}.h5")
    case.mean = case.values().mean((0, 2, 3)).numpy()
    return case


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    made = planted(tmp_path_factory.mktemp("planted"))
    measure(made)
    return made


@pytest.fixture(scope="module")
def found(case):
    return stage.tables([case.path], case.rows, 0)


def sets(case: Case) -> pd.Series:
    """The channels of every use of the layer's table."""
    with store.open(case.path) as file:
        parts = np.split(file["channel"][:], file["offset"][1:-1])
    return store.read_table(case.path.with_suffix(".csv"))["set"].map(dict(enumerate(parts)))


def test_every_prediction_is_that_of_the_plain_loop(case):
    uses, label = store.read_table(case.path.with_suffix(".csv")), case.labels[case.order]
    channels = sets(case)
    assert set(uses["mode"]) == set(ablate.MODES)
    seen = set()
    with store.open(case.path, "ablation_groups") as file:
        assert file["image"][:].tolist() == case.order.tolist() and (label >= 0).all()
        for row, chosen in zip(uses.itertuples(), channels, strict=True):
            if (row.mode, row.set) in seen:
                continue
            seen.add((row.mode, row.set))
            logits = case.plain(chosen, row.mode).astype(float)
            group = file[row.mode]
            at = group["set"][:].tolist().index(row.set)
            assert group["prediction"][at].tolist() == logits.argmax(1).tolist()
            loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(label)), label]
            np.testing.assert_allclose(group["loss"][at], loss, atol=1e-4)
        for mode in ablate.MODES:
            assert len(file[mode]["set"]) == sum(mode == one for one, _ in seen)
    assert len(seen) > 90


def test_the_tables_say_what_changed(case, found):
    groups, _, _ = found
    label = case.labels[case.order]
    intact = case.plain([], "zero").argmax(1) == label
    for row in groups[groups["role"] == "group"].itertuples():
        right = case.plain(list(map(int, row.channels.split())), row.mode).argmax(1) == label
        assert row.top1 == pytest.approx(right.mean())
        assert row.delta_top1 == pytest.approx(right.mean() - intact.mean())
        assert row.delta_top1_lo <= row.delta_top1 <= row.delta_top1_hi
        lost, won = (intact & ~right).sum(), (right & ~intact).sum()
        assert (row.right_to_wrong, row.wrong_to_right) == (lost, won)
        assert row.p == pytest.approx(
            stats.binomtest(int(lost), int(lost + won)).pvalue if lost + won else 1
        )


def test_zero_mean_and_shuffle_tell_signal_constant_and_nothing_apart(found):
    groups, _, _ = found
    rows = groups[groups["role"] == "group"].set_index(["group", "mode"])
    assert rows.loc[("constant", "zero"), "delta_top1_hi"] < 0
    for mode in ("mean", "shuffle", "weight"):
        # The filter is zero: what stays without it is the constant.
        assert rows.loc[("constant", mode), "delta_loss"] == pytest.approx(0, abs=1e-6)
    for mode in ablate.MODES:
        assert rows.loc[("several", mode), "delta_top1_hi"] < 0, "the signal is among them"
        nothing = rows.loc[("nothing", mode)]
        assert (nothing["delta_top1"], nothing["delta_loss"], nothing["p"]) == (0, 0, 1)


def test_a_group_is_compared_with_its_controls(case, found):
    groups, _, _ = found
    channels = sets(case)
    uses = store.read_table(case.path.with_suffix(".csv"))
    for (name, mode), rows in groups.groupby(["group", "mode"]):
        group, drawn = rows[rows["role"] == "group"].iloc[0], rows[rows["role"] == "control"]
        assert len(drawn) == group["n_controls"] == 5
        own = set(map(int, group["channels"].split()))
        used = uses["mode"].eq(mode) & uses["name"].eq(name) & uses["kind"].eq("control")
        for chosen in channels[used]:
            assert len(chosen) == len(own)
            assert group["control"] == "overlapping" or not own & set(chosen.tolist())
        for quantity, worse in (("top1", -1), ("loss", 1)):
            mine, theirs = group[f"delta_{quantity}"], drawn[f"delta_{quantity}"]
            more = sum(worse * other >= worse * mine for other in theirs)
            less = sum(worse * other <= worse * mine for other in theirs)
            assert group[f"p_more_{quantity}"] == pytest.approx((1 + more) / 6)
            assert group[f"p_less_{quantity}"] == pytest.approx((1 + less) / 6)
            assert group[f"control_{quantity}"] == pytest.approx(theirs.median())
        assert drawn[list(stage.NULLS)].isna().all(axis=None)
    for _, rows in groups[groups["role"] == "group"].groupby("mode"):
        expected = stats.false_discovery_control(rows["p"].to_numpy(float))
        np.testing.assert_allclose(rows["q"], expected)


def test_curves_begin_with_a_single_channel_and_end_without_any(case, found):
    _, curves, _ = found
    assert set(curves["mode"]) == {"zero", "mean"}
    label = case.labels[case.order]
    single = {
        mode: [(case.plain([channel], mode).argmax(1) == label).mean() for channel in range(8)]
        for mode in ("zero", "mean")
    }
    every = {mode: (case.plain(range(8), mode).argmax(1) == label).mean() for mode in single}
    values = {"filter_norm": case.rows["filter_norm"], "osi": case.rows["osi"]}
    for (mode, order, direction, _), curve in curves.groupby(
        ["mode", "order", "direction", "number"], dropna=False
    ):
        assert curve["n_removed"].tolist() == [1, 2, 4, 8]
        assert curve["top1"].iloc[-1] == pytest.approx(every[mode])
        if order in values:
            column = values[order]
            best = column.max() if direction == "descending" else column.min()
            first = [single[mode][at] for at in np.flatnonzero(column == best)]
            assert curve["top1"].iloc[0] in [pytest.approx(one) for one in first]
            assert len(first) == 1 or direction == "ascending"
    assert (curves["order"] == "random").sum() == 2 * 2 * 4


# ---- the inactive channels of the first layer


@pytest.mark.parametrize(
    ("inactive", "expected"),
    [((1,), "constant"), ((0,), "signal"), ((2,), "none"), ((0, 1), "signal and constant")],
)
def test_what_the_inactive_channels_carry(tmp_path, inactive, expected):
    case = planted(tmp_path, inactive)
    measure(case)
    table = case.rows.assign(
        zero_delta_top1=np.linspace(-0.4, -0.05, 8), zero_delta_loss=np.linspace(0.8, 0.1, 8)
    )
    _, _, found = stage.tables([case.path], table, 0)
    assert set(found["conclusion"]) == {expected}
    every = found[found["channels"] == "all"]
    assert every["mode"].tolist() == ["zero", "mean", "shuffle", "weight", "zero"]
    assert every["compared_with"].tolist() == ["intact"] * 4 + ["mean"]
    label = case.labels[case.order]
    zero, mean = (case.plain(inactive, mode).argmax(1) == label for mode in ("zero", "mean"))
    assert every["delta_top1"].iloc[-1] == pytest.approx(zero.mean() - mean.mean())
    alone = found[found["channels"] == "one"]
    assert alone["channel"].tolist() == list(inactive) and (alone["mode"] == "zero").all()
    active = table.loc[~table["weak_filter"], "zero_delta_top1"]
    for row, channel in zip(alone.itertuples(), inactive, strict=True):
        assert row.delta_top1 == table.loc[channel, "zero_delta_top1"]
        more = sum(active <= row.delta_top1)
        assert row.p_more_top1 == pytest.approx((1 + more) / (1 + len(active)))
    text = found["sentence"].iloc[0]
    assert text.startswith(f"{len(inactive)} of 8 channels of relu are inactive by the norm")
    change = f"{100 * every['delta_top1'].iloc[0]:+.2f}".replace("-", "−")
    assert f"{change} points with zero" in text
    assert (found["sentence"].iloc[1:] == "").all()


def test_a_first_layer_without_inactive_channels_says_so(tmp_path):
    case = planted(tmp_path, ())
    measure(case)
    _, _, found = stage.tables([case.path], case.rows, 0)
    assert len(found) == 1 and found["n_inactive"].item() == 0
    assert found["conclusion"].item() == "no channel is inactive"
    assert found["sentence"].item() == "No channel of relu is inactive by the norm of its filter."


def test_a_layer_without_groups_and_curves_has_no_rows(tmp_path):
    case = planted(tmp_path, ())
    nothing = SETTINGS | {"groups": {}, "cumulative": SETTINGS["cumulative"] | {"orders": []}}
    measure(case, settings=nothing)
    groups, curves, inactive = stage.tables([case.path], case.rows, 0)
    assert len(groups) == len(curves) == 0 and len(inactive) == 1
    for table, columns in (
        (groups, stage.GROUP_COLUMNS),
        (curves, stage.CUMULATIVE_COLUMNS),
        (inactive, stage.INACTIVE_COLUMNS),
    ):
        assert tuple(table.columns) == columns
    assert all(len(table) == 0 for table in stage.tables([], case.rows, 0))


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ((0.15, 0.42), "By the loss, their signal matters, and so does the constant"),
        ((-0.1, 0.42), None),
    ],
)
def test_the_sentence_tells_what_only_the_loss_shows(loss, told):
    columns = ["mode", "compared_with", "delta_top1", "delta_top1_lo", "delta_top1_hi"]
    columns += ["delta_loss_lo", "delta_loss_hi"]
    rows = [
        ("mean", "intact", -0.03, -0.09, 0.02, *loss),
        ("zero", "mean", -0.36, -0.44, -0.27, 1.6, 2.3),
    ]
    together = pd.DataFrame(rows, columns=columns)
    together = together.assign(layer="maxpool", n_inactive=15, n_layer=64, n_controls=0)
    text = stage.sentence(together, 0.7, 150)
    assert "no effect of their signal can be told" in text
    assert ("By the loss" in text) == (told is not None) and (told or "") in text


def test_without_the_modes_that_tell_the_conclusion_is_unknown():
    row = {"mode": "zero", "compared_with": "intact", "delta_top1_lo": -0.3, "delta_top1_hi": -0.1}
    assert stage.conclusion(pd.DataFrame([row]), "top1") == "unknown"


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("ablation_groups/<layer>.csv", stage.USES),
        ("ablation_groups.csv", stage.GROUP_COLUMNS),
        ("ablation_cumulative.csv", stage.CUMULATIVE_COLUMNS),
        ("inactive_first_layer.csv", stage.INACTIVE_COLUMNS),
    ],
)
def test_every_column_is_documented(name, columns):
    assert columns_of(name) == list(columns)
