"""Part `size` of the stage gratings: apertures, and responses to gratings of all sizes.

Every function works on all channels at once. docs/columns.md defines every number.
"""

from typing import Any

import numpy as np
from scipy.special import erf

from rfatlas.physiology import curve_fits
from rfatlas.physiology.tuning import first_reached

#: Columns of the table of the stage gratings.
COLUMNS = (
    "size_summation_px", "size_surround_px", "suppression_index", "size_center_px",
    "size_surround_width_px", "size_surround_gain", "size_r2", "size_reason",
)  # fmt: skip

#: The surround suppresses a channel whose best response is larger than that to the largest grating
#: by more than this factor.
SUPPRESSED = 1.1

#: Fields that are smaller, in pixels, have no sizes to tell apart.
SMALLEST_FIELD = 5

# The smallest grating of a size curve, the smallest aperture that is tried for all gratings, and
# how far these are apart at least and how many there are at most, the field itself left out.
_SMALLEST_PX, _SMALLEST_APERTURE_PX = 2.0, 3.0
_STEP, _APERTURES = 1.6, 2

# Of the peak, where summation is complete; of the suppression, what is left at the surround's edge.
_COMPLETE, _LEFT = 0.95, 0.05


def diameters(size: float, count: int) -> np.ndarray:
    """Return `count` diameters in pixels, evenly spaced on a logarithmic axis, from 2 to the field
    of `size` pixels."""
    return np.geomspace(min(_SMALLEST_PX, size), size, count)


def apertures(size: float) -> np.ndarray:
    """Return the diameters in pixels, rising, in which all gratings are shown: at most two from 3
    pixels on, evenly spaced on a logarithmic axis, and the field of `size` pixels."""
    steps = np.log(size / _SMALLEST_APERTURE_PX) / np.log(_STEP)
    count = int(np.clip(np.floor(steps), 0, _APERTURES))
    return np.geomspace(_SMALLEST_APERTURE_PX if count else size, size, count + 1)


def best_aperture(peak: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which aperture each channel is measured in, an index (C,), and whether it is
    suppressed by the largest, bool (C,).

    `peak` (aperture, C) are the best responses in rising apertures. A suppressed channel has the
    smallest aperture whose best response is within `SUPPRESSED` of its largest, any other the last.
    """
    suppressed = peak[-1] * SUPPRESSED < peak.max(0)
    within = peak * SUPPRESSED >= peak.max(0)
    return np.where(suppressed, within.argmax(0), len(peak) - 1), suppressed


def ratio_of_gaussians(diameter: np.ndarray) -> Any:
    """Return the shape of size tuning at diameters (n,): a function of the widths of centre and
    surround in pixels, the second in units of the first, and the gain of the surround, (...) each.

    R(x) = k_c L_c(x) / (1 + k_s L_s(x)), L(x) = erf(x / w)^2 (Cavanaugh, Bair & Movshon 2002,
    J. Neurophysiol. 88:2530, equation 4, with k_c = 1).
    """

    def shape(center: np.ndarray, ratio: np.ndarray, gain: np.ndarray) -> np.ndarray:
        drive = erf(diameter / center[..., None]) ** 2
        surround = erf(diameter / (center * ratio)[..., None]) ** 2
        return drive / (1 + gain[..., None] * surround)

    return shape


def tuning(
    curve: np.ndarray, diameter: np.ndarray, reason: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the columns `COLUMNS` (C,), and the fitted curves (C, n), of size curves (C, n >= 4),
    never negative, at rising diameters (n,) in pixels.

    `reason` (C,) says why a channel has no tuning at all, "" otherwise; their curves may be NaN.
    """
    if diameter[-1] < SMALLEST_FIELD:
        reason = np.where(reason == "", "small", reason)
    known = reason == ""
    curve = np.where(known[:, None], curve, 0)
    peak, last = curve.max(1), curve[:, -1]
    axis, top = np.log(diameter), curve.argmax(1)
    column = np.arange(len(diameter))
    summation = first_reached(curve, axis, _COMPLETE * peak)
    # From the peak on: what comes before it counts as the peak.
    falling = np.where(column < top[:, None], peak[:, None], curve)
    edge = last + _LEFT * (peak - last)
    surround = first_reached(-falling, axis, -edge)
    suppressed = known & (last * SUPPRESSED < peak)
    bounds = ((_SMALLEST_PX / 4, 4 * diameter[-1]), (1, 10), (1e-3, 1e3))
    (_, center, ratio, gain), fitted, r2 = curve_fits.fit(
        curve, ratio_of_gaussians(diameter), bounds, trials=14
    )
    index = np.divide(peak - last, peak, out=np.zeros(len(peak)), where=peak > 0)
    found = {
        "size_summation_px": np.where(known, np.exp(summation), np.nan),
        "size_surround_px": np.where(suppressed, np.exp(surround), np.nan),
        "suppression_index": np.where(known, index, np.nan),
        "size_center_px": np.where(known, center, np.nan),
        "size_surround_width_px": np.where(suppressed, center * ratio, np.nan),
        "size_surround_gain": np.where(suppressed, gain, np.nan),
        "size_r2": np.where(known, r2, np.nan),
        "size_reason": reason,
    }
    return found, np.where(known[:, None], fitted, np.nan)
