"""Stage ablation: planted networks, every column by plain counting, ranges, killed jobs, estimates
of all images."""

import contextlib
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tasks import task
from test_ablate import stem
from test_receptive_fields import loaded
from torch import nn

from rfatlas.ablation import ablate, ablation, combined, first_order, paired
from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.network import graph

SETTINGS = {
    "images": None,
    "modes": ["zero", "mean", "shuffle"],
    "all_modes_layers": [],
    "site": "output",
    "channels": None,
    "precision": None,
    "batch_size": 16,
}
ATTRS = store.provenance("ablation", {})


@contextlib.contextmanager
def quiet(**words):
    class Bar:
        def update(self, count: int) -> None:
            pass

    yield Bar()


class Small(nn.Module):
    """Seven channels, of which the last is dead, before six classes."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 7, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(7, 7, 3, padding=1)
        self.act = nn.ReLU()
        self.fc = nn.Linear(7, 6)

    def forward(self, x):
        x = self.act(self.conv2(self.relu(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def small():
    torch.manual_seed(3)
    module = Small().eval()
    with torch.no_grad():
        module.conv1.weight[6], module.conv1.bias[6] = 0, -1
        module.fc.weight.mul_(20)
    return loaded(module, 12)


class Study:
    """A network with its images and what the earlier stages know of them."""

    def __init__(self, network, images, labels, layers):
        self.network, self.images, self.labels, self.layers = network, images, labels, layers
        pixels = network.preprocess(images)
        extract = network.graph.extractor(layers)
        with torch.no_grad():
            values = {key: value.numpy() for key, value in extract(pixels).items()}
        self.cached = {"logits": values.pop("@logits"), "features": values.pop("@features")}
        self.means = {layer: value.mean((0, 2, 3), dtype=float) for layer, value in values.items()}

    def sweep(
        self, output: Path, start=0, stop=10**6, count=None, layer="relu", estimates=(), **settings
    ) -> Path:
        ablator = ablate.Ablator(self.network, layer, self.means[layer])
        order = ablate.sequence(self.labels, count, seed=1)
        settings = SETTINGS | settings
        known = ablation.read_estimates(estimates, layer) if estimates else {}
        ablation.sweep(
            ablator, self.images, self.labels, order, start, stop, self.cached, settings,
            task("ablation", output), known,
        )  # fmt: skip
        return output

    def estimate(self, output: Path, start=0, stop=10**6, exact=None, batch=16, site="output"):
        modes = dict.fromkeys(self.layers, SETTINGS["modes"])
        pass_ = first_order.FirstOrder(self.network, modes, self.means, site)
        order = ablate.sequence(self.labels, None, seed=1)
        first_order.measure(
            pass_, self.images, self.labels, order, start, stop, exact, batch,
            task("ablation", output),
        )  # fmt: skip
        return output

    def gather(self, ranges, layer, folder: Path, modes=("zero", "mean", "shuffle"), estimates=()):
        output = folder / f"{layer}.h5"
        classes = self.cached["logits"].shape[1]
        ablation.gather(ranges, layer, modes, classes, 1, task("ablation", output), estimates)
        return pd.read_csv(output.with_suffix(".csv"))


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (90, 3, 3, 3), np.uint8)
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    network = small()
    labels = network.module(network.preprocess(images)).argmax(1).numpy()
    # A third of the labels is wrong, and some are unknown.
    labels = np.where(rng.random(90) < 0.3, rng.integers(0, 6, 90), labels)
    labels[[3, 40]] = -1
    return Study(network, images, labels, ["relu", "act"])


def test_every_column_by_plain_counting(study, tmp_path):
    network, labels, order = study.network, study.labels, ablate.sequence(study.labels, None, 1)
    partner = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
    for layer in study.layers:
        ranges = [study.sweep(tmp_path / f"{layer}_range.h5", layer=layer)]
        table = study.gather(ranges, layer, tmp_path)
        assert table["channel"].tolist() == list(range(7)) and set(table["layer"]) == {layer}
        maps = network.graph.prefix(layer)(network.preprocess(study.images)).detach()
        suffix = network.graph.split(layer)[1]
        for mode in ("zero", "mean", "shuffle"):
            pvalues = []
            for c in range(7):
                right_to_wrong = wrong_to_right = top5 = 0
                losses = []
                for i in order.tolist():
                    changed = maps[i : i + 1].clone()
                    changed[0, c] = {
                        "zero": torch.tensor(0.0),
                        "mean": torch.tensor(float(study.means[layer][c])),
                        "shuffle": maps[partner[i], c],
                    }[mode]
                    before = study.cached["logits"][i].astype(float)
                    after = suffix(changed)[0].detach().numpy().astype(float)
                    was, now = before.argmax(), after.argmax()
                    right_to_wrong += was == labels[i] != now
                    wrong_to_right += was != labels[i] == now
                    five = [labels[i] in np.argsort(-logits)[:5] for logits in (before, after)]
                    top5 += int(five[1]) - int(five[0])
                    nats = [np.log(np.exp(x).sum()) - x[labels[i]] for x in (before, after)]
                    losses.append(nats[1] - nats[0])
                row = {name: table.loc[c, f"{mode}_{name}"] for name in ablation.COLUMNS}
                assert row["right_to_wrong"] == right_to_wrong, (layer, mode, c)
                assert row["wrong_to_right"] == wrong_to_right
                assert row["n_flips"] == right_to_wrong + wrong_to_right
                assert row["n_exact"] == len(order) == 88
                change = (wrong_to_right - right_to_wrong) / 88
                assert row["delta_top1"] == pytest.approx(change, abs=1e-8)
                assert row["delta_top5"] == pytest.approx(top5 / 88, abs=1e-8)
                assert row["delta_loss"] == pytest.approx(np.mean(losses), abs=1e-4)
                for name in ("top1", "top5", "loss"):
                    low, high = row[f"delta_{name}_lo"], row[f"delta_{name}_hi"]
                    assert low <= row[f"delta_{name}"] <= high
                pvalues.append(
                    stats.binomtest(right_to_wrong, flipped, 0.5).pvalue
                    if (flipped := right_to_wrong + wrong_to_right)
                    else 1.0
                )
                assert row["p"] == pytest.approx(pvalues[-1], rel=1e-6)
            expected = stats.false_discovery_control(pvalues)
            np.testing.assert_allclose(table[f"{mode}_q"], expected, rtol=1e-6)
        assert (table["zero_right_to_wrong"] > 5).any(), "something matters"


def test_a_dead_channel_changes_nothing_at_all(study, tmp_path):
    table = study.gather([study.sweep(tmp_path / "range.h5")], "relu", tmp_path)
    for mode in SETTINGS["modes"]:
        dead = table.iloc[6]
        for name in ("top1", "top5", "loss"):
            assert dead[f"{mode}_delta_{name}"] == 0
        assert dead[f"{mode}_delta_loss_lo"] == dead[f"{mode}_delta_loss_hi"] == 0
        assert dead[f"{mode}_p"] == 1 and dead[f"{mode}_n_flips"] == 0


def test_signal_constant_and_nothing_are_told_apart(tmp_path):
    """A channel with the signal, a silent one whose constant the decision needs, and an idle
    one."""
    levels = np.where(np.random.default_rng(0).random(60) < 0.5, 30, 250)
    labels = (levels > 190).astype(int)
    network, images = stem(levels)
    planted = Study(network, images, labels, ["relu"])
    table = planted.gather([planted.sweep(tmp_path / "range.h5")], "relu", tmp_path)
    signal, constant, idle = (table.iloc[row] for row in range(3))
    for mode in ("zero", "mean", "shuffle"):
        assert signal[f"{mode}_delta_top1_hi"] < -0.1 and signal[f"{mode}_q"] < 0.001
        assert idle[f"{mode}_delta_top1"] == idle[f"{mode}_delta_loss"] == 0
    assert constant["zero_delta_top1_hi"] < -0.1 and constant["zero_q"] < 0.001
    for mode in ("mean", "shuffle"):
        assert constant[f"{mode}_delta_top1"] == 0 and constant[f"{mode}_p"] == 1


def test_ranges_and_batches_change_nothing(study, tmp_path):
    whole = study.gather([study.sweep(tmp_path / "whole.h5")], "relu", tmp_path / "whole")
    torch.set_num_threads(2)
    ranges = [
        study.sweep(tmp_path / f"{start}.h5", start, stop, batch_size=7)
        for start, stop in ((0, 30), (30, 60), (60, 90))
    ]
    torch.set_num_threads(1)
    parts = study.gather(ranges, "relu", tmp_path / "parts")
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-5, atol=1e-6)
    one, other = (store.open(tmp_path / name / "relu.h5") for name in ("whole", "parts"))
    assert (one["image"][:] == np.flatnonzero(study.labels >= 0)).all()
    for mode in SETTINGS["modes"]:
        assert (one[f"{mode}/prediction"][:] == other[f"{mode}/prediction"][:]).all()
        by_class = one[f"{mode}/class_delta"][:]
        right = one[f"{mode}/prediction"][:] == one["label"][:]
        was = one["intact/prediction"][:] == one["label"][:]
        for k in range(6):
            mine = one["label"][:] == k
            expected = right[:, mine].mean(1) - was[mine].mean()
            np.testing.assert_allclose(by_class[:, k], expected, atol=1e-6)
    with pytest.raises(RfatlasError, match="end at 60, expected 88"):
        study.gather(ranges[:2], "relu", tmp_path / "short")
    with pytest.raises(RfatlasError, match="starts at 60, expected 30"):
        study.gather([ranges[0], ranges[2]], "relu", tmp_path / "gap")


def test_a_killed_job_goes_on_where_it_was(study, tmp_path, monkeypatch):
    expected = study.gather([study.sweep(tmp_path / "whole.h5")], "relu", tmp_path / "whole")
    monkeypatch.setattr(store, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(store, "SAVE_COSTS", 0)
    plain, calls = ablate.Ablator.ablate, []

    def dies(self, *words):
        calls.append(words[0])
        if len(calls) == 10:
            raise KeyboardInterrupt
        return plain(self, *words)

    monkeypatch.setattr(ablate.Ablator, "ablate", dies)
    with pytest.raises(KeyboardInterrupt):
        study.sweep(tmp_path / "killed.h5")
    assert not (tmp_path / "killed.h5").exists()
    output = study.sweep(tmp_path / "killed.h5")
    # Six batches, three modes; only the call that died is made again.
    assert len(calls) == 18 + 1
    found = study.gather([output], "relu", tmp_path)
    pd.testing.assert_frame_equal(found, expected)
    assert not list(tmp_path.glob("*.partial"))


# ---- estimates of all images, and precision


def changes(file, mode):
    """Changes of loss and correctness, in the order of the ablation, from the file of a range."""
    known = file[f"{mode}/prediction"][:] >= 0
    right = (file[f"{mode}/prediction"][:] == file["label"][:]) * 1.0
    was = (file["intact/prediction"][:] == file["label"][:]) * 1.0
    loss = file[f"{mode}/loss"][:].astype(float) - file["intact/loss"][:]
    return np.where(known, loss, np.nan), np.where(known, right - was, np.nan)


def drop(x, y, i):
    return np.delete(x, i), np.delete(y, i)


def test_with_estimates_effects_are_those_on_all_images(study, tmp_path):
    """The regression estimator by numpy's least squares, channel by channel; residuals by leaving
    images out."""
    every = [study.estimate(tmp_path / "all.h5")]
    cut = [
        study.estimate(tmp_path / f"{a}.h5", a, b, 40, 7) for a, b in ((0, 30), (30, 60), (60, 88))
    ]
    exact = study.sweep(tmp_path / "few.h5", images=40)
    table = study.gather([exact], "relu", tmp_path, estimates=cut)
    plain = study.gather([exact], "relu", tmp_path / "plain")
    with store.open(exact) as file, store.open(every[0]) as estimates:
        assert (file["image"][:] == ablate.sequence(study.labels, 40, 1)).all()
        for mode in SETTINGS["modes"]:
            change = estimates[f"layer/relu/{mode}/change"][:]
            known = dict(
                zip(
                    ("loss", "top1"),
                    combined.expected(*estimates["intact"][:], *change),
                    strict=True,
                )
            )
            found = dict(zip(("loss", "top1"), changes(file, mode), strict=True))
            for c in range(6):
                for target, change in found.items():
                    x = known[target][:, c]
                    design = np.column_stack([np.ones(40), x[:40]])
                    slope = np.linalg.lstsq(design, change[c], rcond=None)[0]
                    effect = slope[0] + slope[1] * x.mean()
                    if np.ptp(x[:40]) > 0:
                        assert table.loc[c, f"{mode}_delta_{target}"] == pytest.approx(
                            effect, abs=2e-6
                        )
                    low, high = (table.loc[c, f"{mode}_delta_{target}_{e}"] for e in ("lo", "hi"))
                    assert low <= table.loc[c, f"{mode}_delta_{target}"] <= high
                    if target == "loss":
                        rest = [
                            change[c, i]
                            - np.polyval(np.polyfit(*drop(x[:40], change[c], i), 1), x[i])
                            for i in range(40)
                        ]
                        variance = np.square(rest).sum() / 39 * (1 / 40 - 1 / 88)
                        half = stats.t(38).ppf(0.975) * np.sqrt(variance)
                        assert (high - effect, effect - low) == pytest.approx(
                            (half, half), rel=1e-3
                        )
            assert table[f"{mode}_estimate_loss"].to_numpy() == pytest.approx(
                known["loss"].mean(0), abs=1e-6
            )
    assert (table["zero_n_exact"] == 40).all() and (table["zero_n_estimate"] == 88).all()
    assert table.loc[:5, "zero_variance_ratio"].median() > 1.3, "estimates save images"
    for name in ("n_flips", "delta_top5", "delta_top5_lo", "n_exact"):
        assert (table[f"zero_{name}"] == plain[f"zero_{name}"]).all(), "of the exact images"
    dead = table.loc[6]
    assert dead["zero_delta_loss"] == dead["zero_delta_loss_hi"] == 0 and dead["zero_p"] == 1


def test_estimates_of_no_more_images_change_nothing(study, tmp_path):
    exact = study.sweep(tmp_path / "every.h5")
    plain = study.gather([exact], "relu", tmp_path / "plain")
    estimates = [study.estimate(tmp_path / "all.h5")]
    table = study.gather([exact], "relu", tmp_path, estimates=estimates)
    pd.testing.assert_frame_equal(table[plain.columns], plain, check_exact=True)
    assert table["zero_estimate_r"].isna().all()


def test_with_a_precision_each_channel_runs_on_what_it_needs(study, tmp_path):
    estimates = [study.estimate(tmp_path / "all.h5")]
    asked = {"delta_loss": 0.05, "delta_top1": None, "pilot": 30}
    whole = study.sweep(tmp_path / "whole.h5")
    used = {}
    for name, known in (("alone", ()), ("helped", estimates)):
        path = study.sweep(tmp_path / f"{name}.h5", estimates=known, precision=asked)
        table = study.gather([path], "relu", tmp_path / name, estimates=known)
        with store.open(path) as file, store.open(whole) as full:
            assert file.attrs["pilot"] == 32, "whole batches"
            for mode in SETTINGS["modes"]:
                loss, _ = changes(file, mode)
                used[name, mode] = images = np.isfinite(loss).sum(1)
                assert (images == table[f"{mode}_n_exact"]).all()
                truth = np.nanmean(changes(full, mode)[0], axis=1)
                reach = table[f"{mode}_delta_loss_hi"] - table[f"{mode}_delta_loss"]
                assert (reach <= 0.05).all()
                apart = np.abs(table[f"{mode}_delta_loss"] - truth)
                assert (apart <= 2 * reach + 1e-6).all()
                for row in range(7):
                    n = images[row]
                    mine, theirs = (each[f"{mode}/loss"][row] for each in (file, full))
                    assert (mine[:n] == theirs[:n]).all() and np.isnan(mine[n:]).all()
                assert images[6] == 32, "the dead channel needs its pilot only"
    for mode in SETTINGS["modes"]:
        assert used["helped", mode].sum() < used["alone", mode].sum()


def test_of_a_sample_the_means_are_those_of_the_data_set(study, tmp_path):
    table = study.gather([study.sweep(tmp_path / "few.h5", count=20)], "relu", tmp_path)
    assert (table["mean_n_exact"] == 20).all()
    with store.open(tmp_path / "relu.h5") as file:
        assert set(file["image"][:]) == set(ablate.sequence(study.labels, 20, 1))


def test_modes_and_channels_are_those_asked_for(study, tmp_path):
    settings = {"modes": ["zero"], "all_modes_layers": ["act"], "channels": 4}
    first, second = (
        study.gather(
            [study.sweep(tmp_path / f"{layer}_range.h5", layer=layer, **settings)], layer, tmp_path
        )
        for layer in study.layers
    )
    assert first.columns.tolist() == second.columns.tolist() and len(first) == 4
    assert first.filter(like="mean_").isna().all(axis=None)
    assert second.filter(like="mean_").notna().all(axis=None)


def test_the_weights_of_the_first_layer_leave_the_bias(study, tmp_path):
    found = {}
    for site in ("output", "weight"):
        found[site] = {}
        for layer in study.layers:
            path = tmp_path / f"{site}_{layer}.h5"
            with store.open(study.sweep(path, layer=layer, site=site, modes=["zero"])) as file:
                found[site][layer] = file["zero/loss"][:]
    bias = study.network.module.conv1.bias.detach()
    constant = np.flatnonzero(bias.numpy() > 0)
    assert (
        len(constant)
        and not np.isclose(
            found["output"]["relu"][constant], found["weight"]["relu"][constant]
        ).all()
    )
    # A negative bias is nothing behind the ReLU; a deeper layer has no filter of the first layer.
    silent = np.flatnonzero(bias.numpy() < 0)
    np.testing.assert_allclose(
        found["output"]["relu"][silent], found["weight"]["relu"][silent], atol=1e-6
    )
    assert (found["output"]["act"] == found["weight"]["act"]).all()


def test_layers_in_closed_form_need_no_images(study, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(graph.Graph, "pooled_head", lambda *_: None)
        with_images = study.sweep(tmp_path / "both.h5", layer="act")
    monkeypatch.setattr(study, "images", None)
    alone = study.sweep(tmp_path / "alone.h5", layer="act")
    with store.open(with_images) as one, store.open(alone) as other:
        for mode in SETTINGS["modes"]:
            for name in paired.FIELDS:
                mine, theirs = (file[f"{mode}/{name}"][:] for file in (one, other))
                np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_activations_of_another_network_are_refused(study, tmp_path, monkeypatch):
    monkeypatch.setitem(study.cached, "logits", study.cached["logits"] + 1)
    with pytest.raises(RfatlasError, match="other weights or images"):
        study.sweep(tmp_path / "range.h5")


def test_the_log_tells_what_became_of_every_channel(study, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "rfatlas"):
        ranges = [study.sweep(tmp_path / "range.h5", modes=["zero"])]
        table = study.gather(ranges, "relu", tmp_path, ["zero"])
    for row in table.itertuples():
        assert (
            f"relu channel {row.channel}, zero: of 88 images {row.zero_right_to_wrong} right to "
            f"wrong, {row.zero_wrong_to_right} wrong to right"
        ) in caplog.text
    worst = table["zero_delta_top1"].idxmin()
    assert f"top-1 accuracy: channel {worst} (" in caplog.text
