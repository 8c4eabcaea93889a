"""Stage `orientation`: what the estimates of orientation and frequency say of whole layers.

Do kernel, mean gradient and gratings agree on a channel's orientation (`agreement`)? How many
channels are tuned, by several thresholds, and how many are in the random twin (`selective`)?
Everything is counted from channels.csv.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rfatlas.statistics import by_layer, circular_correlation, circular_difference, rows_by_layer
from rfatlas.tables import counted
from rfatlas.tables.channels import ORIENTATIONS, PAIRS
from rfatlas.tables.counted import framed

#: Two orientations agree if they are at most this many degrees apart; by chance 11 % do.
CLOSE = 10

AGREEMENT = (
    "layer", "depth", "first", "second", "channels", "n", "median_deg", "p90_deg",
    "share_within_10_deg", "circular_correlation",
)  # fmt: skip
SELECTIVE = (
    "layer", "depth", "osi_threshold", "rule", "channels", "responsive", "selective",
    *counted.PROPORTION, "twin", "twin_responsive", "twin_selective", "twin_fraction", "twin_lo",
    "twin_hi", *counted.DIFFERENCE,
)  # fmt: skip


def selects(table: pd.DataFrame, threshold: float) -> np.ndarray:
    """Return which channels are orientation-selective: `osi` at least `threshold` and a bandwidth.

    A curve without a bandwidth never falls to 1/sqrt(2) of its peak, whatever its index.
    """
    return ((table["osi"] >= threshold) & table["bandwidth_deg"].notna()).to_numpy()


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Compare each two estimates of orientation, over the channels of a layer that have both.

    Returns one row (`AGREEMENT`) per layer, pair and set of channels: `all`, and those that are
    `selective` by `orientation_selective` where the table has it, since a channel without tuning
    has no orientation to agree on. Differences are circular, 0 to 90 degrees, with their median and
    90th percentile; unrelated orientations have median 45 and 11 % within 10 degrees.
    """
    rows = []
    for layer, depth, members in by_layer(table):
        chosen = {"all": np.ones(len(members), bool)}
        if "orientation_selective" in members:
            chosen["selective"] = counted.truth(members["orientation_selective"]) == 1
        for first, second in PAIRS:
            if not {ORIENTATIONS[first], ORIENTATIONS[second]} <= set(table):
                continue
            a, b = (members[ORIENTATIONS[name]].to_numpy(float) for name in (first, second))
            for name, subset in chosen.items():
                both = subset & np.isfinite(a) & np.isfinite(b)
                apart = circular_difference(a[both], b[both])
                row = [layer, depth, first, second, name, apart.size, np.nan, np.nan, np.nan]
                if apart.size:
                    row[-3:] = *np.quantile(apart, (0.5, 0.9)), np.mean(apart <= CLOSE)
                rows.append([*row, circular_correlation(a[both], b[both])])
    return pd.DataFrame(rows, columns=list(AGREEMENT))


def selective(
    table: pd.DataFrame,
    thresholds: Sequence[float],
    rule: float,
    twin: pd.DataFrame | None = None,
    twin_name: str = "",
) -> pd.DataFrame:
    """Count the orientation-selective channels of each layer at several thresholds of `osi`.

    Returns one row (`SELECTIVE`) per layer and threshold, that of `rule` (by which the column
    `orientation_selective` goes) among them and marked; none without the columns of the stage
    `gratings`. Fractions are of the responsive channels (those with an `osi`), with 95 % Wilson
    intervals; `difference` is that from the twin, with Newcombe's interval. The twin's columns are
    empty where there is no twin or it lacks the layer.
    """
    rows = []
    twin_layers = rows_by_layer(twin) if twin is not None and "osi" in twin else {}
    for layer, depth, members in by_layer(table) if "osi" in table else ():
        responsive = int(members["osi"].notna().sum())
        other = twin_layers.get(layer)
        for threshold in sorted({*thresholds, rule}):
            count = int(selects(members, threshold).sum())
            others = None
            if other is not None:
                others = int(selects(other, threshold).sum()), int(other["osi"].notna().sum())
            rows.append(
                (
                    *(layer, depth, threshold, threshold == rule, len(members), responsive, count),
                    *counted.proportion(count, responsive),
                    *counted.against(count, responsive, twin_name, others),
                )
            )
    return framed(rows, SELECTIVE, ("twin_responsive", "twin_selective"))


def tables(
    table: pd.DataFrame,
    thresholds: Sequence[float],
    orientation_osi: float,
    twin: pd.DataFrame | None = None,
    twin_name: str = "",
) -> dict[str, pd.DataFrame]:
    """Return all tables of the stage by the stem of their file; `orientation_osi` is the threshold
    by which the column `orientation_selective` goes."""
    return {
        "agreement": agreement(table),
        "selective": selective(table, thresholds, orientation_osi, twin, twin_name),
    }
