"""Pictures of the atlas: what is shown of each channel, as tiles, sprite sheets and strips.

A tile draws one kind of picture of any channel of a layer, read from the stages' files when it is
drawn. A sprite sheet holds one tile of each of some channels (thumbnails of the grid), a strip all
tiles of one channel (its passport). Receptive fields of up to `style.PIXELATED` pixels
are stored pixel by pixel and enlarged by the browser.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from rfatlas.figures import sheets, style

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


#: One kind of picture of the channels of a layer; the register of stages has its caption.
#: `draw(channel)` returns the picture (S, S, 3), uint8 or float in 0..1, and which of its pixels
#: (S, S) lie outside the image; None where there is no picture of that channel. `size` is S.
Tile = namedtuple("Tile", "name size draw")


def tiles(
    files: Mapping[str, h5py.File | h5py.Group], image: np.ndarray, yx: np.ndarray
) -> list[Tile]:
    """Return the tiles of a layer that its files, by stage, have the data for.

    `image` (C, K), -1 where there is none, and `yx` (C, K, 2) are image and position of the units
    that the receptive fields were made from.
    """
    found = []
    if "receptive_fields" in files:
        found += _patches(files["receptive_fields"], image, yx)
    for stage, make in TILES:
        if stage in files:
            found += make(files[stage])
    return found


def _rows(file: h5py.File, name: str = "channel") -> dict[int, int]:
    """Map each channel that a file holds to its row."""
    return {int(channel): row for row, channel in enumerate(file[name][:])}


def _patches(file: h5py.File, image: np.ndarray, yx: np.ndarray) -> list[Tile]:
    """What the top units looked at."""
    rows = _rows(file)

    def draw(rank: int, channel: int) -> tuple[np.ndarray, np.ndarray] | None:
        if channel not in rows or image[channel, rank] < 0:
            return None
        return sheets.patch(file, rows[channel], rank, yx[channel, rank])

    count, size = file["patch"].shape[1:3]
    return [Tile(f"patch_{rank}", size, partial(draw, rank)) for rank in range(min(PATCHES, count))]


def _field(
    name: str,
    rows: Mapping[int, int],
    fields: Sequence[Sequence],
    show: Callable[[np.ndarray], np.ndarray],
    count: Sequence | None = None,
) -> Tile:
    """Return the tile of fields by row, (3, S, S) each.

    `show` makes a picture (S, S, 3) of one or, for a scale in common, of several of them (k, 3, S,
    S), NaN where no unit has the pixel: where `count` (n, S, S) is 0; without `count`, where they
    are not finite, and a field of zeros is none.
    """

    def draw(channel: int) -> tuple[np.ndarray, np.ndarray] | None:
        if channel not in rows:
            return None
        row = rows[channel]
        found = np.stack([np.asarray(field[row]) for field in fields])
        if count is None:
            seen = np.isfinite(found).any((0, 1)) & found.any()
        else:
            seen = np.asarray(count[row]) > 0
        return (show(np.where(seen, found, np.nan)), ~seen) if seen.any() else None

    return Tile(name, fields[0].shape[-1], draw)


def _image(fields: np.ndarray) -> np.ndarray:
    return sheets.plain(fields[0])


def _signed(fields: np.ndarray, place: int = 0) -> np.ndarray:
    """Show one of several fields on a scale in common."""
    return np.moveaxis(style.signed_rgb(fields)[..., place], 0, -1)


def _axis(fields: np.ndarray, axis: int, colour: np.ndarray) -> np.ndarray:
    """Show one of three maps in its colours, on a scale in common."""
    shown = np.nan_to_num(fields[0, axis]) / style.display_range(fields)
    return (_GREY + _GREY * shown[..., None] * colour).clip(0, 1)


def _means(file: h5py.File) -> list[Tile]:
    shows = {
        "mean_image": _image,
        "mean_gradient": _signed,
        "effective": lambda fields: style.positive_rgb(fields[0]),
    }
    rows, count = _rows(file), file["count"]
    return [_field(name, rows, [file[name]], show, count) for name, show in shows.items()]


def _stimuli(file: h5py.File) -> list[Tile]:
    names = {"stimulus": "image", "off_stimulus": "off_image"}
    rows = _rows(file)
    return [_field(name, rows, [file[each]], _image) for name, each in names.items()]


def _opponency(file: h5py.File) -> list[Tile]:
    """The mean gradient along the three opponent axes."""
    if "field_dkl" not in file:
        return []
    rows, fields = _rows(file, "field_channel"), [file["field_dkl"]]
    colours = np.asarray(file.attrs["axis_change"], float)
    colours = colours / np.abs(colours).max(axis=1, keepdims=True)
    return [
        _field(name, rows, fields, partial(_axis, axis=axis, colour=colours[axis]))
        for axis, name in enumerate(("dkl_lum", "dkl_lm", "dkl_s"))
    ]


def _virtual(group: h5py.Group) -> list[Tile]:
    names = {"virtual_filter": "filter", "virtual_linear": "linear"}
    return [
        _field(name, {row: row for row in range(len(group[each]))}, [group[each]], _signed)
        for name, each in names.items()
        if each in group
    ]


def _parts(file: h5py.File) -> list[Tile]:
    """The parts of the mean gradient through skip connection and residual branch."""
    if "parts" not in file:
        return []
    names, group = ("skip", "residual"), file["parts"]
    rows, count = _rows(file), group["count"]
    parts = [group[name] for name in names]

    def show(fields: np.ndarray, place: int) -> np.ndarray:
        # Pixels that no unit has are zeros to the scale.
        return _signed(np.nan_to_num(fields), place)

    return [
        _field(name, rows, parts, partial(show, place=place), count)
        for place, name in enumerate(names)
    ]


#: What makes the tiles of a stage, in the order of a strip.
TILES = (
    ("receptive_fields", _means),
    ("preferred_stimulus", _stimuli),
    ("color", _opponency),
    ("virtual_filters", _virtual),
    ("receptive_fields", _parts),
)


# ---- sheets and strips


def side(size: int, largest: int) -> int:
    """Return the stored side of a tile: its own pixels if they are few, else `largest`."""
    return size if size <= style.PIXELATED else largest


def sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Put square uint8 pictures (s, s, 3) of one size side by side, `columns` in a row, row by row.

    Empty places are mid grey.
    """
    size = len(pictures[0])
    columns = min(columns, len(pictures))
    whole = np.full((-(-len(pictures) // columns) * size, columns * size, 3), 128, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = (size * place for place in divmod(index, columns))
        whole[y : y + size, x : x + size] = picture
    return whole


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
    layer's last; `passports/<layer>/<channel>.webp` all tiles of a channel. Returns `strip`:
    `side`, `columns`, `rows` and the names of its `tiles` in their order; `window`: the side of the
    mean gradient in pixels; `sprites`: by kind `side`, `columns` and `tiles` of a sheet, and
    `gaps`, the ranges [first, last] of channels without a picture; and by channel the names of the
    tiles that it has none for (hatched all over).
    """
    if not tiles:
        return {"strip": None, "window": None, "sprites": {}}, [[] for _ in range(channels)]
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
            found = tile.draw(channel)
            if found is None:
                found = np.zeros((1, 1, 3)), np.ones((1, 1), bool)
                missing[-1].append(tile.name)
            strip.append(style.tile(*found, strip_side, coarse=False))
            if tile.name in kinds:
                small = style.tile(*found, sides[tile.name], coarse=False)
                thumbnails[tile.name].append(small)
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
            "tiles": [tile.name for tile in tiles],
        },
        "window": next((tile.size for tile in tiles if tile.name == "mean_gradient"), None),
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
