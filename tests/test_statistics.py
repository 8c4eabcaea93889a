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


# Newcombe 1998, table II: the examples (a) to (h), method 10.
PUBLISHED = [
    (56, 70, 48, 80, 0.0524, 0.3339),
    (9, 10, 3, 10, 0.1705, 0.8090),
    (6, 7, 2, 7, 0.0582, 0.8062),
    (5, 56, 0, 29, -0.0381, 0.1926),
    (0, 10, 0, 20, -0.1611, 0.2775),
    (0, 10, 0, 10, -0.2775, 0.2775),
    (10, 10, 0, 20, 0.6791, 1.0),
    (10, 10, 0, 10, 0.6075, 1.0),
]


@pytest.mark.parametrize(("a", "m", "b", "n", "low", "high"), PUBLISHED)
def test_newcombe_gives_the_published_examples(a, m, b, n, low, high):
    assert statistics.newcombe(a, m, b, n) == (
        pytest.approx(low, abs=6e-5),
        pytest.approx(high, abs=6e-5),
    )


def test_newcombe_of_arrays_and_of_nothing():
    lo, hi = statistics.newcombe(np.array([56, 1]), np.array([70, 2]), np.array([48, 0]), [80, 0])
    assert lo[0] == pytest.approx(0.0524, abs=6e-5) and np.isnan([lo[1], hi[1]]).all()


def test_circular_correlation_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 180, 30)
    b = (a + rng.normal(0, 25, 30)) % 180
    shared = own_a = own_b = 0.0
    for i in range(30):
        for j in range(i):
            first = np.sin(2 * np.radians(a[i] - a[j]))
            second = np.sin(2 * np.radians(b[i] - b[j]))
            shared, own_a, own_b = shared + first * second, own_a + first**2, own_b + second**2
    found = statistics.circular_correlation(a, b)
    assert found == pytest.approx(shared / np.sqrt(own_a * own_b))
    assert 0.1 < found < 0.95
    assert statistics.circular_correlation(a, (a + 77) % 180) == pytest.approx(1)
    assert statistics.circular_correlation(a, -a % 180) == pytest.approx(-1)
    assert statistics.circular_correlation(2 * a, 2 * b, 360) == pytest.approx(found)


@pytest.mark.parametrize("angles", [[], [12.0], [12.0, 12, 12], [12.0, 192, 12]])
def test_circular_correlation_of_a_single_direction_is_unknown(angles):
    assert np.isnan(statistics.circular_correlation(angles, np.arange(len(angles)) * 7))


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
