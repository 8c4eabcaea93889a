"""Colours against colour-science's own conversions, tables and numbers worked out by hand; stimuli
drawn, then measured pixel by pixel."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from test_receptive_fields import loaded
from torch import nn

from rfatlas.physiology import colorspace
from rfatlas.physiology.probe import GREY, Probe

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import colour

RANDOM = np.random.default_rng(0)
CODES = np.concatenate([RANDOM.random((200, 3)), np.eye(3), np.full((1, 3), 0.02)])
SPACE = colorspace.space()


def lms(code: np.ndarray) -> np.ndarray:
    linear = colorspace.light(code) @ colorspace.XYZ_FROM_RGB.T
    return linear @ np.linalg.inv(colorspace.XYZ_FROM_LMS).T


def cone_contrast(code: np.ndarray) -> np.ndarray:
    return lms(code) / lms(np.full(3, GREY)) - 1


def luminance(code: np.ndarray) -> np.ndarray:
    return colour.sRGB_to_XYZ(code)[..., 1]


# ---- conversions


def test_gamma_is_that_of_srgb():
    np.testing.assert_allclose(colorspace.light(CODES), colour.cctf_decoding(CODES, "sRGB"))
    light = colorspace.light(CODES)
    np.testing.assert_allclose(colorspace.code(light), CODES, atol=1e-7)
    encoded = colorspace.encode(torch.tensor(light, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(encoded, CODES, atol=2e-6)
    # IEC 61966-2-1 by hand: ((0.5 + 0.055) / 1.055) ^ 2.4.
    assert SPACE.grey == pytest.approx(0.2140411, abs=1e-7)


def test_fundamentals_turn_the_table_of_cones_into_that_of_xyz():
    cones = colour.MSDS_CMFS["Stockman & Sharpe 2 Degree Cone Fundamentals"]
    observer = colour.MSDS_CMFS["CIE 2015 2 Degree Standard Observer"]
    # S is not tabulated above 615 nm.
    found = np.nan_to_num(cones.values) @ colorspace.XYZ_FROM_LMS.T
    np.testing.assert_allclose(found, observer.values, atol=2e-6)


def test_white_point_and_cones_by_hand():
    # D65 as sRGB has it, X Y Z = 0.9505 1 1.089; L = 0.210576 X + 0.855098 Y - 0.039698 Z, ...
    white = lms(np.ones(3))
    np.testing.assert_allclose(white, [1.01202, 0.86646, 0.56283], atol=2e-5)
    # The luminance of CIE 2006 is 0.68990272 L + 0.34832189 M; that of white is 1.
    assert white[:2] @ [0.68990272, 0.34832189] == pytest.approx(1, abs=1e-6)
    xyz = colour.sRGB_to_XYZ(CODES)
    np.testing.assert_allclose(lms(CODES) @ colorspace.XYZ_FROM_LMS.T, xyz, atol=1e-6)


def test_cone_contrast_of_greys_is_that_of_their_light():
    greys = np.array([0.0, 0.25, 0.5, 0.75, 1])
    contrast = cone_contrast(np.repeat(greys[:, None], 3, 1))
    by_hand = ((np.maximum(greys, 0.04045) + 0.055) / 1.055) ** 2.4 / 0.2140411 - 1
    by_hand[0] = -1
    np.testing.assert_allclose(contrast, by_hand[:, None].repeat(3, 1), atol=1e-6)


def test_code_values_per_cone_are_the_slopes_of_the_whole_chain():
    """Numerically, from cones to code values by colour-science's inverse conversions."""
    grey, step = lms(np.full(3, GREY)), 1e-4
    for cone in range(3):
        ends = []
        for sign in (-1, 1):
            changed = grey.copy()
            changed[cone] *= 1 + sign * step
            xyz = colorspace.XYZ_FROM_LMS @ changed
            inverse = np.linalg.inv(colour.RGB_COLOURSPACES["sRGB"].matrix_RGB_to_XYZ)
            ends.append(colour.cctf_encoding(inverse @ xyz, "sRGB"))
        slope = (ends[1] - ends[0]) / (2 * step)
        np.testing.assert_allclose(SPACE.code_per_cone[:, cone], slope, atol=1e-5)


# ---- axes


def test_axes_change_what_they_should_and_nothing_else():
    for sign in (-1, 1):
        ends = colorspace.uniform(sign * SPACE.axes)
        contrast = cone_contrast(ends)
        np.testing.assert_allclose(contrast, sign * SPACE.contrast, atol=1e-6)
        lightness, red_green, blue_yellow = contrast * sign
        np.testing.assert_allclose(lightness, 1, atol=1e-6)
        assert red_green[0] > 0.05 and red_green[1] < -0.1 and abs(red_green[2]) < 1e-6
        assert blue_yellow[2] > 0.5 and np.abs(blue_yellow[:2]).max() < 1e-6
        # Equiluminant: the same Y as mid grey.
        np.testing.assert_allclose(luminance(ends[1:]), SPACE.grey, atol=1e-6)
        isolated = cone_contrast(colorspace.uniform(sign * SPACE.isolating))
        expected = np.diag(sign * SPACE.isolating_contrast)
        np.testing.assert_allclose(isolated, expected, atol=1e-6)
    assert (SPACE.isolating_contrast > 0.1).all()


def test_axes_end_at_the_gamut():
    directions = np.concatenate([SPACE.axes, SPACE.isolating])
    for direction in directions:
        ends = SPACE.grey * (1 + np.outer([-1, 1], direction))
        assert ends.min() == pytest.approx(0, abs=1e-9) and ends.max() <= 1
        assert (SPACE.grey * (1 + np.outer([-1, 1], 1.01 * direction))).min() < 0
    # Bright surroundings are limited by white instead.
    found = colorspace.in_gamut(np.array([[2.0, -1, 0]]), 0.8)
    np.testing.assert_allclose(found, [[0.25, -0.125, 0]])


def test_equiluminant_hues_lie_on_an_ellipse_that_just_fits():
    angle = np.arange(0, 360, 0.5)
    changes = colorspace.equiluminant(angle)
    np.testing.assert_allclose(luminance(colorspace.uniform(changes)), SPACE.grey, atol=1e-6)
    assert np.abs(changes).max() == pytest.approx(1, abs=1e-4)
    contrast = cone_contrast(colorspace.uniform(changes))
    # Back from cones to the angle: L against its own axis, S against its own.
    found = np.degrees(
        np.arctan2(contrast[:, 2] / SPACE.contrast[2, 2], contrast[:, 0] / SPACE.contrast[1, 0])
    )
    np.testing.assert_allclose((found - angle + 180) % 360, 180, atol=1e-3)
    assert 0.9 < SPACE.radius <= 1


def test_code_hues_leave_the_sum_alone():
    hues = colorspace.code_hues(np.arange(360))
    np.testing.assert_allclose(hues.sum(1), 3 * GREY)
    np.testing.assert_allclose(np.linalg.norm(hues - GREY, axis=1), GREY * np.sqrt(1.5))
    assert hues.min() == pytest.approx(0, abs=1e-9) and hues.max() == pytest.approx(1)
    assert hues[0].argmax() == 0 and hues[90, 1] - hues[90, 2] == pytest.approx(np.sqrt(3) / 2)


# ---- stimuli


def test_drawn_stimuli_have_the_cone_contrasts_they_claim():
    """Each axis, each isolated cone and some hues, as gratings: measured in every pixel."""
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, 2, 15, 2, 7))
    probe = Probe(loaded(network.eval(), 64), "conv1")
    changes = np.concatenate(
        [SPACE.axes, SPACE.isolating, colorspace.equiluminant([30, 130, 200, 280])]
    )
    n = len(changes)
    carriers = probe.carriers(np.linspace(0, 150, n), np.full(n, 0.11), np.linspace(0, 300, n))
    stimuli = colorspace.paint(carriers, changes).permute(0, 2, 3, 1).double().numpy()
    found = cone_contrast(stimuli)
    claimed = changes @ np.linalg.solve(SPACE.axes, SPACE.contrast)
    expected = carriers.double().numpy()[..., None] * claimed[:, None, None]
    np.testing.assert_allclose(found, expected, atol=3e-5)
    assert np.abs(found).max() > 0.9
    # Outside the aperture there is mid grey.
    np.testing.assert_allclose(stimuli[:, 0, 0], GREY, atol=1e-6)


def test_grey_versions_keep_the_luminance():
    pixels = RANDOM.integers(0, 256, (4, 3, 9, 9), np.uint8)
    grey = colorspace.grey_version(torch.tensor(pixels)).numpy()
    assert (grey == grey[:, :1]).all()
    before, after = (luminance(np.moveaxis(p, 1, -1).astype(float)) for p in (pixels / 255, grey))
    np.testing.assert_allclose(after, before, atol=2e-6)


def test_the_slow_import_waits_until_it_is_needed():
    code = (
        "import sys, rfatlas.physiology.colorspace as c; "
        "assert 'colour' not in sys.modules; c.space()"
    )
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], cwd=scripts, check=True
    )
