"""Preferred stimuli: closed forms of linear units, planted deeper ones, and the ascents' book-
keeping."""

from pathlib import Path

import numpy as np
import pytest
import torch
from kills import check_resumes
from scipy import optimize
from small_resnet import box
from tasks import task
from test_receptive_fields import MEAN, STD, loaded, photographs, resnet18
from torch import nn

from rfatlas.files import store
from rfatlas.physiology.probe import GREY, Probe
from rfatlas.stimuli import preferred_stimulus as stimuli


def replace(settings, **changed):
    return settings | changed


ATTRS = {"stage": "preferred_stimulus"}
BARE = dict(
    gradient_start=False, jitter=0, l2=0.0, learning_rate=0.05, noise_starts=2, optimizer="lbfgs",
    parametrisation="pixels", patch_start=False, seed=3, steps=40, tv=0.0,
)  # fmt: skip
EVERYTHING = replace(
    BARE, gradient_start=True, l2=1.0, parametrisation="fourier", patch_start=True, steps=12, tv=0.1
)
GREYS = np.diag([1.0, 0.5, 0.25])


class Found:
    """What `measure` wrote: the arrays, the table, the attributes."""

    def __init__(self, path: Path):
        with store.open(path, "preferred_stimulus") as file:
            self.attrs = dict(file.attrs)
            for name in file:
                setattr(self, name, file[name][:])
        self.table = store.read_table(path.with_suffix(".csv"))


def measure(network, layer, folder, settings, channels=None, largest=None, fields=None, top=None):
    count = network.graph.shape(layer)[0]
    top = top or stimuli.Photographs(
        photographs(2, network.description["input"]["crop"]),
        np.zeros(count, np.int32),
        np.zeros((count, 2), np.int16),
    )
    output = folder / f"{layer}.h5"
    stimuli.measure(
        network, layer, np.arange(count) if channels is None else np.asarray(channels),
        np.ones(count) if largest is None else np.asarray(largest, float), top, fields, GREYS,
        settings, task("preferred_stimulus", output, 2000),
    )  # fmt: skip
    assert not Path(f"{output}.partial").exists()
    return Found(output)


@pytest.fixture(scope="module")
def network():
    module = resnet18(1)
    with torch.no_grad():
        module.conv1.weight[5] = 0
    return loaded(module, 64)


@pytest.fixture(scope="module")
def slope(network):
    """(64, 3, 7, 7) what conv1 adds per code value: its kernels over the input std."""
    return network.module.conv1.weight.numpy() / np.reshape(STD, (3, 1, 1))


def at_grey(slope):
    """(64,) value of conv1 at mid grey."""
    return (slope * (GREY - np.reshape(MEAN, (3, 1, 1)))).sum((1, 2, 3))


# ---- linear units: what the optimum must be


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_kernel_prefers_its_signs_where_only_the_range_binds(optimizer, network, slope, tmp_path):
    """White where the kernel is positive, black where it is negative; least liked: the inverse."""
    found = measure(network, "conv1", tmp_path, replace(BARE, optimizer=optimizer))
    alive = np.arange(64) != 5
    signs = slope > 0
    np.testing.assert_array_equal(found.image[alive], signs[alive])
    np.testing.assert_array_equal(found.off_image[alive], ~signs[alive])
    reach = np.abs(slope).sum((1, 2, 3)) / 2
    np.testing.assert_allclose(found.activation[alive], (at_grey(slope) + reach)[alive], rtol=1e-5)
    np.testing.assert_allclose(
        found.off_activation[alive], (at_grey(slope) - reach)[alive], rtol=1e-5
    )
    table = found.table[alive]
    np.testing.assert_allclose(table["stimulus_agreement"], 1, atol=1e-6)
    np.testing.assert_allclose(table["off_agreement"], 1, atol=1e-6)
    np.testing.assert_allclose(table["stimulus_spread"], 0, atol=1e-5)
    assert table[["stimulus_converged", "off_converged"]].all(axis=None)
    assert found.table["stimulus_converged"].isna()[5]
    early = measure(network, "conv1", tmp_path, replace(BARE, optimizer=optimizer, steps=3))
    assert not early.table["stimulus_converged"][alive].any()


@pytest.mark.parametrize("parametrisation", ["pixels", "fourier"])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_in_a_ball_about_grey_a_kernel_prefers_itself_over_the_input_std(
    optimizer, parametrisation, network, slope, tmp_path
):
    """The weight of the squares sets the ball; no image of that ball drives the unit more."""
    settings = replace(
        BARE, optimizer=optimizer, parametrisation=parametrisation, l2=100.0,
        steps=600 if optimizer == "adam" else 150, learning_rate=0.01, noise_starts=1,
    )  # fmt: skip
    channels = [0, 1, 2, 3]
    found = measure(network, "conv1", tmp_path, settings, channels)
    for row, channel in enumerate(channels):
        kernel, offset = slope[channel].ravel().astype(float), at_grey(slope)[channel]
        norm = np.linalg.norm(kernel)
        for image, value, sign in (
            (found.image[row], found.activation[row], 1),
            (found.off_image[row], found.off_activation[row], -1),
        ):
            change = image.ravel() - GREY
            assert 0.02 < image.min() and image.max() < 0.98, "the range does not bind"
            radius = np.linalg.norm(change)
            assert change @ kernel / (radius * norm) * sign > 0.999
            # The largest value on that ball, by Cauchy and Schwarz.
            assert sign * (value - offset) == pytest.approx(norm * radius, rel=1e-3)

            def negative(radius, sign=sign, offset=offset, norm=norm, size=kernel.size):
                drive = sign * offset + norm * radius
                return -(drive - 100 * radius**2 / size * np.sqrt(1 + drive**2))

            best = optimize.minimize_scalar(negative, bounds=(0, 3), method="bounded")
            # The pull back to the middle of the logistic function is none of the penalty's.
            assert radius == pytest.approx(best.x, rel=0.02)


def test_fourier_comes_close_to_the_signs_too(network, slope, tmp_path):
    settings = replace(BARE, parametrisation="fourier", steps=150)
    found = measure(network, "conv1", tmp_path, settings, [0, 1, 2, 3])
    assert (found.image >= 0).all() and (found.image <= 1).all()
    best = np.abs(slope[:4]).sum((1, 2, 3)) / 2
    reached = found.activation - at_grey(slope)[:4]
    assert (reached > 0.9 * best).all() and (reached <= best * (1 + 1e-5)).all()


# ---- a planted deeper unit


class Planted(nn.Module):
    """Four detectors of 2 x 2 pixels side by side, rectified and summed with `weights`."""

    def __init__(self):
        super().__init__()
        random = np.random.default_rng(8)
        self.conv1 = nn.Conv2d(3, 4, 2, stride=2)
        self.conv2 = nn.Conv2d(4, 1, 2, stride=2)
        self.relu = nn.ReLU()
        with torch.no_grad():
            self.conv1.weight.copy_(torch.tensor(random.normal(size=(4, 3, 2, 2))))
            self.conv1.bias.zero_()
            self.conv2.weight.zero_()
            for detector, weight in enumerate((1.0, 0.5, -2.0, -1.0)):
                self.conv2.weight[0, detector, detector // 2, detector % 2] = weight
            self.conv2.bias.fill_(0.25)

    def forward(self, x):
        return self.relu(self.conv2(torch.relu(self.conv1(x))))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_planted_deeper_unit_gets_the_stimulus_it_was_made_for(optimizer, tmp_path):
    """Each detector sees pixels of its own, so the optimum is known piece by piece: the signs of
    those that excite, and something that leaves those that inhibit silent."""
    module = Planted()
    network = loaded(module, 16)
    settings = replace(BARE, optimizer=optimizer, noise_starts=6, steps=80)
    found = measure(network, "relu", tmp_path, settings)
    slope = module.conv1.weight.numpy() / np.reshape(STD, (3, 1, 1))
    best = [
        max(0.0, (k * (GREY - np.reshape(MEAN, (3, 1, 1)))).sum() + np.abs(k).sum() / 2)
        for k in slope
    ]
    assert found.activation[0] == pytest.approx(0.25 + best[0] + 0.5 * best[1], rel=1e-5)
    assert found.off_activation[0] == pytest.approx(0.25 - 2 * best[2] - best[3], rel=1e-5)
    for image, detectors in ((found.image[0], (0, 1)), (found.off_image[0], (2, 3))):
        for detector in detectors:
            y, x = 2 * (detector // 2), 2 * (detector % 2)
            piece = image[:, y : y + 2, x : x + 2]
            np.testing.assert_array_equal(piece, slope[detector] > 0)
    assert found.image.shape == (1, 3, 4, 4)


def test_the_activation_is_that_of_the_whole_network_with_the_stimulus_in_an_image(
    network, tmp_path
):
    """At `top`, `left` in any image that is otherwise mid grey; also where the field exceeds it."""
    for layer in ("maxpool", "layer1.1", "layer3.0"):
        found = measure(network, layer, tmp_path, replace(EVERYTHING, gradient_start=False), [1, 4])
        size, top, left = (int(found.attrs[key]) for key in ("size", "top", "left"))
        whole = torch.full((2, 3, 64, 64), GREY)
        whole[:, :, top : top + size, left : left + size] = torch.tensor(found.image)
        kept = {}
        handle = network.module.get_submodule(layer).register_forward_hook(
            lambda child, args, value, kept=kept: kept.__setitem__("value", value)
        )
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        with torch.no_grad():
            network.module((whole - mean) / std)
        handle.remove()
        maps = kept["value"]
        y, x = maps.shape[2] // 2, maps.shape[3] // 2
        answers = [maps[row, channel, y, x] for row, channel in enumerate((1, 4))]
        np.testing.assert_allclose(found.activation, answers, rtol=1e-4)
        assert found.image.min() >= 0 and found.image.max() <= 1


# ---- starts


def test_a_photograph_drives_the_centre_unit_as_it_drove_the_unit_that_saw_it(network):
    """What units of other places saw, moved to the centre, gives their activation."""
    pictures = photographs(3, 64, 4)
    for layer in ("conv1", "maxpool", "layer1.0"):
        with torch.no_grad():
            maps = network.graph.prefix(layer)(network.preprocess(pictures)).numpy()
        geometry = network.graph.field(layer).local
        y = x = None
        for place in range(maps.shape[2] // 2 + 1, maps.shape[2]):
            _, _, bottom, right = box(geometry, place, place)
            # Inside the image in every layer below, too, where padding would be zeros.
            if max(bottom, right) + 8 <= 64:
                y = x = place
        assert y is not None and y != maps.shape[2] // 2
        count = maps.shape[1]
        image = np.arange(count) % 3
        top = stimuli.Photographs(pictures, image, np.tile([y, x], (count, 1)))
        probe = Probe(network, layer)
        square = stimuli.region(probe)
        seen = top.seen(np.arange(count), square, probe, network)
        value, _ = probe.respond(square.embed(torch.tensor(seen)))
        expected = maps[image, np.arange(count), y, x]
        np.testing.assert_allclose(value[np.arange(count), np.arange(count)], expected, atol=2e-5)


def test_a_photograph_that_leaves_the_image_goes_on_in_the_padding(network):
    """conv1 at its corner: the padding of the first layer is the mean that is subtracted."""
    pictures = photographs(1, 64, 5)
    with torch.no_grad():
        maps = network.graph.prefix("conv1")(network.preprocess(pictures)).numpy()
    top = stimuli.Photographs(pictures, np.zeros(64, int), np.zeros((64, 2), int))
    probe = Probe(network, "conv1")
    square = stimuli.region(probe)
    seen = top.seen(np.arange(64), square, probe, network)
    np.testing.assert_allclose(seen[0, :, 0, 0], MEAN, rtol=1e-6)
    value, _ = probe.respond(square.embed(torch.tensor(seen)))
    np.testing.assert_allclose(np.diag(value), maps[0, :, 0, 0], atol=1e-5)
    top = stimuli.Photographs(pictures, np.full(64, -1), np.zeros((64, 2), int))
    assert (top.seen(np.arange(2), square, probe, network) == GREY).all()


def fields_of(channels, gradient):
    return {"channel": np.array(channels), "mean_gradient": gradient}


def test_gradient_starts_and_their_similarity(network, slope, tmp_path):
    """A start along the kernel stays there under a tight ball; a channel without a gradient, or
    with none but zeros, has no similarity and starts from grey."""
    gradient = slope[[2, 0, 3]].astype(float)
    gradient[2] = 0
    settings = replace(BARE, gradient_start=True, l2=100.0)
    found = measure(
        network, "conv1", tmp_path, settings, [0, 1, 2, 3], fields=fields_of([2, 0, 3], gradient)
    )
    assert list(found.attrs["starts"]) == ["noise", "noise", "gradient"]
    table = found.table.set_index("channel")
    assert table.loc[[0, 2], "stimulus_gradient"].min() > 0.999
    assert table.loc[[0, 2], "off_gradient"].max() < -0.999
    assert table.loc[[1, 3], ["stimulus_gradient", "off_gradient"]].isna().all(axis=None)


def test_fields_of_a_window_over_the_edge_are_moved_onto_the_region(network):
    """layer4.1 of 96 px: the window of receptive_fields is centred on the unit, at 32.5, the region
    is the image."""
    square = stimuli.region(Probe(loaded(resnet18(1), 96), "layer4.1"))
    assert (square.size, square.top, square.left) == (96, 0, 0)
    offset = -16
    assert square.window_top == square.window_left == offset != 0
    whole = np.random.default_rng(0).normal(size=(1, 3, 96, 96))
    window = np.pad(whole, ((0, 0), (0, 0), (16, 0), (16, 0)))[:, :, :96, :96]
    moved = square.from_window(window)
    seen = moved != 0
    assert seen.sum() == 3 * 80**2
    np.testing.assert_array_equal(moved[seen], whole[seen])
    near = stimuli.region(Probe(network, "layer1.0"))
    assert (near.top, near.left) == (near.window_top, near.window_left)


def test_samples_are_seeded_and_of_every_layer_their_own():
    one = stimuli.chosen(512, 16, 0, "layer4.0")
    assert len(set(one)) == 16 and (np.sort(one) == one).all() and one.max() < 512
    assert np.array_equal(one, stimuli.chosen(512, 16, 0, "layer4.0"))
    assert not np.array_equal(one, stimuli.chosen(512, 16, 1, "layer4.0"))
    assert not np.array_equal(one, stimuli.chosen(512, 16, 0, "layer4.1"))
    for everything in (None, 512, 600):
        assert np.array_equal(stimuli.chosen(512, everything, 0, "x"), np.arange(512))


# ---- parametrisation and penalty


@pytest.mark.parametrize("size", [7, 12, 43])
def test_fourier_gives_back_what_it_was_given(size):
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    colours = np.random.default_rng(0).normal(size=(3, 3))
    fourier = stimuli.Fourier(size, colours)
    np.testing.assert_allclose(fourier.decode(fourier.encode(images)), images, atol=1e-4)
    wild = fourier.decode(100 * torch.randn(fourier.encode(images).shape))
    assert wild.min() >= 0 and wild.max() <= 1


def test_white_spectra_are_pictures_of_falling_spectrum_and_of_the_colours_given():
    colours = np.array([[1.0, 0.5, 0.1], [1.0, 0.0, -0.2], [1.0, -0.5, 0.1]]) / np.sqrt(3)
    fourier = stimuli.Fourier(64, colours)
    spectrum = torch.randn(200, 2, 3, 64, 33, generator=torch.Generator().manual_seed(1))
    raw = torch.logit(fourier.decode(spectrum).double()).numpy()
    covariance = np.cov(raw.transpose(1, 0, 2, 3).reshape(3, -1))
    expected = colours @ colours.T
    assert np.abs(covariance / covariance.trace() - expected / expected.trace()).max() < 0.02
    power = (np.abs(np.fft.fft2(raw)) ** 2).mean((0, 1))
    assert power[0, 4] / power[0, 16] == pytest.approx(16, rel=0.2)


def test_decorrelated_colours_are_the_square_root_of_the_covariance():
    random = np.random.default_rng(0)
    mixed = random.normal(size=(5, 40, 40, 3)) @ np.array([[30, 25, 20], [5, 0, -5], [0, 9, 0]])
    images = (mixed + 128).clip(0, 255).astype(np.uint8)
    colours = stimuli.decorrelated(images)
    covariance = np.cov(images[:, ::4, ::4].reshape(-1, 3).T)
    product = colours @ colours.T
    np.testing.assert_allclose(
        product / product.trace(), covariance / covariance.trace(), atol=1e-9
    )
    assert np.linalg.norm(colours, axis=0).max() == pytest.approx(1)
    grey = np.repeat(images[..., :1], 3, axis=-1)
    assert np.linalg.matrix_rank(stimuli.decorrelated(grey)) == 3
    assert np.linalg.matrix_rank(stimuli.decorrelated(np.zeros_like(grey))) == 3


def test_penalty_is_the_loop_over_pixels():
    images = np.random.default_rng(0).uniform(0, 1, (2, 3, 5, 5))
    for row, image in enumerate(images):
        squares = variation = 0.0
        for c, y, x in np.ndindex(image.shape):
            squares += (image[c, y, x] - 0.5) ** 2 / image.size
            down = image[c, y + 1, x] - image[c, y, x] if y < 4 else 0.0
            across = image[c, y, x + 1] - image[c, y, x] if x < 4 else 0.0
            variation += (np.sqrt(down**2 + across**2 + 1e-4) - 0.01) / image.size
        found = stimuli.penalty(torch.tensor(images), 2.0, 3.0)[row].item()
        assert found == pytest.approx(2 * squares + 3 * 5 * variation, rel=1e-9)
    # One edge from black to white counts one, however large the picture.
    for size in (8, 64):
        edge = torch.zeros(1, 3, size, size)
        edge[..., size // 2 :] = 1
        assert stimuli.penalty(edge, 0, 1.0).item() == pytest.approx(1, abs=0.011)


def test_jitter_shifts_every_climb_its_own_way_and_rests_at_the_end():
    numbers = [(c, k) for c in (4, 9) for k in range(3)]
    shift = stimuli.jitters(5, 50, 100, 0, "a", numbers)
    assert shift.shape == (40, 6, 2) and shift.min() == -5 and shift.max() == 5
    assert len(np.unique(shift.reshape(40, 6, 2)[:, :, 0], axis=1).T) == 6
    np.testing.assert_array_equal(shift[:, 3:], stimuli.jitters(5, 50, 100, 0, "a", numbers[3:]))
    assert np.abs(stimuli.jitters(50, 50, 43, 0, "a", numbers)).max() == 5
    for none in (
        stimuli.jitters(0, 50, 100, 0, "a", numbers),
        stimuli.jitters(3, 9, 7, 0, "a", numbers),
    ):
        assert none.shape == (0, 6, 2)


def test_shifted_pictures_repeat_their_edge():
    images = torch.arange(2 * 3 * 16, dtype=torch.float32).view(2, 3, 4, 4)
    moved = stimuli.shifted(images, torch.tensor([[1, -2], [0, 0]]))
    padded = np.pad(images[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="edge")
    np.testing.assert_array_equal(moved[0], padded[:, 1:5, 4:8])
    np.testing.assert_array_equal(moved[1], images[1])


def test_adam_with_jitter_finds_what_is_worth_less_when_moved(network, tmp_path):
    """The stimulus of a shaken ascent still drives the unit as it stands, and another one."""
    settings = replace(BARE, optimizer="adam", steps=40, noise_starts=1, l2=1.0)
    still = measure(network, "layer1.1", tmp_path / "a", settings, [0, 1])
    shaken = measure(network, "layer1.1", tmp_path / "b", replace(settings, jitter=3), [0, 1])
    assert (shaken.activation > 0.3 * still.activation).all()
    assert not np.allclose(shaken.image, still.image, atol=0.05)


# ---- the table


def test_rows_for_all_channels_and_reasons_for_those_without(tmp_path):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
            self.relu = nn.ReLU()
            with torch.no_grad():
                self.conv1.bias.zero_()
                self.conv1.weight[1] = 0
                self.conv1.bias[2] = -100
                self.conv1.bias[5] = 100

        def forward(self, x):
            return self.relu(self.conv1(x))

    torch.manual_seed(0)
    network = loaded(Mixed(), 16)
    found = measure(network, "relu", tmp_path, BARE, [0, 1, 2, 3, 5], [2, 1, 0, 0, 4, 100])
    table = found.table
    assert tuple(table.columns) == stimuli.COLUMNS
    assert table["channel"].tolist() == [0, 1, 2, 3, 4, 5] and (table["layer"] == "relu").all()
    assert table["stimulus_reason"].fillna("").tolist() == [
        "", "constant", "silent", "no_photograph", "not_measured", "",
    ]  # fmt: skip
    on = [name for name in stimuli.COLUMNS if name.startswith("stimulus") and "reason" not in name]
    off = [name for name in stimuli.COLUMNS if name.startswith("off")]
    assert table.loc[[1, 2, 4], on].isna().all(axis=None)
    assert table.loc[[1, 4, 5], off].isna().all(axis=None), "nothing takes channel 5 below 0"
    assert table.loc[2, "off_activation"] < -100
    assert np.isnan(table.loc[3, "stimulus_gain"]) and table.loc[3, "stimulus_activation"] > 0
    np.testing.assert_allclose(
        table.loc[[0, 5], "stimulus_gain"], table.loc[[0, 5], "stimulus_activation"] / [2, 100]
    )
    np.testing.assert_allclose(found.gain[[0, 4]], table.loc[[0, 5], "stimulus_gain"], rtol=1e-6)
    assert found.channel.tolist() == [0, 1, 2, 3, 5]


def test_the_best_start_wins_and_the_others_are_told(network, slope, tmp_path):
    """maxpool, cut short after two steps: starts differ, and the file tells what each reached."""
    gradient = np.random.default_rng(0).normal(size=(64, 3, 11, 11))
    found = measure(
        network, "maxpool", tmp_path, replace(EVERYTHING, steps=2), largest=np.full(64, 2.0),
        fields=fields_of(np.arange(64), gradient),
    )  # fmt: skip
    kinds, off_kinds = list(found.attrs["starts"]), list(found.attrs["off_starts"])
    assert kinds == ["noise", "noise", "gradient", "patch"]
    assert off_kinds == ["noise", "noise", "gradient"]
    table = found.table
    fine = table["stimulus_reason"].isna()
    best = found.start_value.argmax(1)
    expected = np.array(kinds, object)[best]
    assert (table["stimulus_start"] == expected)[fine].all() and len(set(expected)) > 1
    np.testing.assert_allclose(
        table["stimulus_noise_gain"][fine],
        found.start_value[fine, :2].max(1).clip(0) / 2,
        rtol=1e-6,
    )
    lowest = found.off_start_value.min(1)
    np.testing.assert_allclose(table["off_activation"], np.where(lowest < 0, lowest, np.nan))


def test_agreement_is_the_mean_over_pairs():
    images = np.random.default_rng(0).uniform(size=(2, 3, 3, 4, 4))
    for row, found in zip(images, stimuli.agreement(images), strict=True):
        matrix = np.corrcoef(row.reshape(3, -1))
        assert found == pytest.approx((matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3)
    assert np.isnan(stimuli.agreement(images[:, :1])).all()


# ---- batches, seeds, progress


def test_the_seed_decides_and_nothing_else(network, tmp_path):
    settings = replace(EVERYTHING, gradient_start=False)
    one, again, other = (
        measure(network, "layer1.0", tmp_path / name, replace(settings, seed=seed), [3, 7])
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    for name in ("image", "off_image", "activation", "start_value"):
        assert np.array_equal(getattr(one, name), getattr(again, name)), name
    assert not np.allclose(one.start_value[:, :2], other.start_value[:, :2])


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_blocks_batches_and_company_do_not_change_results(
    optimizer, network, tmp_path, monkeypatch
):
    settings = replace(EVERYTHING, gradient_start=False, optimizer=optimizer)
    whole = measure(network, "layer1.0", tmp_path / "a", settings, [1, 3, 4, 7])
    monkeypatch.setattr(stimuli, "_BLOCK", 3)
    monkeypatch.setattr(Probe, "_batch", lambda *args: 6)
    parts = measure(network, "layer1.0", tmp_path / "b", settings, [1, 3, 4, 7])
    alone = measure(network, "layer1.0", tmp_path / "c", settings, [4])
    np.testing.assert_allclose(parts.start_value, whole.start_value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(parts.image, whole.image, atol=5e-3)
    np.testing.assert_allclose(parts.off_image, whole.off_image, atol=5e-3)
    np.testing.assert_allclose(alone.image[0], whole.image[2], atol=5e-3)
    np.testing.assert_allclose(alone.start_value[0], whole.start_value[2], rtol=1e-3, atol=1e-4)


def test_a_killed_job_goes_on_with_the_next_block(tmp_path):
    script = """
import numpy as np
import test_preferred_stimulus as t

t.store.SAVE_EVERY_S = t.store.SAVE_COSTS = 0
t.stimuli._BLOCK = 2
t.stimuli._block = counted(t.stimuli._block)
settings = t.replace(t.EVERYTHING, gradient_start=False, steps=4)
folder = output.with_suffix("")
folder.mkdir(exist_ok=True)
t.measure(t.loaded(t.resnet18(1), 64), "layer1.0", folder, settings, np.arange(9))
for suffix in (".h5", ".csv"):
    (folder / f"layer1.0{suffix}").rename(output.with_suffix(suffix))
"""
    check_resumes(script, tmp_path, lambda blocks: (blocks - 1,))
