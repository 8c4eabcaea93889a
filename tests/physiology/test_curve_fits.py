"""Fits of size and contrast curves: planted parameters, and scipy's least squares as a judge."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from rfatlas.physiology import contrast, curve_fits, size

HEIGHT, DIAMETER = contrast.contrasts(12), size.diameters(31, 12)
RANDOM = np.random.default_rng(0)
HYPERBOLAS = RANDOM.uniform([1, 0.03, 0.8], [9, 0.6, 4], (40, 3))
GAUSSIANS = RANDOM.uniform([1, 3, 1.5, 0.2], [9, 9, 4, 9], (40, 4))
CASES = {
    "contrast": (contrast.naka_rushton(HEIGHT), [(0.0025, 100), (0.2, 10)], 40, HYPERBOLAS),
    "size": (size.ratio_of_gaussians(DIAMETER), [(0.5, 124), (1, 10), (1e-3, 1e3)], 14, GAUSSIANS),
}


@pytest.mark.parametrize("case", CASES)
def test_planted_parameters_are_recovered(case):
    shape, bounds, trials, planted = CASES[case]
    curve = planted[:, :1] * shape(*planted.T[1:])
    found, fitted, r2 = curve_fits.fit(curve, shape, bounds, trials)
    np.testing.assert_allclose(fitted, curve, atol=1e-3 * curve.max())
    assert (r2 > 1 - 1e-5).all()
    if case == "contrast":
        np.testing.assert_allclose(found.T, planted, rtol=1e-3)
    else:
        # Width and gain of a surround that few points see make up for each other.
        assert np.median(np.abs(found.T / planted - 1), 0).max() < 0.02


@pytest.mark.parametrize("case", CASES)
def test_noisy_curves_are_fitted_as_well_as_by_scipy_from_the_truth(case):
    shape, bounds, trials, planted = CASES[case]
    curve = planted[:, :1] * shape(*planted.T[1:])
    curve = (curve + 0.05 * curve.max(1, keepdims=True) * RANDOM.normal(size=curve.shape)).clip(0)
    found, fitted, r2 = curve_fits.fit(curve, shape, bounds, trials)
    low, high = np.log(bounds).T
    for row, truth in enumerate(planted):
        judge = least_squares(
            lambda p, row=row: p[0] * shape(*np.exp(p[1:, None]))[0] - curve[row],
            [truth[0], *np.log(truth[1:]).clip(low + 1e-9, high - 1e-9)],
            bounds=([0, *low], [np.inf, *high]),
        )
        rss = np.square(fitted[row] - curve[row]).sum()
        assert rss <= 2 * judge.cost * 1.001 + 1e-12
        assert r2[row] == pytest.approx(1 - rss / (len(curve[row]) * curve[row].var()))
    assert ((found[1:].T >= np.exp(low) * 0.999) & (found[1:].T <= np.exp(high) * 1.001)).all()
