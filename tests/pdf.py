"""What a PDF of one page holds, read by a parser of its own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pypdf import PdfReader


@dataclass(frozen=True)
class Page:
    """A page: `size` in inches, its `text`, its `pictures` (H, W, 3) uint8, its `fonts`.

    `fonts` holds of each font its kind and whether the file holds it: ("/TrueType", True).
    """

    size: tuple[float, float]
    text: str
    pictures: list[np.ndarray]
    fonts: list[tuple[str, bool]]


def read(path: str | Path) -> Page:
    """Return what the only page of a PDF holds."""
    (page,) = PdfReader(path).pages
    fonts = []
    for reference in page["/Resources"]["/Font"].values():
        font = reference.get_object()
        for described in font.get("/DescendantFonts", [font]):
            described = described.get_object()
            descriptor = described.get("/FontDescriptor", {}).get_object()
            fonts.append((described["/Subtype"], "/FontFile2" in descriptor))
    pictures = [np.asarray(image.image.convert("RGB")) for image in page.images]
    size = (float(page.mediabox.width) / 72, float(page.mediabox.height) / 72)
    return Page(size, page.extract_text(), pictures, fonts)


def outlined(page: Page) -> bool:
    """Whether all fonts of a page are outlines that the file holds."""
    kinds = {"/TrueType", "/CIDFontType2"}
    return bool(page.fonts) and all(kind in kinds and held for kind, held in page.fonts)
