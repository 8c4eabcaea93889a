"""Sheets: figures of one layer with a row of pictures per channel.

Rows are in blocks side by side. Pictures are pixels of the page, put there without a second
resampling; labels and curves are drawn over them in the same coordinates, pixels from the top left
corner, y downwards.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import h5py
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rfatlas.figures import style
from rfatlas.files import store

#: Resolution of a sheet: its pixels are those of its pictures.
DPI = 100
#: A sheet is about so wide, in pixels, if it has enough rows.
WIDTH = 1540
#: What the title needs.
MIN_WIDTH = 860
#: No sheet has more channels: memory, and pictures that can be looked at.
MAX_CHANNELS = 200
#: Blocks have at least so many rows, as far as there are.
MIN_ROWS = 4

MARGIN, TITLE, HEADER, FOOTER = 16, 64, 44, 38
LABEL_WIDTH, GAP, GROUP_GAP, BLOCK_GAP = 84, 4, 12, 26
#: Between the lines of a label.
LINE = 14
OUTLINE = 190
#: From one side of a tile to the other.
ARROW = {"arrowstyle": "<->", "color": style.INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}

#: One line of a label or of the header, and its colour.
Line = tuple[str, str]


def files(given: Mapping, layers: Sequence[str], *stages: str) -> Iterator[tuple]:
    """Yield of each layer the name of its sheet, its own name and its open file of each stage.

    `given` holds by stage the paths of all layers; a stage that was off has None.
    """
    for depth, layer in enumerate(layers):
        with contextlib.ExitStack() as opened:
            paths = {stage: given[stage][depth] if given.get(stage) else None for stage in stages}
            found = (
                opened.enter_context(store.open(path, stage)) if path else None
                for stage, path in paths.items()
            )
            yield f"{depth:02d}_{layer}", layer, *found


@dataclass(frozen=True)
class Layout:
    """Where a sheet has its pictures: `rows` of `columns`, each `side` pixels wide, in `blocks`.

    The first `apart` columns are a group of their own.
    """

    rows: int
    columns: int
    side: int
    blocks: int
    apart: int = 0

    @property
    def per_block(self) -> int:
        """Rows of a block."""
        return -(-self.rows // self.blocks)

    @property
    def block_width(self) -> int:
        """Width of a block with its labels and the space behind it."""
        pictures = self.columns * (self.side + GAP) + (GROUP_GAP if self.apart else 0)
        return LABEL_WIDTH + pictures + BLOCK_GAP

    @property
    def width(self) -> int:
        """Width of the sheet."""
        return max(MIN_WIDTH, 2 * MARGIN + self.blocks * self.block_width)

    @property
    def height(self) -> int:
        """Height of the sheet."""
        return TITLE + HEADER + self.per_block * (self.side + GAP) + FOOTER + MARGIN

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return (x, y) of the top left corner of a picture."""
        block, place = divmod(row, self.per_block)
        x = MARGIN + block * self.block_width + LABEL_WIDTH + column * (self.side + GAP)
        x += GROUP_GAP if self.apart and column >= self.apart else 0
        return x, TITLE + HEADER + place * (self.side + GAP)

    def last_rows(self) -> list[int]:
        """Return the last row of each block."""
        step = self.per_block
        return [min(first + step, self.rows) - 1 for first in range(0, self.rows, step)]


def layout(rows: int, columns: int, side: int) -> Layout:
    """Return how so many rows of pictures are laid out."""
    rows = max(rows, 1)
    one = Layout(rows, columns, side, 1)
    wide = (WIDTH - 2 * MARGIN) // one.block_width
    blocks = max(1, min(wide, -(-rows // MIN_ROWS)))
    # As many blocks as the rows fill.
    return Layout(rows, columns, side, -(-rows // -(-rows // blocks)))


def chosen(total: int, limit: int) -> np.ndarray:
    """Return which channels a sheet shows: at most `limit`, evenly spread."""
    return style.evenly(total, min(limit, MAX_CHANNELS))


def count(shown: int, total: int) -> str:
    """Say how many channels a sheet shows of how many."""
    return f"all {shown} channels" if shown == total else f"{shown} of {total} channels"


def patch(fields: h5py.File, row: int, rank: int, yx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what a top unit at `yx` looks at, uint8 (S, S, 3), from the file of its layer of the
    stage `receptive_fields`; and which of the pixels (S, S) lie outside the image."""
    picture, place = fields["patch"][row, rank], fields.attrs
    at = place["start"], place["stride"], len(picture), place["image_size"]
    return picture, style.outside(yx, *at)


def plain(picture: np.ndarray) -> np.ndarray:
    """Return a picture (3, S, S) as it is, as (S, S, 3); NaN is black."""
    return np.moveaxis(np.nan_to_num(picture), 0, -1)


def fitting(window: int, side: int) -> int:
    """Return the side, about `side`, of pictures of `window` pixels: a multiple of few pixels."""
    return window * round(side / window) if window <= style.PIXELATED else side


class Sheet:
    """A sheet in the making: its `layout`, and the `axes` that curves and texts are drawn on, in
    pixels, y downwards."""

    def __init__(self, place: Layout, title: str, facts: str, headings: Sequence[str]):
        """Begin a sheet.

        `facts` is one line below the title, or two; `headings` (one or two lines each) name the
        columns, an empty one goes on with that before it; a sheet without any has nothing but its
        title.
        """
        self.layout = place
        self._canvas = np.full((place.height, place.width, 3), 255, np.uint8)
        self._figure = style.figure(place.width / DPI, place.height / DPI, DPI)
        self.axes: Axes = self._figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, place.width)
        self.axes.set_ylim(place.height, 0)
        self.axes.text(MARGIN, 12, title, fontsize=13, fontweight="bold", va="top")
        self.axes.text(MARGIN, 38, facts, fontsize=9, color=style.GREY, va="top")
        for last in place.last_rows() if headings else ():
            first = last // place.per_block * place.per_block
            x, y = place.corner(first, 0)
            self.axes.text(x - 8, y - 6, "channel", ha="right", va="bottom", fontsize=8.5)
            named = [column for column, heading in enumerate(headings) if heading]
            for column, after in zip(named, [*named[1:], len(headings)], strict=True):
                ends = (place.corner(first, end)[0] for end in (column, after - 1))
                middle = (sum(ends) + place.side) / 2
                words = {"ha": "center", "va": "bottom", "fontsize": 8.5}
                self.axes.text(middle, y - 6, headings[column], **words)

    def paint(self, row: int, column: int, pixels: np.ndarray) -> None:
        """Put pixels, uint8 (side, side, 3), in a place, with a hairline around it."""
        x, y = self.layout.corner(row, column)
        side = self.layout.side
        # The hairline keeps white pictures apart from the page.
        self._canvas[y - 1 : y + side + 1, x - 1 : x + side + 1] = OUTLINE
        self._canvas[y : y + side, x : x + side] = pixels

    def put(
        self, row: int, column: int, picture: np.ndarray, blank: np.ndarray | None = None
    ) -> None:
        """Put a picture (S, S, 3), see `style.tile`, in a place; hatched where `blank` (S, S)."""
        if blank is None:
            blank = np.zeros(picture.shape[:2], bool)
        self.paint(row, column, style.tile(picture, blank, self.layout.side))

    def label(self, row: int, channel: int, lines: Sequence[Line], color: str = style.INK) -> None:
        """Write a channel's number, in `color`, and lines below it at the left of its row."""
        x, y = self.layout.corner(row, 0)
        top = y + self.layout.side / 2 - LINE / 2 * len(lines)
        words = {"ha": "right", "va": "center"}
        self.axes.text(
            x - 8, top, str(channel), fontsize=10, fontweight="bold", color=color, **words
        )
        for index, (text, line_color) in enumerate(lines, 1):
            self.axes.text(x - 8, top + LINE * index, text, fontsize=8, color=line_color, **words)

    def below(self, column: int, text: str, arrow: bool = False) -> None:
        """Write what holds for a column under each block; with `arrow` as the width of a tile."""
        side = self.layout.side
        for row in self.layout.last_rows():
            x, y = self.layout.corner(row, column)
            y += side + 9
            if arrow:
                self.axes.annotate("", (x, y), (x + side, y), arrowprops=ARROW)
            words = {"ha": "center", "va": "top", "fontsize": 8}
            self.axes.text(x + side / 2, y + (4 if arrow else -3), text, **words)

    def finish(self) -> Figure:
        """Return the figure; a PNG at its resolution and a PDF show pictures without resampling."""
        extent = (0, self.layout.width, 0, self.layout.height)
        # From the last line up, so that a PDF stores the picture upright, too.
        pixels = {"extent": extent, "aspect": "auto", "interpolation": "none", "zorder": -1}
        self.axes.imshow(self._canvas[::-1], **pixels)
        return self._figure
