"""Decoding photographs as torchvision's reference pipeline does.

That is `Image.open(file).convert("RGB")` (the default loader of torchvision's data sets),
`Resize(resize, interpolation)` and `CenterCrop(crop)` of torchvision.transforms on PIL images, bit
for bit; torchvision itself is not imported. Hence, as there:

* the EXIF orientation is not applied; of an animation the first frame counts; transparency is
  dropped, not blended;
* CMYK and palette images are converted by Pillow without colour management;
* grey images of 16 or 32 bits and floating-point images are clipped to 0..255 by Pillow (everything
  above 255 turns white); it is what a network trained and tested through torchvision would be
  shown. 16-bit RGB images keep their upper 8 bits.

Only formats that Pillow decodes by itself are opened (`FORMATS`); some others would start external
programs. Images larger than `MAX_PIXELS`, decoded or resized, count as bad images: small files can
be made to fill the memory.
"""

import io
import re
import warnings
from typing import Any

import numpy as np
from PIL import Image

from rfatlas.errors import printable

#: Formats that are opened, whatever the file's ending.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
#: Largest image, as stored and as resized, in pixels. 100 megapixels take 0.4 GB in Pillow;
#: ImageNet's largest has 61.
MAX_PIXELS = 100_000_000


class BadImage(Exception):
    """A file that cannot be turned into an image; the message gives the reason, not the name."""


def decode(
    data: bytes,
    resize: int | tuple[int, int] | None,
    crop: int,
    interpolation: str = "bilinear",
) -> tuple[Image.Image, bool]:
    """Decode one image file to RGB: shorter side `resize` pixels, central `crop` x `crop` of it.

    `resize` may be a pair (height, width), which does not keep the shape, or None: no resizing.
    `interpolation` is the name of a filter of Pillow's, in small letters. Returns the image and
    whether its grey values were wider than 8 bits. Bit-equal to torchvision.transforms v1 on PIL
    images: the longer side is int(resize * long / short), the corner of the crop is
    round((side - crop) / 2) with halves to even, and a side shorter than `crop` is padded with
    zeros, the odd pixel at the end.

    Raises BadImage if the bytes are no readable image or the image is too large.
    """
    if not data:
        raise BadImage("the file is empty")
    try:
        # Size warnings are pointless: MAX_PIXELS is checked here. Pillow's own error at twice its
        # limit becomes a BadImage.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            _check_pixels(width, height, "has")
            new_size = _resized(width, height, resize)
            _check_pixels(*new_size, "would be resized to")
            wide = image.mode.startswith(("I", "F"))
            image.load()
            if image.mode == "F":
                _check_finite(image)
            if image.mode != "RGB":
                image = image.convert("RGB")
    except Image.UnidentifiedImageError:
        raise BadImage(f"not an image in a format that is read ({', '.join(FORMATS)})") from None
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        raise BadImage(printable(str(error), 300) or type(error).__name__) from error
    # Whole, then cut: the order in which Pillow resamples rows and columns depends on the sizes, so
    # resampling only what the crop keeps would round differently.
    if new_size != image.size:
        image = image.resize(new_size, Image.Resampling[interpolation.upper()])
    left, top = (_corner(side, crop) for side in image.size)
    return image.crop((left, top, left + crop, top + crop)), wide


def frame(resize: str, crop: str, interpolation: str) -> dict[str, Any]:
    """The arguments of `decode` from the words in the name of a packed file: `256`, `240x320` or
    `none`; `224`; `_bicubic`, or nothing for bilinear."""
    sides = tuple(map(int, re.findall(r"\d+", resize)))
    size = sides[0] if len(sides) == 1 else sides or None
    interpolation = interpolation[1:] or "bilinear"
    return {"resize": size, "crop": int(crop), "interpolation": interpolation}


def _resized(width: int, height: int, resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """Width and height after resizing."""
    if resize is None:
        return width, height
    if not isinstance(resize, int):
        return resize[1], resize[0]
    long = int(resize * max(width, height) / min(width, height))
    return (resize, long) if width <= height else (long, resize)


def _check_finite(image: Image.Image) -> None:
    values = np.asarray(image)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise BadImage(
            f"{len(bad)} of its {values.size} values are NaN or infinite, the first "
            f"({values[row, column]}) in row {row}, column {column}"
        )


def _check_pixels(width: int, height: int, verb: str) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{verb} {width} x {height} pixels, at most {MAX_PIXELS} are allowed")


def _corner(side: int, crop: int) -> int:
    return int(round((side - crop) / 2.0)) if side >= crop else -((crop - side) // 2)
