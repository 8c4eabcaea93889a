"""Stage `scenes`: labelled synthetic scenes with the colour statistics of photographs.

A scene is a dead-leaves picture (Matheron 1968; Lee, Mumford & Huang 2001): leaves whose radii
follow a power law with exponent -3 occlude one another, which gives images the power-law spectrum
of photographs. Each leaf has its own reflectance, shading and texture. One foreground object,
partly occluded, carries the label: its shape (`SHAPES`) and the hue of its reflectance (`HUES`).
Everything is lit by one random illuminant.

Reflectances are drawn in the logarithm of linear RGB on three axes (grey, yellow-blue, red-green)
whose standard deviations fall in that order, as Ruderman, Cronin & Chiao 1998 measured in natural
scenes. Light is composed linearly; the sRGB gamma is applied last.

Scene i of a seed has generators of its own, so that any range drawn by any number of processes is
the same.
"""

from __future__ import annotations

import csv
import logging
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from rfatlas.errors import RfatlasError
from rfatlas.files import disk, jobs, store, versions

log = logging.getLogger("rfatlas")

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring")
HUES = ("red", "yellow", "green", "blue")
CLASS_NAMES = tuple(f"{shape} {hue}" for shape in SHAPES for hue in HUES)

# Unit vectors of log RGB: red-green and yellow-blue; grey is (1, 1, 1).
RED_GREEN = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
YELLOW_BLUE = np.array([1.0, 1.0, -2.0]) / np.sqrt(6)
# Direction of each hue in the (red-green, yellow-blue) plane, degrees.
HUE_DEGREES = {"red": 20.0, "yellow": 90.0, "green": 160.0, "blue": 270.0}

#: Smallest and largest side of a scene in pixels.
SIZES = (16, 512)
# All in units of the natural logarithm: reflectances along grey (standard deviation) and along the
# two opponent axes (mean, standard deviation), the distance of foreground hues from grey (range),
# illuminants along red-green and yellow-blue (standard deviations). Chosen so that scenes, in code
# values, have about the luminance-to-chromatic ratio of photographs; tests/test_scenes.py says it
# in numbers.
_GREY_SD = 0.95
_YELLOW_BLUE = (0.14, 0.3)
_RED_GREEN = (0.02, 0.15)
_FOREGROUND_CHROMA = (0.4, 0.7)
# How much lighter or darker than what lies under it the foreground object is (range).
_FOREGROUND_CONTRAST = (0.4, 1.2)
_ILLUMINANT_SD = (0.06, 0.16)
_LEAVES = 64
# Standard deviation, in pixels of a 64-pixel scene, of the blur of colour (range).
_COLOUR_BLUR = (1.0, 2.0)
# Scenes that a worker process draws at a time.
_CHUNK = 64


@dataclass(frozen=True)
class Scene:
    """One scene.

    `image` uint8 (H, W, 3), sRGB; `label` index into `CLASS_NAMES`; `mask` f32 (H, W), the share of
    each pixel that the foreground object covers (0 to 1, occluders taken off); `illuminant` f64
    (3,), linear RGB gains with a mean logarithm of 0.
    """

    image: np.ndarray
    label: int
    mask: np.ndarray
    illuminant: np.ndarray


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Gamma-code linear light in 0..1 to sRGB code values in 0..1 (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_to_linear(code: np.ndarray) -> np.ndarray:
    """Linear light in 0..1 of sRGB code values in 0..1 (IEC 61966-2-1)."""
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def label(index: int, seed: int) -> int:
    """Label of scene `index`: every block of 24 scenes holds each class once, in a random order."""
    block, place = divmod(index, len(CLASS_NAMES))
    return int(np.random.default_rng([seed, 1, block]).permutation(len(CLASS_NAMES))[place])


def scene(index: int, size: int = 64, seed: int = 0) -> Scene:
    """Draw scene `index` (>= 0) of `seed` (>= 0), `size` pixels on a side."""
    rng = np.random.default_rng([seed, 0, index])
    target = label(index, seed)
    shape, hue = SHAPES[target // len(HUES)], HUES[target % len(HUES)]
    canvas = _Canvas(size, rng)

    canvas.ground()
    for radius in _radii(rng, _LEAVES, size).tolist():
        canvas.leaf(radius, rng.uniform(-0.1, 1.1, 2) * size)

    centre = size * (0.5 + rng.uniform(-0.14, 0.14, 2))
    radius = size * rng.uniform(0.2, 0.34)
    canvas.foreground(shape, hue, radius, centre)

    for _ in range(rng.integers(0, 4)):
        # Occluders reach over the rim of the object and leave most of it visible.
        angle = rng.uniform(0, 2 * np.pi)
        reach = radius * rng.uniform(0.7, 1.3)
        place = centre + reach * np.array([np.cos(angle), np.sin(angle)])
        canvas.leaf(size * rng.uniform(0.04, 0.11), place)

    return canvas.photograph(target)


def draw(
    count: int, size: int = 64, seed: int = 0, start: int = 0, processes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes `start` to `start + count - 1` of `seed`.

    Returns images uint8 (count, size, size, 3), sRGB, and labels int64 (count,), indices into
    `CLASS_NAMES`. The result does not depend on `processes`. Raises RfatlasError where an argument
    is out of its range.
    """
    check(count, size, seed)
    if start < 0:
        raise RfatlasError(f"scenes: start is {start}, but must be 0 or more")
    images = np.empty((count, size, size, 3), np.uint8)
    labels = np.empty(count, np.int64)
    for position, drawn in enumerate(_scenes(range(start, start + count), size, seed, processes)):
        images[position], labels[position] = drawn
    return images, labels


def write(
    folder: Path | str,
    table: Path | str,
    count: int,
    size: int = 64,
    seed: int = 0,
    processes: int = 1,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Write `count` scenes as `<folder>/<label>_<name>/NNNNN.png` and list them in `table`.

    The columns of the CSV file `table` are file (relative to the table), label and class_name.
    `progress` wraps the iterator over scenes. Killed, the work resumes from `<folder>.partial`.
    Raises RfatlasError where an argument is out of its range, or the disk is full.
    """
    check(count, size, seed)
    folder, table = Path(folder), Path(table)
    made_from = {"count": count, "size": size, "seed": seed, "version": versions.stage("scenes")}
    partial = store.Partial(folder, made_from)
    drawn = partial.folder / "scenes"
    for number, name in enumerate(CLASS_NAMES):
        (drawn / _class_folder(number, name)).mkdir(parents=True, exist_ok=True)
    table.parent.mkdir(parents=True, exist_ok=True)
    labels = [label(index, seed) for index in range(count)]
    names = [
        Path(_class_folder(number, CLASS_NAMES[number])) / f"{index:05d}.png"
        for index, number in enumerate(labels)
    ]
    left = [index for index, name in enumerate(names) if not (drawn / name).exists()]
    if len(left) < count:
        log.info("resuming: %d of %d scenes are drawn", count - len(left), count)
    pictures = _scenes(left, size, seed, processes)
    for index, (image, _) in zip(left, progress(pictures), strict=True):
        temporary = partial.folder / "unfinished.png"
        try:
            Image.fromarray(image).save(temporary)
        except OSError as error:
            raise disk.failed(folder / names[index], error) from error
        os.replace(temporary, drawn / names[index])
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(drawn, folder)
    inside = Path(os.path.relpath(folder, table.parent))
    rows = {
        "file": [(inside / name).as_posix() for name in names],
        "label": labels,
        "class_name": [CLASS_NAMES[number] for number in labels],
    }
    with disk.text(table) as handle:
        written = csv.writer(handle, lineterminator="\n")
        written.writerow(rows)
        written.writerows(zip(*rows.values(), strict=True))
    partial.finish()


def check(count: int, size: int, seed: int) -> None:
    """Raise RfatlasError where count, size (pixels) or seed is out of its range."""
    if count < 1:
        raise RfatlasError(f"scenes: count is {count}, but must be 1 or more")
    if not SIZES[0] <= size <= SIZES[1]:
        raise RfatlasError(f"scenes: size is {size}, but must lie in {SIZES[0]}..{SIZES[1]} pixels")
    if seed < 0:
        raise RfatlasError(f"scenes: seed is {seed}, but must be 0 or more")


def _class_folder(number, name):
    return f"{number:02d}_{name.replace(' ', '_')}"


def _scenes(indices, size, seed, processes):
    """Iterate over (image, label) of each scene of the range `indices`, in order."""
    chunks = [(indices[i : i + _CHUNK], size, seed) for i in range(0, len(indices), _CHUNK)]
    workers = min(processes, len(chunks))
    if workers <= 1:
        return _flat(map(_chunk, chunks))
    # Forked, since other ways run the calling script again in each worker; safe, since they only
    # use numpy. At once, before a progress bar starts its thread.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, jobs.end_with_parent, (os.getpid(),))
    return _flat(pool.map(_chunk, chunks), pool)


def _flat(drawn, pool=None):
    """The scenes of all chunks; ends the pool with them."""
    try:
        for chunk in drawn:
            yield from chunk
    except BrokenProcessPool as error:
        raise RfatlasError(
            "scenes: a worker process died, perhaps for lack of memory (use fewer threads); run "
            "again to go on"
        ) from error
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _chunk(arguments):
    indices, size, seed = arguments
    scenes = (scene(index, size, seed) for index in indices)
    return [(one.image, one.label) for one in scenes]


def _radii(rng, count, size):
    """Radii in pixels with density r^-3 between 3 % and 60 % of the scene's size."""
    low, high = 0.03 * size, 0.6 * size
    share = rng.uniform(0, 1, count)
    # The inverse of the cumulative distribution.
    return (low**-2 + share * (high**-2 - low**-2)) ** -0.5


class _Canvas:
    """A scene being painted, back to front.

    `light` is reflectance times shading in linear RGB, f32 (size, size, 3), before the illuminant;
    `mask` as in `Scene`.
    """

    def __init__(self, size, rng):
        self.size, self.rng = size, rng
        centres = np.arange(size, dtype=np.float32) + 0.5
        self.y, self.x = centres[:, None], centres[None, :]
        self.light = np.zeros((size, size, 3), np.float32)
        self.mask = np.zeros((size, size), np.float32)
        # One direction of light for the whole scene shades its leaves and throws its shadows.
        angle = rng.uniform(0, 2 * np.pi)
        self.sun = math.sin(angle), math.cos(angle)
        self.noise = np.tile(_fractal_noise(size, rng), (2, 2))

    def ground(self):
        everything = np.full((self.size, self.size), -1.0, np.float32)
        self._paint(everything, slice(None), slice(None), self._reflectance(), self.size)

    def leaf(self, radius, centre):
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

    def foreground(self, shape, hue, radius, centre):
        rng = self.rng
        direction = np.deg2rad(HUE_DEGREES[hue] + rng.uniform(-12, 12))
        chroma = rng.uniform(*_FOREGROUND_CHROMA)
        tint = chroma * (np.cos(direction) * RED_GREEN + np.sin(direction) * YELLOW_BLUE)
        rows, columns = self._window(centre, 1.5 * radius + 3)
        u, v = self._local(rows, columns, centre, rng.uniform(0, 2 * np.pi))
        stretch = np.exp(rng.uniform(-0.12, 0.12))
        distance = shape_distance(shape, u * stretch, v / stretch, radius)
        # A step in lightness draws the outline, so that the shape does not depend on hue alone.
        ground = np.log(self.light[rows, columns][distance < 0]).mean()
        step = rng.uniform(*_FOREGROUND_CONTRAST) * rng.choice([-1, 1])
        reflectance = ground + step + tint
        self._paint(distance, rows, columns, reflectance, radius, foreground=True)

    def photograph(self, target):
        """Light the canvas, expose it, add the noise of a sensor and gamma-code it."""
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
        image = np.round(255 * np.clip(code, 0, 1)).astype(np.uint8)
        return Scene(image=image, label=target, mask=self.mask, illuminant=gains)

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

    def _texture(self, rows, columns):
        """Logarithmic texture of a leaf: fractal noise, on every third leaf a grating, or both."""
        rng = self.rng
        y, x = rng.integers(0, self.size, 2)
        height, width = self.light[rows, columns].shape[:2]
        texture = self.noise[y : y + height, x : x + width] * (0.4 * rng.uniform() ** 2)
        if rng.uniform() < 1 / 3:
            turn, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
            frequency = 2 * np.pi * 0.35 * 2 ** rng.uniform(-3, 0)
            along = self.x[:, columns] * math.cos(turn) + self.y[rows] * math.sin(turn)
            wave = np.cos(frequency * along + phase)
            texture = texture + wave * rng.uniform(0.05, 0.25)
        return texture

    def _paint(self, distance, rows, columns, reflectance, extent, foreground=False):
        """Lay a leaf over the window, with the soft shadow that it throws on what lies under it.

        `distance` is its outline's signed distance in pixels, negative inside; `extent` its radius.
        """
        rng = self.rng
        shade = self._slope(rows, columns, extent) * rng.uniform(0, 0.3)
        # Curved leaves darken towards their rim.
        shade = shade - rng.uniform(0, 0.25) * np.clip(1 + distance / (0.3 * extent), 0, 1) ** 2
        tone = shade + self._texture(rows, columns)
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
    """Signed distance in pixels to the outline of a foreground shape, negative inside.

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
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.72 * radius) - 0.2 * radius
    raise RfatlasError(f"scenes: shape is {shape!r}, but must be one of {', '.join(SHAPES)}")


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
