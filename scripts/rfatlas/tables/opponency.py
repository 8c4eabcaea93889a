"""Stage `opponency`: what the rules of colour opponency say of whole layers, and where they differ.

Do the cone rule, Harris' rule and the rule on the linear field put a channel into the same class
(`confusion`)? How many channels of each class are there, and how many in the random twin
(`counts`)? How much does that depend on the thresholds (`stability`)? How do the layers
compare with the primary visual cortex of macaques (`macaque`, `orientation`)? Everything is counted
from channels.csv; published values for macaques, with source and certainty, are in
`resources/v1_color.csv`.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from rfatlas.statistics import by_layer, newcombe, wilson

#: The layer in rows that count over all layers.
ALL = "all layers"

UNRESPONSIVE = "unresponsive"
CONE = ("non_opponent", "single_opponent", "double_opponent")
#: Harris, Mihai & Hare 2019 ask two questions of a cell; one that is both is double-opponent.
HARRIS = ("neither", "spatial", "spectral", "double")

#: The rules by name: their classes, and the column of channels.csv that holds them (Harris' rule
#: has a column per question).
RULES = {
    "cone": (CONE, "color_class"),
    "harris": (HARRIS, None),
    "energy": (CONE, "color_class_energy"),
    "unrectified": (CONE, "color_class_unrectified"),
}

#: The class of the cone rule that means the same as a class of Harris' rule. A channel that is
#: opponent in space only has no colour; one that is opponent in colour only has no edges.
EQUIVALENT = {
    "neither": "non_opponent",
    "spatial": "non_opponent",
    "spectral": "single_opponent",
    "double": "double_opponent",
}

#: A channel whose `color_ratio_rgb` is below this sees grey only and is never opponent by the cone
#: rule: the stage `color` says why.
GREY_ONLY = 0.01

#: What a threshold is varied of, with the rule that it belongs to.
VARIED = {"color_ratio": "cone", "lowpass": "cone", "harris_tolerance": "harris"}

#: The kinds of Johnson, Hawken & Shapley 2001 by `color_ratio`: low <= ratio < high.
KINDS = {
    "luminance": (0, 0.5),
    "color_luminance": (0.5, 2),
    "color_preferring": (2, np.inf),
}

_TWIN = ("twin", "twin_responsive", "twin_count", "twin_fraction", "twin_lo", "twin_hi")
_DIFFERENCE = ("difference", "difference_lo", "difference_hi")
_SHARE = ("responsive", "count", "fraction", "lo", "hi", *_TWIN, *_DIFFERENCE)
_PUBLISHED = ("certainty", "source")

CONFUSION = (
    "layer",
    "depth",
    "rule",
    "cone_class",
    "rule_class",
    "same",
    "channels",
    "cone_channels",
    "count",
    "share",
    "both",
    "agreement",
    "kappa",
)
COUNTS = ("layer", "depth", "rule", "class", "channels", *_SHARE)
STABILITY = ("layer", "depth", "varied", "threshold", "rule", "class", "channels", *_SHARE)
MACAQUE = (
    "layer",
    "depth",
    "kind",
    "low",
    "high",
    "channels",
    *_SHARE,
    "macaque_count",
    "macaque_n",
    "macaque_fraction",
    "macaque_lo",
    "macaque_hi",
    *_PUBLISHED,
)
ORIENTATION = (
    "layer",
    "depth",
    "class",
    "channels",
    "n",
    "color_osi_q25",
    "color_osi_median",
    "color_osi_q75",
    "osi_median",
    "n_bandwidth",
    "color_bandwidth_median_deg",
    "oriented",
    "fraction",
    "lo",
    "hi",
    *_DIFFERENCE,
    "twin",
    "twin_n",
    "twin_oriented",
    "twin_fraction",
    "macaque",
    *_PUBLISHED,
)


def layers_and_all(table: pd.DataFrame) -> Iterator[tuple[str, object, pd.DataFrame]]:
    """Yield (name, depth, rows) of every layer of channels.csv in network order, then of `ALL`
    together (without a depth)."""
    yield from by_layer(table)
    yield ALL, pd.NA, table


def classes(table: pd.DataFrame, rule: str) -> np.ndarray:
    """Return the class (C,) of every channel by one of `RULES`; `UNRESPONSIVE` where it has none.

    By Harris' rule a channel has none if either question has no answer.
    """
    if rule == "harris":
        flags = [table[f"harris_{kind}"].astype("boolean") for kind in ("spatial", "spectral")]
        known = ~(flags[0].isna() | flags[1].isna()).to_numpy()
        spatial, spectral = (flag.fillna(False).to_numpy(bool) for flag in flags)
        found = np.array(HARRIS, object)[spatial + 2 * spectral]
        return np.where(known, found, UNRESPONSIVE)
    column = table[RULES[rule][1]]
    return column.where(column.isin(CONE), UNRESPONSIVE).to_numpy(object)


def classified(table: pd.DataFrame, color_ratio: float, lowpass: float) -> np.ndarray:
    """Return the classes (C,) of the cone rule as they would be with other thresholds.

    A channel is opponent where `color_ratio` or `color_ratio_s` is at least `color_ratio`, unless
    it sees grey only (`GREY_ONLY`), and then single-opponent where `color_lowpass` is at least
    `lowpass`. One that is unresponsive stays so.
    """
    opponent = (table["color_ratio"] >= color_ratio) | (table["color_ratio_s"] >= color_ratio)
    opponent &= table["color_ratio_rgb"] >= GREY_ONLY
    single = table["color_lowpass"] >= lowpass
    found = np.where(single, "single_opponent", "double_opponent").astype(object)
    found = np.where(opponent, found, "non_opponent")
    return np.where(classes(table, "cone") == UNRESPONSIVE, UNRESPONSIVE, found)


def tolerated(table: pd.DataFrame, tolerance: float) -> np.ndarray:
    """Return the classes (C,) of Harris' rule as they would be with another tolerance.

    A question is answered with yes where its margin is more than the tolerance; a channel whose
    class is not known stays `UNRESPONSIVE`.
    """
    spatial, spectral = (
        (table[f"harris_{kind}_margin"] > tolerance).to_numpy() for kind in ("spatial", "spectral")
    )
    found = np.array(HARRIS, object)[spatial + 2 * spectral]
    return np.where(classes(table, "harris") == UNRESPONSIVE, UNRESPONSIVE, found)


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
            both = (cone != UNRESPONSIVE) & (other != UNRESPONSIVE)
            meaning = np.array([EQUIVALENT.get(name, name) for name in other], object)
            agreement, kappa = _agreement(cone[both], meaning[both])
            for first in (*CONE, UNRESPONSIVE):
                own = int((cone == first).sum())
                for second in (*names, UNRESPONSIVE):
                    count = int(((cone == first) & (other == second)).sum())
                    same = EQUIVALENT.get(second, second) == first
                    row = (layer, depth, rule, first, second, same, len(members), own, count)
                    rows.append((*row, _share(count, own), int(both.sum()), agreement, kappa))
    return pd.DataFrame(rows, columns=list(CONFUSION)).astype({"depth": "Int64"})


def counts(
    table: pd.DataFrame, twin: pd.DataFrame | None = None, twin_name: str = ""
) -> pd.DataFrame:
    """Count the channels of each class, per layer (and over `ALL`) and rule.

    Returns one row (`COUNTS`) per layer, rule and class. Fractions are of the channels that have a
    class by that rule (`responsive`), with 95 % Wilson intervals; `difference` is that from the
    twin, with Newcombe's interval. The twin's columns are empty where there is no twin or it lacks
    the layer; `ALL` compares with the twin's layers that the run has too, if it has all of them.
    """
    rows = []
    others = _layers(twin, table)
    for rule, (names, column) in RULES.items():
        if column and column not in table:
            continue
        for layer, depth, members in layers_and_all(table):
            found = classes(members, rule)
            other = classes(others[layer], rule) if layer in others else None
            for name in names:
                head = (layer, depth, rule, name, len(members))
                rows.append((*head, *_shares(found, name, other, twin_name)))
    return _typed(pd.DataFrame(rows, columns=list(COUNTS)))


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
    others = _layers(twin, table)
    for varied, rule in VARIED.items():
        for threshold in sorted({*thresholds[varied], rules[varied]}):
            line = {**rules, varied: threshold}
            for layer, depth, members in layers_and_all(table):
                found = _at(members, rule, line)
                other = _at(others[layer], rule, line) if layer in others else None
                for name in RULES[rule][0]:
                    stated = threshold == rules[varied]
                    head = (layer, depth, varied, threshold, stated, name, len(members))
                    rows.append((*head, *_shares(found, name, other, twin_name)))
    return _typed(pd.DataFrame(rows, columns=list(STABILITY)))


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
    others = _layers(twin, table)
    for layer, depth, members in layers_and_all(table):
        found = kinds(members)
        other = kinds(others[layer]) if layer in others else None
        for kind, (low, high) in KINDS.items():
            known = published.loc[kind]
            count, n = int(known["value"]), int(known["n"])
            rows.append(
                (
                    *(layer, depth, kind, low, high, len(members)),
                    *_shares(found, kind, other, twin_name),
                    *(count, n, count / n, *map(float, wilson(count, n))),
                    *(known["certainty"], known["source"]),
                )
            )
    return _typed(pd.DataFrame(rows, columns=list(MACAQUE)))


def kinds(table: pd.DataFrame) -> np.ndarray:
    """Return the kind (C,) of every channel by its `color_ratio`; `UNRESPONSIVE` without one."""
    ratio = table["color_ratio"].to_numpy(float)
    found = np.full(len(table), UNRESPONSIVE, object)
    for kind, (low, high) in KINDS.items():
        # Infinite where luminance drives the channel not at all.
        found[(ratio >= low) & ((ratio < high) | (high == np.inf))] = kind
    return np.where(classes(table, "cone") == UNRESPONSIVE, UNRESPONSIVE, found)


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
            row += [_quantile(chosen["color_osi"], share) for share in (0.25, 0.5, 0.75)]
            row += [_quantile(chosen["osi"], 0.5) if "osi" in chosen else np.nan]
            row += [len(width), _quantile(width, 0.5), oriented, _share(oriented, n)]
            row += [*wilson(oriented, n)]
            if name == "single_opponent":
                row += [np.nan] * 3
            else:
                row += [_share(oriented, n) - _share(*single), *newcombe(oriented, n, *single)]
            if layer in others:
                count, total = _oriented(others[layer], name, orientation_osi)
                row += [twin_name, total, count, _share(count, total)]
            else:
                row += ["", pd.NA, pd.NA, np.nan]
            rows.append((*row, *published.loc[name, ["statement", "certainty", "source"]]))
    return _typed(pd.DataFrame(rows, columns=list(ORIENTATION)))


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


def _at(table: pd.DataFrame, rule: str, line: Mapping[str, float]) -> np.ndarray:
    if rule == "harris":
        return tolerated(table, line["harris_tolerance"])
    return classified(table, line["color_ratio"], line["lowpass"])


def _layers(twin: pd.DataFrame | None, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The twin's rows by layer, and those of `ALL` layers of the run if it has every one."""
    if twin is None or "color_class" not in twin:
        return {}
    shared = twin[twin["layer"].isin(table["layer"])]
    found = dict(iter(shared.groupby("layer", sort=False)))
    return found | ({ALL: shared} if set(found) == set(table["layer"]) else {})


def _shares(
    found: np.ndarray, name: str, other: np.ndarray | None, twin_name: str
) -> tuple[object, ...]:
    """The columns `_SHARE` of one class: of a run, of its twin, and their difference."""
    responsive, count = int((found != UNRESPONSIVE).sum()), int((found == name).sum())
    own = (responsive, count, _share(count, responsive), *wilson(count, responsive))
    if other is None:
        return *own, "", pd.NA, pd.NA, *[np.nan] * 6
    total, twins = int((other != UNRESPONSIVE).sum()), int((other == name).sum())
    share = _share(twins, total)
    apart = (own[2] - share, *newcombe(count, responsive, twins, total))
    return *own, twin_name, total, twins, share, *wilson(twins, total), *apart


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


def _typed(found: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers that may be missing as such, and the rest of the numbers as floats."""
    whole = ("depth", "twin_responsive", "twin_count", "twin_n", "twin_oriented")
    ends = [name for name in found if name in ("lo", "hi") or name.endswith(("_lo", "_hi"))]
    kinds = {name: "Int64" for name in whole if name in found} | dict.fromkeys(ends, float)
    return found.astype(kinds)


def _quantile(column: pd.Series, share: float) -> float:
    values = column.dropna().to_numpy(float)
    return float(np.quantile(values, share)) if values.size else np.nan


def _share(count: float, total: float) -> float:
    return count / total if total else np.nan
