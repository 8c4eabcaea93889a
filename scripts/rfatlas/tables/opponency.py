"""Stage `opponency`: what the rules of colour opponency say of whole layers, and where they differ.

Do the cone rule, the published ratio of responses, Harris' rule and the rule on the linear field
put a channel into the same class (`confusion`)? How many channels of each class are there, and how
many in the random twin (`counts`)? How much does that depend on the thresholds (`stability`)? How
do the layers compare with the primary visual cortex of macaques (`macaque`, `orientation`)?
Everything is counted from channels.csv; published values for macaques, with source and certainty,
are in `resources/v1_color.csv`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rfatlas.physiology import color_rules
from rfatlas.physiology.color_rules import HARRIS, UNRESPONSIVE
from rfatlas.statistics import by_layer
from rfatlas.tables import counted
from rfatlas.tables.counted import quartiles, share

#: The layer in rows that count over all layers.
ALL = "all layers"

#: The classes of the cone rule that a channel which responds can have.
CONE = color_rules.CLASSES[1:]

#: The class of a channel that would have one of these, but whose field is noise.
NOISE = "noise"

#: The rules by name: their classes, and the column of channels.csv that holds them (Harris' rule
#: has a column per question).
RULES = {
    "cone": ((*CONE, NOISE), "color_class"),
    "ratio": (CONE, "color_class_ratio"),
    "harris": (HARRIS, None),
    "energy": (CONE, "color_class_energy"),
    "unrectified": (CONE, "color_class_ratio_unrectified"),
}

#: The class of the cone rule that means the same as a class of Harris' rule. A channel that is
#: opponent in space only has no colour; one that is opponent in colour only has no edges.
EQUIVALENT = {
    "neither": "non_opponent",
    "spatial": "non_opponent",
    "spectral": "single_opponent",
    "double": "double_opponent",
}

#: What a threshold is varied of, with the rule that it belongs to.
VARIED = {
    "sensitivity": "cone",
    "lowpass": "cone",
    "color_ratio": "ratio",
    "harris_tolerance": "harris",
}

#: The kinds of Johnson, Hawken & Shapley 2001 by `color_ratio`: low <= ratio < high.
KINDS = {
    "luminance": (0, 0.5),
    "color_luminance": (0.5, 2),
    "color_preferring": (2, np.inf),
}

_SHARE = (
    "responsive", "count", *counted.PROPORTION, "twin", "twin_responsive", "twin_count",
    "twin_fraction", "twin_lo", "twin_hi", *counted.DIFFERENCE,
)  # fmt: skip
_PUBLISHED = ("certainty", "source")

CONFUSION = (
    "layer", "depth", "rule", "cone_class", "rule_class", "same", "channels", "cone_channels",
    "count", "share", "both", "agreement", "kappa",
)  # fmt: skip
COUNTS = ("layer", "depth", "rule", "class", "channels", *_SHARE, "chance", "saturated")
STABILITY = ("layer", "depth", "varied", "threshold", "rule", "class", "channels", *_SHARE)
MACAQUE = (
    "layer", "depth", "kind", "low", "high", "channels", *_SHARE, "macaque_count", "macaque_n",
    "macaque_fraction", "macaque_lo", "macaque_hi", *_PUBLISHED,
)  # fmt: skip
ORIENTATION = (
    "layer", "depth", "class", "channels", "n", "color_osi_q25", "color_osi_median",
    "color_osi_q75", "osi_median", "n_bandwidth", "color_bandwidth_median_deg", "oriented",
    *counted.PROPORTION, *counted.DIFFERENCE, "twin", "twin_n", "twin_oriented", "twin_fraction",
    "macaque", *_PUBLISHED,
)  # fmt: skip


def layers_and_all(table: pd.DataFrame) -> Iterator[tuple[str, object, pd.DataFrame]]:
    """Yield (name, depth, rows) of every layer of channels.csv in network order, then of `ALL`
    together (without a depth)."""
    yield from by_layer(table)
    yield ALL, pd.NA, table


def classes(table: pd.DataFrame, rule: str) -> np.ndarray:
    """Return the class (C,) of every channel by one of `RULES`; `UNRESPONSIVE` where it has none.

    By Harris' rule a channel has none if either question has no answer. The cone rule takes `NOISE`
    out.
    """
    if rule == "harris":
        flags = [counted.truth(table[f"harris_{kind}"]) for kind in ("spatial", "spectral")]
        return color_rules.harris_class(*(flag == 1 for flag in flags), np.isnan(sum(flags)))
    found = stated(table, rule)
    noise = counted.noise(table) & (found != UNRESPONSIVE) & (rule == "cone")
    return np.where(noise, NOISE, found)


def stated(table: pd.DataFrame, rule: str) -> np.ndarray:
    """Return `classes` as the column of a rule has them, noise or not."""
    column = table[RULES[rule][1]]
    return column.where(column.isin(CONE), UNRESPONSIVE).to_numpy(object)


def classified(table: pd.DataFrame, rule: str, lines: Mapping[str, float]) -> np.ndarray:
    """Return the classes (C,) of the rule `cone`, `ratio` or `harris` as they would be with other
    thresholds, `lines`, under the names of the section `color`.

    Harris' questions are answered with yes where the margin is more than `harris_tolerance`. A
    channel that is unresponsive stays so.
    """
    known = classes(table, rule)
    unresponsive = known == UNRESPONSIVE
    if rule == "cone":
        found = color_rules.cone_class(table, lines, unresponsive)
        return np.where(known == NOISE, NOISE, found)
    if rule == "ratio":
        return color_rules.ratio_class(table, lines, unresponsive)
    margins = (table[f"harris_{kind}_margin"].to_numpy() for kind in ("spatial", "spectral"))
    answers = (margin > lines["harris_tolerance"] for margin in margins)
    return color_rules.harris_class(*answers, unresponsive)


def confusion(table: pd.DataFrame) -> pd.DataFrame:
    """Compare the cone rule with each of the other rules, channel by channel.

    Returns one row (`CONFUSION`) per layer (and `ALL`), rule and pair of classes, those that never
    meet included. `share` is that of the channels of the cone rule's class; `same` marks the pairs
    that mean the same (`EQUIVALENT`). `both` channels have a class by both rules, `agreement` is
    the share of them in pairs that mean the same, `kappa` that share beyond chance (Cohen 1960,
    Educ. Psychol. Meas. 20:37), NaN where both rules have one and the same class only.
    """
    rows = []
    for rule, (names, column) in RULES.items():
        if rule == "cone" or (column and column not in table):
            continue
        for layer, depth, members in layers_and_all(table):
            cone, other = classes(members, "cone"), classes(members, rule)
            both = np.isin(cone, CONE) & (other != UNRESPONSIVE)
            meaning = np.array([EQUIVALENT.get(name, name) for name in other], object)
            agreement, kappa = _agreement(cone[both], meaning[both])
            for first in (*RULES["cone"][0], UNRESPONSIVE):
                own = int((cone == first).sum())
                for second in (*names, UNRESPONSIVE):
                    count = int(((cone == first) & (other == second)).sum())
                    same = EQUIVALENT.get(second, second) == first
                    row = (layer, depth, rule, first, second, same, len(members), own, count)
                    rows.append((*row, share(count, own), int(both.sum()), agreement, kappa))
    return _framed(rows, CONFUSION)


def counts(
    table: pd.DataFrame, twin: pd.DataFrame | None = None, twin_name: str = ""
) -> pd.DataFrame:
    """Count the channels of each class, per layer (and over `ALL`) and rule.

    Returns one row (`COUNTS`) per layer, rule and class. Fractions are of the channels that have a
    class by that rule (`responsive`), with 95 % Wilson intervals; `difference` is that from the
    twin, with Newcombe's interval. The twin's columns are empty where there is no twin or it lacks
    the layer; `ALL` compares with the twin's layers that the run has too, if it has all of them.
    `chance` is the share of the class in the twin whether its fields are noise or not; `saturated`
    channels have no class by the cone rule since the weakest stimuli saturate them.
    """
    rows = []
    others, layers = _layers(twin, table), {name: own for name, _, own in layers_and_all(table)}
    for rule, (names, column) in RULES.items():
        if not column or column in table:
            for place, name, own in _shares(table, twin, twin_name, names, classes, rule):
                chance, saturated, layer = np.nan, pd.NA, place[0]
                if rule == "cone":
                    saturated = int((layers[layer]["color_reason"] == "saturated").sum())
                    if layer in others and name != NOISE:
                        count, responsive = _count(stated(others[layer], rule), name)
                        chance = share(count, responsive)
                rows.append((*place, rule, name, *own, chance, saturated))
    return _framed(rows, COUNTS)


def stability(
    table: pd.DataFrame,
    thresholds: Mapping[str, Sequence[float]],
    rules: Mapping[str, float],
    twin: pd.DataFrame | None = None,
    twin_name: str = "",
) -> pd.DataFrame:
    """Count the channels of each class with other thresholds, one varied at a time.

    `thresholds` maps each of `VARIED` to the values to try, `rules` to the one that the classes in
    channels.csv go by (always among them, and marked); the others stay at theirs. Returns one row
    (`STABILITY`) per layer (and `ALL`), threshold and class, with the columns of `counts`.
    """
    rows = []
    for varied, rule in VARIED.items():
        for threshold in sorted({*thresholds[varied], rules[varied]}):
            line, stated = {**rules, varied: threshold}, threshold == rules[varied]
            walk = _shares(table, twin, twin_name, RULES[rule][0], classified, rule, line)
            for place, name, own in walk:
                rows.append((*place, varied, threshold, stated, name, *own))
    return _framed(rows, STABILITY)


def macaque(
    table: pd.DataFrame,
    reference: pd.DataFrame,
    twin: pd.DataFrame | None = None,
    twin_name: str = "",
) -> pd.DataFrame:
    """Count luminance, colour-luminance and colour-preferring channels beside the macaque's cells.

    The kinds go by `color_ratio` alone (`KINDS`), as theirs did, so that a channel of the S axis is
    not among the coloured ones. Returns one row (`MACAQUE`) per layer (and `ALL`) and kind with the
    columns of `counts`, the published count with its Wilson interval, how sure it is, and its
    source.
    """
    published = reference[reference["quantity"] == "color_ratio"].set_index("category")
    rows = []
    for place, kind, own in _shares(table, twin, twin_name, KINDS, kinds):
        known = published.loc[kind]
        count, n = int(known["value"]), int(known["n"])
        theirs = (count, n, *counted.proportion(count, n), known["certainty"], known["source"])
        rows.append((*place, kind, *KINDS[kind], *own, *theirs))
    return _framed(rows, MACAQUE)


def kinds(table: pd.DataFrame) -> np.ndarray:
    """Return the kind (C,) of every channel by its `color_ratio`; `UNRESPONSIVE` without one."""
    ratio = table["color_ratio"].to_numpy(float)
    found = np.full(len(table), UNRESPONSIVE, object)
    for kind, (low, high) in KINDS.items():
        # Infinite where luminance drives the channel not at all.
        found[(ratio >= low) & ((ratio < high) | (high == np.inf))] = kind
    return np.where(classes(table, "ratio") == UNRESPONSIVE, UNRESPONSIVE, found)


def orientation(
    table: pd.DataFrame,
    reference: pd.DataFrame,
    orientation_osi: float,
    twin: pd.DataFrame | None = None,
    twin_name: str = "",
) -> pd.DataFrame:
    """Ask of each class of the cone rule whether its channels are tuned to coloured orientation.

    A channel is oriented if its `color_osi` (of chromatic gratings) is at least `orientation_osi`
    and it has a `color_bandwidth_deg`. Returns one row (`ORIENTATION`) per layer (and `ALL`) and
    class; fractions are of the `n` channels with a `color_osi`, `difference` is the fraction minus
    that of the single-opponent channels, with Newcombe's interval. `osi_median` is that of
    achromatic gratings over the same channels. Macaques: Johnson, Hawken & Shapley 2008.
    """
    published = reference[reference["quantity"] == "orientation_for_color"].set_index("category")
    rows = []
    others = _layers(twin, table)
    for layer, depth, members in layers_and_all(table):
        single = _oriented(members, "single_opponent", orientation_osi)
        for name in CONE:
            chosen = members[(classes(members, "cone") == name) & members["color_osi"].notna()]
            oriented, n = _oriented(members, name, orientation_osi)
            width = chosen["color_bandwidth_deg"].dropna()
            row = [layer, depth, name, int((classes(members, "cone") == name).sum()), n]
            row += [*quartiles(chosen["color_osi"])]
            row += [quartiles(chosen["osi"].dropna())[1] if "osi" in chosen else np.nan]
            row += [len(width), quartiles(width)[1], oriented, *counted.proportion(oriented, n)]
            if name == "single_opponent":
                row += [np.nan] * 3
            else:
                row += counted.difference(oriented, n, *single)
            twins = _oriented(others[layer], name, orientation_osi) if layer in others else None
            row += counted.against(oriented, n, twin_name, twins)[:4]
            rows.append((*row, *published.loc[name, ["statement", "certainty", "source"]]))
    return _framed(rows, ORIENTATION)


def tables(
    table: pd.DataFrame,
    reference: pd.DataFrame,
    thresholds: Mapping[str, Sequence[float]],
    rules: Mapping[str, float],
    orientation_osi: float,
    twin: pd.DataFrame | None = None,
    twin_name: str = "",
) -> dict[str, pd.DataFrame]:
    """Return all tables of the stage by the stem of their file.

    `thresholds` is the config's section `opponency`; `rules` are the thresholds that the stage
    `color` went by, under the same names; `orientation_osi` is that of `orientation_selective`.
    """
    return {
        "confusion": confusion(table),
        "stability": stability(table, thresholds, rules, twin, twin_name),
        "counts": counts(table, twin, twin_name),
        "macaque": macaque(table, reference, twin, twin_name),
        "orientation": orientation(table, reference, orientation_osi, twin, twin_name),
    }


def _layers(twin: pd.DataFrame | None, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The twin's rows by layer, and those of `ALL` layers of the run if it has every one."""
    if twin is None or "color_class" not in twin:
        return {}
    shared = twin[twin["layer"].isin(table["layer"])]
    found = dict(iter(shared.groupby("layer", sort=False)))
    return found | ({ALL: shared} if set(found) == set(table["layer"]) else {})


def _shares(
    table: pd.DataFrame,
    twin: pd.DataFrame | None,
    twin_name: str,
    names: Iterable[str],
    classify: Callable[..., np.ndarray],
    *how: Any,
) -> Iterator[tuple[tuple, str, tuple]]:
    """Yield (layer and depth, class, number of channels and columns `_SHARE`) of every layer (and
    `ALL`) and class, which `classify(rows, *how)` tells of channels."""
    others = _layers(twin, table)
    for layer, depth, members in layers_and_all(table):
        found = classify(members, *how)
        other = classify(others[layer], *how) if layer in others else None
        for name in names:
            count, responsive = _count(found, name)
            twins = None if other is None else _count(other, name)
            own = (len(members), responsive, count, *counted.proportion(count, responsive))
            versus = counted.against(count, responsive, twin_name, twins)
            yield (layer, depth), name, (*own, *versus)


def _count(found: np.ndarray, name: str) -> tuple[int, int]:
    """How many channels are of a class, and how many have any."""
    return int((found == name).sum()), int((found != UNRESPONSIVE).sum())


def _oriented(table: pd.DataFrame, name: str, orientation_osi: float) -> tuple[int, int]:
    """How many channels of a class are oriented for colour, and of how many that is known."""
    chosen = table[classes(table, "cone") == name]
    oriented = (chosen["color_osi"] >= orientation_osi) & chosen["color_bandwidth_deg"].notna()
    return int(oriented.sum()), int(chosen["color_osi"].notna().sum())


def _agreement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The share of pairs that are the same, and Cohen's kappa."""
    if not first.size:
        return np.nan, np.nan
    same = float(np.mean(first == second))
    chance = float(sum(np.mean(first == name) * np.mean(second == name) for name in CONE))
    return same, (same - chance) / (1 - chance) if chance < 1 else np.nan


def _framed(rows: Sequence[Sequence], columns: Sequence[str]) -> pd.DataFrame:
    whole = ("depth", "twin_responsive", "twin_count", "twin_n", "twin_oriented", "saturated")
    return counted.framed(rows, columns, [name for name in whole if name in columns])
