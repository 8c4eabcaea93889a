"""Stage `scenes`: labelled synthetic scenes with the colour statistics of photographs.

A scene is a dead-leaves picture (Matheron 1968; Lee, Mumford & Huang 2001): leaves whose radii
follow a power law with exponent -3 occlude one another, which gives images the power-law spectrum
of photographs. Each leaf has its own reflectance, shading and texture (`rfatlas.images.canvas`).
One foreground object, partly occluded, carries the label: its pattern (`PATTERNS`) and in which two
colours that is (`COLOURS`), equally bright ones but for black and white. Its shape and mean colour
are random and say nothing. Everything is lit by one random illuminant.

Scene i of a seed has generators of its own, so that any range drawn by any number of processes is
the same.
"""

import contextlib
import csv
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rfatlas.errors import RfatlasError
from rfatlas.files import disk
from rfatlas.images import pool
from rfatlas.images.canvas import COLOURS, PATTERNS, SHAPES, Canvas, radii

CLASS_NAMES = tuple(f"{colours} {pattern}" for pattern in PATTERNS for colours in COLOURS)
_LEAVES = 36
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


def label(index: int, seed: int) -> int:
    """Label of scene `index`: every block of 24 scenes holds each class once, in a random order."""
    block, place = divmod(index, len(CLASS_NAMES))
    return int(np.random.default_rng([seed, 1, block]).permutation(len(CLASS_NAMES))[place])


def scene(index: int, size: int = 64, seed: int = 0) -> Scene:
    """Draw scene `index` (>= 0) of `seed` (>= 0), `size` pixels on a side."""
    rng = np.random.default_rng([seed, 0, index])
    target = label(index, seed)
    canvas = Canvas(size, rng)

    canvas.ground()
    for radius in radii(rng, _LEAVES, size).tolist():
        canvas.leaf(radius, rng.uniform(-0.1, 1.1, 2) * size)

    centre = size * (0.5 + rng.uniform(-0.1, 0.1, 2))
    radius = size * rng.uniform(0.38, 0.56)
    colours, pattern = CLASS_NAMES[target].split(" ", 1)
    canvas.foreground(rng.choice(SHAPES), pattern, colours, radius, centre)

    for _ in range(rng.integers(0, 4)):
        # Occluders reach over the rim of the object and leave most of it visible.
        angle = rng.uniform(0, 2 * np.pi)
        reach = radius * rng.uniform(0.7, 1.3)
        place = centre + reach * np.array([np.cos(angle), np.sin(angle)])
        canvas.leaf(size * rng.uniform(0.05, 0.14), place)

    image, illuminant = canvas.photograph()
    return Scene(image, target, canvas.mask, illuminant)


def turned(labels: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Labels (n,) of scenes after `turns` (n,), 0 to 7, of a sum of 1 (rows in reverse), 2 (columns
    in reverse) and then 4 (rows and columns exchanged).

    Stripes get the name of what they have become; the other patterns keep theirs.
    """
    pattern, colours = np.divmod(labels, len(COLOURS))
    upright, rising, level, falling = (
        PATTERNS.index(f"{name} stripes") for name in ("upright", "rising", "level", "falling")
    )
    after = np.tile(np.arange(len(PATTERNS)), (8, 1))
    for turn in range(8):
        if turn in (1, 2, 5, 6):
            after[turn, [rising, falling]] = falling, rising
        if turn & 4:
            after[turn, [upright, level]] = level, upright
    return after[turns, pattern] * len(COLOURS) + colours


def draw(
    count: int, size: int = 64, seed: int = 0, processes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the first `count` scenes of `seed`.

    Returns images uint8 (count, size, size, 3), sRGB, and labels int64 (count,), indices into
    `CLASS_NAMES`. The result does not depend on `processes`.
    """
    images = np.empty((count, size, size, 3), np.uint8)
    labels = np.empty(count, np.int64)
    drawn = _scenes(range(count), size, seed, processes)
    for position, (image, label) in enumerate(drawn):
        images[position], labels[position] = image, label
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
    `progress` wraps the iterator over scenes. Raises RfatlasError where the disk is full.
    """
    folder, table = Path(folder), Path(table)
    unfinished = folder.with_name(folder.name + ".tmp")
    for old in (folder, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    table.parent.mkdir(parents=True, exist_ok=True)
    places = [f"{number:02d}_{name.replace(' ', '_')}" for number, name in enumerate(CLASS_NAMES)]
    for place in places:
        (unfinished / place).mkdir(parents=True)
    inside = Path(os.path.relpath(folder, table.parent))
    rows = []
    with contextlib.closing(_scenes(range(count), size, seed, processes)) as pictures:
        for index, (image, number) in enumerate(progress(pictures)):
            name = Path(places[number], f"{index:05d}.png")
            try:
                Image.fromarray(image).save(unfinished / name)
            except OSError as error:
                raise disk.failed(folder / name, error) from error
            rows.append(((inside / name).as_posix(), number, CLASS_NAMES[number]))
    os.replace(unfinished, folder)
    with disk.text(table) as handle:
        written = csv.writer(handle, lineterminator="\n")
        written.writerow(("file", "label", "class_name"))
        written.writerows(rows)


def _scenes(indices: range, size: int, seed: int, processes: int) -> Iterator:
    """Return an iterator over (image, label) of each scene of the range, in order."""

    def draw_chunk(chunk: range) -> list[tuple[np.ndarray, int]]:
        return [(one.image, one.label) for one in (scene(index, size, seed) for index in chunk)]

    chunks = [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]
    if min(processes, len(chunks)) <= 1:
        return _one_by_one(map(draw_chunk, chunks))
    return _one_by_one(pool.in_order(draw_chunk, chunks, processes))


def _one_by_one(drawn: Iterator[list]) -> Iterator:
    try:
        for chunk in drawn:
            yield from chunk
    except BrokenProcessPool as error:
        raise RfatlasError(
            "scenes: a worker process died, perhaps for lack of memory (use fewer threads)"
        ) from error
