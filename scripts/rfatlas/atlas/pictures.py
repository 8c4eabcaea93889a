"""Pictures of the atlas: what is shown of each channel, as tiles, sprite sheets and strips.

A tile draws one kind of picture of any channel of a layer, read from the stages' files when it is
drawn. A sprite sheet holds one tile of each of some channels (thumbnails of the grid), a strip all
tiles of one channel (its passport). Receptive fields of up to `style.PIXELATED` pixels
are stored pixel by pixel and enlarged by the browser.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from rfatlas.figures import style
from rfatlas.files import store

#: Side in pixels of the thumbnails in the grid and of the pictures in a passport.
THUMBNAIL, PICTURE = 72, 112

#: Tiles in a row of a sprite sheet and of a strip, and in a whole sheet. A browser decodes a whole
#: sheet for one tile, and a sorted grid shows tiles of many sheets: small ones cost less memory.
SHEET_COLUMNS, STRIP_COLUMNS, SHEET = 4, 9, 16

#: Patches of a passport at most.
PATCHES = 9

#: What the thumbnails can show, in this order: name of a tile and how the choice is called.
THUMBNAILS = {
    "mean_gradient": "mean gradient",
    "patch_0": "top patch",
    "mean_image": "mean image",
    "effective": "effective RF",
    "stimulus": "preferred stimulus",
}

#: Quality of lossy WebP; 80 halves the size of 90 and differs from it only under a magnifier.
_QUALITY = 80
_GREY = 0.5


@dataclass(frozen=True)
class Tile:
    """One kind of picture of the channels of a layer.

    `draw` returns of a channel the picture (S, S, 3), uint8 or float in 0..1, and which of its
    pixels (S, S) lie outside the image; None where there is no picture of that channel. `size` is
    S, `title` the caption, `note` one sentence on how to read it.
    """

    name: str
    title: str
    note: str
    size: int
    draw: Callable[[int], tuple[np.ndarray, np.ndarray] | None]


def tiles(
    files: Mapping[str, h5py.File | h5py.Group],
    top: h5py.Group,
    layer: Mapping,
    image_size: int,
    source: str,
) -> list[Tile]:
    """Return the tiles of a layer that its files have the data for.

    Parameters
    ----------
    files
        Open file of the layer by stage; of `virtual_filters` its group.
    top
        The layer's group in activations.h5, for the positions of the units.
    layer
        The layer's entry in model.json.
    image_size
        Side of the network's input, pixels.
    source
        Which list of units the receptive fields were made from.
    """
    found = []
    if "receptive_fields" in files:
        found += _receptive_field(files["receptive_fields"], top, layer, image_size, source)
    if "preferred_stimulus" in files:
        found += _stimuli(files["preferred_stimulus"])
    if "color" in files:
        found += _opponency(files["color"])
    if "virtual_filters" in files:
        found += _virtual(files["virtual_filters"])
    if "parts" in files.get("receptive_fields", {}):
        found += _parts(files["receptive_fields"])
    return found


def _rows(file: h5py.File, name: str = "channel") -> dict[int, int]:
    """Map each channel that a file holds to its row."""
    return {int(channel): row for row, channel in enumerate(file[name][:])}


def _receptive_field(
    file: h5py.File, top: h5py.Group, layer: Mapping, image_size: int, source: str
) -> list[Tile]:
    rows = _rows(file)
    patches, count = store.array(file["patch"]), store.array(file["count"])
    size = patches.shape[2]
    image, yx = top[f"{source}_image"][:, :PATCHES], top[f"{source}_yx"][:, :PATCHES]

    def patch(rank: int, channel: int) -> tuple[np.ndarray, np.ndarray] | None:
        if channel not in rows or image[channel, rank] < 0:
            return None
        blank = np.zeros((size, size), bool)
        if layer["size"] is not None:
            unit = yx[channel, rank]
            blank = style.outside(unit, layer["start"], layer["stride"], size, image_size)
        return patches[rows[channel], rank], blank

    def mean(field: np.ndarray, show: Callable, channel: int):
        if channel not in rows or not count[rows[channel]].any():
            return None
        nowhere = count[rows[channel]] == 0
        values = np.where(nowhere, np.nan, field[rows[channel]])
        return show(values), nowhere

    def image_of(values: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.nan_to_num(values), 0, -1)

    found = [
        Tile(
            f"patch_{rank}",
            f"{rank + 1}",
            "What the unit looked at; hatched outside the image.",
            size,
            lambda channel, rank=rank: patch(rank, channel),
        )
        for rank in range(min(PATCHES, patches.shape[1]))
    ]
    means = {
        "mean_image": (
            "mean image",
            "Mean of what the top units looked at.",
            image_of,
        ),
        "mean_gradient": (
            "mean gradient",
            "How the activation rises with each pixel, mean over the top units; "
            "grey is 0, scaled to its own largest values.",
            style.signed_rgb,
        ),
        "effective": (
            "effective RF",
            "Mean of |gradient| × image: the pixels that count, in their colours; black is 0.",
            style.positive_rgb,
        ),
    }
    for name, (title, note, show) in means.items():
        field = store.array(file[name])
        found.append(
            Tile(
                name,
                title,
                note,
                size,
                lambda channel, field=field, show=show: mean(field, show, channel),
            )
        )
    return found


def _stimuli(file: h5py.File) -> list[Tile]:
    rows = _rows(file)
    names = {
        "image": ("stimulus", "preferred stimulus", "The input found to drive the unit most."),
        "off_image": (
            "off_stimulus",
            "least preferred stimulus",
            "The input found to suppress the unit most.",
        ),
    }
    found = []
    for dataset, (name, title, note) in names.items():
        images = store.array(file[dataset])

        def draw(channel: int, images: np.ndarray = images):
            if channel not in rows or not np.isfinite(images[rows[channel]]).all():
                return None
            picture = np.moveaxis(np.asarray(images[rows[channel]]), 0, -1)
            return picture, np.zeros(picture.shape[:2], bool)

        found.append(Tile(name, title, note, images.shape[-1], draw))
    return found


def _opponency(file: h5py.File) -> list[Tile]:
    """The mean gradient along the three opponent axes, in the colours of the axes, on one scale."""
    if "field_dkl" not in file:
        return []
    rows = _rows(file, "field_channel")
    fields = store.array(file["field_dkl"])
    colours = np.asarray(file.attrs["axis_change"], float)
    colours = colours / np.abs(colours).max(axis=1, keepdims=True)
    found = []
    for axis, (name, title) in enumerate(
        {"dkl_lum": "L+M", "dkl_lm": "L−M", "dkl_s": "S−(L+M)"}.items()
    ):

        def draw(channel: int, axis: int = axis):
            if channel not in rows:
                return None
            maps = np.asarray(fields[rows[channel]])
            if not np.isfinite(maps).any() or not maps.any():
                return None
            map_ = np.nan_to_num(maps[axis]) / style.display_range(maps)
            picture = _GREY + _GREY * map_[..., None] * colours[axis]
            return picture.clip(0, 1), ~np.isfinite(maps).any(0)

        note = (
            f"The mean gradient along the axis {title}, in its colours; grey is 0, "
            "the three maps on one scale."
        )
        found.append(Tile(name, title, note, fields.shape[-1], draw))
    return found


def _virtual(group: h5py.Group) -> list[Tile]:
    names = {
        "filter": (
            "virtual_filter",
            "virtual filter",
            "The first layer's kernels, composed through the skip connections alone.",
        ),
        "linear": (
            "virtual_linear",
            "its linear response",
            "The exact linear response of that path.",
        ),
    }
    found = []
    for dataset, (name, title, note) in names.items():
        if dataset not in group:
            continue
        filters = group[dataset]

        def draw(channel: int, filters: h5py.Dataset = filters):
            field = filters[channel]
            if not np.isfinite(field).all() or not field.any():
                return None
            return style.signed_rgb(field), np.zeros(field.shape[1:], bool)

        found.append(Tile(name, title, note, filters.shape[-1], draw))
    return found


def _parts(file: h5py.File) -> list[Tile]:
    """The parts of the mean gradient through skip connection and residual branch, on one scale."""
    rows, group = _rows(file), file["parts"]
    parts = {name: store.array(group[name]) for name in ("skip", "residual")}
    count = store.array(group["count"])
    titles = {"skip": "skip part", "residual": "residual part"}
    found = []
    for name, title in titles.items():

        def draw(channel: int, name: str = name):
            if channel not in rows or not count[rows[channel]].any():
                return None
            row = rows[channel]
            limit = style.display_range(np.stack([part[row] for part in parts.values()]))
            field = np.nan_to_num(parts[name][row]) / limit
            picture = np.moveaxis(_GREY + _GREY * field, 0, -1).clip(0, 1)
            return picture, count[row] == 0

        note = (
            "The part of the mean gradient that comes through the "
            + ("skip connection" if name == "skip" else "residual branch")
            + "; both parts on one scale."
        )
        found.append(Tile(name, title, note, parts[name].shape[-1], draw))
    return found


# ---- sheets and strips


def side(size: int, largest: int) -> int:
    """Return the stored side of a tile: its own pixels if they are few, else `largest`."""
    return size if size <= style.PIXELATED else largest


def place(index: int, columns: int, side: int) -> tuple[int, int]:
    """Return (x, y) of the top left corner of a tile in a picture of `columns` tiles a row."""
    row, column = divmod(index, columns)
    return column * side, row * side


def sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Put square uint8 pictures (s, s, 3) of one size side by side, `columns` in a row, row by row.

    Empty places are mid grey.
    """
    size = len(pictures[0])
    columns = min(columns, len(pictures))
    whole = np.full((-(-len(pictures) // columns) * size, columns * size, 3), 128, np.uint8)
    for index, picture in enumerate(pictures):
        x, y = place(index, columns, size)
        whole[y : y + size, x : x + size] = picture
    return whole


def draw(tile: Tile, channel: int, sizes: Sequence[int]) -> list[np.ndarray] | None:
    """Draw a tile of one channel at several sides; None where there is no picture."""
    found = tile.draw(channel)
    if found is None:
        return None
    picture, blank = found
    if picture.dtype != np.uint8:
        picture = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    return [_resized(picture, blank, size) for size in sizes]


def _resized(picture: np.ndarray, blank: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 (size, size, 3), hatched where `blank`: as `style.tile`, but with all levels of
    grey, which WebP needs to be small."""
    masked = blank.any()
    if masked:
        # Resampling must not draw an edge between the picture and the zeros outside the image.
        picture = np.where(blank[..., None], np.uint8(style.NEUTRAL), picture)
    small = len(picture) <= style.PIXELATED
    method = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
    shown = np.asarray(Image.fromarray(picture).resize((size, size), method))
    if not masked:
        return shown
    mask = Image.fromarray(blank.view(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.where(np.asarray(mask)[..., None] > 0, style.hatch(size), shown)


def save(pixels: np.ndarray, path: Path, lossless: bool) -> None:
    """Write uint8 (H, W, 3) as WebP."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # More effort (`method`) makes the files a few per cent smaller in several times the time.
    options = {"lossless": True, "quality": 30} if lossless else {"quality": _QUALITY}
    Image.fromarray(pixels).save(path, "WEBP", method=2, **options)


def write(
    tiles: Sequence[Tile], channels: int, folder: Path, layer: int
) -> tuple[dict, list[list[str]]]:
    """Write the sprite sheets and strips of a layer, and return how the pages find their way.

    `sprites/<tile>-<layer>-<sheet>.webp` has one thumbnail of each of SHEET channels, fewer in a
    layer's last; `passports/<layer>/<channel>.webp` all tiles of a channel.

    Returns
    -------
    `strip`: `side`, `columns`, `rows` and its `tiles` (name, title, note) in their order;
    `sprites`: by kind `side`, `columns` and `tiles` of a sheet, and `gaps`, the ranges [first,
    last] of channels without a picture; and by channel the names of the tiles that it has none for
    (hatched all over).
    """
    if not tiles:
        return {"strip": None, "sprites": {}}, [[] for _ in range(channels)]
    sizes = {tile.size for tile in tiles}
    # Small pictures of several sizes would not all be whole multiples of their pixels.
    strip_side = side(sizes.pop(), PICTURE) if len(sizes) == 1 else PICTURE
    kinds = [tile.name for tile in tiles if tile.name in THUMBNAILS]
    sides = {tile.name: side(tile.size, THUMBNAIL) for tile in tiles}
    thumbnails: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    missing: list[list[str]] = []
    for channel in range(channels):
        strip = []
        missing.append([])
        for tile in tiles:
            wanted = [strip_side, sides[tile.name]] if tile.name in kinds else [strip_side]
            drawn = draw(tile, channel, wanted)
            if drawn is None:
                drawn = [style.hatch(size) for size in wanted]
                missing[-1].append(tile.name)
            strip.append(drawn[0])
            if tile.name in kinds:
                thumbnails[tile.name].append(drawn[1])
        path = folder / "passports" / f"{layer:02d}" / f"{channel}.webp"
        save(sheet(strip, STRIP_COLUMNS), path, strip_side <= style.PIXELATED)
    for kind, pictures in thumbnails.items():
        for number, first in enumerate(range(0, channels, SHEET)):
            path = folder / "sprites" / f"{kind}-{layer:02d}-{number:02d}.webp"
            some = pictures[first : first + SHEET]
            save(sheet(some, SHEET_COLUMNS), path, sides[kind] <= style.PIXELATED)
    layout = {
        "strip": {
            "side": strip_side,
            "columns": min(STRIP_COLUMNS, len(tiles)),
            "rows": -(-len(tiles) // STRIP_COLUMNS),
            "tiles": [
                {"name": tile.name, "title": tile.title, "note": tile.note} for tile in tiles
            ],
        },
        "sprites": {
            kind: {
                "side": sides[kind],
                "columns": SHEET_COLUMNS,
                "tiles": SHEET,
                "gaps": _ranges([kind in names for names in missing]),
            }
            for kind in kinds
        },
    }
    return layout, missing


def _ranges(flags: Sequence[bool]) -> list[list[int]]:
    """Return the ranges [first, last] of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, flags, False].astype(int)))
    return [[int(first), int(stop) - 1] for first, stop in edges.reshape(-1, 2)]
