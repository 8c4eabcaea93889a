"""Statistics that several stages share."""

import numpy as np
from scipy import special


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
    return np.where(trials > 0, centre - half, np.nan), np.where(trials > 0, centre + half, np.nan)


def circular_difference(a: np.ndarray, b: np.ndarray, period: float = 180) -> np.ndarray:
    """Return the distance between two directions on a circle, elementwise: 0 to half a period.

    179 and 1 degree are 2 degrees apart where the period is 180, as it is for orientations.
    """
    apart = np.mod(np.subtract(a, b, dtype=float), period)
    return np.minimum(apart, period - apart)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of the rows of `a` and `b` (n, m) -> (n,); NaN where a row is
    constant."""
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 0)
