"""Part `contrast` of the stage gratings: responses to gratings of all contrasts, and to plaids.

Every function works on all channels at once. docs/columns.md defines every number.
"""

from typing import Any

import numpy as np

from rfatlas.physiology import curve_fits
from rfatlas.physiology.tuning import first_reached

#: Columns of the table of the stage gratings.
COLUMNS = (
    "contrast_r_max", "contrast_c50", "contrast_exponent", "contrast_r2", "contrast_half",
    "contrast_saturated", "cross_orientation_index", "contrast_reason",
)  # fmt: skip

#: The contrasts at which all gratings are shown as long as a channel is compressive there, each a
#: fifth of the one before: then none that is measured is clamped.
STEPS = 0.2 ** np.arange(4)

#: A channel is compressive where a fifth of the contrast still gives this share of its maximum:
#: more than a fifth, by a twentieth of that.
COMPRESSIVE = 0.21

#: A saturated channel reaches half of its maximum at this contrast.
SATURATED = 0.25

#: Grating and mask of a plaid have at most this contrast, so that their sum can be drawn.
PLAID = 0.5

#: The lowest contrast of a contrast curve: about one code value of 255.
LOWEST = 0.01

_BOUNDS = ((LOWEST / 4, 100), (0.2, 10))


def contrasts(count: int) -> np.ndarray:
    """Return `count` contrasts, evenly spaced on a logarithmic axis, from `LOWEST` to 1."""
    return np.geomspace(LOWEST, 1, count)


def naka_rushton(contrast: np.ndarray) -> Any:
    """Return the shape of a contrast response at contrasts (n,): a function of c50 and the
    exponent, (...) each.

    R(c) = c^n / (c^n + c50^n) (Naka & Rushton 1966; Albrecht & Hamilton 1982).
    """

    def shape(c50: np.ndarray, exponent: np.ndarray) -> np.ndarray:
        return 1 / (1 + (c50[..., None] / contrast) ** exponent[..., None])

    return shape


def tuning(
    curve: np.ndarray,
    contrast: np.ndarray,
    plaid: np.ndarray,
    alone: np.ndarray,
    reason: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the columns `COLUMNS` (C,), and the fitted curves (C, n), of contrast responses (C,
    n), never negative, at rising contrasts (n,).

    `plaid` and `alone` (C,) are responses to the grating with and without a mask across it. The
    `reason` (C,) says why a channel has no tuning at all, "" otherwise: its curve may be NaN.
    """
    known = reason == ""
    curve = np.where(known[:, None], curve, 0)
    peak = curve.max(1)
    half = first_reached(curve, contrast, peak / 2)
    (r_max, c50, exponent), fitted, r2 = curve_fits.fit(
        curve, naka_rushton(contrast), _BOUNDS, trials=40
    )
    # Where no contrast that can be shown comes near the maximum, only their quotient is known.
    reaches = c50 <= 1
    below = curve[:, 0] >= peak / 2
    reason = np.where(known & below, "saturated", np.where(known & ~reaches, "unsaturated", reason))
    index = 1 - np.divide(plaid, alone, out=np.full(len(curve), np.nan), where=alone > 0)
    found = {
        "contrast_r_max": np.where(known & reaches, r_max, np.nan),
        "contrast_c50": np.where(known & reaches & ~below, c50, np.nan),
        "contrast_exponent": np.where(known & ~below, exponent, np.nan),
        "contrast_r2": np.where(known, r2, np.nan),
        "contrast_half": np.where(known & ~below, half, np.nan),
        "contrast_saturated": np.where(known, half <= SATURATED, None),
        "cross_orientation_index": np.where(known, index, np.nan),
        "contrast_reason": reason,
    }
    return found, np.where(known[:, None], fitted, np.nan)
