"""Decoding against torchvision, packing against the files, bad images, sudden deaths, memory."""

import csv
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.images import decoding, images
from rfatlas.sources import catalogue

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reference():
    """What torchvision's default loader and v1 transforms give: (path, resize, crop) -> array."""
    from rfatlas.network.torchvision_ops import torchvision

    torchvision()
    from torchvision import transforms
    from torchvision.datasets.folder import default_loader

    def run(path, resize, crop, **how):
        steps = transforms.Compose([transforms.Resize(resize, **how), transforms.CenterCrop(crop)])
        return np.asarray(steps(default_loader(str(path))))

    return run


def ours(path, resize, crop):
    return np.asarray(decoding.decode(Path(path).read_bytes(), resize, crop)[0])


def noise(height, width, channels=3, seed=0):
    """Smooth noise with sharp edges: resampling and chroma subsampling both show in it."""
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    array[: height // 2] //= 4
    return array[..., 0] if channels == 1 else array


def jpeg(path, height=20, width=24, seed=0):
    Image.fromarray(noise(height, width, seed=seed)).save(path, "JPEG")


def write_variant(kind, folder):
    """Write one image of the named kind and return its path."""
    rgb = Image.fromarray(noise(61, 83))
    grey16 = (noise(61, 83, 1).astype(np.uint16) * 5) - 300  # also below 256, and wrapped around
    path = folder / kind
    if kind == "jpeg":
        rgb.save(path, "JPEG")
    elif kind == "jpeg-progressive":
        rgb.save(path, "JPEG", progressive=True, subsampling=0, quality=95)
    elif kind == "jpeg-cmyk":
        rgb.convert("CMYK").save(path, "JPEG")
    elif kind == "jpeg-grey":
        rgb.convert("L").save(path, "JPEG")
    elif kind == "jpeg-exif-rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        rgb.save(path, "JPEG", exif=exif)
    elif kind == "jpeg-multi-picture":
        rgb.save(path, "MPO", save_all=True, append_images=[rgb.rotate(180)])
    elif kind == "png":
        rgb.save(path, "PNG")
    elif kind == "png-named-jpeg":
        path = folder / "really-a-png.JPEG"
        rgb.save(path, "PNG")
    elif kind == "png-alpha":
        Image.fromarray(noise(61, 83, 4)).save(path, "PNG")
    elif kind == "png-grey-alpha":
        Image.fromarray(noise(61, 83, 4)).convert("LA").save(path, "PNG")
    elif kind == "png-palette":
        rgb.quantize(37).save(path, "PNG")
    elif kind == "png-palette-transparent":
        rgb.quantize(37).save(path, "PNG", transparency=bytes(range(37)))
    elif kind == "png-1bit":
        rgb.convert("1").save(path, "PNG")
    elif kind == "png-grey16":
        Image.fromarray(grey16).save(path, "PNG")
    elif kind == "png-rgb16":
        path.write_bytes(png_rgb16(61, 83))
    elif kind == "tiff-grey16":
        Image.fromarray(grey16).save(path, "TIFF")
    elif kind == "tiff-int32":
        Image.fromarray(grey16.astype(np.int32) - 100).save(path, "TIFF")
    elif kind == "tiff-float":
        Image.fromarray(noise(61, 83, 1).astype(np.float32) * 1.3 - 20).save(path, "TIFF")
    elif kind == "tiff-lzw-cmyk":
        rgb.convert("CMYK").save(path, "TIFF", compression="tiff_lzw")
    elif kind == "gif-animated":
        rgb.quantize(50).save(path, "GIF", save_all=True, append_images=[rgb.rotate(90)])
    elif kind == "webp":
        rgb.save(path, "WEBP", lossless=True)
    elif kind == "webp-animated-alpha":
        alpha = Image.fromarray(noise(61, 83, 4))
        alpha.save(path, "WEBP", save_all=True, append_images=[alpha.rotate(90)])
    elif kind == "bmp":
        rgb.save(path, "BMP")
    elif kind == "pgm16":
        path.write_bytes(b"P5 83 61 65535\n" + grey16.astype(">u2").tobytes())
    else:
        rgb.save(path, "PPM")
    return path


def chunk(name, data):
    return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)


def png(width, height, depth, color, rows):
    head = width.to_bytes(4) + height.to_bytes(4) + bytes([depth, color, 0, 0, 0])
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_rgb16(height, width):
    values = np.random.default_rng(3).integers(0, 1 << 16, (height, width * 3)).astype(">u2")
    return png(width, height, 16, 2, b"".join(b"\0" + row.tobytes() for row in values))


VARIANTS = (
    "jpeg jpeg-progressive jpeg-cmyk jpeg-grey jpeg-exif-rotated jpeg-multi-picture png "
    "png-named-jpeg png-alpha png-grey-alpha png-palette png-palette-transparent png-1bit "
    "png-grey16 png-rgb16 tiff-grey16 tiff-int32 tiff-float tiff-lzw-cmyk gif-animated webp "
    "webp-animated-alpha bmp pgm16 ppm"
).split()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", VARIANTS)
def test_decoding_equals_torchvision(kind, tmp_path, reference):
    path = write_variant(kind, tmp_path)
    for resize, crop in ((48, 40), (61, 61), (100, 97)):
        np.testing.assert_array_equal(ours(path, resize, crop), reference(path, resize, crop))


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 2), (2, 1), (1, 37), (37, 1), (7, 7), (33, 50), (50, 33), (101, 99), (99, 640)],
)
@pytest.mark.parametrize(
    ("resize", "crop"), [(32, 32), (33, 32), (32, 33), (20, 31), (31, 20), (1, 4), (1, 1), (40, 7)]
)
def test_sizes_equal_torchvision(height, width, resize, crop, tmp_path, reference):
    Image.fromarray(noise(height, width)).save(tmp_path / "x.png")
    result = ours(tmp_path / "x.png", resize, crop)
    np.testing.assert_array_equal(result, reference(tmp_path / "x.png", resize, crop))
    assert result.shape == (crop, crop, 3) and result.dtype == np.uint8


def test_random_sizes_equal_torchvision(tmp_path, reference):
    rng = np.random.default_rng(11)
    for _ in range(150):
        height, width, resize, crop = map(int, rng.integers(1, 130, 4))
        if max(height, width) * resize > 4000 * min(height, width):
            continue
        Image.fromarray(noise(height, width)).save(tmp_path / "x.bmp")
        np.testing.assert_array_equal(
            ours(tmp_path / "x.bmp", resize, crop),
            reference(tmp_path / "x.bmp", resize, crop),
            err_msg=f"{height} x {width}, resize {resize}, crop {crop}",
        )


@pytest.mark.parametrize("kind", ["jpeg", "png-palette", "png-grey16", "webp"])
@pytest.mark.parametrize("interpolation", "nearest bilinear bicubic lanczos hamming box".split())
def test_interpolations_equal_torchvision(interpolation, kind, tmp_path, reference):
    from torchvision.transforms import InterpolationMode

    path = write_variant(kind, tmp_path)
    for resize, crop in ((48, 40), (13, 12), ((30, 17), 17), ((60, 70), 60)):
        found = decoding.decode(path.read_bytes(), resize, crop, interpolation)[0]
        expected = reference(path, resize, crop, interpolation=InterpolationMode(interpolation))
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_without_resizing_the_middle_is_cut_out(tmp_path):
    array = noise(32, 40)
    Image.fromarray(array).save(tmp_path / "x.png")
    np.testing.assert_array_equal(ours(tmp_path / "x.png", None, 32), array[:, 4:36])
    found = ours(tmp_path / "x.png", None, 36)
    np.testing.assert_array_equal(found[2:34], array[:, 2:38])
    assert not found[:2].any() and not found[34:].any(), "a black margin, as torchvision's"


@pytest.mark.parametrize(
    ("factory", "weights"),
    [("regnet_y_16gf", "IMAGENET1K_SWAG_LINEAR_V1"), ("resnet18", "IMAGENET1K_V1")],
)
def test_named_weights_see_what_their_transforms_make(factory, weights, tmp_path, reference):
    """reference imports torchvision."""
    from torchvision.models import get_model_weights

    from rfatlas.network import model

    jpeg(tmp_path / "x.jpg", 300, 260)
    config = {"factory": f"torchvision.models.{factory}", "weights": weights}
    shown = model.resolve_input(config)
    mean, std = shown.pop("mean"), shown.pop("std")
    image = decoding.decode((tmp_path / "x.jpg").read_bytes(), **shown)[0]
    seen = model.preprocess(np.asarray(image)[None], mean, std)[0]
    expected = get_model_weights(factory)[weights].transforms()(Image.open(tmp_path / "x.jpg"))
    np.testing.assert_allclose(seen, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("256", "224", ""), (256, 224, "bilinear")),
        (("240x320", "240", "_bicubic"), ((240, 320), 240, "bicubic")),
        (("none", "32", ""), (None, 32, "bilinear")),
    ],
)
def test_the_name_of_a_packed_file_says_how_it_is_made(words, meant):
    assert tuple(decoding.frame(*words).values()) == meant


def test_very_wide_image_equals_torchvision(tmp_path, reference):
    Image.fromarray(noise(60, 20_000)).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(
        ours(tmp_path / "wide.png", 32, 32), reference(tmp_path / "wide.png", 32, 32)
    )


def test_exif_rotation_is_not_applied(tmp_path):
    # Left half black, right half white, tagged as turned by 90 degrees.
    array = np.zeros((64, 64, 3), np.uint8)
    array[:, 32:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "r.jpg", exif=exif, quality=100)
    result = ours(tmp_path / "r.jpg", 64, 64)
    assert result[:, :30].max() < 10 and result[:, 34:].min() > 245


def test_sixteen_bit_grey_is_clipped_as_documented(tmp_path):
    values = np.array([[0, 100, 255, 256], [300, 4000, 40000, 65535]] * 2, np.uint16)
    Image.fromarray(values).save(tmp_path / "g.png")
    np.testing.assert_array_equal(ours(tmp_path / "g.png", 4, 4)[..., 1], values.clip(0, 255))


def test_photographs_equal_torchvision(shared_data, reference):
    paths = sorted((shared_data / "photographs").glob("*.JPEG"))[:20]
    assert len(paths) == 20
    for path in paths:
        np.testing.assert_array_equal(ours(path, 256, 224), reference(path, 256, 224))


def bad_files():
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "JPEG")
    whole = whole.getvalue()
    small = io.BytesIO()
    Image.fromarray(noise(1, 4000)).save(small, "PNG")
    return {
        "empty": (b"", "empty"),
        "text": (b"<html>404 not found</html>", "not an image in a format"),
        "truncated": (whole[: len(whole) // 2], "truncated"),
        "header only": (whole[:30], "."),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "bomb": (png(12_000, 12_000, 1, 0, b"\0" * 12_000 * 1501), "12000 x 12000 pixels"),
        "big bomb": (png(60_000, 60_000, 1, 0, b""), "."),
        "thread": (small.getvalue(), "would be resized to"),
        "broken png": (png(8, 8, 8, 2, bytes(200)).replace(b"IDATx", b"IDATy"), "."),
    }


@pytest.mark.parametrize("kind", bad_files())
def test_bad_files_are_refused_before_they_fill_the_memory(kind):
    data, message = bad_files()[kind]
    with pytest.raises(decoding.BadImage, match=message):
        decoding.decode(data, 256, 224)


@pytest.mark.parametrize("cut", range(0, 100, 7))
def test_truncation_anywhere_is_a_bad_image(cut):
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 40)).save(buffer, "PNG")
    data = buffer.getvalue()
    with pytest.raises(decoding.BadImage):
        decoding.decode(data[: len(data) * cut // 100], 32, 32)


@pytest.fixture
def album(tmp_path):
    """Forty small photographs in three class folders."""
    for i in range(40):
        folder = tmp_path / "album" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        jpeg(folder / f"{i:02d}.jpg", 18 + i % 5, 22 + i % 7, seed=i)
    return tmp_path / "album"


def listed(folder):
    return catalogue.list_images({"source": "folders", "path": str(folder)})


def content(path):
    """All that a packed file says, for comparing two of them."""
    with store.open(path, "images") as file:
        attrs = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in file.attrs.items()
        }
        data = (file["images"][:], file["labels"][:], file["names"].asstr()[:].tolist())
    return attrs, data


def assert_same(first, second):
    (attrs, data), (other_attrs, other) = content(first), content(second)
    assert attrs == other_attrs
    np.testing.assert_array_equal(data[0], other[0])
    np.testing.assert_array_equal(data[1], other[1])
    assert data[2] == other[2]


def read_bad(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("workers", [1, 3])
def test_packed_file(album, tmp_path, workers):
    listing = listed(album)
    output, bad = tmp_path / "out" / "x_20_16.h5", tmp_path / "out" / "x_20_16_bad.csv"
    counts = images.pack(
        listing, output, 20, 16, workers=workers, bad_table=bad, config={"a": [1, None]}
    )
    assert counts == {"packed": 40, "skipped": 0}
    assert sorted(p.name for p in output.parent.iterdir()) == [output.name, bad.name]
    assert read_bad(bad) == [["file", "reason"]]
    attrs, (pixels, labels, names) = content(output)
    assert pixels.shape == (40, 16, 16, 3) and pixels.dtype == np.uint8
    assert labels.dtype == np.int64 and labels.tolist() == listing.labels.tolist()
    assert names == listing.names
    for row, name in zip(pixels, names, strict=True):
        np.testing.assert_array_equal(row, ours(album / name, 20, 16))
    digests = [hashlib.sha256((album / name).read_bytes()).hexdigest() for name in names]
    assert (
        attrs["sha256"] == hashlib.sha256("".join(d + "\n" for d in digests).encode()).hexdigest()
    )
    assert attrs["class_names"] == ["class0", "class1", "class2"]
    assert (attrs["resize"], attrs["crop"], attrs["skipped"]) == (20, 16, 0)
    assert json.loads(attrs["config"]) == {"a": [1, None]}
    assert attrs["stage"] == "images" and attrs["complete"]


def test_tar_packs_as_its_unpacked_folder(album, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(album, arcname="")
    listing = catalogue.list_images({"source": "imagenet_tar", "path": str(tmp_path / "a.tar")})
    images.pack(listing, tmp_path / "tar.h5", 20, 16, workers=2)
    images.pack(listed(album), tmp_path / "folder.h5", 20, 16)
    (attrs, data), (other_attrs, other) = (
        content(tmp_path / "tar.h5"),
        content(tmp_path / "folder.h5"),
    )
    assert attrs["sha256"] == other_attrs["sha256"]
    np.testing.assert_array_equal(data[0], other[0])
    assert data[1].tolist() == other[1].tolist() and data[2] == other[2]


def test_many_class_names_and_none(tmp_path):
    jpeg(tmp_path / "1.jpg")
    listing = listed(tmp_path)
    images.pack(listing, tmp_path / "none.h5", 8, 8)
    assert content(tmp_path / "none.h5")[0]["class_names"] == []
    # More names than the older HDF5 formats hold in one attribute.
    listing.class_names = [f"Klasse {i} ä" for i in range(20_000)]
    images.pack(listing, tmp_path / "many.h5", 8, 8)
    assert content(tmp_path / "many.h5")[0]["class_names"] == listing.class_names


def spoil(album, *indices):
    names = listed(album).names
    for index in indices:
        (album / names[index]).write_bytes((album / names[index]).read_bytes()[:300])
    return [names[index] for index in indices]


def test_bad_images_stop_the_job_with_all_their_names(album, tmp_path, monkeypatch):
    names = spoil(album, 3, 21, *range(25, 39))
    output, bad = tmp_path / "x.h5", tmp_path / "bad.csv"
    message = rf"{names[0]}: cannot be decoded: .*{names[1]}: .*; and 6 more; .*on_bad_image: skip"
    with pytest.raises(RfatlasError, match=message):
        images.pack(listed(album), output, 20, 16, bad_table=bad, workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["album"]
    # The user repairs the files and goes on.
    for name in names:
        jpeg(album / name)
    assert images.pack(listed(album), output, 20, 16, bad_table=bad)["packed"] == 40


def test_bad_images_are_skipped_and_listed(album, tmp_path, monkeypatch):
    names = spoil(album, 0, 17, 18, 39)
    (album / names[1]).write_bytes(b"")
    listing = listed(album)
    output, bad = tmp_path / "x.h5", tmp_path / "bad.csv"
    counts = images.pack(listing, output, 20, 16, workers=2, on_bad_image="skip", bad_table=bad)
    assert counts == {"packed": 36, "skipped": 4}
    rows = read_bad(bad)
    assert [row[0] for row in rows] == ["file", *names]
    assert rows[2][1] == "the file is empty" and all(row[1] for row in rows)
    attrs, (pixels, labels, kept) = content(output)
    good = [i for i in range(40) if i not in (0, 17, 18, 39)]
    assert kept == [listing.names[i] for i in good]
    assert labels.tolist() == listing.labels[good].tolist()
    for row, name in zip(pixels, kept, strict=True):
        np.testing.assert_array_equal(row, ours(album / name, 20, 16))
    assert attrs["skipped"] == 4
    # The same photographs without the bad ones have the same digest.
    images.pack(listing.select(good), tmp_path / "good.h5", 20, 16)
    assert content(tmp_path / "good.h5")[0]["sha256"] == attrs["sha256"]


def test_nothing_but_bad_images(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"no")
    with pytest.raises(RfatlasError, match=r"none of the 1 images .*1.jpg"):
        images.pack(listed(tmp_path), tmp_path / "x.h5", 8, 8, on_bad_image="skip")


def test_a_file_that_vanishes_stops_also_with_skip(album, tmp_path):
    listing = listed(album)
    os.remove(album / listing.names[5])
    with pytest.raises(RfatlasError, match=rf"{listing.names[5]}: cannot be read: No such file"):
        images.pack(listing, tmp_path / "x.h5", 20, 16, on_bad_image="skip")


def test_wide_grey_images_are_named_in_the_log(tmp_path, caplog):
    Image.fromarray(np.full((9, 9), 5000, np.uint16)).save(tmp_path / "2.png")
    jpeg(tmp_path / "1.jpg")
    images.pack(listed(tmp_path), tmp_path / "x.h5", 8, 8)
    assert "1 images hold more than 8 bits" in caplog.text and "2.png" in caplog.text


def test_a_full_disk_is_refused_before_work_begins(album, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 40 * 16 * 16 * 3 - 1})
    monkeypatch.setattr(images.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(images, "_decode_all", None)
    with pytest.raises(RfatlasError, match="need .* GB more, but the disk has"):
        images.pack(listed(album), tmp_path / "x.h5", 20, 16)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_with_values_that_are_not_finite_are_named(tmp_path, value):
    values = np.full((9, 12), 100, np.float32)
    Image.fromarray(values).save(tmp_path / "1.tif")
    values[4, 7] = values[5, 0] = value
    Image.fromarray(values).save(tmp_path / "2.tif")
    message = rf"2\.tif: cannot be decoded: 2 of its 108 values .*\({value}\) in row 4, column 7"
    with pytest.raises(RfatlasError, match=message):
        images.pack(listed(tmp_path), tmp_path / "x.h5", 8, 8)
    (tmp_path / "2.tif").unlink()
    assert images.pack(listed(tmp_path), tmp_path / "x.h5", 8, 8)["packed"] == 1


KILLED_PACK = """
import sys, time
sys.path.insert(0, "scripts")
from rfatlas.images import images
from rfatlas.sources import catalogue
images.CHUNK = 2
plain = images._one
def slow(listing, index, *rest):
    time.sleep(0.2)
    return plain(listing, index, *rest)
images._one = slow
listing = catalogue.list_images({"source": "folders", "path": sys.argv[1]})
images.pack(listing, sys.argv[2], 20, 16, workers=2)
"""


def test_a_killed_job_leaves_nothing_that_counts(album, tmp_path):
    output = tmp_path / "x.h5"
    command = [sys.executable, "-c", KILLED_PACK, str(album), str(output)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(psutil.Process(process.pid).children()) < 2:
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists() and len(workers) == 2
    # Made again at once, while workers of the killed job may still live and write.
    images.pack(listed(album), output, 20, 16, workers=2)
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers must not outlive their parent"
    images.pack(listed(album), tmp_path / "fresh.h5", 20, 16)
    assert_same(output, tmp_path / "fresh.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["album", "fresh.h5", "x.h5"]


def test_a_killed_worker_is_an_error_that_names_the_image(album, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 2)
    plain = images._one

    def deadly(listing, index, *rest):
        if index == 25:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(listing, index, *rest)

    name = listed(album).names[25]
    with monkeypatch.context() as patch:
        patch.setattr(images, "_one", deadly)
        with pytest.raises(RfatlasError, match=f"worker process .* died at one of these: .*{name}"):
            images.pack(listed(album), tmp_path / "x.h5", 20, 16, workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["album"]
    assert images.pack(listed(album), tmp_path / "x.h5", 20, 16, workers=2)["packed"] == 40


@pytest.mark.parametrize("moment", ["_describe", "_close_up"])
def test_a_job_that_fails_at_the_end_leaves_nothing(album, tmp_path, monkeypatch, moment):
    spoil(album, 39)
    packed = functools.partial(images.pack, on_bad_image="skip")

    def fail(*args):
        raise OSError("the machine is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(images, moment, fail)
        with pytest.raises(OSError, match="fire"):
            packed(listed(album), tmp_path / "x.h5", 20, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["album"]
    packed(listed(album), tmp_path / "x.h5", 20, 16)
    packed(listed(album), tmp_path / "fresh.h5", 20, 16)
    assert_same(tmp_path / "x.h5", tmp_path / "fresh.h5")


PEAK = """
import resource, sys
sys.path.insert(0, "scripts")
from rfatlas.images import images
from rfatlas.sources import catalogue
dataset = {"source": "folders", "path": sys.argv[1], "limit": int(sys.argv[3])}
listing = catalogue.list_images(dataset)
images.pack(listing, sys.argv[2], 64, 64, workers=2)
whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
print(max(resource.getrusage(who).ru_maxrss for who in whose))
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    jpeg(tmp_path / "one", 64, 64)
    folder = tmp_path / "many" / "class"
    folder.mkdir(parents=True)
    for i in range(2000):
        os.link(tmp_path / "one", folder / f"{i}.jpg")
    peaks = []
    for count in (200, 2000):
        command = [
            sys.executable, "-c", PEAK, str(tmp_path / "many"), str(tmp_path / "x.h5"), str(count)
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * 1024)
    # The packed rows of the second run take 22 MB more.
    assert peaks[1] - peaks[0] < 6e6


def test_the_mean_image_is_that_of_all_pictures(album, tmp_path):
    images.pack(listed(album), tmp_path / "x.h5", 20, 16)
    with store.open(tmp_path / "x.h5") as file:
        np.testing.assert_allclose(file["mean"][:], file["images"][:].astype(float).mean(0) / 255)
        np.testing.assert_array_equal(images.mean_image(file["images"], chunk=7), file["mean"][:])
