"""Colour at equal response: curves of known form, units of known opponency behind an output that
saturates, and surrounds that suppress what fills the box."""

import color_units
import numpy as np
import pytest
from test_color import SETTINGS, measure

from rfatlas.physiology import color_rules, color_sensitivity
from rfatlas.physiology.color_sensitivity import CONTRASTS

OUTPUTS = {
    "linear": lambda x: x,
    "saturating": lambda x: x / (1 + x),
    "clamped": lambda x: np.minimum(x, 0.6),
    "power": lambda x: x**3,
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_contrast_is_that_which_gives_the_response(output):
    drive = np.array([0.5, 1, 3, 10]) * 2
    apply = OUTPUTS[output]
    contrast = np.array([[0.01, 0.2], [0.03, 0.51], [0.07, 0.19], [0.033, 0.05]]) / 2
    curve, response = apply(drive[:, None] * CONTRASTS), apply(drive[:, None] * contrast)
    found = color_sensitivity.equivalent(curve, response)
    # Exact for powers; between two contrasts other curves bend by some per cent.
    known = (contrast >= CONTRASTS[0]) & (response < curve[:, -1:])
    exact = output in ("linear", "power")
    np.testing.assert_allclose(found[known], contrast[known], rtol=1e-9 if exact else 0.25)
    if output == "linear":
        np.testing.assert_allclose(found, contrast)
    assert (color_sensitivity.equivalent(curve, 9 * curve[:, -1:]) == CONTRASTS[-1]).all()
    assert (color_sensitivity.equivalent(curve, 0 * response) == 0).all()


def test_a_curve_from_a_threshold_and_one_that_falls_again():
    curve = np.array([[0, 0, 0, 0, 1.0, 3], [1, 2, 4, 3, 2, 1]])
    found = color_sensitivity.equivalent(curve, np.array([[0.5, 1], [4, 2]]))
    np.testing.assert_allclose(found, [[3 / 16, 1 / 4], [1 / 16, 1 / 32]])


def test_sensitivities_by_hand():
    """Equivalent contrasts of two channels: two apertures, three axes, places of frequency zero and
    of two frequencies at two orientations."""
    starts = np.array([0, 1, 3])
    equal = np.zeros((2, len(color_sensitivity.APERTURES), 3, 5))
    # Luminance likes the high frequency, L-M the low one, S is weak.
    equal[0, 0] = [[0.1, 0.2, 0.1, 1, 0.5], [0.3, 0.4, 0.2, 0.15, 0], [0, 0.1, 0, 0.14, 0]]
    # Only the half aperture drives it; S alone.
    equal[1, 2, 2] = [0.6, 1, 0, 0.2, 0]
    found = color_sensitivity.sensitivities(equal, starts)
    largest = color_sensitivity.LARGEST
    np.testing.assert_allclose(found["own"], [[0.4, 0.14], [0, largest]])
    np.testing.assert_allclose(found["same"], [[3, 0.14], [0, largest]])
    assert found["axis"].tolist() == [1, 2] and found["aperture"].tolist() == [0, 2]
    np.testing.assert_allclose(found["lowpass"], [0.75, 0.6])
    lost = color_sensitivity.sensitivities(np.full_like(equal, np.nan), starts)
    assert np.isnan(lost["own"]).all() and np.isnan(lost["same"]).all()


@pytest.mark.parametrize("suppressed", [0, 0.14])
def test_classes_are_right_at_every_gain_and_behind_a_surround(suppressed, tmp_path):
    random = np.random.default_rng(3)
    gains, kinds = [0.3, 10, 100], [kind for kind in color_units.CLASSES for _ in range(4)]
    kernels = np.array([color_units.unit(kind, random) for kind in kinds])
    network = color_units.network(
        np.tile(kernels, (3, 1, 1, 1)), np.repeat(gains, len(kinds)), True, suppressed, 40
    )
    settings = SETTINGS | {"directions": 3, "hues": 8}
    table = measure(network, "out", tmp_path / "x.h5", settings)
    table["kind"], table["gain"] = kinds * 3, np.repeat(gains, len(kinds))
    opponent = table["color_class"].isin(color_rules.OPPONENT)
    right = table["kind"].map(color_units.CLASSES)
    assert (opponent == right.isin(color_rules.OPPONENT)).mean() >= 0.97
    assert (table["color_class"] == right).mean() >= 0.96
    by_gain = np.reshape(table["color_class"], (3, -1))
    assert (by_gain == by_gain[0]).mean() >= 0.98
    # The published rule calls grey units opponent that saturate.
    grey = table[table["kind"] == "grey"]
    sensitivity = np.reshape(grey["color_sensitivity_lm"], (3, -1))
    np.testing.assert_allclose(sensitivity, sensitivity[[0]].repeat(3, 0), rtol=0.1)
    if not suppressed:
        assert (grey["color_class_ratio"] == color_rules.DOUBLE)[grey["gain"] == 100].all()
        assert (grey["color_class_ratio"] == color_rules.NON)[grey["gain"] == 0.3].all()
        assert (table["color_diameter_px"] == color_units.SIZE).mean() > 0.8
        type_i = table[table["kind"] == "type_i"]
        assert type_i["color_ratio"].median() < 1 and (type_i["color_class_sf"] == "same").any()
        assert type_i["color_sensitivity_lm_same_sf"].median() > 1.5
    else:
        assert (table["color_diameter_px"] < 19).mean() > 0.4
    assert (table["hue_deg"].notna() <= opponent).all()


def test_what_every_contrast_saturates_has_no_class(tmp_path):
    random = np.random.default_rng(3)
    kernels = np.array([color_units.unit(kind, random) for kind in ("grey", "single")])
    network = color_units.network(np.tile(kernels, (2, 1, 1, 1)), [1, 1, 1e6, 1e6], True, 0, 40)
    settings = SETTINGS | {"directions": 3, "hues": 8}
    table = measure(network, "out", tmp_path / "x.h5", settings)
    assert table["color_class"].tolist()[:2] == [color_rules.NON, color_rules.SINGLE]
    assert table["color_class"][2:].isna().all()
    assert table["color_reason"].tolist()[2:] == ["saturated"] * 2
