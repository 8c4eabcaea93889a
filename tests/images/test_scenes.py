"""Scenes: the same by any route, balanced, coloured like photographs, and labelled truly."""

import csv
import os
import signal

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from rfatlas.errors import RfatlasError
from rfatlas.images import canvas, scenes

SIZE = 64


@pytest.fixture(scope="module")
def drawn():
    return scenes.draw(240, SIZE, seed=7)


def linear(code):
    """Linear light in 0..1 of sRGB code values in 0..1, as IEC 61966-2-1 defines it."""
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def test_a_scene_does_not_depend_on_its_range_or_the_processes():
    images, labels = scenes.draw(70, 32, seed=3)
    for index in (0, 1, 41, 69):
        alone = scenes.scene(index, 32, 3)
        np.testing.assert_array_equal(images[index], alone.image)
        assert labels[index] == alone.label
    # 70 scenes are more than one chunk, so that two processes do share them.
    shared = scenes.draw(70, 32, seed=3, processes=2)
    np.testing.assert_array_equal(images, shared[0])
    np.testing.assert_array_equal(labels, shared[1])


def test_another_seed_gives_other_scenes():
    first, second = scenes.draw(24, 32, seed=1), scenes.draw(24, 32, seed=2)
    assert not (first[0] == second[0]).all(axis=(1, 2, 3)).any()
    assert (first[1] != second[1]).any()


def test_labels_are_balanced_and_shuffled(drawn):
    _, labels = drawn
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(labels), np.full(24, 10))
    blocks = labels.reshape(10, 24)
    assert len({tuple(block) for block in blocks}) == 10
    assert len(scenes.CLASS_NAMES) == len(set(scenes.CLASS_NAMES)) == 24


def test_images_fill_the_code_range(drawn):
    images, _ = drawn
    assert images.shape == (240, SIZE, SIZE, 3) and images.dtype == np.uint8
    low, high = np.quantile(images, [0.01, 0.99])
    assert 0 < low < 50 and high > 230
    # Little of the picture is lost to overexposure.
    assert (images == 255).mean() < 0.05
    assert images.std(axis=(1, 2, 3)).min() > 5


def colour_statistics(images):
    """Correlation of R and G, share of the first principal axis, luminance over chromatic variance,
    slope of the power spectrum: of images f64 (N, H, H, 3) in 0..1."""
    pixels = images.reshape(-1, 3)
    correlation = np.corrcoef(pixels.T)[0, 1]
    axes = np.linalg.eigvalsh(np.cov(pixels.T))
    opponent = pixels @ np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]).T / np.sqrt([3, 2, 6])
    luminance, *chromatic = opponent.var(axis=0)
    return {
        "correlation": correlation,
        "first_axis": axes[-1] / axes.sum(),
        "ratio": luminance / sum(chromatic),
        "slope": spectral_slope(images.mean(axis=-1)),
    }


def spectral_slope(pictures):
    """Exponent of frequency in the mean power spectrum, from 2 cycles a picture to 0.4 a pixel."""
    size = pictures.shape[1]
    pictures = pictures - pictures.mean(axis=(1, 2), keepdims=True)
    window = np.outer(np.hanning(size), np.hanning(size))
    power = (np.abs(np.fft.fft2(pictures * window)) ** 2).mean(axis=0)
    axis = np.fft.fftfreq(size)
    frequency = np.hypot(axis[:, None], axis)
    band = np.digitize(frequency, np.geomspace(2 / size, 0.4, 9))
    rings = [band == number for number in range(1, 9)]
    logarithms = np.log([(frequency[ring].mean(), power[ring].mean()) for ring in rings])
    return np.polyfit(*logarithms.T, 1)[0]


def test_the_measure_of_the_slope_is_right_on_planted_noise():
    rng = np.random.default_rng(0)
    axis = np.fft.fftfreq(64)
    frequency = np.hypot(axis[:, None], axis)
    frequency[0, 0] = np.inf
    for exponent in (0, 2, 3):
        white = np.fft.fft2(rng.standard_normal((100, 64, 64)))
        noise = np.fft.ifft2(white / frequency ** (exponent / 2)).real
        assert spectral_slope(noise) == pytest.approx(-exponent, abs=0.2)


def test_colours_and_spectrum_are_natural(drawn):
    found = colour_statistics(drawn[0] / 255)
    assert found["correlation"] > 0.85
    assert found["first_axis"] > 0.85
    assert 5 < found["ratio"] < 18
    assert -3 < found["slope"] < -2


def test_colours_and_spectrum_are_those_of_photographs(drawn, shared_data):
    folder = shared_data / "photographs"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    photographs = []
    for path in sorted(folder.glob("*.JPEG"))[:200]:
        with Image.open(path) as file:
            photograph = file.convert("RGB")
        side = min(photograph.size)
        left, top = (photograph.width - side) // 2, (photograph.height - side) // 2
        square = photograph.crop((left, top, left + side, top + side))
        photographs.append(np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BOX)))
    real = colour_statistics(np.stack(photographs) / 255)
    ours = colour_statistics(drawn[0] / 255)
    assert ours["correlation"] == pytest.approx(real["correlation"], abs=0.1)
    assert ours["first_axis"] == pytest.approx(real["first_axis"], abs=0.06)
    assert 0.5 < ours["ratio"] / real["ratio"] < 2
    # The objects' patterns put more into high frequencies.
    assert ours["slope"] == pytest.approx(real["slope"], abs=0.6)


def modulation(scene):
    """Modulation of the object's reflectance along grey, red-green and yellow-blue (3,), and the
    direction (degrees, 0..180) across which that along the strongest runs, with its coherence
    (0..1, from the structure tensor)."""
    inside = ndimage.binary_erosion(scene.mask > 0.99, iterations=2)
    light = linear(scene.image / 255) / scene.illuminant
    reflectance = np.log(np.maximum(light, 1e-3))
    axes = np.stack([np.ones(3) / np.sqrt(3), canvas.RED_GREEN, canvas.YELLOW_BLUE])
    maps = np.moveaxis(reflectance @ axes.T, -1, 0)
    # Smooth enough for the sensor's noise, not for the finest pattern (a period of 4 pixels).
    maps = ndimage.gaussian_filter(maps, (0, 0.7, 0.7))
    low = ndimage.gaussian_filter(maps, (0, 6, 6))
    spread = (maps - low)[:, inside].std(axis=1)
    strongest = maps[spread.argmax()]
    gy, gx = ndimage.sobel(strongest, 0)[inside], ndimage.sobel(strongest, 1)[inside]
    doubled = ((gx + 1j * gy) ** 2).sum() / (gx**2 + gy**2).sum()
    return spread, np.degrees(np.angle(doubled)) / 2 % 180, abs(doubled)


def test_the_labelled_pattern_is_under_the_mask():
    right, stripes, coherence = [], [], {True: [], False: []}
    for index in range(96):
        scene = scenes.scene(index, SIZE, seed=11)
        if (ndimage.binary_erosion(scene.mask > 0.99, iterations=2)).sum() < 60:
            continue
        colours, pattern = scenes.CLASS_NAMES[scene.label].split(" ", 1)
        spread, direction, coherent = modulation(scene)
        # Chromatic patterns are equally bright: what there is in luminance is texture and shading.
        chromatic = spread[1:].argmax()
        if colours == "black-white":
            right.append(spread[0] > 1.5 * spread[1:].max())
        else:
            right.append(chromatic == ["red-green", "blue-yellow"].index(colours))
        striped = pattern.endswith("stripes")
        coherence[striped].append(coherent)
        if striped and right[-1]:
            named = canvas.STRIPE_DEGREES[pattern.split()[0]]
            stripes.append(abs((direction - named + 90) % 180 - 90) < 22.5)
    assert len(right) > 75 and np.mean(right) > 0.9
    assert np.mean(stripes) > 0.85
    assert np.median(coherence[True]) > 2 * np.median(coherence[False])


def test_the_mean_colour_of_the_object_says_nothing_of_its_class():
    """By the means of the classes, in another half of the scenes, no more than chance is right."""
    colour, labels = [], []
    for index in range(240):
        scene = scenes.scene(index, SIZE, seed=14)
        weight = scene.mask[..., None] / scene.mask.sum()
        colour.append((scene.image * weight).sum((0, 1)))
        labels.append(scene.label)
    colour, labels = np.array(colour), np.array(labels)
    means = np.stack([colour[:120][labels[:120] == each].mean(0) for each in range(24)])
    guess = np.linalg.norm(colour[120:, None] - means, axis=2).argmin(1)
    right = int((guess == labels[120:]).sum())
    assert stats.binomtest(right, 120, 1 / 24).pvalue > 0.001


def test_a_turned_picture_has_the_label_of_what_it_shows():
    axis = np.arange(33) - 16.0
    x, y = axis[None, :], axis[:, None]

    def wave(pattern):
        """The pattern with its random parts left at one draw."""
        return canvas.pattern_wave(pattern, x, y, 0.1, 16.0, np.random.default_rng(3))

    for number, name in enumerate(canvas.STRIPE_DEGREES):
        for turn in range(8):
            picture = wave(f"{name} stripes")[:: 1 - 2 * (turn & 1), :: 1 - (turn & 2)]
            picture = picture.T if turn & 4 else picture
            gy, gx = np.gradient(picture)
            direction = np.degrees(np.angle(((gx + 1j * gy) ** 2).sum())) / 2 % 180
            labels = scenes.turned(np.array([3 * number + 1]), np.array([turn]))
            shown = scenes.CLASS_NAMES[labels[0]].split()
            assert shown[0] == "red-green"
            away = abs((direction - canvas.STRIPE_DEGREES[shown[1]] + 90) % 180 - 90)
            assert away < 20, (name, turn, shown)
    others = np.arange(12, 24)
    for turn in range(8):
        assert (scenes.turned(others, np.full(12, turn)) == others).all()


def test_patterns_are_waves_of_their_frequency():
    axis = np.arange(128) - 63.5
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    for pattern in canvas.PATTERNS:
        for seed in range(4):
            rng = np.random.default_rng(seed)
            wave = canvas.pattern_wave(pattern, axis[None, :], axis[:, None], 0.15, 40.0, rng)
            assert np.abs(wave).max() <= 1 + 1e-9 and wave.max() - wave.min() > 1.2
            if pattern == "rays":
                # As many as have this frequency halfway to the rim.
                angle = np.arange(720) * np.pi / 360
                at = np.stack([63.5 + 30 * np.sin(angle), 63.5 + 30 * np.cos(angle)])
                ring = ndimage.map_coordinates(wave, at, order=1)
                assert np.abs(np.fft.rfft(ring))[1:].argmax() + 1 == round(np.pi * 0.3 * 20)
                continue
            power = np.abs(np.fft.fft2(wave - wave.mean())) ** 2
            strongest = frequency.ravel()[power.argmax()]
            assert strongest == pytest.approx(0.15, abs=0.012), pattern


def test_colour_is_coarser_than_luminance():
    images = scenes.draw(48, SIZE, seed=13)[0] / 255
    grey = images.mean(axis=-1)
    steepness = [spectral_slope(images[..., 0] - grey), spectral_slope(images[..., 2] - grey)]
    assert max(steepness) < spectral_slope(grey) - 0.3


def test_the_object_is_large_and_mostly_visible():
    cover = np.array([scenes.scene(i, SIZE, seed=12).mask.mean() for i in range(48)])
    assert cover.min() > 0.1 and 0.25 < np.median(cover) < 0.5


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("disc", np.pi * 0.9**2),
        ("square", 4 * 0.75**2),
        ("triangle", 3 * np.sqrt(3) / 4),
        # Ten triangles between a spike (1) and a waist (0.45) that stand 36 degrees apart.
        ("star", 10 * 0.5 * 0.45 * np.sin(np.pi / 5)),
        ("cross", 2 * (2 * 0.95) * (2 * 0.3) - (2 * 0.3) ** 2),
        ("ring", np.pi * (0.92**2 - 0.52**2)),
    ],
)
def test_shapes_have_their_area(shape, area):
    axis = (np.arange(1000) + 0.5) / 1000 * 60 - 30
    inside = canvas.shape_distance(shape, axis[None, :], axis[:, None], radius=20.0) < 0
    assert inside.mean() * 60**2 == pytest.approx(area * 20**2, rel=0.005)
    # Centred: turning the picture does not move the object away.
    rows, columns = np.nonzero(inside)
    assert np.abs(axis[[rows, columns]].mean(axis=1)).max() < 0.3


def test_shape_distances_are_pixels_at_the_outline():
    axis = np.linspace(-30, 30, 601)
    for shape in canvas.SHAPES:
        distance = canvas.shape_distance(shape, axis[None, :], axis[:, None], radius=20.0)
        slope = np.hypot(*np.gradient(distance, axis, axis))
        assert np.median(slope[np.abs(distance) < 0.5]) == pytest.approx(1, abs=0.02)


def test_radii_follow_the_power_law():
    radii = canvas.radii(np.random.default_rng(0), 4000, SIZE)
    low, high = 0.03 * SIZE, 0.6 * SIZE

    def cumulative(radius):
        return (low**-2 - radius**-2.0) / (low**-2 - high**-2)

    assert stats.kstest(radii, cumulative).pvalue > 0.01


def test_gamma_is_srgb():
    # Values of the standard: mid grey, the knee, both ends.
    codes = np.array([0, 0.04045, 0.5, 1])
    light = np.array([0, 0.0031308, 0.2140411, 1])
    np.testing.assert_allclose(canvas.linear_to_srgb(light), codes, atol=1e-5)
    np.testing.assert_allclose(linear(codes), light, atol=1e-6)


def test_written_files_are_the_drawn_scenes(tmp_path):
    folder, table = tmp_path / "images", tmp_path / "labels.csv"
    counted = []

    def progress(drawn):
        for item in drawn:
            counted.append(1)
            yield item

    scenes.write(folder, table, count=30, size=24, seed=5, progress=progress)
    images, labels = scenes.draw(30, 24, seed=5)
    with open(table, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    assert len(counted) == 30
    for index, row in enumerate(rows):
        assert row["class_name"] == scenes.CLASS_NAMES[labels[index]]
        path = table.parent / row["file"]
        assert path.parent.name == f"{labels[index]:02d}_{row['class_name'].replace(' ', '_')}"
        np.testing.assert_array_equal(np.asarray(Image.open(path)), images[index])
    # Every class has its folder, also where a small data set leaves it empty.
    assert len(list(folder.iterdir())) == 24


def test_drawing_that_was_interrupted_leaves_nothing_and_can_be_repeated(tmp_path):
    """Wherever it dies, nothing half-made has the name of a result; then all is made anew."""
    whole, folder = tmp_path / "whole" / "images", tmp_path / "images"
    scenes.write(whole, tmp_path / "whole" / "labels.csv", 30, 24, 5)

    def die(at):
        def progress(drawn):
            for index, item in enumerate(drawn):
                if index == at:
                    raise KeyboardInterrupt
                yield item

        return progress

    for at in (0, 7, 29):
        with pytest.raises(KeyboardInterrupt):
            scenes.write(folder, tmp_path / "labels.csv", 30, 24, 5, progress=die(at))
        assert not folder.exists() and not (tmp_path / "labels.csv").exists()
    # A data set that was larger before leaves nothing behind.
    for count in (40, 30):
        scenes.write(folder, tmp_path / "labels.csv", count, 24, 5)
    assert (tmp_path / "labels.csv").read_bytes() == whole.with_name("labels.csv").read_bytes()
    drawn = sorted(path.relative_to(whole) for path in whole.rglob("*.png"))
    assert drawn == sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    assert all((whole / name).read_bytes() == (folder / name).read_bytes() for name in drawn)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels.csv", "whole"]


def test_a_killed_worker_is_an_error_and_not_a_wait_for_ever(tmp_path, monkeypatch):
    plain, parent = scenes.scene, os.getpid()

    def deadly(index, *rest):
        if index == 20 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(index, *rest)

    monkeypatch.setattr(scenes, "scene", deadly)
    monkeypatch.setattr(scenes, "_CHUNK", 8)
    with pytest.raises(RfatlasError, match="scenes: a worker process died"):
        scenes.write(tmp_path / "images", tmp_path / "labels.csv", 60, 24, 5, processes=2)
    assert not (tmp_path / "images").exists()
