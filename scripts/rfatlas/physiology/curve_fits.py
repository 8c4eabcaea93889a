"""Least-squares fits of curves with few parameters, of all channels at once.

A curve is fitted by an amplitude times a shape. The amplitude is linear and solved exactly for
every trial of the shape (variable projection); the shape's parameters are looked for on a grid over
their bounds, from the best points of whose parts damped Gauss-Newton steps (Levenberg-Marquardt)
lead to optima, the best of which counts.
"""

from collections.abc import Callable, Sequence

import numpy as np

# Starts, each from another range of the last parameter, steps, what derivatives are taken over, and
# the damping of the first step.
_STARTS, _STEPS, _DIFFERENCE, _DAMPING = 5, 60, 1e-5, 1e-2


def fit(
    curve: np.ndarray, shape: Callable[..., np.ndarray], bounds: Sequence[tuple], trials: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the parameters (k, C), the fitted curves (C, n) and r2 (C,) of `curve` (C, n), never
    negative.

    The first parameter is the amplitude, the others those of `shape`, which takes k - 1 arrays of
    parameters (...) and returns shapes (..., n), never negative. `bounds` are the lowest and
    highest value of each, positive; they are looked for on a logarithmic axis, first at `trials`
    values each. r2 is 1 - residual / total sum of squares, NaN for a constant curve.
    """
    channels, (low, high) = len(curve), np.log(bounds).T
    total = np.square(curve - curve.mean(1, keepdims=True)).sum(1)
    curve = np.tile(curve, (_STARTS, 1))

    def project(log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Amplitudes (C,) and fitted curves (C, n) at the logarithms (C, k - 1) of parameters."""
        shapes = shape(*np.exp(log.T))
        amplitude = (curve * shapes).sum(1) / np.square(shapes).sum(1).clip(1e-300)
        return amplitude, amplitude[:, None] * shapes

    axes = np.linspace(low, high, trials).T
    every = np.stack([axis.ravel() for axis in np.meshgrid(*axes[::-1], indexing="ij")][::-1], 1)
    starts = []
    for part in np.array_split(every, _STARTS):
        shapes = shape(*np.exp(part.T))
        length = np.sqrt(np.square(shapes).sum(1).clip(1e-300))
        starts.append(part[(curve[:channels] @ (shapes / length[:, None]).T).argmax(1)])
    best = np.concatenate(starts)
    amplitude, fitted = project(best)
    rss, damping = np.square(curve - fitted).sum(1), np.full(len(curve), _DAMPING)
    for _ in range(_STEPS):
        # Towards the inside, where a parameter is at its upper bound.
        change = np.where(best + _DIFFERENCE > high, -_DIFFERENCE, _DIFFERENCE)
        slopes = np.stack(
            [
                (project(best + change * unit)[1] - fitted) / change[:, [number]]
                for number, unit in enumerate(np.eye(len(low)))
            ],
            2,
        )
        gradient = np.einsum("cnk,cn->ck", slopes, curve - fitted)
        # What would leave its bounds is held there.
        held = ((best <= low) & (gradient < 0)) | ((best >= high) & (gradient > 0))
        gradient, slopes = np.where(held, 0, gradient), np.where(held[:, None], 0, slopes)
        normal = slopes.swapaxes(1, 2) @ slopes
        size = np.einsum("cii->ci", normal)
        normal = normal + np.eye(len(low)) * (damping[:, None] * size + 1e-30)[:, None]
        step = np.linalg.solve(normal, gradient[..., None])[..., 0]
        trial = (best + step.clip(-1, 1)).clip(low, high)
        found, there = project(trial)
        left = np.square(curve - there).sum(1)
        better = left < rss
        best[better], fitted[better] = trial[better], there[better]
        amplitude[better], rss[better] = found[better], left[better]
        damping = np.where(better, damping / 5, damping * 5).clip(1e-12, 1e12)
    chosen = rss.reshape(_STARTS, -1).argmin(0) * channels + np.arange(channels)
    r2 = 1 - np.divide(rss[chosen], total, out=np.full(channels, np.nan), where=total > 0)
    return np.stack([amplitude, *np.exp(best.T)])[:, chosen], fitted[chosen], r2
