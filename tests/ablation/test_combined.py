"""Effects from few exact images and estimates of all: planted populations, whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from rfatlas.ablation import combined

IMAGES, EXACT = 1000, 100


def population(r: float, channels: int, seed: int, heavy: bool = False):
    """Changes and what is expected of them, (channels, IMAGES), correlated by r."""
    random = np.random.default_rng(seed)
    shape = (2, channels, IMAGES)
    x, noise = random.standard_t(4, shape) if heavy else random.standard_normal(shape)
    return 0.3 + r * x + np.sqrt(1 - r**2) * noise, 5 * x + 2


def sampled(change, known, seed, flips=False, pilot=EXACT, n=EXACT):
    rows = np.random.default_rng(seed).permutation(IMAGES)[:n]
    mean = known.mean(1)
    spread = known.var(1)
    return combined.effects(change[:, rows], known[:, rows], mean, spread, IMAGES, pilot, flips)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("r", [0.0, 0.7, 0.95])
def test_intervals_cover_the_mean_of_the_population(r, heavy):
    change, known = population(r, 400, 0, heavy)
    truth, covered, error, plain = change.mean(1), [], [], []
    for seed in range(10):
        found = sampled(change, known, seed)
        covered.append((found["lo"] <= truth) & (truth <= found["hi"]))
        error.append(found["effect"] - truth)
        rows = np.random.default_rng(seed).permutation(IMAGES)[:EXACT]
        plain.append(change[:, rows].mean(1) - truth)
    assert 0.93 <= np.mean(covered) <= 0.97
    # Unbiased, and as much nearer as the correlation has it.
    assert abs(np.mean(error)) < 0.01
    gain = np.std(plain) / np.std(error)
    assert gain == pytest.approx(1 / np.sqrt(1 - r**2), rel=0.06)
    assert np.median(found["r"]) == pytest.approx(r, abs=0.1)
    # What the plain mean would need to come as near, of these images.
    error = (1 - r**2) * (1 / EXACT - 1 / IMAGES)
    needed = 1 / (error + 1 / IMAGES)
    assert np.median(found["variance_ratio"]) == pytest.approx(needed / EXACT, rel=0.12)


def test_worthless_estimates_cost_next_to_nothing():
    change, known = population(0.0, 400, 1)
    rows = np.random.default_rng(0).permutation(IMAGES)[:EXACT]
    found = sampled(change, known, 0)
    error = change[:, rows].std(1, ddof=1) * np.sqrt(1 / EXACT - 1 / IMAGES)
    plain = stats.t(EXACT - 1).ppf(0.975) * error
    assert np.mean((found["hi"] - found["lo"]) / 2 / plain) < 1.05


def test_rare_flips_are_covered():
    """Channels that flip no image, one in a thousand, or one in a hundred; half are foreseen."""
    random = np.random.default_rng(0)
    rate = np.repeat([0, 0.001, 0.005, 0.01, 0.05], 60)[:, None]
    flip = -1.0 * (random.random((300, IMAGES)) < rate)
    seen = np.where(random.random(flip.shape) < 0.5, flip, 0)
    truth, covered = flip.mean(1), []
    for seed in range(10):
        found = sampled(flip, seen, seed, flips=True)
        covered.append((found["lo"] <= truth + 1e-12) & (truth - 1e-12 <= found["hi"]))
    assert 0.93 <= np.mean(covered) <= 0.99
    assert np.mean(covered, axis=0).reshape(5, 60).mean(1).min() > 0.83
    none = sampled(np.zeros((3, IMAGES)), np.zeros((3, IMAGES)), 0, flips=True)
    assert (none["effect"] == 0).all() and (none["hi"] > 0).all(), "no one can be certain"
    assert (none["p"] == 1).all()


def test_an_interval_is_as_narrow_as_asked_for_and_still_covers():
    """Stein: a pilot decides how many images are run, which does not spoil the interval."""
    change, known = population(0.7, 300, 2)
    half, covered, used = 0.08, [], []
    for seed in range(10):
        rows = np.random.default_rng(seed).permutation(IMAGES)
        pilot = combined.fit(change[:, rows[:60]], known[:, rows[:60]], False)
        count = np.maximum(60, combined.wanted(pilot, IMAGES, half))
        shown = np.where(np.arange(IMAGES) < count[:, None], change[:, rows], np.nan)
        found = combined.effects(
            shown, known[:, rows], known.mean(1), known.var(1), IMAGES, 60, False
        )
        assert (found["hi"] - found["effect"] <= half * (1 + 1e-9)).all()
        truth = change.mean(1)
        covered.append((found["lo"] <= truth) & (truth <= found["hi"]))
        used.append(count)
    assert 0.93 <= np.mean(covered) <= 0.97
    # (1.96 s / half)^2 images of an endless population, fewer of this one.
    endless = (1.96 / half) ** 2 * (1 - 0.7**2)
    assert np.mean(used) == pytest.approx(1 / (1 / endless + 1 / IMAGES), rel=0.1)


def test_p_is_about_the_population_that_images_come_from():
    """Data sets drawn from a population without an effect: p is uniform, however well the changes
    of the images at hand are known; and one flip among all of them is no discovery."""
    random = np.random.default_rng(4)
    change = random.standard_normal((2000, IMAGES))
    p = sampled(change, change + 1e-3 * random.standard_normal(change.shape), 0)["p"]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    flip = np.zeros((50, IMAGES))
    flip[:, 7] = -1
    assert sampled(flip, flip, 0, flips=True)["p"].min() > 0.2


def test_expected_changes_are_those_of_loss_and_correctness():
    odds, margin = np.array([2.0, -1.0]), np.array([2.5, -0.5])
    change = np.array([[-3.0, 0.0], [0.5, 2.0]])
    found = combined.expected(odds, margin, change, change)
    loss = -np.log(1 / (1 + np.exp(-(odds[:, None] + change))))
    loss += np.log(1 / (1 + np.exp(-odds)))[:, None]
    np.testing.assert_allclose(found[0], loss)
    assert found[1].tolist() == [[-1, 0], [0, 1]]


def test_of_very_few_images_the_plain_mean_is_taken():
    change, known = population(0.9, 5, 3)
    rows = np.random.default_rng(0).permutation(IMAGES)[:12]
    found = sampled(change, known, 0, pilot=12, n=12)
    np.testing.assert_allclose(found["effect"], change[:, rows].mean(1))
    two = sampled(change, known, 0, pilot=2, n=2)
    assert np.isfinite(two["lo"]).all() and (two["lo"] < two["hi"]).all()
