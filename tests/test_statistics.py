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


def test_wilson_stays_a_share():
    n = np.arange(1, 200)
    assert min(statistics.wilson(0 * n, n)[0]) == 0 and max(statistics.wilson(n, n)[1]) == 1


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


@pytest.mark.parametrize("period", [180, 360])
def test_wrapped_angles_are_below_the_period_also_in_a_table(period):
    angle = np.array([period - 1e-9, -1e-17, -1e-9, period, 3 * period + 12.25, -0.5, np.nan])
    found = statistics.wrapped(angle, period)
    assert found[:-1].tolist() == [0, 0, 0, 0, 12.25, period - 0.5] and np.isnan(found[-1])
    assert [float(f"{value:.9g}") < period for value in found[:-1]] == [True] * 6


def test_correlation_is_scipys_by_rows():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 40))
    b[0] = 3 * a[0] - 1
    b[4] = 2
    expected = [stats.pearsonr(x, y).statistic for x, y in zip(a[:4], b[:4], strict=True)]
    found = statistics.correlation(a, b)
    assert found[:4] == pytest.approx(expected)
    assert found[0] == pytest.approx(1) and np.isnan(found[4])


# Fagerland, Lydersen & Laake 2017 (Statistical Analysis of Contingency Tables, chapter 8), with
# their R package contingencytables: Newcombe's square-and-add interval of two published tables.
PAIRED = [(1, 1, 7, 21, -0.507, -0.026, 1e-3), (59, 6, 16, 161, -0.1186, -0.0046, 1e-4)]


@pytest.mark.parametrize(("both", "gained", "lost", "n", "low", "high", "digit"), PAIRED)
def test_paired_newcombe_gives_published_intervals(both, gained, lost, n, low, high, digit):
    lo, hi = statistics.paired_newcombe(both, gained, lost, n)
    assert lo == pytest.approx(low, abs=digit / 2) and hi == pytest.approx(high, abs=digit / 2)
    # The other way round it is the mirror image.
    assert statistics.paired_newcombe(both, lost, gained, n) == pytest.approx((-hi, -lo))


def test_paired_newcombe_covers_what_it_promises():
    """2,000 data sets of 300 images: the true change lies inside in about 95 % of them."""
    rng = np.random.default_rng(0)
    both, gained, lost, _ = rng.multinomial(300, [0.7, 0.02, 0.06, 0.22], 2000).T
    lo, hi = statistics.paired_newcombe(both, gained, lost, 300)
    assert 0.93 < ((lo <= -0.04) & (-0.04 <= hi)).mean() < 0.97


def test_paired_newcombe_at_the_edges():
    both, gained = np.array([0, 50, 0, 0]), np.array([0, 0, 50, 0])
    lo, hi = statistics.paired_newcombe(both, gained, np.zeros(4), np.array([50, 50, 50, 0]))
    assert (lo[:2] <= 0).all() and (hi[:2] >= 0).all(), "nothing changed"
    assert lo[2] > 0.8 and hi[2] == pytest.approx(1)
    assert np.isnan(lo[3]) and np.isnan(hi[3])


def test_mcnemar_is_scipys_binomial_test():
    gained, lost = np.meshgrid(np.arange(12), np.arange(0, 40, 3))
    expected = [
        stats.binomtest(int(a), int(a + b), 0.5).pvalue if a + b else 1.0
        for a, b in zip(gained.ravel(), lost.ravel(), strict=True)
    ]
    np.testing.assert_allclose(statistics.mcnemar(gained, lost).ravel(), expected, rtol=1e-10)


def test_benjamini_hochberg_counts_what_is_known():
    p, q = [0.01, 0.04, 0.03, 0.005], [0.02, 0.04, 0.04, 0.02]
    np.testing.assert_allclose(statistics.benjamini_hochberg(p), q)
    found = statistics.benjamini_hochberg([np.nan, *p[:2], np.nan, *p[2:]])
    np.testing.assert_allclose(found, [np.nan, *q[:2], np.nan, *q[2:]])
    assert np.isnan(statistics.benjamini_hochberg([np.nan])).all()
    assert statistics.benjamini_hochberg([]).size == 0


def test_bootstrap_of_the_mean_is_scipys():
    rng = np.random.default_rng(2)
    values = np.stack([rng.normal(0.3, 1, 400), rng.exponential(2, 400), np.zeros(400)])
    lo, hi = statistics.bootstrap_mean(values, samples=4000, seed=5)
    for row in (0, 1):
        expected = stats.bootstrap(
            (values[row],), np.mean, n_resamples=4000, method="percentile", rng=3
        ).confidence_interval
        width = expected.high - expected.low
        assert lo[row] == pytest.approx(expected.low, abs=0.06 * width)
        assert hi[row] == pytest.approx(expected.high, abs=0.06 * width)
    assert lo[2] == hi[2] == 0, "nothing changed"
    again = statistics.bootstrap_mean(values[1:2], samples=4000, seed=5)
    assert again == (pytest.approx(lo[1:2]), pytest.approx(hi[1:2]))


def test_bootstrap_in_pieces_is_the_same(monkeypatch):
    values = np.random.default_rng(0).normal(size=(3, 50))
    whole = statistics.bootstrap_mean(values, samples=40)
    monkeypatch.setattr(statistics, "_BOOTSTRAP_COUNTS", 7 * 50)
    np.testing.assert_allclose(statistics.bootstrap_mean(values, samples=40), whole, rtol=1e-12)
    assert np.isnan(statistics.bootstrap_mean(np.zeros((2, 0)))).all()
