"""Statistics against scipy and closed forms."""

import numpy as np
import pytest
from scipy import stats

from rfatlas import statistics


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (303, 400), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(k, n, confidence):
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    lo, hi = statistics.wilson(k, n, confidence)
    assert lo == pytest.approx(expected.low, abs=1e-12)
    assert hi == pytest.approx(expected.high, abs=1e-12)


def test_wilson_of_arrays_and_of_nothing():
    lo, hi = statistics.wilson(np.array([1, 0]), np.array([2, 0]))
    assert lo[0] < 0.5 < hi[0]
    assert np.isnan(lo[1]) and np.isnan(hi[1])


def test_circular_difference_is_the_shortest_way_round():
    a, b = np.meshgrid(np.arange(0, 180, 7.5), np.arange(0, 180, 7.5))
    ways = [abs(a - b + turn) for turn in (-180, 0, 180)]
    np.testing.assert_allclose(statistics.circular_difference(a, b), np.min(ways, axis=0))
    assert statistics.circular_difference(179, 1) == 2
    assert statistics.circular_difference(-179.0, 179.0, 360) == 2
    assert np.isnan(statistics.circular_difference(np.nan, 3))


def test_correlation_is_scipys_by_rows():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 40))
    b[0] = 3 * a[0] - 1
    b[4] = 2
    expected = [stats.pearsonr(x, y).statistic for x, y in zip(a[:4], b[:4], strict=True)]
    found = statistics.correlation(a, b)
    assert found[:4] == pytest.approx(expected)
    assert found[0] == pytest.approx(1) and np.isnan(found[4])
