"""Stage `ablation_groups`: what the network loses without a group of channels.

Channels with a property in common (inactive, orientation-selective, double-opponent, or named in
the config) are taken out of a layer together, and so are as many others, drawn again and again: is
the loss that of the property or that of their number? Beside them cumulative curves: channels taken
out one after the other in the order of a property, from one channel to the whole layer.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from rfatlas.errors import RfatlasError

log = logging.getLogger("rfatlas")

#: Groups by a column of channels.csv: who belongs to them is who has this value there.
GROUPS = {
    "inactive": ("inactive", True),
    "double_opponent": ("color_class", "double_opponent"),
    "orientation_selective": ("orientation_selective", True),
}

#: Columns of channels.csv by which channels are taken out one after the other, by the order's name.
ORDERS = {
    "filter_norm": "filter_norm",
    "osi": "osi",
    "color_class": "color_class",
    "class_selectivity": "class_selectivity",
    "activation_mean": "activation_mean",
}
RANDOM = "random"
DIRECTIONS = ("descending", "ascending")

#: The classes of colour as an order: how far a channel tells colours apart in space.
COLOR_CLASSES = ("unresponsive", "non_opponent", "single_opponent", "double_opponent")


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

    Parameters
    ----------
    rows
        The layer's rows of channels.csv, in the order of the channels.
    layer
        Its name.
    named
        The config's own groups: name -> layer -> channels.

    Raises
    ------
    RfatlasError
        If the config names a channel that the layer does not have.
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
        if layer not in layers:
            continue
        members = np.unique(np.array(layers[layer], int))
        if members.size and members[-1] >= len(rows):
            raise RfatlasError(
                f"ablation_groups.groups.{name}.{layer}: no channel {members[-1]}; the layer has "
                f"{len(rows)} channels, 0 to {len(rows) - 1}"
            )
        found[name] = members
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

    Parameters
    ----------
    norms
        (C,) filter norms, NaN where unknown.
    members
        (k,) channels of the group.
    count
        Sets wanted; there are fewer only where the layer has no more.
    tolerance
        See above.
    seed
        Of the draws.
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

    Parameters
    ----------
    rows
        The layer's rows of channels.csv, in the order of the channels.
    layer
        Its name.
    wanted
        Names of `ORDERS`, and `random`.
    randoms
        How many random orders.
    seed
        Of these, and of the order of channels that are alike.

    Returns
    -------
    (order, direction, number) -> (C,) channels, the first taken out first. Direction is one of
    `DIRECTIONS`, "" for a random one; number counts the random ones. Channels without a value stand
    at the end in both directions. An order whose column is missing or empty is left out.
    """
    found = {}
    shuffled = np.random.default_rng([*seed, 0]).permutation(len(rows))
    for name in wanted:
        if name == RANDOM:
            continue
        column = ORDERS[name]
        if column not in rows or rows[column].isna().all():
            log.info("%s: no curve by %s, channels.csv has no %s of it", layer, name, column)
            continue
        values = rows[column]
        if name == "color_class":
            values = values.map({kind: rank for rank, kind in enumerate(COLOR_CLASSES)})
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
