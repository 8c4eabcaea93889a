"""Apertures and size tuning: curves whose sizes are known, and planted units with surrounds."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from test_contrast import balanced, planted
from test_gratings import apart, axes, gabor_field, measure
from torch import nn

from rfatlas.physiology import size

# ---- curves


def read_size(curve, diameter, reason=""):
    columns, fitted = size.tuning(np.atleast_2d(curve), diameter, np.array([reason], object))
    return {name: values[0] for name, values in columns.items()}, fitted[0]


def test_sizes_of_a_curve_of_straight_lines():
    """Rises in proportion to log diameter up to 8, falls to a half at 16, and stays there."""
    diameter = 2.0 ** np.arange(1, 7)
    found, _ = read_size([1, 2, 3, 1.5, 1.5, 1.5], diameter)
    assert found["size_summation_px"] == pytest.approx(2 ** (2 + 0.85))
    assert found["size_surround_px"] == pytest.approx(2 ** (4 - 0.05))
    assert found["suppression_index"] == pytest.approx(0.5)
    # Less than a tenth is no suppression.
    found, _ = read_size([1, 2, 3, 2.8, 2.8, 2.8], diameter)
    assert found["suppression_index"] == pytest.approx(1 / 15)
    assert np.isnan(found["size_surround_px"]) and np.isnan(found["size_surround_gain"])
    found, fitted = read_size(np.full(6, np.nan), diameter, "weak")
    assert found.pop("size_reason") == "weak"
    assert np.isnan(list(found.values())).all() and np.isnan(fitted).all()
    found, _ = read_size([1, 2, 3, 3], [1.0, 2.0, 2.5, 3.0])
    assert found.pop("size_reason") == "small" and np.isnan(list(found.values())).all()


def test_apertures_are_few_and_the_last_is_the_field():
    for field, count in ((1, 1), (3, 1), (7, 2), (15, 3), (435, 3)):
        found = size.apertures(field)
        assert len(found) == count and found[-1] == pytest.approx(field)
        assert (np.diff(found) > 0).all() and (count == 1 or found[0] == pytest.approx(3))


def test_the_smallest_aperture_that_does_not_suppress_is_the_best():
    peak = np.array([[1, 0.95, 0.2, 0], [1, 1, 1, 0], [0.95, 0.9, 1.05, 0]]).astype(float)
    aperture, suppressed = size.best_aperture(peak)
    assert aperture.tolist() == [2, 0, 2, 2] and suppressed.tolist() == [False, True, False, False]


# ---- planted units


def displaced(field: np.ndarray, steps: list[tuple[int, int]], extent: int) -> np.ndarray:
    """Copies (n, extent, extent) of a field, moved by steps (right, up) from the middle."""
    found, at = np.zeros((len(steps), extent, extent)), (extent - len(field)) // 2
    for canvas, (right, up) in zip(found, steps, strict=True):
        row, column = at - up, at + right
        canvas[row : row + len(field), column : column + len(field)] = field
    return found


def test_a_unit_that_its_surround_silences_is_tuned_at_its_best_aperture(tmp_path):
    """A simple cell less eight neighbours."""
    field = balanced(7, 30, 0.2, 0, 1.6)
    steps = [(0, 0), *((x, y) for x in (-4, 0, 4) for y in (-4, 0, 4) if x or y)]
    fields = displaced(field, steps, 15)
    mix = [[1] + 8 * [-0.5], [1] + 8 * [0]]
    table = measure(planted(fields, mix=mix), "end", tmp_path / "x.h5")
    suppressed, plain = table.iloc[0], table.iloc[1]
    assert suppressed["grating_suppressed"] and not plain["grating_suppressed"]
    assert plain["grating_diameter_px"] == 15 and suppressed["grating_diameter_px"] < 10
    # The few pixels of a small circle turn it a little.
    assert apart(suppressed["orientation_deg"], 30) < 8 and suppressed["osi"] > 0.8
    assert suppressed["f1_f0"] == pytest.approx(np.pi / 2, rel=0.2)
    # Every diameter by brute force.
    with h5py.File(tmp_path / "x.h5") as file:
        diameter, curve = file["size_diameter"][:], file["size_response"][0]
        theta, frequency = file["shown_orientation"][0], file["shown_frequency"][0]
    x, y = axes(15)
    angle, phase = np.radians(theta), np.radians(np.arange(360))
    along = 2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle))
    brute = []
    for each in diameter:
        wave = np.cos(along + phase[:, None, None]) * (np.hypot(x, y) <= each / 2)
        drive = 0.5 * np.einsum("nij,pij->np", fields, wave).clip(0)
        brute.append(np.maximum(np.array(mix[0]) @ drive, 0).mean())
    # Four phases through two rectifications.
    np.testing.assert_allclose(curve, brute, atol=0.15 * max(brute))
    index = 1 - brute[-1] / max(brute)
    assert suppressed["suppression_index"] == pytest.approx(index, abs=0.05) and index > 0.5
    assert plain["suppression_index"] < 0.1 and np.isnan(plain["size_surround_px"])
    assert 3 < suppressed["size_summation_px"] < suppressed["size_surround_px"] <= 15
    assert np.isnan(suppressed["full_osi"]) or suppressed["full_osi"] != suppressed["osi"]


def test_an_end_stopped_unit_keeps_its_orientation(tmp_path):
    field = gabor_field(7, 90, 0.22, 90, 1.4, 1.4)
    fields = displaced(field, [(0, 0), (5, 0), (-5, 0)], 17)
    table = measure(planted(fields, mix=[[1, -0.6, -0.6]]), "end", tmp_path / "x.h5")
    found = table.iloc[0]
    assert found["grating_suppressed"] and apart(found["orientation_deg"], 90) < 3
    assert apart(found["full_orientation_deg"], 90) > 10


def test_a_normalised_unit_follows_the_ratio_of_gaussians(tmp_path):
    """Energy pooled in a small Gaussian, over a constant and energy pooled in a large one."""
    pair = np.array([balanced(7, 0, 0.25, phase, 1.3) for phase in (0, 90)])
    place = np.arange(25) - 12
    pools = [np.exp(-(place[:, None] ** 2 + place**2) / (2 * sigma**2)) for sigma in (2, 6)]
    weight = np.array([pool / pool.sum() for pool in pools])[:, None]
    pool = torch.tensor(weight, dtype=torch.float32)

    def behind(x: torch.Tensor) -> torch.Tensor:
        energy = x[:, :1] ** 2 + x[:, 1:] ** 2
        pooled = nn.functional.conv2d(energy, pool, padding=12)
        return pooled[:, :1] / (0.2 + pooled[:, 1:])

    found = measure(planted(pair, behind, relu=False), "end", tmp_path / "x.h5").iloc[0]
    # At a fifth of the contrast, where it is not compressive, the constant weighs more.
    assert found["grating_contrast"] == pytest.approx(0.2) and found["suppression_index"] > 0.3
    assert found["size_r2"] > 0.94
    assert apart(found["orientation_deg"], 0) < 1 and found["bandwidth_deg"] < 40
    assert found["size_summation_px"] < found["size_surround_px"] < 31
    assert 2.5 * found["size_center_px"] < found["size_surround_width_px"]
    assert found["contrast_exponent"] == pytest.approx(2, rel=0.01)


def test_without_its_part_gratings_are_as_wide_as_the_field(tmp_path):
    fields = displaced(balanced(7, 30, 0.2, 0, 1.6), [(0, 0), (4, 0), (-4, 0)], 15)
    network = planted(fields, mix=[[1, -1, -1]])
    table = measure(network, "end", tmp_path / "x.h5", parts=())
    assert "suppression_index" not in table and "contrast_c50" not in table
    assert set(table["grating_diameter_px"].dropna()) <= {15.0}
    pd.testing.assert_series_equal(table["osi"], table["full_osi"], check_names=False)
