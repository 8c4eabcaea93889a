"""Fuzzed images: each is decoded to its size, or refused with a reason; a worker never dies, and
never takes more memory than one image of MAX_PIXELS.
"""

import csv
import io
import os
import resource
import struct
import warnings
import zlib
from pathlib import Path

import fuzzing
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rfatlas.errors import RfatlasError
from rfatlas.images import decoding, images
from rfatlas.sources import catalogue

CROP = 24
# What an image of MAX_PIXELS takes: as it is decoded, and as RGB, each 4 bytes a pixel.
MOST_KB = 2 * 4 * decoding.MAX_PIXELS // 1024 + 150_000


def picture(mode: str = "RGB", width: int = 41, height: int = 31) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def saved(form: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    if options.get("save_all"):
        options["append_images"] = [picture(mode).rotate(90), picture(mode).rotate(180)]
    picture(mode).save(file, form, **options)
    return file.getvalue()


def exif(orientation: int = 6, junk: bytes = b"") -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes() + junk


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + body


def tiff(width: int, height: int, strip: int = 4, count: int = 1, compression: int = 1) -> bytes:
    """A grey TIFF whose tags claim what they like."""
    tags = [(256, width), (257, height), (258, 8), (259, compression), (262, 1)]
    tags += [(273, 8), (277, 1), (278, count), (279, strip)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0"
        + struct.pack("<I", 12)
        + b"abcd"
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    head = b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHH", 0, 0, *frame) + b"\0"
    return head + frame + b"\x02\x02\x4c\x01\x00;"


# Sound files of all kinds, which are taken.
SOUND = {
    "jpeg": saved("JPEG"),
    "jpeg-progressive": saved("JPEG", progressive=True),
    "jpeg-cmyk": saved("JPEG", "CMYK"),
    "jpeg-grey": saved("JPEG", "L"),
    "jpeg-rotated": saved("JPEG", exif=exif(8)),
    "jpeg-bad-exif": saved("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40),
    "jpeg-bad-icc": saved("JPEG", icc_profile=b"\xff" * 500),
    "jpeg-many-pictures": saved("MPO", save_all=True),
    "png": saved("PNG"),
    "png-palette": saved("PNG", "P"),
    "png-alpha": saved("PNG", "RGBA"),
    "png-grey-alpha": saved("PNG", "LA"),
    "png-1bit": saved("PNG", "1"),
    "png-16bit": saved("PNG", "I;16"),
    "png-bad-icc": saved("PNG", icc_profile=b"nonsense" * 9),
    "png-rotated": saved("PNG", exif=exif(3)),
    "apng": saved("PNG", save_all=True),
    "gif": saved("GIF", "P"),
    "gif-animated": saved("GIF", "P", save_all=True),
    "webp": saved("WEBP"),
    "webp-animated": saved("WEBP", "RGBA", save_all=True),
    "webp-bad-icc": saved("WEBP", icc_profile=b"\0" * 99),
    "tiff": saved("TIFF"),
    "tiff-lzw": saved("TIFF", compression="tiff_lzw"),
    "tiff-jpeg": saved("TIFF", compression="jpeg"),
    "tiff-float": saved("TIFF", "F"),
    "tiff-pages": saved("TIFF", save_all=True),
    "bmp": saved("BMP"),
    "ppm": saved("PPM"),
    "one-pixel": png(1, 1, 8, 2, b"\0abc"),
    "wide": png(20_000, 20, 8, 0, bytes(20 * 20_001)),
    "tall": png(3, 3_000, 8, 0, bytes(4 * 3_000)),
}
SWELLING = zlib.compress(bytes(9**9))
# Files that are no image, or would fill the memory, which are refused.
HOSTILE = {
    "empty": b"",
    "text": b"<html>404</html>",
    "zeros": bytes(10_000),
    "shell": b"#!/bin/sh\ntouch rfatlas-code-ran\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n",
    "png-bomb-header": png(60_000, 60_000, 8, 2, b""),
    "png-bomb": png(10_001, 10_001, 1, 0, bytes(1252 * 10_001)),
    "png-no-pixels": png(0, 5, 8, 2, b""),
    "png-short": png(300, 300, 8, 2, bytes(99)),
    "png-text-bomb": png(
        9, 9, 8, 0, bytes(90), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9**9)))
    ),
    "png-icc-bomb": png(
        9, 9, 8, 0, bytes(90), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(9**9)))
    ),
    "thread": png(60_000, 1, 8, 0, bytes(60_001)),
    "gif-bomb": gif((65_535, 65_535), (1, 1)),
    "gif-frame-bomb": gif((1, 1), (65_535, 65_535)),
    "tiff-bomb": tiff(60_000, 60_000, 2**32 - 1, 60_000),
    "tiff-strip-bomb": tiff(9_000, 9_000, 2**32 - 1, 9_000, compression=8),
    "tiff-lzw-bomb": tiff(9_000, 9_000, 4, 9_000, compression=5),
    "webp-bomb": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xfe\x3f\0" * 2,
    "bmp-bomb": b"BM"
    + struct.pack("<IHHI", 99, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "ppm-bomb": b"P6 60000 60000 255\n",
    "ppm-negative": b"P6 -5 5 255\n",
    "jpeg-bomb": SOUND["jpeg"].replace(
        struct.pack(">HH", 31, 41), struct.pack(">HH", 65_500, 65_500), 1
    ),
}
DAMAGES = st.lists(fuzzing.DAMAGE, min_size=1, max_size=3)


def decoded(data: bytes, kind: str) -> fuzzing.Fate:
    with fuzzing.trying(kind) as fate, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image, _ = decoding.decode(data, 2 * CROP, CROP)
        except decoding.BadImage as error:
            raise RfatlasError(str(error)) from error
        assert (image.mode, image.size) == ("RGB", (CROP, CROP))
        image.tobytes()
    return fate


@pytest.mark.parametrize("name", SOUND)
def test_sound_files_are_taken(name):
    assert not decoded(SOUND[name], "image, sound").refused


@given(st.sampled_from(sorted(SOUND)), DAMAGES)
def test_damaged_files(name, damages):
    data = SOUND[name]
    for damage in damages:
        data = fuzzing.damaged(data, damage) or b"\0"
    decoded(data, "image, damaged")


@given(
    st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "]
    )
    | st.sampled_from([b"II*\0", b"MM\0*", b"BM", b"P6 9 9 255\n", b"P4\n"]),
    st.binary(max_size=300),
)
def test_random_bytes(magic, data):
    decoded(magic + data, "image, random bytes")


@given(
    *(st.sampled_from([0, 1, 7, 9_000, 2**31 - 1, 2**32 - 1]) for _ in range(4)),
    st.sampled_from([1, 2, 5, 6, 7, 8, 32773, 34712, 34925, 50000, 0]),
)
def test_lying_tiffs(width, height, strip, rows, compression):
    decoded(tiff(width, height, strip, rows, compression), "image, lying TIFF")


@given(*(st.sampled_from([0, 1, 50, 10_000, 65_535]) for _ in range(4)))
def test_lying_gifs(width, height, frame_width, frame_height):
    decoded(gif((width, height), (frame_width, frame_height)), "image, lying GIF")


def peak_kb(data: bytes) -> tuple[bool, int]:
    """(whether it is refused, kilobytes of memory more) of decoding in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            decoding.decode(data, 2 * CROP, CROP)
            refused = False
        except decoding.BadImage:
            refused = True
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(writing, struct.pack("?q", refused, grown))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the decoder died"
    return struct.unpack("?q", answer)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_little_memory(name):
    assert decoded(HOSTILE[name], "image, hostile").refused
    refused, grown = peak_kb(HOSTILE[name])
    assert refused and grown < 150_000


@pytest.mark.parametrize(("depth", "color"), [(8, 6), (16, 0)])
def test_the_largest_images_take_what_is_reckoned_with(depth, color):
    side = int(decoding.MAX_PIXELS**0.5)
    row = 1 + side * depth * {0: 1, 2: 3, 6: 4}[color] // 8
    refused, grown = peak_kb(png(side, side, depth, color, bytes(row) * side))
    assert not refused and grown < MOST_KB


def test_a_folder_of_everything(tmp_path):
    """What is refused is listed by its name, with a reason; the rest is packed."""
    album = tmp_path / "album"
    # Names lie about the format; one cannot be shown as it is.
    for number, (name, data) in enumerate([*SOUND.items(), *HOSTILE.items()]):
        ending = (".jpg", ".png", ".gif", ".webp", ".tif")[number % 5]
        file = album / "ab"[number % 2] / f"{name}{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (album / "a" / 'empty \x1b[31m\n,".png').touch()
    os.mkfifo(album / "a" / "pipe.png")
    (album / "b" / "device.png").symlink_to("/dev/zero")
    listing = catalogue.list_images({"source": "folders", "path": str(album)})
    output, table = tmp_path / "packed.h5", tmp_path / "bad.csv"
    images.pack(listing, output, 2 * CROP, CROP, workers=2, on_bad_image="skip", bad_table=table)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    bad = {Path(row["file"]).stem for row in rows}
    assert bad == {*HOSTILE, 'empty \x1b[31m\n,"', "pipe", "device"}
    assert all(row["reason"].isprintable() and row["reason"] for row in rows)
    with h5py.File(output) as file:
        packed = {Path(name).stem for name in file["names"].asstr()[:]}
        assert file["images"].shape == (len(SOUND), CROP, CROP, 3) and packed == set(SOUND)
    with pytest.raises(RfatlasError, match="cannot be decoded") as error:
        images.pack(listing, tmp_path / "none.h5", 2 * CROP, CROP)
    fuzzing.check_message(str(error.value))
    assert not Path("rfatlas-code-ran").exists() and not (tmp_path / "none.h5").exists()
