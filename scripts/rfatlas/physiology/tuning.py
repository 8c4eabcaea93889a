"""Indices of tuning, over arrays of responses: orientation, spatial frequency, phase.

Every function works on all channels at once; nothing here knows of networks. The formulas and
their sources are in docs/columns.md.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import fft
from scipy.interpolate import CubicSpline

from rfatlas.statistics import wrapped

#: Highest spatial frequency of a grating, cycles per pixel: 0.5 would be drawn as a checkerboard
#: whose contrast depends on its phase.
HIGHEST_CPP = 0.4

#: Finer gratings, at which nothing is measured but whether they drive a channel more: octaves above
#: HIGHEST_CPP, and the largest of a grating's frequencies along x and y.
_FINER_OCT = (0.25, 0.5, 0.75)
_DRAWABLE_CPP = 0.48

#: A channel is out of range if a finer grating drives it so many times as much as any of the axis:
#: what is left of its tuning there is a side lobe.
OUT_OF_RANGE = 2.0

#: From so many orientations and phases on, a coarser look takes every other one.
HALVED_ORIENTATIONS, HALVED_PHASES = 12, 8

#: Neighbouring frequencies are at most so many octaves apart.
WIDEST_STEP_OCT = 0.7

#: A channel whose largest response is below this share of the layer's largest is not analysed: of
#: ResNet-18's first layer the weakest that is alive has 7e-3 and the strongest that is dead 5e-8;
#: what leaks into a channel that likes other gratings has up to 4e-4.
WEAK = 1e-3

#: Rounding of float32 activations, as a share of the response to the blank.
ROUNDING = 1e-5

# Points of an interpolated curve: 0.05 degrees apart, and about 0.001 octaves.
_FINE_ORIENTATIONS = 3600
_FINE_FREQUENCIES = 4001
_FINE_PHASES = 180


# ---- axes of an experiment


def orientations(count: int) -> np.ndarray:
    """Return `count` directions of modulation in degrees, [0, 180), the end not repeated."""
    return np.arange(count) * 180 / count


def phases(count: int) -> np.ndarray:
    """Return `count` phases in degrees, [0, 360), the end not repeated."""
    return np.arange(count) * 360 / count


def coarse_step(count: int, least: int) -> int:
    """Return every which of `count` values around a circle a coarser look takes: every other one
    where these are even in number and at least `least`, else each."""
    return 2 if count % 2 == 0 and count >= least else 1


def frequencies(size: float, count: int, widest_oct: float = WIDEST_STEP_OCT) -> np.ndarray:
    """Return spatial frequencies in cycles per pixel, evenly spaced on a logarithmic axis.

    From half a cycle in a window of `size` pixels to HIGHEST_CPP; `count` of them, or as many as
    keep neighbours within `widest_oct` octaves.
    """
    lowest = min(0.5 / size, HIGHEST_CPP / 2)
    needed = math.ceil(math.log2(HIGHEST_CPP / lowest) / widest_oct - 1e-9) + 1
    return np.geomspace(lowest, HIGHEST_CPP, max(count, needed))


def finer(orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return orientations in degrees and frequencies in cycles per pixel, (n,) each, of gratings
    above HIGHEST_CPP that pixels can still draw; there are more of them along the diagonals.

    `orientation` (m,) in degrees.
    """
    theta, frequency = np.meshgrid(orientation, HIGHEST_CPP * 2 ** np.array(_FINER_OCT))
    angle = np.radians(theta)
    drawable = frequency * np.maximum(abs(np.cos(angle)), abs(np.sin(angle))) <= _DRAWABLE_CPP
    return theta[drawable], frequency[drawable]


# ---- phase


def is_rectified(response: np.ndarray, unrectified: np.ndarray) -> bool:
    """Whether responses are max(unrectified, 0), to rounding; both of one shape."""
    rounding = ROUNDING * np.abs(unrectified).max()
    return bool((np.abs(response - unrectified.clip(0)) <= rounding).all())


def rectify(response: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """Return max(a - a_blank, 0) of responses (C, ...) to stimuli and (C,) to the blank."""
    blank = np.asarray(blank, float).reshape(-1, *[1] * (response.ndim - 1))
    return np.maximum(response - blank, 0)


def mean_above(response: np.ndarray, blank: np.ndarray, rectified: bool = False) -> np.ndarray:
    """Return F0 of max(a - a_blank, 0), the mean over all phases, from few of them.

    The response is interpolated over phase by its Fourier series first, and rectified then (see
    docs/columns.md): exact for a linear unit and, if `response` is what enters a ReLU (`rectified`:
    its output is a), for that ReLU's output.

    `response` (C, ..., n) at n evenly spaced phases of one cycle; `blank` (C,) is a_blank;
    `rectified` whether a = max(response, 0), else a = response.
    """
    return _above(response, blank, rectified, _mean_of_positive)


def peak_above(response: np.ndarray, blank: np.ndarray, rectified: bool = False) -> np.ndarray:
    """Return the largest over all phases where `mean_above` returns the mean.

    The mean of a unit that is driven half of the time is a third of its largest response; of one
    that pools over places a grating's is the largest, while that to a uniform field that changes
    remains a third.
    """
    return _above(response, blank, rectified, lambda fine: fine.max(-1).clip(0))


def _above(
    response: np.ndarray, blank: np.ndarray, rectified: bool, reduce: Callable
) -> np.ndarray:
    found = np.empty(response.shape[:-1])
    points = max(_FINE_PHASES, 3 * response.shape[-1])
    # Channel by channel: the interpolated responses are many times larger than the others.
    for channel, level in enumerate(np.asarray(blank, float)):
        # What is rectified is never below 0.
        level = max(level, 0) if rectified else level
        found[channel] = reduce(periodic(response[channel], points) - level)
    return found


def _mean_of_positive(curve: np.ndarray) -> np.ndarray:
    """Return the mean of max(curve, 0) over one period, of samples (..., n) of smooth curves.

    The sum over samples, with the term of the Euler-Maclaurin formula at every zero: where a curve
    rises from -b to a, it is (a + b) B2(a / (a + b)) / 2, with the second Bernoulli polynomial.
    Without it 72 samples of a half-rectified sinusoid are up to 6e-4 off, depending on its phase.
    """
    after = np.roll(curve, -1, -1)
    high, low = np.maximum(curve, after), np.minimum(curve, after)
    crosses = (high > 0) & (low <= 0)
    jump = np.where(crosses, high - low, 1)
    part = high / jump
    term = np.where(crosses, jump * (part * (part - 1) / 2 + 1 / 12), 0)
    return (curve.clip(0) + term).mean(-1)


def f1_f0(response: np.ndarray) -> np.ndarray:
    """Return F1/F0 over the last axis (evenly spaced phases of one cycle); NaN where F0 is not
    positive.

    F0 is the mean, F1 the amplitude of the first harmonic, 2 abs(FFT_1) / N. Above 1 a unit is
    simple-like, below complex-like (Skottun et al. 1991). `response` is already rectified (see
    `rectify`).
    """
    spectrum = np.fft.rfft(response, axis=-1)
    f0, f1 = spectrum[..., 0].real, 2 * np.abs(spectrum[..., 1])
    return np.divide(f1, f0, out=np.full_like(f0, np.nan), where=f0 > 0)


def periodic(curve: np.ndarray, count: int) -> np.ndarray:
    """Return curves (..., n) over one period interpolated by their Fourier series at `count` > n
    evenly spaced places, the first of which is the first sample: (..., count).

    As `scipy.signal.resample`, whose import takes longer than many a layer.
    """
    series = fft.rfft(np.asarray(curve, float))
    n = curve.shape[-1]
    if n % 2 == 0:
        # Half of the highest frequency belongs to its negative twin, which now has a place.
        series[..., -1] /= 2
    return fft.irfft(series, count) * (count / n)


# ---- orientation


def circular_variance(curve: np.ndarray) -> np.ndarray:
    """Return 1 - abs(sum R e^{2 i theta}) / sum R of orientation tuning curves (C, n).

    Samples evenly spaced over 180 degrees, never negative; 0 for a response to one orientation
    only, 1 for equal responses to all; NaN for no response (Ringach, Shapley & Hawken 2002).
    """
    angle = 2 * np.pi * np.arange(curve.shape[1]) / curve.shape[1]
    total = curve.sum(1)
    vector = np.abs(curve @ np.exp(1j * angle))
    return 1 - np.divide(vector, total, out=np.full(len(curve), np.nan), where=total > 0)


def orientation_tuning(curve: np.ndarray) -> dict[str, np.ndarray]:
    """Return the indices (C,) of orientation tuning curves (C, n), which are never negative and
    evenly spaced over 180 degrees from 0.

    The curve is interpolated by its own Fourier series, the periodic interpolation that adds no
    width: it passes through the samples. `orientation_deg`, the peak, in [0, 180); `bandwidth_deg`,
    the half-width where the curve has fallen to 1/sqrt(2) of its peak, NaN if it never does; `osi`,
    (R_pref - R_orth) / (R_pref + R_orth) with R_orth 90 degrees from the peak, in 0..1;
    `circular_variance` of the samples. All NaN for a channel without response.
    """
    channels = len(curve)
    fine = periodic(curve, _FINE_ORIENTATIONS)
    step = 180 / _FINE_ORIENTATIONS
    row = np.arange(channels)
    peak = fine.argmax(1)
    shift, top = _parabola(*(fine[row, (peak + k) % _FINE_ORIENTATIONS] for k in (-1, 0, 1)))
    place = peak + shift
    # Between samples the series may dip below zero, where no response is.
    orthogonal = fine[row, (peak + _FINE_ORIENTATIONS // 2) % _FINE_ORIENTATIONS].clip(0)
    # Seen from the peak, to either side once around.
    around = (peak[:, None] + np.arange(_FINE_ORIENTATIONS + 1)) % _FINE_ORIENTATIONS
    right = np.take_along_axis(fine, around, 1)
    level = top / math.sqrt(2)
    half = (_first_below(right, level) + _first_below(right[:, ::-1], level)) / 2
    driven = curve.max(1) > 0
    return {
        "orientation_deg": np.where(driven, wrapped(step * place, 180), np.nan),
        "bandwidth_deg": np.where(driven, step * half, np.nan),
        "osi": np.divide(
            top - orthogonal, top + orthogonal, out=np.full(channels, np.nan), where=driven
        ),
        "circular_variance": circular_variance(curve),
    }


# ---- spatial frequency


def frequency_tuning(curve: np.ndarray, frequency: np.ndarray) -> dict[str, np.ndarray]:
    """Return the indices (C,) of spatial-frequency tuning curves (C, n >= 4), never negative, at
    frequencies (n,) in cycles per pixel that rise evenly on a logarithmic axis.

    Interpolated by a cubic spline on that axis. `sf_cpp`, the peak; `sf_lowpass` and `sf_highpass`,
    bool, where the response at the lowest (highest) frequency side never falls to half of the peak;
    `sf_bandwidth_oct`, log2(f_high / f_low) between the half heights, NaN where either flag is set.
    NaN, and no flag, for a channel without response.
    """
    octave = np.log2(frequency)
    grid = np.linspace(octave[0], octave[-1], _FINE_FREQUENCIES)
    fine = CubicSpline(octave, np.asarray(curve, float), axis=1)(grid)
    step = grid[1] - grid[0]
    row = np.arange(len(curve))
    peak = fine.argmax(1)
    inside = (peak > 0) & (peak < len(grid) - 1)
    middle = peak.clip(1, len(grid) - 2)
    shift, top = _parabola(*(fine[row, middle + k] for k in (-1, 0, 1)))
    shift, top = np.where(inside, shift, 0), np.where(inside, top, fine[row, peak])
    level = top / 2
    column = np.arange(len(grid))
    # Behind the curve's end nothing is known; a constant there is never below half of the peak.
    up = fine[row[:, None], (peak[:, None] + column).clip(max=len(grid) - 1)]
    down = fine[row[:, None], (peak[:, None] - column).clip(min=0)]
    high, low = _first_below(up, level), _first_below(down, level)
    driven = curve.max(1) > 0
    return {
        "sf_cpp": np.where(driven, 2 ** (grid[peak] + step * shift), np.nan),
        "sf_bandwidth_oct": np.where(driven, step * (high + low), np.nan),
        "sf_lowpass": driven & np.isnan(low),
        "sf_highpass": driven & np.isnan(high),
    }


# ---- the whole grid


def best(response: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (C,) of the orientation and frequency with the largest of responses (C,
    orientation, frequency)."""
    flat = response.reshape(len(response), -1).argmax(1)
    return np.unravel_index(flat, response.shape[1:])


def driven(tuned: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """Say of each channel (C,) why its tuning is unknown, by its mean responses above the blank
    `tuned` (C, orientation, frequency) and its activation to the `blank` (C,).

    "" for a channel that gratings drive; "no_response" if none drives it above the blank; "weak" if
    the best does by less than `WEAK` of the layer's largest, or by no more than rounding.
    """
    peak = tuned.reshape(len(tuned), -1).max(1)
    weak = (peak <= WEAK * peak.max()) | (peak <= ROUNDING * np.abs(blank))
    return np.where(peak > 0, np.where(weak, "weak", ""), "no_response").astype(object)


def grid_tuning(response: np.ndarray, frequency: np.ndarray) -> dict[str, np.ndarray]:
    """Return `orientation_tuning` at the best frequency and `frequency_tuning` at the best
    orientation of responses (C, orientation, frequency)."""
    row = np.arange(len(response))
    i, j = best(response)
    return orientation_tuning(response[row, :, j]) | frequency_tuning(response[row, i], frequency)


def _parabola(
    before: np.ndarray, at: np.ndarray, after: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return where the parabola through three neighbours has its vertex, in steps from the middle
    one, and its height there; the middle one itself where they lie on a line."""
    bend = before - 2 * at + after
    shift = np.divide((before - after) / 2, bend, out=np.zeros_like(at), where=bend < 0)
    shift = shift.clip(-0.5, 0.5)
    return shift, at - (before - after) * shift / 4


def _first_below(curve: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return where curves (C, n) first fall to `level` (C,), in steps from their first sample."""
    return first_reached(-curve, np.arange(curve.shape[1]), -level)


def first_reached(curve: np.ndarray, axis: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return where on the rising `axis` (n,) curves (C, n) first reach the `level` (C,), by linear
    interpolation; the first place where they are there from the beginning, NaN where they never
    are."""
    there = curve >= level[:, None]
    row, at = np.arange(len(curve)), there.argmax(1)
    before = (at - 1).clip(0)
    rise = curve[row, at] - curve[row, before]
    part = np.divide(level - curve[row, before], rise, out=np.ones(len(curve)), where=rise > 0)
    place = axis[before] + (axis[at] - axis[before]) * part
    return np.where(there.any(1), place, np.nan)
