"""Colours as cones see them: code values of sRGB, cone contrasts, opponent axes.

sRGB code values -> linear light -> CIE XYZ (IEC 61966-2-1) -> L, M, S. The cone fundamentals are
those of CIE 2006 (Stockman & Sharpe 2000), 2 degrees.
Everything is relative to mid grey, the background of all stimuli: a *change* of light is a relative
one, linear light = that of mid grey times (1 + change), per primary; a cone's contrast is its
relative change.

The opponent axes (see docs/color.md) are those of Derrington, Krauskopf & Lennie (1984, J. Physiol.
357:241). L-M and S-(L+M) hardly depend on the fundamentals: sRGB's red and green primaries differ
much in L and M, blue in S.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from rfatlas.physiology.probe import GREY

#: What turns XYZ into L, M, S.
CONE_FUNDAMENTALS = (
    "CIE 2006 2 degree cone fundamentals (Stockman & Sharpe 2000), matrix of CIE 170-2:2015"
)

#: XYZ from linear red, green and blue of sRGB (IEC 61966-2-1).
XYZ_FROM_RGB = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)

#: XYZ from L, M, S (CIE 170-2:2015). Of CIE's newer XYZ; those of 1931, in which sRGB is defined,
#: differ from it by a few per cent in the blue.
XYZ_FROM_LMS = np.array(
    [[1.94735469, -1.41445123, 0.36476327], [0.68990272, 0.34832189, 0], [0, 0, 1.93485343]]
)

#: The opponent axes, in the order of all arrays.
AXES = ("L+M", "L-M", "S-(L+M)")

# Directions of code values that leave R + G + B alone.
_CODE_PLANE = np.array([[2, -1, -1], [0, 1, -1]]) / np.sqrt([[6], [2]])


# ---- conversions


def light(code: np.ndarray) -> np.ndarray:
    """Return linear light (..., 3), 0..1, of sRGB code values (..., 3) in 0..1."""
    code = np.asarray(code, float)
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def code(light: np.ndarray) -> np.ndarray:
    """Return sRGB code values (..., 3) of linear light (..., 3) in 0..1."""
    return encode(torch.as_tensor(np.asarray(light, float))).numpy()


def encode(light: torch.Tensor) -> torch.Tensor:
    """Return `code` of a tensor, on its device."""
    curve = 1.055 * light.clamp(min=0) ** (1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, 12.92 * light, curve)


def grey_version(pixels: torch.Tensor) -> torch.Tensor:
    """Return pictures uint8 (n, 3, h, w) without colour, as float32 code values in 0..1: R = G = B
    of the same linear luminance."""
    table = torch.as_tensor(light(np.arange(256) / 255), dtype=torch.float32, device=pixels.device)
    red, green, blue = (weight * table for weight in space().luminance.tolist())
    n = pixels.long()
    grey = encode(red[n[:, 0]] + green[n[:, 1]] + blue[n[:, 2]])
    return grey[:, None].expand(-1, 3, -1, -1)


# ---- axes


@dataclass(frozen=True)
class Space:
    """The colour space around mid grey; rows and columns in the order of `AXES`, L M S, R G B."""

    #: Linear light of mid grey.
    grey: float
    #: (3,) share of each primary in the luminance of white.
    luminance: np.ndarray
    #: (primary, cone): code values per contrast of a cone, dp_k / dc at mid grey.
    code_per_cone: np.ndarray
    #: (axis, primary) and (axis, cone): changes and cone contrasts at the end of each axis, the
    #: largest within the gamut.
    axes: np.ndarray
    contrast: np.ndarray
    #: (cone, primary) and (cone,): the same of colours that change one cone only.
    isolating: np.ndarray
    isolating_contrast: np.ndarray
    #: Of the largest ellipse of equiluminant colours within the gamut, as a share of the L-M and
    #: S-(L+M) axes.
    radius: float

    @property
    def code_per_axis(self) -> np.ndarray:
        """(primary, axis): code values per unit of an axis at mid grey."""
        return self.code_per_cone @ self.contrast.T


def in_gamut(changes: np.ndarray, grey: float) -> np.ndarray:
    """Return changes (..., 3) made as long as the gamut allows in both directions about linear
    light `grey`."""
    room = min(1, 1 / grey - 1)
    return changes * room / np.abs(changes).max(-1, keepdims=True)


@cache
def space() -> Space:
    """Return the colour space around mid grey."""
    to_lms = np.linalg.inv(XYZ_FROM_LMS) @ XYZ_FROM_RGB
    cone_per_light = to_lms / to_lms.sum(1, keepdims=True)
    light_per_cone = np.linalg.inv(cone_per_light)
    grey = float(light(GREY))
    # Equiluminant and of constant S: across the luminance and the S of the primaries.
    red_green = np.cross(XYZ_FROM_RGB[1], cone_per_light[2])
    red_green *= np.sign(cone_per_light[0] @ red_green)
    axes = in_gamut(np.stack([np.ones(3), red_green, light_per_cone[:, 2]]), grey)
    isolating = in_gamut(light_per_cone.T, grey)
    angle = np.radians(np.arange(0, 360, 0.25))
    circle = np.cos(angle)[:, None] * axes[1] + np.sin(angle)[:, None] * axes[2]
    # The slope of `code`, see IEC 61966-2-1.
    slope = 1.055 / 2.4 * grey ** (1 / 2.4 - 1)
    return Space(
        grey,
        XYZ_FROM_RGB[1] / XYZ_FROM_RGB[1].sum(),
        slope * grey * light_per_cone,
        axes,
        axes @ cone_per_light.T,
        isolating,
        np.diag(isolating @ cone_per_light.T).copy(),
        float(min(1, 1 / np.abs(circle).max())),
    )


def equiluminant(angle_deg: np.ndarray) -> np.ndarray:
    """Return the changes (n, 3) of equiluminant colours at angles (n,) in degrees: 0 along L-M, 90
    along S-(L+M), each axis at its gamut maximum counting as 1, all at the distance `radius`."""
    angle, one = np.radians(np.asarray(angle_deg, float))[:, None], space()
    return one.radius * (np.cos(angle) * one.axes[1] + np.sin(angle) * one.axes[2])


def code_hues(angle_deg: np.ndarray) -> np.ndarray:
    """Return code values (n, 3) of hues at angles (n,) in degrees, on the largest circle about mid
    grey on which R + G + B is constant: a unit that sees the sum of the three does not see them.

    0 is towards red, 90 towards green less blue.
    """
    angle = np.radians(np.asarray(angle_deg, float))[:, None]
    plane = np.cos(angle) * _CODE_PLANE[0] + np.sin(angle) * _CODE_PLANE[1]
    return GREY * (1 + np.sqrt(1.5) * plane)


# ---- stimuli


def uniform(changes: np.ndarray) -> np.ndarray:
    """Return the code values (n, 3) of colours that differ from mid grey by changes (n, 3)."""
    return code((space().grey * (1 + np.asarray(changes, float))).clip(0, 1))


def paint(carriers: torch.Tensor, changes: np.ndarray) -> torch.Tensor:
    """Return stimuli (n, 3, h, w), code values: linear light of mid grey times (1 + change times
    the carrier).

    `carriers` float32 (n, h, w) in -1..1; `changes` (n, 3) within the gamut in both directions.
    """
    colour = torch.as_tensor(np.asarray(changes, np.float32), device=carriers.device)
    light = space().grey * (1 + colour[:, :, None, None] * carriers[:, None])
    return encode(light.clamp_(0, 1))
