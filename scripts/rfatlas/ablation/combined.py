"""Effects of ablation from a few images that were run exactly and estimates of all.

The regression estimator of survey sampling (Cochran 1977, Sampling Techniques, chapter 7), known as
a control variate and, lately, as prediction-powered inference (Angelopoulos et al. 2023, Science
382:669). With y the change of an image and x what is expected of it (`expected`),

    effect = mean of y over the n exact images + b (mean of x over all N - mean of x over the n)

where b is the least-squares slope over exact images. The estimates need not be good, only
correlated with the changes: where they are not, b is about zero. docs/ablation.md derives the
interval and shows how well it covers.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

TARGETS = ("loss", "top1")

# With fewer exact images than this, a slope is noise: the plain mean is taken.
_FEWEST = 20
# How many images' worth the mean variance of the layer's channels counts in that of a channel, of
# flips, which are so rare that a few images may show none; and the flips that are added to those of
# a channel in that mean.
_PRIOR, _PSEUDO_FLIPS = 10, 0.25
# Of Student's t, for 95 % intervals.
_QUANTILE = 0.975
# A leverage beyond this is taken to be this.
_LEVERAGE = 0.95


def expected(
    odds: np.ndarray, margin: np.ndarray, odds_change: np.ndarray, margin_change: np.ndarray
) -> np.ndarray:
    """Return the expected changes of loss and correctness, (targets, n, C).

    The loss is log(1 + exp(-o)) of the log odds o of the label, which bends where they do not;
    correctness is the sign of the margin.

    `odds` and `margin` (n,) are those of the intact network: log odds of the label, and its logit
    less the largest other; `odds_change` and `margin_change` (n, C) their changes, to first order.
    """
    odds, margin = odds[:, None].astype(float), margin[:, None].astype(float)
    loss = np.logaddexp(0, -odds - odds_change) - np.logaddexp(0, -odds)
    return np.stack([loss, (margin + margin_change > 0) * 1.0 - (margin > 0)])


@dataclass(frozen=True)
class Fit:
    """What a sample of exact images says of each channel, (C,) each.

    `slope` is that of changes on expected changes, `r` their correlation, NaN where either is
    constant; `residual` and `plain` are the variances of an image's change about the line and about
    the mean; `freedom` are the residual's degrees of freedom.
    """

    slope: np.ndarray
    r: np.ndarray
    residual: np.ndarray
    plain: np.ndarray
    freedom: int


def fit(change: np.ndarray, known: np.ndarray, flips: bool) -> Fit:
    """Fit the changes (C, n) of exact images by the expected ones (C, n).

    Residuals are those of a line through all other images (HC3: MacKinnon & White 1985, Journal of
    Econometrics 29:305): few images bear most of a change, and a line follows them. The variances
    of flips, which are changes of correctness, are moderated by their mean over channels (Smyth
    2004, Statistical Applications in Genetics and Molecular Biology 3:3).
    """
    n = change.shape[1]
    x, y = (each - each.mean(1, keepdims=True) for each in (known, change))
    square = (x**2).sum(1)
    # Of expected changes that no exact image has, all that is known is that they are expected.
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(square > 0, (x * y).sum(1) / square, 1.0)
        leverage = 1 / n + np.nan_to_num(x**2 / square[:, None])
        r = (x * y).sum(1) / np.sqrt(square * (y**2).sum(1))
    if n < _FEWEST:
        slope, leverage = np.zeros_like(slope), np.full_like(leverage, 1 / n)
    rest = (y - slope[:, None] * x) / (1 - np.minimum(leverage, _LEVERAGE))
    residual, plain = ((each**2).sum(1) / (n - 1) for each in (rest, y))
    if flips:
        residual, plain = (_moderated(each, n) for each in (residual, plain))
    return Fit(slope, r, residual, plain, n - 1 if n < _FEWEST else n - 2)


def _moderated(variance: np.ndarray, n: int) -> np.ndarray:
    common = variance.mean() + _PSEUDO_FLIPS / (n - 1)
    return (_PRIOR * common + (n - 1) * variance) / (_PRIOR + n - 1)


def effects(
    change: np.ndarray,
    known: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    images: int,
    pilot: int,
    flips: bool,
) -> dict[str, np.ndarray]:
    """Return the mean change over all images of each channel: `effect`, its 95 % interval `lo`,
    `hi`, `p`, `r` and `variance_ratio`, (C,) each.

    The interval is about these images, `p` (Student's t) about the population that they come from:
    that the mean change there is zero. Else one flip among all images, known for certain, would be
    a discovery. `variance_ratio` is how many times as many exact images the plain mean would need.

    `change` (C, n) of exact images, NaN behind the last of each channel; `known` (C, n) expected
    changes of the same images; `mean` and `spread` (C,) mean and variance of the expected change
    over all `images`; `flips` whether changes are those of correctness. The first `pilot` exact
    images, which all channels have, give slopes and variances. How many more are run may depend on
    these (`wanted`), and the interval still holds (Stein 1945, Annals of Mathematical Statistics
    16:243).
    """
    found = fit(change[:, :pilot], known[:, :pilot], flips)
    rest = change - found.slope[:, None] * (known - mean[:, None])
    count = np.isfinite(change).sum(1)
    effect = np.nansum(rest, axis=1) / count
    variance = found.residual * (1 / count - 1 / images)
    half = special.stdtrit(found.freedom, _QUANTILE) * np.sqrt(variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        every = (found.slope**2 * spread + found.residual) / images
        t = np.where(effect == 0, 0, np.abs(effect) / np.sqrt(variance + every))
        ratio = 1 / (variance / found.plain + 1 / images) / count
    return {
        "effect": effect,
        "lo": effect - half,
        "hi": effect + half,
        "p": 2 * special.stdtr(found.freedom, -t),
        "r": found.r,
        "variance_ratio": np.where(found.plain > 0, ratio, np.nan),
    }


def wanted(found: Fit, images: int, half: float) -> np.ndarray:
    """Return how many exact images (C,) each channel needs for a 95 % interval that reaches `half`
    from the effect: Stein's two-stage procedure, for the mean over `images` (see `effects`)."""
    t = special.stdtrit(found.freedom, _QUANTILE)
    each = (half / t) ** 2 / np.maximum(found.residual, np.finfo(float).tiny)
    return np.ceil(1 / (each + 1 / images)).astype(int)
