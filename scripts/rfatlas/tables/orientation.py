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

#: What a channel can be tuned to the orientation of.
KINDS = ("luminance", "color")

AGREEMENT = (
    "layer", "depth", "first", "second", "channels", "n", "median_deg", "p90_deg",
    "share_within_10_deg", "circular_correlation",
)  # fmt: skip
GABOR = ("gabor_known", "gabor_oriented", "twin_gabor_known", "twin_gabor_oriented")
SELECTIVE = (
    "layer", "depth", "osi_threshold", "rule", "channels", "responsive", "selective",
    *counted.PROPORTION, "twin", "twin_responsive", "twin_selective", "twin_fraction", "twin_lo",
    "twin_hi", *counted.DIFFERENCE, "luminance", "color", "both", "noise", "no_response", "weak",
    *GABOR,
)  # fmt: skip


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

    A channel counts that is tuned for luminance or for colour (`counted.tuned_for`). Returns one
    row (`SELECTIVE`) per layer and threshold, that of `rule` (by which the column
    `orientation_selective` goes) among them and marked; none without the columns of the stages
    `gratings` and `color`. Fractions are of the responsive channels (those with an `osi` of either
    kind), with 95 % Wilson intervals; `difference` is that from the twin, with Newcombe's interval.
    The twin's columns are empty where there is no twin or it lacks the layer. At the end how many
    are tuned for what, and how many channels do not count since their field is noise, or since no
    grating drives them at all or enough; and of how many mean gradients a Gabor function was tried,
    and how many it fits better than noise and has an orientation for, which tells trained kernels
    from random ones better than any index of responses does.
    """
    rows = []
    twin_layers = rows_by_layer(twin) if twin is not None else {}
    twin_layers = {name: own for name, own in twin_layers.items() if _any(own, rule) is not None}
    for layer, depth, members in by_layer(table):
        responsive = int(counted.orientation_known(members).sum())
        other = twin_layers.get(layer)
        for threshold in sorted({*thresholds, rule}):
            tuned = counted.tuned_for(members, threshold)
            if not tuned:
                continue
            count = int(_any(members, threshold).sum())
            others = None
            if other is not None:
                known = int(counted.orientation_known(other).sum())
                others = int(_any(other, threshold).sum()), known
            kinds = [tuned.get(name, np.zeros(len(members), bool)) for name in KINDS]
            alone = [int((one & ~two).sum()) for one, two in (kinds, kinds[::-1])]
            rows.append(
                (
                    *(layer, depth, threshold, threshold == rule, len(members), responsive, count),
                    *counted.proportion(count, responsive),
                    *counted.against(count, responsive, twin_name, others),
                    *(*alone, int((kinds[0] & kinds[1]).sum()), *_excluded(members)),
                    *_gabors(members),
                    *_gabors(other),
                )
            )
    return framed(rows, SELECTIVE, ("twin_responsive", "twin_selective", *GABOR))


def _gabors(table: pd.DataFrame | None) -> tuple:
    """How many mean gradients were to be fitted, and how many got a Gabor with an orientation."""
    if table is None or "gabor_reason" not in table:
        return pd.NA, pd.NA
    tried = table["gabor_reason"] != "not_measured"
    return int(tried.sum()), int((tried & table["gabor_theta_deg"].notna()).sum())


def _any(table: pd.DataFrame, threshold: float) -> np.ndarray | None:
    """Which channels are tuned to orientation for anything; None where no gratings were shown."""
    tuned = counted.tuned_for(table, threshold)
    return np.any(list(tuned.values()), 0) if tuned else None


def _excluded(table: pd.DataFrame) -> tuple[int, int, int]:
    """How many channels do not count: of noise, without response, with a weak one."""
    known = counted.orientation_known(table)
    columns = [name for name in ("grating_reason", "color_reason") if name in table]
    weak = (table[columns] == "weak").any(axis=1).to_numpy()
    silent = int((~known & ~weak).sum())
    return int((counted.noise(table) & known).sum()), silent, int((~known & weak).sum())


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
