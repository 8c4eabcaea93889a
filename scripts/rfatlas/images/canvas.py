"""The brush of the scenes: leaves with shading, texture and shadows, laid over one another.

Reflectances are drawn in the logarithm of linear RGB on three axes (grey, yellow-blue, red-green)
whose standard deviations fall in that order, as Ruderman, Cronin & Chiao 1998 measured in natural
scenes. Light is composed linearly; the sRGB gamma is applied last.
"""

import math

import numpy as np
from scipy.ndimage import gaussian_filter

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring")
#: Direction in which stripes modulate, degrees clockwise from x (y runs down): bars lie across it.
STRIPE_DEGREES = {"upright": 0.0, "rising": 45.0, "level": 90.0, "falling": 135.0}
PATTERNS = (*(f"{name} stripes" for name in STRIPE_DEGREES), "checks", "dots", "rings", "rays")

# Unit vectors of log RGB: red-green and yellow-blue; grey is (1, 1, 1).
RED_GREEN = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
YELLOW_BLUE = np.array([1.0, 1.0, -2.0]) / np.sqrt(6)
# Luminance of linear sRGB (IEC 61966-2-1).
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
#: Change of log RGB between the two colours of a pattern; the chromatic ones keep luminance to
#: first order.
COLOURS = {
    "black-white": np.ones(3) / np.sqrt(3),
    "red-green": RED_GREEN - _LUMINANCE @ RED_GREEN,
    "blue-yellow": YELLOW_BLUE - _LUMINANCE @ YELLOW_BLUE,
}

# All in units of the natural logarithm: reflectances along grey (standard deviation) and along the
# two opponent axes (mean, standard deviation), illuminants along red-green and yellow-blue
# (standard deviations). Chosen so that scenes, in code values, have about the
# luminance-to-chromatic ratio of photographs, as tests/images/test_scenes.py says in numbers.
_GREY_SD = 0.95
_YELLOW_BLUE = (0.14, 0.3)
_RED_GREEN = (0.02, 0.15)
_ILLUMINANT_SD = (0.06, 0.16)
# Half of the difference between the two colours of the foreground's pattern (range).
_PATTERN_CONTRAST = {"black-white": (0.6, 1.2), "red-green": (0.4, 0.7), "blue-yellow": (0.6, 1.0)}
# Cycles per pixel of a 64-pixel scene of the foreground's pattern (range).
_PATTERN_FREQUENCY = (0.1, 0.25)
# How far stripes are turned away from their name, degrees, at most.
_STRIPE_TURN = 15.0
# How much lighter or darker than what lies under it the foreground object is, at most.
_FOREGROUND_CONTRAST = 0.8
# Standard deviation, in pixels of a 64-pixel scene, of the blur of colour (range).
_COLOUR_BLUR = (0.6, 1.2)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Gamma-code linear light in 0..1 to sRGB code values in 0..1 (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def radii(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Radii in pixels with density r^-3 between 3 % and 60 % of the scene's size."""
    low, high = 0.03 * size, 0.6 * size
    share = rng.uniform(0, 1, count)
    # The inverse of the cumulative distribution.
    return (low**-2 + share * (high**-2 - low**-2)) ** -0.5


class Canvas:
    """A scene being painted, back to front.

    `light` is reflectance times shading in linear RGB, f32 (size, size, 3), before the illuminant;
    `mask` f32 (size, size), the share of each pixel that the foreground object covers.
    """

    def __init__(self, size: int, rng: np.random.Generator):
        self.size, self.rng = size, rng
        centres = np.arange(size, dtype=np.float32) + 0.5
        self.y, self.x = centres[:, None], centres[None, :]
        self.light = np.zeros((size, size, 3), np.float32)
        self.mask = np.zeros((size, size), np.float32)
        # One direction of light for the whole scene shades its leaves and throws its shadows.
        angle = rng.uniform(0, 2 * np.pi)
        self.sun = math.sin(angle), math.cos(angle)
        self.noise = np.tile(_fractal_noise(size, rng), (2, 2))

    def ground(self) -> None:
        """Cover everything with one leaf."""
        everything = np.full((self.size, self.size), -1.0, np.float32)
        self._paint(everything, slice(None), slice(None), self._reflectance(), self.size)

    def leaf(self, radius: float, centre: np.ndarray) -> None:
        """Lay down a leaf of a random kind; `radius` and `centre` (y, x) in pixels."""
        kind = self.rng.integers(4)
        turn = self.rng.uniform(0, 2 * np.pi)
        aspect = self.rng.uniform(0.3, 1.0)
        rows, columns = self._window(centre, 1.5 * radius + 3)
        u, v = self._local(rows, columns, centre, turn)
        if u.size == 0:
            return
        if kind == 0:
            short = radius * aspect
            reach = np.hypot(u / radius, v / short)
            slope = np.hypot(u / radius**2, v / short**2)
            distance = reach * (reach - 1) / np.maximum(slope, 1e-6)
        elif kind == 1:
            distance = np.maximum(np.abs(u) - radius, np.abs(v) - radius * aspect)
        elif kind == 2:
            waves = self.rng.integers(2, 5)
            depth = self.rng.uniform(0.1, 0.3)
            distance = np.hypot(u, v) - radius * (1 + depth * np.cos(waves * np.arctan2(v, u)))
        else:
            # A polygon: the overlap of a few half-planes.
            sides = self.rng.integers(3, 6)
            distance = np.full(u.shape, -np.inf, np.float32)
            for side in range(sides):
                angle = 2 * np.pi * (side + self.rng.uniform(-0.25, 0.25)) / sides
                reach = radius * self.rng.uniform(0.5, 0.9)
                plane = u * math.cos(angle) + v * math.sin(angle) - reach
                np.maximum(distance, plane, out=distance)
        self._paint(distance, rows, columns, self._reflectance(), radius)

    def foreground(
        self, shape: str, pattern: str, colours: str, radius: float, centre: np.ndarray
    ) -> None:
        """Lay down the foreground object; `radius` and `centre` (y, x) in pixels.

        Its `shape` is one of `SHAPES`, turned at random, its `pattern` one of `PATTERNS`, in two of
        the `COLOURS` around a random mean.
        """
        rng = self.rng
        rows, columns = self._window(centre, 1.5 * radius + 3)
        u, v = self._local(rows, columns, centre, rng.uniform(0, 2 * np.pi))
        stretch = np.exp(rng.uniform(-0.12, 0.12))
        distance = shape_distance(shape, u * stretch, v / stretch, radius)
        low, high = np.log(_PATTERN_FREQUENCY)
        frequency = math.exp(rng.uniform(low, high)) * 64 / self.size
        x, y = self._local(rows, columns, centre, 0.0)
        wave = pattern_wave(pattern, x, y, frequency, radius, rng)
        contrast = rng.uniform(*_PATTERN_CONTRAST[colours])
        # Neither lost in the dark nor told by its lightness.
        under = np.log(self.light[rows, columns][distance < 0]).mean()
        ground = (under + np.log(self.light.mean())) / 2
        step = rng.uniform(-_FOREGROUND_CONTRAST, _FOREGROUND_CONTRAST)
        # The mean hue tells nothing of the pattern.
        tint = rng.normal(0, 0.25) * RED_GREEN + rng.normal(0, 0.3) * YELLOW_BLUE
        reflectance = ground + step + tint + contrast * wave[..., None] * COLOURS[colours]
        self._paint(distance, rows, columns, reflectance, radius, foreground=True)

    def photograph(self) -> tuple[np.ndarray, np.ndarray]:
        """Light the canvas, expose it, add the noise of a sensor and gamma-code it.

        Returns the image, uint8 (size, size, 3), and the illuminant, f64 (3,).
        """
        rng = self.rng
        gains = rng.normal(0, _ILLUMINANT_SD[0]) * RED_GREEN
        gains = np.exp(gains + rng.normal(0, _ILLUMINANT_SD[1]) * YELLOW_BLUE)
        gradient = self._slope(slice(None), slice(None), self.size) * rng.uniform(0, 0.6)
        light = self.light * np.exp(gradient)[..., None] * gains
        light *= rng.uniform(0.13, 0.32) / light.mean()
        light += rng.normal(0, 0.004, light.shape) * np.sqrt(np.maximum(light, 0.01) / 0.2)
        code = linear_to_srgb(np.clip(light, 0, 1))
        # Colour is coarser than luminance, as after a sensor's colour mosaic and JPEG.
        grey = code.mean(axis=-1, keepdims=True)
        coarse = rng.uniform(*_COLOUR_BLUR) * self.size / 64
        code = grey + gaussian_filter(code - grey, (coarse, coarse, 0), mode="nearest")
        return np.round(255 * np.clip(code, 0, 1)).astype(np.uint8), gains

    def _window(self, centre, reach):
        low = np.clip(np.floor(centre - reach), 0, self.size).astype(int)
        high = np.clip(np.ceil(centre + reach), 0, self.size).astype(int)
        return slice(low[0], high[0]), slice(low[1], high[1])

    def _local(self, rows, columns, centre, turn):
        """Coordinates in pixels around `centre` (y, x), turned by `turn` radians."""
        y, x = self.y[rows] - float(centre[0]), self.x[:, columns] - float(centre[1])
        cosine, sine = math.cos(turn), math.sin(turn)
        return x * cosine + y * sine, y * cosine - x * sine

    def _slope(self, rows, columns, extent):
        """A plane of slope 1 / `extent` towards the light, 0 in the window's middle."""
        y, x = self.y[rows], self.x[:, columns]
        up, right = self.sun[0] / extent, self.sun[1] / extent
        return (y - (y[0, 0] + y[-1, 0]) / 2) * up + (x - (x[0, 0] + x[0, -1]) / 2) * right

    def _reflectance(self):
        """Logarithm of a leaf's RGB reflectance up to the exposure: mostly grey and brown."""
        rng = self.rng
        yellow_blue = rng.normal(*_YELLOW_BLUE) * YELLOW_BLUE
        return rng.normal(0, _GREY_SD) + yellow_blue + rng.normal(*_RED_GREEN) * RED_GREEN

    def _texture(self, rows, columns, grating):
        """Logarithmic texture of a leaf: fractal noise, on some leaves a faint grating, or both."""
        rng = self.rng
        y, x = rng.integers(0, self.size, 2)
        height, width = self.light[rows, columns].shape[:2]
        texture = self.noise[y : y + height, x : x + width] * (0.4 * rng.uniform() ** 2)
        if grating and rng.uniform() < 1 / 5:
            turn, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
            frequency = 2 * np.pi * 0.35 * 2 ** rng.uniform(-3, 0)
            along = self.x[:, columns] * math.cos(turn) + self.y[rows] * math.sin(turn)
            wave = np.cos(frequency * along + phase)
            texture = texture + wave * rng.uniform(0.05, 0.15)
        return texture

    def _paint(self, distance, rows, columns, reflectance, extent, foreground=False):
        """Lay a leaf over the window, with the soft shadow that it throws on what lies under it.

        `distance` is its outline's signed distance in pixels, negative inside; `extent` its radius.
        """
        rng = self.rng
        shade = self._slope(rows, columns, extent) * rng.uniform(0, 0.3)
        # Curved leaves darken towards their rim.
        shade = shade - rng.uniform(0, 0.25) * np.clip(1 + distance / (0.3 * extent), 0, 1) ** 2
        tone = shade + self._texture(rows, columns, grating=not foreground)
        colour = np.exp(tone)[..., None] * np.exp(reflectance).astype(np.float32)
        cover = np.clip(0.5 - distance, 0, 1)
        shadow = 1 - rng.uniform(0, 0.5) * np.exp(-np.maximum(distance, 0) / rng.uniform(0.5, 2.5))
        window = self.light[rows, columns]
        window *= shadow[..., None]
        window += cover[..., None] * (colour - window)
        if foreground:
            self.mask[rows, columns] = cover
        else:
            self.mask[rows, columns] *= 1 - cover


def shape_distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the outline of one of `SHAPES`, negative inside.

    `u`, `v` are coordinates around its centre, `radius` its circumscribed circle's. Exact at the
    outline, a lower bound of the distance beyond a corner.
    """
    if shape == "disc":
        return np.hypot(u, v) - 0.9 * radius
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.75 * radius
    if shape == "triangle":
        return np.maximum(-v, np.abs(u) * (np.sqrt(3) / 2) + v / 2) - radius / 2
    if shape == "star":
        return _star(u, v, radius, points=5, waist=0.45)
    if shape == "cross":
        bar = 0.3 * radius
        across = np.maximum(np.abs(u) - 0.95 * radius, np.abs(v) - bar)
        return np.minimum(across, np.maximum(np.abs(v) - 0.95 * radius, np.abs(u) - bar))
    return np.abs(np.hypot(u, v) - 0.72 * radius) - 0.2 * radius


def pattern_wave(
    pattern: str,
    x: np.ndarray,
    y: np.ndarray,
    frequency: float,
    radius: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """One of `PATTERNS` in -1..1, at coordinates in pixels around the object's centre (y down).

    `frequency` in cycles a pixel, of rays halfway to `radius`. Phase, polarity and sharpness (from
    sinusoidal to nearly square) are random, and so is the direction of checks and dots.
    """
    phase = rng.uniform(0, 2 * np.pi)
    omega = 2 * np.pi * frequency

    def along(degrees):
        angle = np.deg2rad(degrees)
        return omega * (x * math.cos(angle) + y * math.sin(angle))

    if pattern == "rings":
        wave = np.cos(omega * np.hypot(x, y) + phase)
    elif pattern == "rays":
        count = max(3, round(omega * radius / 2))
        # Where they meet, rays are too narrow for pixels.
        reach = np.minimum(1, np.hypot(x, y) * 2 / count) ** 4
        wave = reach * np.cos(count * np.arctan2(y, x) + phase)
    elif pattern == "checks":
        # The product has the diagonals' frequency, which is larger by the root of 2.
        turn = rng.uniform(0, 360)
        wave = np.cos(along(turn) / math.sqrt(2) + phase)
        wave = wave * np.cos(along(turn + 90) / math.sqrt(2) + rng.uniform(0, 2 * np.pi))
    elif pattern == "dots":
        # Three gratings make a hexagonal lattice, from -1.5 to 3.
        turn = rng.uniform(0, 360)
        wave = sum(np.cos(along(turn + each)) for each in (0, 120, 240))
        wave = (wave / 2.25 - 1 / 3) * rng.choice([-1, 1])
    else:
        turn = STRIPE_DEGREES[pattern.removesuffix(" stripes")]
        wave = np.cos(along(turn + rng.uniform(-_STRIPE_TURN, _STRIPE_TURN)) + phase)
    sharpness = 0.3 * 2 ** rng.uniform(0, 4)
    return np.tanh(sharpness * wave) / math.tanh(sharpness)


def _star(u, v, radius, points, waist):
    """Fold the plane into half a spike, whose outline is one straight edge."""
    half = np.pi / points
    angle = np.abs(np.mod(np.arctan2(v, u), 2 * half) - half)
    reach = np.hypot(u, v)
    # Spikes point to angle 0 after the fold, waists to `half`.
    inner = waist * radius * np.array([np.cos(half), np.sin(half)])
    edge = inner - np.array([radius, 0.0])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (reach * np.cos(angle) - radius) * normal[0] + reach * np.sin(angle) * normal[1]


def _fractal_noise(size, rng):
    """Periodic noise with an amplitude spectrum of 1/f, mean 0, variance 1, f32 (size, size)."""
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None, :]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / frequency
    noise = np.fft.irfft2(spectrum, (size, size))
    return (noise / noise.std()).astype(np.float32)
