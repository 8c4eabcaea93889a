"""Sheets: where pictures and labels stand."""

import numpy as np
import pdf
import pytest
from legible import cut_off, overlaps
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rfatlas.figures import sheets, style


def pixels(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 9, 16, 32, 64, 200])
@pytest.mark.parametrize(("columns", "side"), [(2, 64), (3, 80), (4, 96), (6, 96)])
def test_pictures_do_not_overlap_and_stay_on_the_page(rows, columns, side):
    place = sheets.layout(rows, columns, side)
    taken = np.zeros((place.height, place.width), int)
    for row in range(rows):
        for column in range(columns):
            x, y = place.corner(row, column)
            assert y > sheets.TITLE and x >= sheets.MARGIN + sheets.LABEL_WIDTH
            piece = taken[y - 1 : y + side + 1, x - 1 : x + side + 1]
            assert piece.shape == (side + 2, side + 2)
            piece += 1
    assert taken.max() == 1
    assert place.width <= max(sheets.WIDTH, sheets.MIN_WIDTH)
    # Each block has rows, and its last is the one above which nothing follows.
    ends = place.last_rows()
    assert len(ends) == place.blocks and ends[-1] == rows - 1
    assert (np.diff([place.corner(end, 0)[0] for end in ends]) > 0).all()


def test_a_picture_lies_where_the_layout_says():
    page = sheets.Sheet(sheets.layout(5, 2, 80), "title", "facts", ["one", "two\nlines"])
    random = np.random.default_rng(0)
    painted = random.integers(0, 256, (80, 80, 3), np.uint8)
    page.paint(4, 1, painted)
    small = np.zeros((4, 4, 3))
    small[0, 3] = 1
    page.put(0, 0, small, np.eye(4, dtype=bool))
    shown = pixels(page.finish())
    place = page.layout
    assert shown.shape == (place.height, place.width, 3)
    x, y = place.corner(4, 1)
    np.testing.assert_array_equal(shown[y : y + 80, x : x + 80], painted)
    assert (shown[y - 1, x - 1 : x + 81] == sheets.OUTLINE).all()
    x, y = place.corner(0, 0)
    tile = shown[y : y + 80, x : x + 80]
    assert (tile[:20, 60:] == 255).all() and (tile[20:40, :20] == 0).all()
    # The hatched diagonal is neither black nor white.
    assert (tile[:20, :20] > 150).all() and (tile[:20, :20] < 255).all()


@pytest.mark.parametrize("rows", [1, 5, 32])
def test_labels_can_be_read(rows):
    page = sheets.Sheet(
        sheets.layout(rows, 3, 80),
        "a run · layer1.0 · gratings",
        "facts " * 18,
        ["mean\ngradient"] * 3,
    )
    for row in range(rows):
        page.label(row, 100 + row, [("OSI 0.55", "k"), ("± 20°", "k"), ("F1/F0 1.57", "k")])
    page.below(0, "224 px", arrow=True)
    page.below(2, "0.0022 to 0.4\ncycles per px")
    figure = page.finish()
    assert overlaps(figure) == [] and cut_off(figure) == []


def test_a_pdf_holds_the_pictures_pixel_by_pixel_and_the_rest_as_vectors(tmp_path):
    page = sheets.Sheet(sheets.layout(5, 2, 80), "a run · conv1", "facts", ["one", "two\nlines"])
    random = np.random.default_rng(0)
    for row in range(5):
        page.paint(row, 0, random.integers(0, 256, (80, 80, 3), np.uint8))
        page.label(row, 200 + row, [(f"OSI 0.{row}5", "k")])
    place, figure = page.layout, page.finish()
    for stem in ("one", "two"):
        style.save(figure, tmp_path / stem)
    held = pdf.read(tmp_path / "one.pdf")
    assert held.size == pytest.approx((place.width / sheets.DPI, place.height / sheets.DPI))
    assert pdf.outlined(held)
    for text in ("a run · conv1", "facts", "one", "204", "OSI 0.35"):
        assert text in held.text
    # What the page shows where no text is: the pictures as they were painted, and white.
    (picture,) = held.pictures
    for artist in figure.axes[0].texts:
        artist.remove()
    np.testing.assert_array_equal(picture, pixels(figure))
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "two.pdf").read_bytes()
