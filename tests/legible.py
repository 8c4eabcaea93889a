"""Whether the texts of a figure can be read: none on another, none beyond the page."""

import itertools
from unittest import mock

import numpy as np
from matplotlib.text import Text


def drawn_texts(figure) -> list[Text]:
    """The texts that end up on the page: not the labels of ticks beyond an axis."""
    seen = []
    draw = Text.draw

    def record(text, renderer):
        if text.get_visible() and text.get_text().strip():
            seen.append(text)
        draw(text, renderer)

    with mock.patch.object(Text, "draw", record):
        figure.canvas.draw()
    return list(dict.fromkeys(seen))


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of texts of a figure that overlap by more than a pixel either way."""
    found = []
    placed = [(text, text.get_window_extent()) for text in drawn_texts(figure)]
    for (first, a), (second, b) in itertools.combinations(placed, 2):
        apart = [
            max(a.x0, b.x0) - min(a.x1, b.x1),
            max(a.y0, b.y0) - min(a.y1, b.y1),
        ]
        angle = first.get_rotation()
        if angle % 90 and angle == second.get_rotation():
            # Slanted lines are apart if their baselines are, whatever their upright boxes do.
            step = np.subtract(
                *(t.get_transform().transform(t.get_position()) for t in (first, second))
            )
            across = abs(step @ [-np.sin(np.radians(angle)), np.cos(np.radians(angle))])
            apart.append(across - first.get_fontsize() * figure.dpi / 72)
        if max(apart) < -1:
            found.append((first.get_text(), second.get_text()))
    return found


def cut_off(figure) -> list[str]:
    """Texts that reach beyond the edge of a figure by more than a pixel."""
    return [
        text.get_text()
        for text in drawn_texts(figure)
        for box in [text.get_window_extent()]
        if min(box.x0, box.y0) < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1
    ]
