"""Statistics that several stages share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    import pandas as pd

# Draws of a bootstrap that are counted at once.
_BOOTSTRAP_COUNTS = 2**23


def by_layer(table: "pd.DataFrame") -> Iterator[tuple[str, int, "pd.DataFrame"]]:
    """Yield (name, depth, rows) of every layer of channels.csv, in network order."""
    for depth, rows in table.groupby("depth", sort=True):
        yield rows["layer"].iloc[0], int(depth), rows


def rows_by_layer(table: "pd.DataFrame") -> dict[str, "pd.DataFrame"]:
    """Return the rows of every layer of channels.csv, in network order."""
    return {layer: rows for layer, _, rows in by_layer(table)}


def wilson(successes: np.ndarray | int, trials: np.ndarray | int, confidence: float = 0.95):
    """Return the Wilson score interval (lo, hi) of a binomial proportion, elementwise.

    NaN where trials = 0. Wilson 1927, J. Am. Stat. Assoc. 22:209, without continuity correction.
    """
    successes, trials = np.asarray(successes, float), np.asarray(trials, float)
    z = special.ndtri(0.5 + confidence / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = successes / trials
        centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
        half = (
            z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
        )
    # Rounding may lead out of 0..1.
    lo, hi = np.maximum(centre - half, 0), np.minimum(centre + half, 1)
    return np.where(trials > 0, lo, np.nan), np.where(trials > 0, hi, np.nan)


def newcombe(
    successes: np.ndarray | int,
    trials: np.ndarray | int,
    other_successes: np.ndarray | int,
    other_trials: np.ndarray | int,
):
    """Return the 95 % interval (lo, hi) of the difference of two independent proportions.

    Elementwise, of the first minus the other. NaN where either has no trials. Newcombe
    1998, Statistics in Medicine 17:873, method 10: each proportion's Wilson interval, squared and
    added; without continuity correction.
    """
    lo, hi = wilson(successes, trials)
    other_lo, other_hi = wilson(other_successes, other_trials)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.divide(successes, trials, dtype=float)
        other = np.divide(other_successes, other_trials, dtype=float)
    difference = share - other
    return (
        difference - np.hypot(share - lo, other_hi - other),
        difference + np.hypot(hi - share, other - other_lo),
    )


def wrapped(angle: np.ndarray, period: float) -> np.ndarray:
    """Return angles in [0, period), elementwise, to six decimals: a table, which holds no more of
    them, never shows `period` itself."""
    return np.round(angle, 6) % period


def circular_difference(a: np.ndarray, b: np.ndarray, period: float = 180) -> np.ndarray:
    """Return the distance between two directions on a circle, elementwise: 0 to half a period.

    179 and 1 degree are 2 degrees apart where the period is 180, as it is for orientations.
    """
    apart = np.mod(np.subtract(a, b, dtype=float), period)
    return np.minimum(apart, period - apart)


def circular_correlation(a: np.ndarray, b: np.ndarray, period: float = 180) -> float:
    """Return the correlation of two sets of directions (n,) on a circle: -1 to 1.

    1 where `b` is `a` turned by anything, -1 where it is `a` mirrored, about 0 where they are
    independent. NaN below two directions and where one set is a single direction. Fisher & Lee
    1983, Biometrika 70:327; unlike others it needs no mean direction, which orientations of all
    kinds do not have.
    """
    turns = [2 * np.pi * np.asarray(angles, float) / period for angles in (a, b)]
    # The sum over pairs of products of sines of differences, by sums over directions.
    (cos_a, sin_a), (cos_b, sin_b) = ((np.cos(angle), np.sin(angle)) for angle in turns)

    def pairs(cos: np.ndarray, sin: np.ndarray, cos2: np.ndarray, sin2: np.ndarray) -> float:
        same = (sin * sin2).sum() * (cos * cos2).sum()
        return same - (sin * cos2).sum() * (cos * sin2).sum()

    shared = pairs(cos_a, sin_a, cos_b, sin_b)
    own = pairs(cos_a, sin_a, cos_a, sin_a) * pairs(cos_b, sin_b, cos_b, sin_b)
    # Directions that are all the same leave rounding errors of this size.
    smallest = (1e-12 * len(turns[0]) ** 2) ** 2
    return float(shared / np.sqrt(own)) if own > smallest else np.nan


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of the rows of `a` and `b` (n, m) -> (n,); NaN where a row is
    constant."""
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 0)


def paired_newcombe(
    both: np.ndarray,
    gained: np.ndarray,
    lost: np.ndarray,
    trials: np.ndarray | int,
):
    """Return the 95 % interval (lo, hi) of the change of a proportion, each trial seen twice.

    The change is (gained - lost) / trials. NaN without trials. Newcombe 1998, Statistics in
    Medicine 17:2635, method 10: the Wilson intervals of both proportions, joined with the
    correlation phi of the pairs, which is taken with the continuity correction given there where it
    is positive. Of all `trials`, `both` succeeded before and after, `gained` only after, `lost`
    only before.
    """
    both, gained, lost, trials = (
        np.asarray(count, float) for count in (both, gained, lost, trials)
    )
    neither = trials - both - gained - lost
    after, before = both + gained, both + lost
    lo, hi = wilson(after, trials)
    old_lo, old_hi = wilson(before, trials)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, old = after / trials, before / trials
        product = both * neither - gained * lost
        corrected = np.where(product > 0, np.maximum(product - trials / 2, 0), product)
        size = np.sqrt(after * before * (trials - after) * (trials - before))
        phi = np.where(size > 0, corrected / size, 0)

    def reach(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(mine**2 - 2 * phi * mine * theirs + theirs**2, 0))

    change = share - old
    return (
        change - reach(share - lo, old_hi - old),
        change + reach(hi - share, old - old_lo),
    )


def mcnemar(gained: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Return the exact two-sided p of McNemar's test, elementwise: how likely so uneven a split of
    the changed pairs is if both kinds are equally likely; 1 where nothing changed.

    McNemar 1947, Psychometrika 12:153; the binomial distribution of Clopper and Pearson in the
    place of its approximation.
    """
    gained, lost = np.asarray(gained), np.asarray(lost)
    changed = gained + lost
    # Twice the smaller tail; both tails share the middle, hence at most 1.
    return np.minimum(2 * special.bdtr(np.minimum(gained, lost), changed, 0.5), 1)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return the q of each p (n,): the smallest false discovery rate at which it is a discovery.

    NaN stays NaN and counts for nothing. Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57:289.
    """
    # Takes half a second to import, which other jobs need not wait for.
    from scipy import stats

    p = np.asarray(p, float)
    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    q[known] = stats.false_discovery_control(p[known])
    return q


def bootstrap_mean(
    values: np.ndarray, samples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile bootstrap interval (lo, hi) of the mean of each row of `values` (C, N).

    The same `samples` resamplings of the N columns serve all rows, so rows that are equal get equal
    intervals. NaN without columns.
    """
    rows, columns = values.shape
    if columns == 0:
        return np.full(rows, np.nan), np.full(rows, np.nan)
    random = np.random.default_rng(seed)
    means = np.empty((samples, rows))
    # How often each column is drawn makes a resampling a product of matrices.
    step = max(1, _BOOTSTRAP_COUNTS // columns)
    for first in range(0, samples, step):
        count = min(step, samples - first)
        drawn = random.integers(0, columns, (count, columns))
        drawn += np.arange(count)[:, None] * columns
        counts = np.bincount(drawn.ravel(), minlength=count * columns).reshape(count, columns)
        means[first : first + count] = counts.astype(float) @ values.T / columns
    tails = (0.5 - confidence / 2, 0.5 + confidence / 2)
    return tuple(np.quantile(means, tails, axis=0))
