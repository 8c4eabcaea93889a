"""Stage `ablation_groups`: what the network loses without a group of channels.

Channels with a property in common (inactive, orientation-selective, double-opponent, or named in
the config) are taken out of a layer together, and so are control sets of the same size: is the loss
due to the property or to their number? Also cumulative curves: channels taken out one after the
other in the order of a property, from one channel to the whole layer.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from rfatlas.ablation import paired
from rfatlas.ablation.paired import Predictions
from rfatlas.files import store
from rfatlas.files.task import Task
from rfatlas.physiology import color_rules
from rfatlas.statistics import benjamini_hochberg

if TYPE_CHECKING:
    from rfatlas.ablation.ablate import Ablator

log = logging.getLogger("rfatlas")

#: Groups by a column of channels.csv: who belongs to them is who has this value there. Channels are
#: inactive here as Kobayashi & Shouno (2020) tell them, by the norm of their filters.
GROUPS = {
    "inactive": ("weak_filter", True),
    "double_opponent": ("color_class", "double_opponent"),
    "orientation_selective": ("orientation_selective", True),
}

#: Columns of channels.csv by which channels are taken out one after the other.
ORDERS = ("filter_norm", "osi", "color_class", "class_selectivity", "activation_mean")
RANDOM = "random"
DIRECTIONS = ("descending", "ascending")

#: Columns of a layer's table: what each set of channels is for.
USES = (
    "layer", "mode", "kind", "name", "direction", "number", "control", "control_reason",
    "norm_difference", "set",
)  # fmt: skip

#: What is left without a set of channels, and what changes: ablated minus intact, paired by image.
CHANGES = ("top1", "top5", "loss", *paired.COLUMNS)

#: Where a group lies among its controls.
NULLS = (
    "n_controls",
    "control_top1", "p_more_top1", "p_less_top1",
    "control_loss", "p_more_loss", "p_less_loss",
)  # fmt: skip

GROUP_COLUMNS = (
    "layer", "depth", "mode", "group", "role", "number", "n_channels", "channels", "filter_norm",
    *CHANGES, "q", "control", "control_reason", "norm_difference", *NULLS,
)  # fmt: skip

CUMULATIVE_COLUMNS = (
    "layer", "depth", "mode", "order", "direction", "number", "n_removed", "filter_norm", *CHANGES,
)  # fmt: skip

INACTIVE_COLUMNS = (
    "layer", "channels", "channel", "mode", "compared_with", "n_inactive", "n_layer",
    *paired.COLUMNS, "control", "control_reason", *NULLS, "conclusion", "conclusion_loss",
    "sentence",
)  # fmt: skip

#: Predictions between two saved states, about: what a killed job does again.
PREDICTIONS = {"cpu": 2**11, "cuda": 2**16}


@dataclass(frozen=True)
class Controls:
    """Sets of channels to compare a group with.

    `sets` (n, k) channel indices, sorted, no two sets alike; `kind` is `matched` (others of
    about the same filter norms), `unmatched` (any others) or `overlapping` (any channels, members
    among them); `reason` says why they are not matched. `norm_difference` is the mean absolute
    difference of the filter norms of matched pairs over the group's mean norm, NaN unless matched.
    """

    sets: np.ndarray
    kind: str
    reason: str
    norm_difference: float


# ---- which channels


def groups(
    rows: pd.DataFrame, layer: str, named: Mapping[str, Mapping[str, Sequence[int]]]
) -> dict[str, np.ndarray]:
    """Return the groups of a layer that have members: name -> channel indices, ascending.

    `rows` are the layer's of channels.csv, in the order of the channels; `named` the config's own
    groups: name -> layer -> channels, of which `rfatlas.plan.preflight` knows that they are there.
    """
    found = {}
    for name, (column, value) in GROUPS.items():
        if column not in rows:
            log.info("%s: no group %s, channels.csv has no column %s", layer, name, column)
            continue
        members = np.flatnonzero(rows[column].astype(object).eq(value).fillna(False))
        if not members.size:
            log.info("%s: no channel is %s", layer, name.replace("_", " "))
            continue
        found[name] = members
    for name, layers in named.items():
        if layer in layers:
            found[name] = np.unique(np.array(layers[layer], int))
    return found


def matched(norms: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return for each of `norms` (k,) the index of a candidate (m,), each used once, so that the
    sum of absolute differences is the least possible. Needs m >= k."""
    _, chosen = linear_sum_assignment(np.abs(norms[:, None] - candidates))
    return chosen


def controls(
    norms: np.ndarray, members: np.ndarray, count: int, tolerance: float, seed: Sequence[int]
) -> Controls:
    """Draw sets of the size of a group from the other channels of its layer.

    Each is the best match of filter norms within random candidates, at first half of those that are
    not needed and fewer after every set that came up before, so that single channels find
    enough partners too. If the norms of the pairs differ by more than the share `tolerance` of the
    group's mean norm, or are unknown, the sets are drawn without regard to them. Where the others
    do not suffice for `count` sets they are drawn from the whole layer.

    `norms` (C,) filter norms, NaN where unknown; `members` (k,) channels of the group; there are
    fewer sets than `count` only where the layer has no more; `seed` of the draws.
    """
    random = np.random.default_rng(seed)
    size = len(members)
    others = np.setdiff1d(np.arange(len(norms)), members)
    if math.comb(len(others), size) < count:
        every = np.arange(len(norms))
        sets = _distinct(
            lambda _: random.choice(every, size, replace=False),
            count,
            math.comb(len(norms), size) - 1,
            {tuple(members.tolist())},
        )
        reason = f"{len(others)} other channels are too few for {count} sets of {size}"
        return Controls(sets, "overlapping", reason, np.nan)
    if np.isfinite(norms).all() and norms[members].mean() > 0:
        spare = len(others) - size

        def match(repeats: int) -> np.ndarray:
            pool = size + max(spare // 2 - repeats, 0)
            pool = random.choice(others, pool, replace=False)
            return pool[matched(norms[members], norms[pool])]

        sets = _distinct(match, count, count)
        differences = [
            np.abs(norms[members] - norms[chosen][matched(norms[members], norms[chosen])])
            for chosen in sets
        ]
        difference = float(np.mean(differences) / norms[members].mean())
        if difference <= tolerance:
            return Controls(sets, "matched", "", difference)
        reason = f"the nearest filter norms differ by {difference:.2g} of the group's mean"
    else:
        reason = "filter norms unknown or 0"
    sets = _distinct(lambda _: random.choice(others, size, replace=False), count, count)
    return Controls(sets, "unmatched", reason, np.nan)


def _distinct(
    draw: Callable[[int], np.ndarray], count: int, possible: int, taken: set[tuple] = frozenset()
) -> np.ndarray:
    """Return min(count, possible) different sets (n, k), sorted; `draw` is told how often it
    repeated itself."""
    seen, sets = set(taken), []
    repeats = 0
    while len(sets) < min(count, possible):
        found = tuple(sorted(draw(repeats).tolist()))
        if found in seen:
            repeats += 1
            continue
        seen.add(found)
        sets.append(found)
    return np.array(sets, int)


# ---- one after the other


def counts(channels: int, steps: int) -> np.ndarray:
    """Return about `steps` numbers of channels, from 1 to all, evenly spaced on a log scale."""
    return np.unique(np.geomspace(1, channels, steps).round().astype(int))


def orders(
    rows: pd.DataFrame, layer: str, wanted: Sequence[str], randoms: int, seed: Sequence[int]
) -> dict[tuple[str, str, int], np.ndarray]:
    """Return the orders in which the channels of a layer are taken out.

    They are (order, direction, number) -> (C,) channels, the first taken out first. Direction is
    one of `DIRECTIONS`, "" for a random one; number counts the random ones. Channels without a
    value come last in both directions. An order whose column is missing or empty is left out.
    `rows` are the layer's of channels.csv, in the order of the channels; `wanted` names of `ORDERS`
    and `random`; `randoms` how many random ones; `seed` of these, and of the order of channels that
    are alike.
    """
    found = {}
    shuffled = np.random.default_rng([*seed, 0]).permutation(len(rows))
    for name in wanted:
        if name == RANDOM:
            continue
        if name not in rows or rows[name].isna().all():
            log.info("%s: no curve by %s, channels.csv has none of it", layer, name)
            continue
        values = rows[name]
        if name == "color_class":
            values = values.map({kind: rank for rank, kind in enumerate(color_rules.CLASSES)})
        values = values.to_numpy(float)[shuffled]
        for direction in DIRECTIONS:
            # Stable, so that equal values keep their shuffled order; NaN sort to the end.
            order = np.argsort(-values if direction == "descending" else values, kind="stable")
            found[name, direction, 0] = shuffled[order]
    if RANDOM in wanted:
        for number in range(randoms):
            random = np.random.default_rng([*seed, 1, number])
            found[RANDOM, "", number] = random.permutation(len(rows))
    return found


# ---- the sets of a layer


@dataclass(frozen=True)
class Plan:
    """What is taken out of a layer: `sets`, each once, and what they are for.

    `uses` has a row (`USES`) per mode, and group, control or point of a curve; several may need the
    same set.
    """

    sets: tuple[tuple[int, ...], ...]
    uses: pd.DataFrame


def plan(
    rows: pd.DataFrame, layer: str, settings: Mapping[str, Any], filters: bool, seed: int
) -> Plan:
    """Choose the sets of channels to take out of a layer.

    `rows` are the layer's of channels.csv, in the order of the channels; `settings` the config's
    section `ablation_groups`; `filters` whether the layer can be ablated at its filters (mode
    `weight`); `seed` of controls and random orders.
    """
    numbers: dict[tuple[int, ...], int] = {}
    uses = []
    key = [seed, *layer.encode()]

    def use(modes: Sequence[str], channels: np.ndarray, *what: Any) -> None:
        number = numbers.setdefault(tuple(sorted(channels.tolist())), len(numbers))
        uses.extend((layer, mode, *what, number) for mode in modes if mode != "weight" or filters)

    norms = rows["filter_norm"].to_numpy(float)
    for name, members in groups(rows, layer, settings["groups"]).items():
        drawn = controls(
            norms,
            members,
            settings["controls"],
            settings["norm_tolerance"],
            [*key, *name.encode()],
        )
        how = (drawn.kind, drawn.reason, drawn.norm_difference)
        use(settings["modes"], members, "group", name, "", None, *how)
        for number, channels in enumerate(drawn.sets):
            use(settings["modes"], channels, "control", name, "", number, *how)
    curves = settings["cumulative"]
    for (name, direction, number), order in orders(
        rows, layer, curves["orders"], curves["random"], key
    ).items():
        for count in counts(len(order), curves["steps"]):
            how = (name, direction, number, "", "", np.nan)
            use(curves["modes"], order[:count], "curve", *how)
    table = pd.DataFrame(uses, columns=list(USES))
    return Plan(tuple(numbers), table.astype({"number": "Int64"}))


def measure(
    ablator: "Ablator",
    plan: Plan,
    images: Any,
    labels: np.ndarray,
    order: np.ndarray,
    task: Task,
    predictions: int = PREDICTIONS["cpu"],
) -> None:
    """Write `<layer>.h5`, the predictions without each set, and its table.

    `images` uint8 (N, H, W, 3) and `labels` int (N,), -1 = unknown; `order` the images to look at,
    as `ablate.sequence` has them; about so many `predictions` are made at a time, at least those of
    one image.
    """
    sets = [list(channels) for channels in plan.sets]
    modes = {mode: np.unique(use["set"]) for mode, use in plan.uses.groupby("mode", sort=False)}
    pairs = sum(map(len, modes.values()))
    size = max(1, predictions // max(pairs, 1))
    records: dict[str, list[Predictions]] = {name: [] for name in ("intact", *modes)}
    with task.bar(total=len(order) * pairs, desc=ablator.layer, unit="prediction") as shown:
        for rows, seen in ablator.batches(images, order, 0, len(order), size):
            records["intact"].append(ablator.intact(seen, labels[rows]))
            for mode, numbers in modes.items():
                wanted = [sets[number] for number in numbers]
                records[mode].append(ablator.ablate(seen, wanted, mode, labels[rows]))
                shown.update(len(rows) * len(numbers))
    attrs = {**task.attrs, "filters": ablator.replacement.has_filters()}
    with store.create(task.output, attrs) as file:
        file["image"], file["label"] = order.astype(np.int32), labels[order].astype(np.int64)
        file["channel"] = np.array([channel for one in sets for channel in one], np.int32)
        file["offset"] = np.cumsum([0, *map(len, sets)])
        for name, parts in records.items():
            Predictions.joined(parts).write(file.create_group(name))
        for mode, numbers in modes.items():
            file[f"{mode}/set"] = numbers.astype(np.int32)
    store.write_table(plan.uses, task.table)


# ---- the tables


def changes(file: h5py.File, mode: str, seed: int, against: str = "intact") -> pd.DataFrame:
    """Return what is lost without each set of a mode, `CHANGES` by the set's number.

    `file` is an open `<layer>.h5`; `against` another mode compares with the same sets in that mode
    (those that it has, too) instead of the intact network.
    """
    labels, numbers = file["label"][:], file[f"{mode}/set"][:]
    found, reference = Predictions.read(file[mode]), Predictions.read(file[against])
    if against != "intact":
        others = file[f"{against}/set"][:]
        numbers, mine, theirs = np.intersect1d(numbers, others, return_indices=True)
        found, reference = found.take(mine), reference.take(theirs)
    left = {
        "top1": (found.prediction == labels).mean(1),
        "top5": found.in_top5.mean(1),
        "loss": found.loss.mean(1, dtype=float),
    }
    return pd.DataFrame(left | paired.changes(found, reference, labels, seed), index=numbers)


def tables(
    paths: Iterable[str | Path], table: pd.DataFrame, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return the stage's tables: groups and their controls, cumulative curves, the inactive
    channels of the first layer.

    Their columns are `GROUP_COLUMNS`, `CUMULATIVE_COLUMNS` and `INACTIVE_COLUMNS`. `q` is Benjamini
    and Hochberg's over all groups of the run in one mode. `paths` of the files `<layer>.h5`, each
    with its table beside it; `table` channels.csv; `seed` of the bootstrap.
    """
    groups, curves, inactive = [], [], []
    for path in map(Path, paths):
        rows = table[table["layer"] == path.stem].sort_values("channel")
        with store.open(path, "ablation_groups") as file:
            measured = _measured(file, store.read_table(path.with_suffix(".csv")), rows, seed)
            of_groups = _with_nulls(measured[measured["kind"] != "curve"])
            groups.append(of_groups)
            curves.append(measured[measured["kind"] == "curve"])
            if file.attrs["filters"] or rows["depth"].iloc[0] == 0:
                inactive.append(_inactive(file, of_groups, rows, seed))
    if not groups:
        return tuple(
            pd.DataFrame(columns=list(columns))
            for columns in (GROUP_COLUMNS, CUMULATIVE_COLUMNS, INACTIVE_COLUMNS)
        )
    groups = pd.concat(groups, ignore_index=True)
    groups = groups.rename(columns={"name": "group", "kind": "role"})
    groups["q"] = np.nan
    for _, rows in groups[groups["role"] == "group"].groupby("mode"):
        groups.loc[rows.index, "q"] = benjamini_hochberg(rows["p"].to_numpy(float))
    curves = pd.concat(curves).rename(columns={"name": "order", "n_channels": "n_removed"})
    inactive = pd.concat(inactive) if inactive else pd.DataFrame(columns=list(INACTIVE_COLUMNS))
    return (
        groups[list(GROUP_COLUMNS)],
        curves[list(CUMULATIVE_COLUMNS)],
        inactive[list(INACTIVE_COLUMNS)],
    )


def _measured(file: h5py.File, uses: pd.DataFrame, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the uses of a layer's sets with their changes; `rows` are the layer's of
    channels.csv."""
    norms = rows["filter_norm"].to_numpy(float)
    channel, offset = file["channel"][:], file["offset"][:]
    sets = [channel[start:stop] for start, stop in itertools.pairwise(offset)]
    found = uses.reindex(columns=[*uses, *CHANGES])
    for mode, part in uses.groupby("mode", sort=False):
        changed = changes(file, mode, seed).loc[part["set"]]
        found.loc[part.index, list(CHANGES)] = changed.to_numpy()
    numbers = found["set"].to_numpy(int)
    found["depth"] = rows["depth"].iloc[0]
    # Those of controls and curves are in the file; in the table they would be most of it.
    found["channels"] = [
        " ".join(map(str, sets[number])) if kind == "group" else ""
        for kind, number in zip(found["kind"], numbers, strict=True)
    ]
    found["n_channels"] = [len(sets[number]) for number in numbers]
    found["filter_norm"] = [norms[sets[number]].mean() for number in numbers]
    counted = ["n_flips", "right_to_wrong", "wrong_to_right", "number"]
    return found.astype({name: "Int64" for name in counted})


def _with_nulls(table: pd.DataFrame) -> pd.DataFrame:
    """Return groups and controls with the columns `NULLS`, empty for controls."""
    table = table.reindex(columns=[*table, *NULLS])
    for _, rows in table.groupby(["name", "mode"], sort=False):
        group = rows[rows["kind"] == "group"]
        place = among(group.iloc[0], rows[rows["kind"] == "control"])
        table.loc[group.index, list(NULLS)] = [place[name] for name in NULLS]
    return table.astype({"n_controls": "Int64"})


def among(group: pd.Series, controls: pd.DataFrame) -> dict[str, float]:
    """Return where a group's `delta_top1` and `delta_loss` lie among those of its controls, a row
    each: `NULLS`, NaN without any.

    `control_*` is the controls' median. `p_more_*` is (1 + controls that lose at least as much) /
    (1 + controls), small for a group that matters more than others; `p_less_*` the same of those
    that lose at most as much. The group counts as one of the sets that chance draws (Davison &
    Hinkley 1997, eq. 4.11).
    """
    found = {"n_controls": int(controls["delta_top1"].count())}
    for name, loses in (("top1", -1), ("loss", 1)):
        own = loses * group[f"delta_{name}"]
        others = loses * controls[f"delta_{name}"].dropna().to_numpy(float)
        # Without a negative zero.
        found[f"control_{name}"] = loses * np.median(others) + 0.0 if len(others) else np.nan
        for word, as_far in (("more", others >= own), ("less", others <= own)):
            share = (1 + as_far.sum()) / (1 + len(others)) if len(others) else np.nan
            found[f"p_{word}_{name}"] = share
    return found


# ---- inactive channels of the first layer


def _inactive(file: h5py.File, groups: pd.DataFrame, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return `INACTIVE_COLUMNS` of a first layer: all its inactive channels, each alone, and the
    difference of `zero` and `mean`, which is the constant that they carry."""
    layer = rows["layer"].iloc[0]
    silent = rows["weak_filter"].astype(object).eq(True).to_numpy(bool)
    every = groups[(groups["name"] == "inactive") & (groups["kind"] == "group")]
    parts = [every.assign(channels="all", compared_with="intact")]
    if {"zero", "mean"} <= set(every["mode"]):
        constant = changes(file, "zero", seed, against="mean").loc[every["set"].iloc[:1]]
        parts.append(constant.assign(channels="all", mode="zero", compared_with="mean"))
    parts.append(_alone(rows[silent], rows[~silent]))
    found = pd.concat(parts, ignore_index=True).reindex(columns=list(INACTIVE_COLUMNS))
    if not len(found):
        found = pd.DataFrame([{"channels": "all"}]).reindex(columns=list(INACTIVE_COLUMNS))
    found["layer"], found["n_inactive"], found["n_layer"] = layer, int(silent.sum()), len(rows)
    found["channel"] = found["channel"].astype("Int64")
    together = found[found["channels"] == "all"]
    found["conclusion"] = conclusion(together, "top1")
    found["conclusion_loss"] = conclusion(together, "loss")
    found["sentence"] = ""
    right = float((file["intact/prediction"][:] == file["label"][:]).mean())
    found.loc[found.index[0], "sentence"] = sentence(together, right, len(file["label"]))
    return found


def _alone(silent: pd.DataFrame, active: pd.DataFrame) -> pd.DataFrame:
    """Return what the stage `ablation` found of each inactive channel, among all active ones."""
    found = []
    modes = [
        column.removesuffix("_delta_top1") for column in silent if column.endswith("_delta_top1")
    ]
    for mode in modes:
        columns = {f"{mode}_{name}": name for name in paired.COLUMNS}
        ours, others = (rows.rename(columns=columns) for rows in (silent, active))
        for _, row in ours[ours["delta_top1"].notna()].iterrows():
            what = {"channels": "one", "channel": row["channel"], "mode": mode}
            what |= {"compared_with": "intact", "control": "active"}
            what |= row.reindex(list(paired.COLUMNS)).to_dict()
            found.append(what | among(row, others))
    return pd.DataFrame(found)


def conclusion(together: pd.DataFrame, quantity: str) -> str:
    """Say what of the inactive channels matters: "none", "signal", "constant" or
    "signal and constant"; "no channel is inactive"; "unknown" without the modes that tell.

    Their signal does if the interval of `mean` or `shuffle` excludes 0, their constant if that of
    `zero` less `mean` does. `quantity` is `top1` or `loss`.
    """
    if not together["mode"].notna().any():
        return "no channel is inactive"
    excludes = (together[f"delta_{quantity}_lo"] > 0) | (together[f"delta_{quantity}_hi"] < 0)
    intact = together["compared_with"] == "intact"
    signal = together["mode"].isin(["mean", "shuffle"]) & intact
    if not signal.any():
        return "unknown"
    parts = {"signal": excludes[signal].any(), "constant": excludes[~intact].any()}
    return " and ".join(name for name, matters in parts.items() if matters) or "none"


_VERDICTS = {
    "none": "no effect can be told from zero",
    "signal": "their signal matters",
    "constant": "the constant that they carry matters; no effect of their signal can be told",
    "signal and constant": "their signal matters, and so does the constant that they carry",
    "unknown": "whether signal or constant is not known without the modes mean and shuffle",
}


def sentence(together: pd.DataFrame, intact: float, images: int) -> str:
    """Return the finding about the inactive channels of a first layer in words.

    `together` are the rows of all of them at once, `intact` the accuracy of the network. The loss
    shows smaller effects than accuracy, so where it says something else the sentence tells it.
    """
    first = together.iloc[0]
    if not together["mode"].notna().any():
        return f"No channel of {first['layer']} is inactive by the norm of its filter."
    told, finer = conclusion(together, "top1"), conclusion(together, "loss")
    changed = [
        f"{100 * row['delta_top1']:+.2f} points with {row['mode']} (95 % interval "
        f"{100 * row['delta_top1_lo']:+.2f} to {100 * row['delta_top1_hi']:+.2f})"
        for _, row in together[together["compared_with"] == "intact"].iterrows()
    ]
    text = (
        f"{first['n_inactive']} of {first['n_layer']} channels of {first['layer']} are inactive by "
        f"the norm of their filters. Without them top-1 accuracy, {100 * intact:.1f} % of {images} "
        f"images, changes by {', '.join(changed)}: {_VERDICTS[told]}."
    )
    if finer != told:
        text += f" By the loss, {_VERDICTS[finer]}."
    if first["n_controls"] > 0:
        text += (
            f" {first['n_controls']} sets of as many other channels change it by "
            f"{100 * first['control_top1']:+.2f} points in the median with {first['mode']}."
        )
    return text.replace("-", "−").replace("top−1", "top-1")
