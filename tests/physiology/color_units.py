"""Units of known opponency: kernels of seven kinds, behind outputs that saturate and surrounds that
suppress."""

import numpy as np
import torch
from test_receptive_fields import MEAN, STD, loaded
from torch import nn

from rfatlas.physiology import color_rules, colorspace

SPACE = colorspace.space()
SIZE = 11

#: Kinds of units and the class that is right.
CLASSES = {
    "grey": color_rules.NON,
    "v_lambda": color_rules.NON,
    "l_cone": color_rules.NON,
    "single": color_rules.SINGLE,
    "type_i": color_rules.SINGLE,
    "mixture": color_rules.SINGLE,
    "double": color_rules.DOUBLE,
}


def blob(sigma: float, x: float = 0, y: float = 0) -> np.ndarray:
    place = np.arange(SIZE) - (SIZE - 1) / 2
    return np.exp(-((place[None] - x) ** 2 + (-place[:, None] - y) ** 2) / (2 * sigma**2))


def gabor_field(theta: float, frequency: float, phase: float) -> np.ndarray:
    """A Gabor without mean."""
    place = np.arange(SIZE) - (SIZE - 1) / 2
    x, y = place[None], -place[:, None]
    along = x * np.cos(np.radians(theta)) + y * np.sin(np.radians(theta))
    field = blob(2.0) * np.cos(2 * np.pi * frequency * along + np.radians(phase))
    return field - blob(2.0) * field.sum() / blob(2.0).sum()


def covector(axis: int) -> np.ndarray:
    """Code-value weights (3,) that feel one opponent axis and neither of the others."""
    return np.linalg.inv(SPACE.code_per_axis)[axis]


def cone_covector(cone: int) -> np.ndarray:
    """Code-value weights (3,) that feel one cone only."""
    return np.linalg.inv(SPACE.code_per_cone)[cone]


def unit(kind: str, random: np.random.Generator, tint: float | None = None) -> np.ndarray:
    """A kernel (3, SIZE, SIZE) in code values of one of `CLASSES`, or `noise`.

    Its absolute values sum to 1. `tint` is what a grey Gabor sees of colour, as a share of what
    it sees of grey.
    """
    theta, phase = random.uniform(0, 180), random.uniform(0, 360)
    grating = gabor_field(theta, random.uniform(0.12, 0.25), phase)
    axis = random.integers(1, 3)
    pure = covector(axis) / np.linalg.norm(covector(axis))
    tinted = pure + random.uniform(0, 0.25) / np.sqrt(3)
    place = random.uniform(-0.7, 0.7, 2)
    if kind == "grey":
        tint = random.choice([0, 0.005, 0.01, 0.03, 0.1]) if tint is None else tint
        colour = random.normal(size=3)
        colour = np.ones(3) / np.sqrt(3) + tint * colour / np.linalg.norm(colour)
        parts = [(colour, grating)]
    elif kind == "v_lambda":
        parts = [(SPACE.luminance, grating)]
    elif kind == "l_cone":
        parts = [(cone_covector(0), grating)]
    elif kind == "single":
        parts = [(tinted, blob(random.uniform(1.3, 2), *place))]
    elif kind == "type_i":
        cones = random.permutation(2)
        # Small enough for the round aperture.
        centre, surround = blob(random.uniform(0.8, 1.1), *place / 2), blob(2, *place / 2)
        surround *= random.uniform(0.9, 1) * centre.sum() / surround.sum()
        parts = [(cone_covector(cones[0]), centre), (-cone_covector(cones[1]), surround)]
    elif kind == "mixture":
        field = blob(random.uniform(1.3, 2))
        # As strong for colour as a grey Gabor for grey: 0.43 of it by peaks.
        parts = [(np.ones(3) / np.sqrt(3), grating), (pure, 0.5 * field)]
    elif kind == "double":
        side = 2.2 * np.array([np.cos(np.radians(theta)), np.sin(np.radians(theta))])
        pair = blob(1.4, *side) - blob(1.4, *-side)
        centre, surround = (blob(sigma, *place / 2) for sigma in (1, 2))
        centre -= 0.9 * surround * centre.sum() / surround.sum()
        parts = [(tinted, (pair, centre, grating)[random.integers(3)])]
    else:
        assert kind == "noise"
        parts = []
        kernel = random.normal(size=(3, SIZE, SIZE))
    if parts:
        kernel = sum(np.multiply.outer(colour, field) for colour, field in parts)
    return random.choice([-1, 1]) * kernel / np.abs(kernel).sum()


class Suppressed(nn.Module):
    """Each channel, rectified, less a share of what it does at eight places around, of either sign:
    a surround of its own kind that sees no phase (Cavanaugh, Bair & Movshon 2002)."""

    def __init__(self, channels: int, weight: float, apart: int):
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, 3, 1, apart, dilation=apart, groups=channels, bias=False
        )
        with torch.no_grad():
            self.conv.weight.fill_(weight)
            self.conv.weight[:, :, 1, 1] = 0

    def forward(self, x):
        return torch.relu(x) - self.conv(x.abs())


def network(
    kernels: np.ndarray,
    gain: float | np.ndarray = 1.0,
    saturates: bool = False,
    suppressed: float = 0,
    extent: int = 64,
):
    """A network whose layer `out` answers to code values as kernels (n, 3, size, size) say, times
    gains, rectified at mid grey; perhaps through x / (1 + x), perhaps with a surround of eight
    places that subtract the share `suppressed` each."""
    n, _, size, _ = kernels.shape
    weight = kernels * np.reshape(gain, (-1, 1, 1, 1)) * np.array(STD)[:, None, None]
    conv = nn.Conv2d(3, n, size, 1, size // 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(weight, dtype=torch.float32))
        grey = (weight * ((0.5 - np.array(MEAN)) / STD)[:, None, None]).sum((1, 2, 3))
        conv.bias.copy_(torch.tensor(-grey, dtype=torch.float32))
    steps = {"conv": conv}
    if suppressed:
        steps["surround"] = Suppressed(n, suppressed, 4)
    steps["relu" if saturates else "out"] = nn.ReLU()
    if saturates:
        steps["out"] = nn.Softsign()
    model = nn.Sequential()
    for name, module in steps.items():
        model.add_module(name, module)
    return loaded(model.eval(), extent)
