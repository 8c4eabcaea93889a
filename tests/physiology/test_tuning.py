"""Indices of tuning against analytic curves whose indices have closed forms."""

import numpy as np
import pytest
from scipy import signal, special

from rfatlas.physiology import tuning

GRIDS = [24, 36]


def von_mises(count: int, peak: np.ndarray, half_width: float, floor: float = 0.0) -> np.ndarray:
    """Curves (n, count) exp(k (cos 2(theta - peak) - 1)), k such that they fall to 1/sqrt(2) of the
    peak at `half_width` degrees, floor included."""
    level = (1 / np.sqrt(2) - floor) / (1 - floor)
    k = -np.log(level) / (1 - np.cos(2 * np.radians(half_width)))
    angle = 2 * np.radians(tuning.orientations(count) - np.asarray(peak)[:, None])
    return floor + (1 - floor) * np.exp(k * (np.cos(angle) - 1))


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angular distance of orientations, degrees in 0..90."""
    return np.abs((np.asarray(a) - b + 90) % 180 - 90)


# ---- axes


def test_axes_do_not_repeat_their_ends():
    assert tuning.orientations(36).tolist() == list(range(0, 180, 5))
    assert tuning.phases(8).tolist() == list(range(0, 360, 45))


@pytest.mark.parametrize("size", [1, 3, 7, 11, 43, 99, 224, 512, 1024])
@pytest.mark.parametrize("count", [4, 12])
def test_frequencies_reach_from_half_a_cycle_to_the_highest(size, count):
    frequency = tuning.frequencies(size, count)
    octaves = np.diff(np.log2(frequency))
    assert frequency[0] == pytest.approx(min(0.5 / size, 0.2)) and frequency[-1] == 0.4
    assert np.allclose(octaves, octaves[0]) and octaves.max() <= 0.7 + 1e-9
    assert len(frequency) >= count
    if len(frequency) > count:
        # One fewer would be too few.
        assert np.log2(frequency[-1] / frequency[0]) / (len(frequency) - 2) > 0.7


@pytest.mark.parametrize("count", [12, 36])
def test_finer_gratings_can_be_drawn(count):
    theta, frequency = tuning.finer(tuning.orientations(count))
    angle = np.radians(theta)
    highest = frequency * np.maximum(np.abs(np.cos(angle)), np.abs(np.sin(angle)))
    assert highest.max() < 0.5 and frequency.min() > tuning.HIGHEST_CPP
    assert set(theta[frequency == frequency.min()]) == set(tuning.orientations(count))
    # The diagonals have the finest.
    assert set(theta[frequency == frequency.max()]) == {45, 135}


# ---- phase


@pytest.mark.parametrize("count", [4, 8])
def test_means_over_phase_are_integrals(count):
    """max(cos(p + shift) - threshold, 0) at every phase: sin(w) - w cos(w) over pi, w = acos of the
    threshold. Of 72 plain samples the mean is up to 6e-4 off at 0."""
    for threshold in (0.0, 0.3, 0.9):
        shift = np.radians(np.linspace(0, 360 / count, 64, endpoint=False))
        phase = np.radians(tuning.phases(count))
        found = tuning.mean_above(np.cos(phase + shift[:, None]), np.full(64, threshold))
        width = np.arccos(threshold)
        exact = (np.sin(width) - width * np.cos(width)) / np.pi
        np.testing.assert_allclose(found, exact, rtol=3e-6 / (1 - threshold) ** 1.5)
    assert tuning.mean_above(np.cos(phase)[None] - 2, np.zeros(1)) == 0
    above = tuning.mean_above(np.cos(phase)[None] + 2, np.zeros(1))
    assert above == pytest.approx(2)


def test_means_of_rectified_polynomials_are_those_of_many_samples():
    random = np.random.default_rng(2)
    curve = random.normal(size=(50, 8))
    brute = tuning.periodic(curve, 360_000).clip(0).mean(1)
    np.testing.assert_allclose(tuning.mean_above(curve, np.zeros(50)), brute, atol=2e-5)


# ---- orientation


@pytest.mark.parametrize("half_width", [6, 10, 24, 40])
@pytest.mark.parametrize("count", GRIDS)
def test_peak_and_bandwidth_of_von_mises_curves(half_width, count):
    """Whatever the grid, and wherever the peak lies between its points."""
    peak = np.linspace(0, 179.9, 97)
    found = tuning.orientation_tuning(von_mises(count, peak, half_width))
    assert np.abs(found["bandwidth_deg"] - half_width).max() < 0.5
    assert apart(found["orientation_deg"], peak).max() < 0.25
    assert ((found["orientation_deg"] >= 0) & (found["orientation_deg"] < 180)).all()


def test_bandwidth_counts_a_floor():
    found = tuning.orientation_tuning(von_mises(36, [50.0, 171.0], 24, floor=0.3))
    assert np.abs(found["bandwidth_deg"] - 24).max() < 0.5


def test_a_curve_that_never_falls_below_has_no_bandwidth():
    curve = np.stack([np.ones(36), 1 + 0.1 * von_mises(36, [40.0], 20)[0]])
    found = tuning.orientation_tuning(curve)
    assert np.isnan(found["bandwidth_deg"]).all()
    low = 1 + 0.1 * von_mises(36, [130.0], 20)[0][8]
    assert found["osi"] == pytest.approx([0, (1.1 - low) / (1.1 + low)], abs=1e-3)
    assert found["orientation_deg"][1] == pytest.approx(40, abs=0.2)


def test_rectified_curves_with_kinks_keep_their_width():
    """max(cos 2 theta - c, 0): 1/sqrt(2) of the peak at a closed-form angle."""
    for threshold in (0.0, 0.5):
        for count in GRIDS:
            peak = np.linspace(0, 179, 41)
            angle = 2 * np.radians(tuning.orientations(count) - peak[:, None])
            curve = np.maximum(np.cos(angle) - threshold, 0)
            half = np.degrees(np.arccos(threshold + (1 - threshold) / np.sqrt(2))) / 2
            found = tuning.orientation_tuning(curve)
            assert np.abs(found["bandwidth_deg"] - half).max() < 0.5
            assert apart(found["orientation_deg"], peak).max() < 0.5
            assert found["osi"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("k", [0.2, 1.0, 3.0, 15.0])
def test_circular_variance_of_von_mises_curves(k):
    """1 - I1(k)/I0(k): the resultant length of a von Mises density."""
    angle = 2 * np.radians(tuning.orientations(36) - np.array([[0.0], [33.3]]))
    found = tuning.circular_variance(np.exp(k * np.cos(angle)))
    assert found == pytest.approx(1 - special.i1(k) / special.i0(k), abs=1e-6)


def test_osi_of_von_mises_curves():
    """R_orth / R_pref = exp(-2 k)."""
    for k in (0.1, 0.5, 2.0):
        angle = 2 * np.radians(tuning.orientations(24) - np.array([[13.7]]))
        found = tuning.orientation_tuning(np.exp(k * (np.cos(angle) - 1)))["osi"]
        assert found == pytest.approx(np.tanh(k), abs=1e-4)


def test_one_orientation_only_and_none_at_all():
    curve = np.zeros((2, 36))
    curve[0, 7] = 3
    found = tuning.orientation_tuning(curve)
    assert found["circular_variance"][0] == pytest.approx(0)
    assert found["orientation_deg"][0] == pytest.approx(35)
    assert found["osi"][0] == pytest.approx(1)
    # As docs/columns.md says: the width of the interpolating kernel, 0.44 of the spacing.
    assert found["bandwidth_deg"][0] == pytest.approx(0.4425 * 5, rel=0.01)
    assert all(np.isnan(values[1]) for values in found.values())


def test_shifting_a_curve_shifts_its_orientation_only():
    curve = von_mises(36, [20.0], 15) + 0.3 * von_mises(36, [70.0], 12)
    a = tuning.orientation_tuning(curve)
    b = tuning.orientation_tuning(np.roll(curve, 18, axis=1))
    mirrored = tuning.orientation_tuning(curve[:, -np.arange(36) % 36])
    assert apart(b["orientation_deg"], a["orientation_deg"] + 90).max() < 1e-6
    assert apart(mirrored["orientation_deg"], -a["orientation_deg"]).max() < 1e-6
    for key in ("bandwidth_deg", "osi", "circular_variance"):
        assert b[key] == pytest.approx(a[key], abs=1e-9)
        assert mirrored[key] == pytest.approx(a[key], abs=1e-9)


# ---- spatial frequency


# The coarser the grid in octaves (0.46, 0.57, 0.68), the less is known between its points.
@pytest.mark.parametrize(
    ("size", "bandwidth", "octaves"),
    [
        (43, 1.4, 0.02),
        (43, 2, 0.01),
        (99, 1.4, 0.07),
        (99, 2, 0.02),
        (224, 1.4, 0.17),
        (224, 2, 0.03),
    ],
)
def test_gaussians_in_log_frequency(size, bandwidth, octaves):
    """Full width at half height 2 sqrt(2 ln 2) sigma, in octaves."""
    frequency = tuning.frequencies(size, 12)
    sigma = bandwidth / (2 * np.sqrt(2 * np.log(2)))
    peak = np.geomspace(frequency[0] * 2 ** (bandwidth / 1.9), 0.4 * 2 ** (-bandwidth / 1.9), 23)
    curve = np.exp(-((np.log2(frequency) - np.log2(peak)[:, None]) ** 2) / (2 * sigma**2))
    found = tuning.frequency_tuning(curve, frequency)
    assert np.abs(np.log2(found["sf_cpp"] / peak)).max() < octaves
    assert np.abs(found["sf_bandwidth_oct"] - bandwidth).max() < octaves
    assert not found["sf_lowpass"].any() and not found["sf_highpass"].any()


def test_curves_that_do_not_fall_are_low_pass_or_high_pass():
    frequency = tuning.frequencies(43, 12)
    octave = np.log2(frequency / frequency[0])
    falling = np.exp(-(octave**2) / 2)
    flat = np.ones(12)
    curve = np.stack([falling, falling[::-1], flat, np.zeros(12)])
    found = tuning.frequency_tuning(curve, frequency)
    assert found["sf_lowpass"].tolist() == [True, False, True, False]
    assert found["sf_highpass"].tolist() == [False, True, True, False]
    assert np.isnan(found["sf_bandwidth_oct"]).all()
    assert found["sf_cpp"][:2] == pytest.approx(frequency[[0, -1]], rel=0.02)
    assert np.isnan(found["sf_cpp"][3])


# ---- phase


@pytest.mark.parametrize("count", [24])
def test_f1_f0_of_a_half_rectified_unit_is_half_pi_whatever_its_phase(count):
    shift = np.linspace(0, 360, 101)[:, None]
    wave = np.cos(np.radians(tuning.phases(count) + shift))
    assert tuning.f1_f0(np.maximum(wave, 0)) == pytest.approx(np.pi / 2, rel=0.01)
    assert tuning.f1_f0(wave + 1) == pytest.approx(1, rel=1e-9)


def test_f1_f0_of_an_energy_model_unit_is_small():
    """Sum of squares of a quadrature pair, 3 % out of balance."""
    angle = np.radians(tuning.phases(24) + np.linspace(0, 360, 17)[:, None])
    energy = np.cos(angle) ** 2 + (1.03 * np.sin(angle + 0.02)) ** 2
    assert (tuning.f1_f0(energy) < 0.1).all()
    assert np.isnan(tuning.f1_f0(np.zeros((1, 24)))).all()


def test_harmonics_against_sums_written_out():
    random = np.random.default_rng(0)
    response = random.uniform(0, 1, (3, 4, 8))
    angle = 2 * np.pi * np.arange(8) / 8
    real, imaginary = (response * np.cos(angle)).sum(-1), (response * np.sin(angle)).sum(-1)
    f1 = 2 / 8 * np.hypot(real, imaginary)
    assert np.allclose(tuning.f1_f0(response), f1 / response.mean(-1))


def test_rectified_above_the_blank():
    response = np.array([[[1.0, 2.0], [3.0, -1.0]], [[0.0, 5.0], [5.5, 7.0]]])
    expected = [[[0, 0], [1, 0]], [[0, 0], [0.5, 2]]]
    assert np.array_equal(tuning.rectify(response, np.array([2.0, 5.0])), expected)


# ---- the whole grid


def test_grid_tuning_reads_each_axis_at_the_best_point():
    frequency = tuning.frequencies(43, 12)
    orientation = von_mises(36, [35.0, 120.0], 20)
    octave = np.log2(frequency / 0.08)
    spectrum = np.stack([np.exp(-(octave**2)), np.exp(-((octave - 1) ** 2))])
    response = orientation[:, :, None] * spectrum[:, None]
    i, j = tuning.best(response)
    assert i.tolist() == [7, 24]
    assert np.array_equal(j, np.argmax(spectrum, 1))
    found = tuning.grid_tuning(response, frequency)
    assert found["orientation_deg"] == pytest.approx([35, 120], abs=0.1)
    assert found["bandwidth_deg"] == pytest.approx([20, 20], abs=0.2)
    assert found["sf_cpp"] == pytest.approx([0.08, 0.16], rel=0.03)


def test_peaks_over_phases_are_those_of_the_curve_between_the_samples():
    """Amplitude and threshold of cosines, whose own phase lies between the eight that are shown."""
    phase = np.radians(tuning.phases(8))
    amplitude, own, bias = (
        np.array([2.0, 3, 1]),
        np.radians([22.5, 70, 5]),
        np.array([0, -2.5, 0.5]),
    )
    response = bias[:, None] + amplitude[:, None] * np.cos(phase + own[:, None])
    linear = tuning.peak_above(response, bias)
    np.testing.assert_allclose(linear, amplitude, rtol=2e-3)
    # The blank gives max(bias, 0), and nothing is below 0.
    behind = tuning.peak_above(response, bias.clip(0), rectified=True)
    np.testing.assert_allclose(behind, [2, 0.5, 1], rtol=2e-2)
    assert (tuning.mean_above(response, bias) < linear / 3).all()


@pytest.mark.parametrize(("samples", "count"), [(12, 360), (12, 361), (7, 24), (24, 25)])
def test_periodic_interpolation_is_that_of_scipy(samples, count):
    curves = np.random.default_rng(samples).normal(size=(5, 3, samples))
    expected = signal.resample(curves, count, axis=-1)
    np.testing.assert_allclose(tuning.periodic(curves, count), expected, atol=1e-12)
