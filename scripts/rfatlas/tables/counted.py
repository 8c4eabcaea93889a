"""Counts of channels as rows of tables: shares with intervals, differences from another network.

Intervals are 95 %: Wilson's of a share, Newcombe's of a difference.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rfatlas.physiology.color_rules import OPPONENT
from rfatlas.statistics import newcombe, wilson

#: The columns of `proportion` and of `difference`.
PROPORTION = ("fraction", "lo", "hi")
DIFFERENCE = ("difference", "difference_lo", "difference_hi")

#: A mean gradient is known from this `split_half` on.
RELIABLE = 0.5


def share(count: float, total: float) -> float:
    """Return count / total, NaN of nothing."""
    return count / total if total else np.nan


def proportion(count: int, total: int) -> tuple[float, float, float]:
    """Return a share and its interval (`PROPORTION`)."""
    return share(count, total), *map(float, wilson(count, total))


def difference(count: int, total: int, other: int, other_total: int) -> tuple[float, float, float]:
    """Return a share minus another one, and the interval of that (`DIFFERENCE`)."""
    apart = share(count, total) - share(other, other_total)
    return apart, *map(float, newcombe(count, total, other, other_total))


def against(
    count: int, total: int, name: str, other: tuple[int, int] | None
) -> tuple[str | int | float, ...]:
    """Return what stands in a row for the random twin: its name, how many of its channels it is
    known of and how many are so, `PROPORTION`, and `DIFFERENCE` from it; empty without one.

    `other` is (count, total) of the twin.
    """
    if other is None:
        return "", pd.NA, pd.NA, *[np.nan] * 6
    return name, other[1], other[0], *proportion(*other), *difference(count, total, *other)


def quartiles(values: np.ndarray) -> np.ndarray:
    """Return the quartiles (3,) of values, NaN without any."""
    return np.quantile(values, (0.25, 0.5, 0.75)) if len(values) else np.full(3, np.nan)


def truth(column: pd.Series) -> np.ndarray:
    """Return a column of True, False and empty as 1, 0 and NaN."""
    return column.astype("boolean").to_numpy(float, na_value=np.nan)


def noise(table: pd.DataFrame) -> np.ndarray:
    """Return which channels (C,) have a field that is noise: a mean gradient that is reliable
    (`RELIABLE`), and that no Gabor explains better than noise; none where no Gabors were fitted.

    A kernel of random numbers likes some orientation and some colour best: of its tuning nothing
    follows. A mean gradient that is not reliable says nothing of the channel: that of a complex one
    cancels out, however well it is tuned.
    """
    if "gabor_reason" not in table:
        return np.zeros(len(table), bool)
    return ((table["gabor_reason"] == "noise") & (table["split_half"] >= RELIABLE)).to_numpy()


def tuned_for(table: pd.DataFrame, threshold: float) -> dict[str, np.ndarray]:
    """Return which channels (C,) are tuned to orientation for `luminance` and for `color`, by an
    index of at least `threshold` and a bandwidth of the same gratings, as far as these were shown.

    A curve without a bandwidth never falls to 1/sqrt(2) of its peak, whatever its index. For colour
    only opponent channels count (Johnson, Hawken & Shapley 2008): a grey one sees the luminance
    that is left in equiluminant gratings. Noise (`noise`) is tuned for nothing.
    """
    found = {}
    for name, prefix in (("luminance", ""), ("color", "color_")):
        if {f"{prefix}osi", f"{prefix}bandwidth_deg"} <= set(table):
            tuned = (table[f"{prefix}osi"] >= threshold) & table[f"{prefix}bandwidth_deg"].notna()
            if prefix:
                tuned &= table["color_class"].isin(OPPONENT)
            found[name] = tuned.to_numpy() & ~noise(table)
    return found


def orientation_known(table: pd.DataFrame) -> np.ndarray:
    """Return which channels (C,) gratings of any axis drive: only of these is tuning known."""
    known = np.zeros(len(table), bool)
    for name in {"osi", "color_osi"} & set(table):
        known |= table[name].notna().to_numpy()
    return known


def framed(rows: Sequence[Sequence], columns: Sequence[str], whole: Sequence[str]) -> pd.DataFrame:
    """Return rows as a table; the columns `whole` hold whole numbers that may be missing."""
    return pd.DataFrame(rows, columns=list(columns)).astype(dict.fromkeys(whole, "Int64"))
