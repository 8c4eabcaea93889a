"""Gratings: planted kernels against their own Fourier transforms, the whole network by brute force,
killed jobs, blanks that change a label."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from tasks import task
from test_receptive_fields import MEAN, STD, loaded, resnet18
from torch import nn

from rfatlas.files import store
from rfatlas.physiology import contrast, gratings, size, tuning
from rfatlas.physiology.probe import Probe

EXTENT = 64
CURVES = {"diameters": 12, "contrasts": 12}
SETTINGS = {"orientations": 36, "frequencies": 12, "phases": 8, "f1_phases": 24, **CURVES}
SMALL = {"orientations": 8, "frequencies": 4, "phases": 4, "f1_phases": 12, **CURVES}
PARTS = ("size", "contrast")
ATTRS = store.provenance("gratings", {})
GREY_IMAGE = np.full((EXTENT, EXTENT, 3), 0.5)


def measure(
    network, layer, output: Path, settings=SETTINGS, mean_image=GREY_IMAGE, batch=None, parts=PARTS
):
    probe = Probe(network, layer)
    probe.batch = batch or probe.batch
    gratings.measure(probe, layer, mean_image, settings, parts, task("gratings", output))
    return pd.read_csv(output.with_suffix(".csv"))


def apart(a, b) -> np.ndarray:
    return np.abs((np.asarray(a) - b + 90) % 180 - 90)


# ---- planted kernels


def axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x to the right and y upwards, from the kernel's centre."""
    place = np.arange(size) - (size - 1) / 2
    return place[None], -place[:, None]


def colour(random: np.random.Generator) -> np.ndarray:
    """A direction in code space whose achromatic share is at least 0.3."""
    while True:
        direction = random.normal(size=3)
        direction /= np.linalg.norm(direction)
        if abs(direction.sum()) / np.sqrt(3) >= 0.3:
            return direction


def gabor_field(size, theta, frequency, phase, sigma_x, sigma_y, centre=(0, 0)) -> np.ndarray:
    x, y = axes(size)
    x, y = x - centre[0], y - centre[1]
    angle = np.radians(theta)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    envelope = np.exp(-(along**2) / (2 * sigma_x**2) - across**2 / (2 * sigma_y**2))
    return envelope * np.cos(2 * np.pi * frequency * along + np.radians(phase))


def planted_gabors(count: int, size: int, seed: int) -> np.ndarray:
    """(count, size, size) Gabors of all orientations and phases, off centre."""
    random = np.random.default_rng(seed)
    fields = []
    for _ in range(count):
        frequency = random.uniform(1.2 / size, 0.33)
        sigma = np.minimum(random.uniform(0.45, 0.6, 2) / frequency, size / 4)
        where = random.uniform(-1, 1, 2)
        angles = random.uniform(0, 180), random.uniform(-180, 180)
        fields.append(gabor_field(size, angles[0], frequency, angles[1], *sigma, where))
    return np.array(fields)


def network_of(kernels: np.ndarray, bias: float = 0.0):
    """A network whose conv1 has the kernels (n, 3, size, size)."""
    n, _, size, _ = kernels.shape
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, n, size, 2, size // 2))
    with torch.no_grad():
        network.conv1.weight.copy_(torch.tensor(kernels, dtype=torch.float32))
        network.conv1.bias.fill_(bias)
    return loaded(network.eval(), EXTENT)


def coloured(fields: np.ndarray, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([colour(random)[:, None, None] * field for field in fields])


def spectrum(kernels: np.ndarray, theta: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Amplitude (n, theta, frequency) of the answers of kernels to round achromatic gratings, from
    their Fourier transforms: response = sum over pixels of the kernel over std times 0.5 cos."""
    size = kernels.shape[-1]
    x, y = axes(size)
    field = (kernels / np.array(STD)[:, None, None]).sum(1) * (np.hypot(x, y) <= size / 2)
    result = np.zeros((len(kernels), len(theta), len(frequency)))
    for i, angle in enumerate(np.radians(theta)):
        for j, f in enumerate(frequency):
            wave = np.exp(-2j * np.pi * f * (x * np.cos(angle) + y * np.sin(angle)))
            result[:, i, j] = 0.5 * np.abs((field * wave).sum((1, 2)))
    return result


@pytest.mark.parametrize("size", [7, 11])
def test_planted_gabors_are_recovered(size, tmp_path):
    """Against the peak of each kernel's own spectrum, on a grid of 1 degree and 0.07 octaves."""
    kernels = coloured(planted_gabors(60, size, size))
    theta, frequency = np.arange(180.0), np.geomspace(0.5 / size, 0.4, 50)
    truth = spectrum(kernels, theta, frequency)
    i, j = np.unravel_index(truth.reshape(60, -1).argmax(1), truth.shape[1:])
    random = np.random.default_rng(1)
    noise = random.normal(size=kernels.shape) * kernels.std((1, 2, 3), keepdims=True) * 0.05
    for name, planted in (("clean", kernels), ("noisy", kernels + noise)):
        table = measure(network_of(planted), "conv1", tmp_path / f"{name}.h5")
        right = apart(table["orientation_deg"], theta[i]) < 2
        right &= np.abs(table["sf_cpp"] / frequency[j] - 1) < 0.05
        assert right.mean() >= (1 if name == "clean" else 0.95)
        assert (table["osi"] >= 0.5).all() and table["bandwidth_deg"].notna().all()
        # A linear unit is half-rectified above the blank, whatever its phase.
        assert table["f1_f0"].to_numpy() == pytest.approx(np.pi / 2, rel=0.01)
        assert (table["grating_reason"].isna()).all()
    # The mean of a half-rectified sinusoid is its amplitude over pi.
    with store.open(tmp_path / "clean.h5") as file:
        shown = spectrum(kernels, file["orientation"][:], file["frequency"][:])
    clean = pd.read_csv(tmp_path / "clean.csv")["grating_response"].to_numpy()
    assert clean * np.pi == pytest.approx(shown.max((1, 2)), rel=1e-3)


@pytest.mark.parametrize("count", [24, 36])
def test_orientations_and_bandwidths_are_those_of_the_spectrum(count, tmp_path):
    """Half-widths at 1/sqrt(2), from the kernel's spectrum at 0.1 degree; whatever the grid."""
    kernels = coloured(planted_gabors(20, 11, 3))
    table = measure(
        network_of(kernels), "conv1", tmp_path / "x.h5", {**SETTINGS, "orientations": count}
    )
    with store.open(tmp_path / "x.h5") as file:
        best, frequency = file["best"][:], file["frequency"][:]
    theta = np.arange(0, 180, 0.1)
    for c in range(20):
        (curve,) = spectrum(kernels[c : c + 1], theta, frequency[best[c, 1] :][:1])[:, :, 0]
        peak = curve.argmax()
        rolled = np.roll(curve, -peak)
        below = np.flatnonzero(rolled < rolled[0] / np.sqrt(2))
        half = (below[0] + len(rolled) - below[-1]) / 2 * 0.1
        assert apart(table["orientation_deg"][c], theta[peak]) < 0.5
        assert table["bandwidth_deg"][c] == pytest.approx(half, abs=0.5)
        orthogonal = rolled[900]
        osi = (rolled[0] - orthogonal) / (rolled[0] + orthogonal)
        assert table["osi"][c] == pytest.approx(osi, abs=0.01)
        vector = np.abs((curve * np.exp(2j * np.radians(theta))).sum()) / curve.sum()
        assert table["circular_variance"][c] == pytest.approx(1 - vector, abs=0.01)


def test_blobs_noise_and_dead_filters_are_not_called_orientation_selective(tmp_path):
    x, y = axes(11)
    random = np.random.default_rng(5)
    blobs = [np.exp(-(x**2 + y**2) / (2 * sigma**2)) for sigma in (1.0, 1.8, 2.5)]
    surround = blobs[0] - 0.25 * blobs[2]
    noise = random.normal(size=(20, 11, 11))
    kernels = np.concatenate([
        coloured(np.array([*blobs, surround])),
        random.normal(size=(20, 3, 11, 11)),
        1e-7 * coloured(noise[:2]),
        np.zeros((2, 3, 11, 11)),
    ])  # fmt: skip
    table = measure(network_of(kernels, bias=0.3), "conv1", tmp_path / "x.h5")
    selective = (table["osi"] >= 0.5) & table["bandwidth_deg"].notna()
    assert not selective[:4].any()
    assert (table["osi"][:4] < 0.05).all() and table["circular_variance"][:4].gt(0.95).all()
    # Noise has a best grating too, and says so; but at other frequencies it likes others best.
    with h5py.File(tmp_path / "x.h5") as file:
        frequency = file["frequency"][:][file["best"][4:24, 1]]
    for c, f in zip(range(4, 24), frequency, strict=True):
        (curve,) = spectrum(kernels[c : c + 1], np.arange(0, 180, 0.5), [f])[:, :, 0]
        peak = curve.argmax()
        expected = (curve[peak] - curve[peak - 180]) / (curve[peak] + curve[peak - 180])
        assert table["osi"][c] == pytest.approx(expected, abs=0.07)
    assert (selective & (table["osi_sf_mean"] >= 0.5))[4:24].mean() <= 0.1
    dead = table.loc[24:]
    assert dead["grating_reason"].tolist() == ["weak", "weak", "no_response", "no_response"]
    unknown = list(gratings.COLUMNS[2:])
    for column in ("grating_blank", "grating_blank_dependent", "grating_reason"):
        unknown.remove(column)
    assert dead[unknown].isna().all(axis=None)
    assert not dead["grating_blank_dependent"].any()
    assert dead["grating_blank"].to_numpy() == pytest.approx(0.3, abs=1e-5)


def test_turned_and_mirrored_kernels_turn_and_mirror_the_angles(tmp_path):
    kernels = coloured(planted_gabors(12, 7, 8))
    tables = {}
    for name, changed in (
        ("plain", kernels),
        ("turned", np.rot90(kernels, axes=(2, 3))),
        ("mirrored", kernels[..., ::-1]),
    ):
        tables[name] = measure(network_of(changed.copy()), "conv1", tmp_path / f"{name}.h5")
    angle = tables["plain"]["orientation_deg"]
    # rot90 turns counter-clockwise as the picture is seen; mirroring left and right, x -> -x.
    assert apart(tables["turned"]["orientation_deg"], angle + 90).max() < 1e-3
    assert apart(tables["mirrored"]["orientation_deg"], 180 - angle).max() < 1e-3
    for name in ("turned", "mirrored"):
        for column in ("osi", "circular_variance", "bandwidth_deg", "sf_cpp", "grating_response"):
            found = tables[name][column].to_numpy()
            assert found == pytest.approx(tables["plain"][column].to_numpy(), rel=1e-4), column


def test_a_unit_that_likes_vertical_bars_has_orientation_zero(tmp_path):
    bars = np.zeros((2, 3, 7, 7))
    bars[0, :, :, 3] = 1
    bars[0, :, :, [1, 5]] = -0.5
    bars[1] = bars[0].swapaxes(1, 2)
    table = measure(network_of(bars), "conv1", tmp_path / "x.h5")
    assert apart(table["orientation_deg"][0], 0) < 0.1
    assert table["orientation_deg"][1] == pytest.approx(90, abs=0.1)
    assert table["sf_cpp"].to_numpy() == pytest.approx(0.25, abs=0.03)


def test_an_energy_unit_is_complex_and_frequencies_above_the_layers_own_are_marked(tmp_path):
    """Four half-rectified phases, squared and summed; a stride of 2 can carry 0.25 cycles/pixel."""

    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 11, 2, 5, bias=False)
            self.sum = nn.Conv2d(8, 2, 1, bias=False)

        def forward(self, x):
            return self.sum(torch.relu(self.conv1(x)).square())

    network = Energy().eval()
    kernels = [
        gabor_field(11, 30, frequency, phase, 2.2, 2.2)
        for frequency in (0.18, 0.33)
        for phase in (0, 90, 180, 270)
    ]
    with torch.no_grad():
        weight = np.array(kernels)[:, None] * np.ones((1, 3, 1, 1))
        network.conv1.weight.copy_(torch.tensor(weight, dtype=torch.float32))
        network.sum.weight.zero_()
        network.sum.weight[0, :4] = 1
        network.sum.weight[1, 4:] = 1
    table = measure(loaded(network, EXTENT), "sum", tmp_path / "x.h5")
    assert (table["f1_f0"] < 0.1).all()
    assert apart(table["orientation_deg"], 30).max() < 1
    assert table["sf_cpp"].to_numpy() == pytest.approx([0.18, 0.33], rel=0.05)
    assert table["sf_aliased"].tolist() == [False, True]


def test_a_unit_that_likes_finer_gratings_than_the_axis_has_is_out_of_range(tmp_path):
    """0.6 cycles/pixel along the diagonal: 0.424 along x and along y. What is left of it on the
    axis would be tuned to something else."""
    fields = [gabor_field(11, theta, f, 90, 2.2, 2.2) for theta, f in ((45, 0.6), (30, 0.36))]
    fields = np.array(fields)[:, None] * np.ones((1, 3, 1, 1))
    network = network_of(np.concatenate([fields, 300 * fields[1:]]))
    table = measure(network, "conv1", tmp_path / "x.h5")
    assert table["grating_reason"].fillna("").tolist() == ["out_of_range", "", ""]
    assert table.loc[0, ["osi", "sf_cpp", "full_osi", "suppression_index"]].isna().all()
    assert table["size_reason"][0] == table["contrast_reason"][0] == "out_of_range"
    assert table["sf_cpp"][1:].to_numpy() == pytest.approx(0.36, rel=0.05)


def test_nothing_moves_a_linear_unit(tmp_path):
    """Its own grating is that of full contrast in the whole field, to the last digit."""
    x, y = axes(11)
    blob = np.exp(-(x**2 + y**2) / 18)
    kernels = coloured(np.concatenate([planted_gabors(30, 11, 4), blob[None]]))
    table = measure(network_of(kernels), "conv1", tmp_path / "x.h5")
    assert (table["grating_contrast"] == 1).all() and not table["contrast_saturated"].any()
    assert table["contrast_half"].to_numpy() == pytest.approx(0.5, rel=0.01)
    assert table["cross_orientation_index"].max() < 0.01
    still = table["grating_diameter_px"] == 11
    assert still.mean() > 0.9 and (still == ~table["grating_suppressed"]).all()
    for name in gratings.FULL:
        pd.testing.assert_series_equal(
            table.loc[still, name], table.loc[still, f"full_{name}"], check_names=False
        )


# ---- rectified layers


def test_a_rectified_unit_is_read_as_if_it_had_been_shown_every_phase(tmp_path):
    """With a threshold, eight plain phases would miss by up to 5 %; against 360."""
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, 10, 7, 2, 3))
    network.add_module("relu", nn.ReLU())
    kernels = coloured(planted_gabors(10, 7, 9))
    network.eval()
    with torch.no_grad():
        network.conv1.weight.copy_(torch.tensor(kernels, dtype=torch.float32))
    one = loaded(network, EXTENT)
    with torch.no_grad():
        # Rest just below threshold, so that the best grating takes each unit far above it.
        grey = one.graph.prefix("conv1")(one.preprocess(np.full((1, 8, 8, 3), 127, np.uint8)))
        amplitude = torch.tensor(spectrum(kernels, np.arange(0, 180, 5.0), [0.2]).max((1, 2)))
        network.conv1.bias.copy_(network.conv1.bias - grey[0, :, 2, 2] - 0.3 * amplitude)
    one = loaded(network, EXTENT)
    few = measure(one, "relu", tmp_path / "few.h5")
    many = measure(one, "relu", tmp_path / "many.h5", {**SETTINGS, "phases": 360})
    assert (many["grating_blank"] == 0).all()
    for column, tolerance in (("osi", 0.01), ("circular_variance", 0.01), ("bandwidth_deg", 0.3)):
        assert few[column].to_numpy() == pytest.approx(many[column].to_numpy(), abs=tolerance)
    assert apart(few["orientation_deg"], many["orientation_deg"]).max() < 0.3
    assert few["grating_response"].to_numpy() == pytest.approx(
        many["grating_response"].to_numpy(), rel=0.005
    )
    with h5py.File(tmp_path / "few.h5") as file:
        assert np.array_equal(file["response"][:], file["unrectified"][:].clip(0))


@pytest.mark.parametrize(
    ("layer", "parts"), [("conv1", PARTS), ("maxpool", PARTS), ("layer2.0", ()), ("layer4.1", ())]
)
def test_responses_are_those_of_the_whole_network(layer, parts, tmp_path):
    """Gratings drawn pixel by pixel in a grey image, the whole network, a hook."""
    network = loaded(resnet18(3), 96)
    measure(network, layer, tmp_path / "x.h5", SMALL, np.full((96, 96, 3), 0.5), parts=parts)
    with store.open(tmp_path / "x.h5", "gratings") as file:
        response, blank = file["response"][:], file["blank"][:]
        theta, frequency, phase = (file[k][:] for k in ("orientation", "frequency", "phase"))
        best, best_response = file["best"][:], file["best_response"][:]
        own = file["shown_diameter"][:], file["shown_contrast"][:]
        f1_phase, size = file["f1_phase"][:], file.attrs["size"]
    geometry, extent = network.graph.field(layer).local, network.graph.shape(layer)[1]
    centre = geometry.start[0] + extent // 2 * geometry.stride[0]
    x, y = np.arange(96) + 0.5 - centre, centre - np.arange(96)[:, None] - 0.5

    def drawn(t, f, p, diameter=size, contrast=1.0):
        along = x * np.cos(np.radians(t)) + y * np.sin(np.radians(t))
        window = contrast * (np.hypot(x, y) <= diameter / 2)
        return 0.5 + 0.5 * window * np.cos(2 * np.pi * f * along + np.radians(p))

    def whole(pictures):
        kept = {}
        module = network.module.get_submodule(layer)
        handle = module.register_forward_hook(lambda m, a, value: kept.update(value=value))
        pixels = torch.tensor(np.array(pictures), dtype=torch.float32)[:, None].expand(
            -1, 3, -1, -1
        )
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        with torch.no_grad():
            network.module((pixels - mean) / std)
        handle.remove()
        return kept["value"][:, :, extent // 2, extent // 2].numpy()

    random = np.random.default_rng(0)
    places = [tuple(random.integers(0, n) for n in response.shape[1:]) for _ in range(12)]
    expected = whole([drawn(theta[i], frequency[j], phase[k]) for i, j, k in places])
    scale = np.abs(response).max()
    for place, row in zip(places, expected, strict=True):
        np.testing.assert_allclose(response[(slice(None), *place)], row, atol=2e-5 * scale)
    np.testing.assert_allclose(blank, whole([np.full((96, 96), 0.5)])[0], atol=2e-5 * scale)
    for channel in (
        int(np.nanargmax(own[1])),
        int(np.nanargmin(own[0])),
        int(np.nanargmin(own[1])),
    ):
        (i, j), shown = best[channel], [values[channel] for values in own]
        pictures = [drawn(theta[i], frequency[j], p, *shown) for p in f1_phase]
        expected = whole(pictures)[:, channel]
        np.testing.assert_allclose(best_response[channel], expected, atol=2e-5 * scale)


def test_threads_and_batches_change_nothing(tmp_path):
    network = loaded(resnet18(3), EXTENT)
    threads = torch.get_num_threads()
    tables = []
    try:
        for number, (count, batch) in enumerate([(1, None), (2, None), (1, 7)]):
            torch.set_num_threads(count)
            output = tmp_path / f"{number}.h5"
            tables.append(measure(network, "layer1.0", output, SMALL, batch=batch, parts=("size",)))
    finally:
        torch.set_num_threads(threads)
    for other in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], other, rtol=1e-4, atol=1e-5)


# ---- blanks


def test_a_label_that_changes_with_the_blank_is_flagged(tmp_path):
    """conv1 with three kinds of units: one sees gratings only, one is dark-loving (black drives it
    more than any grating), one is flagged for the mean image alone."""
    kernels = np.zeros((3, 3, 7, 7))
    kernels[0] = gabor_field(7, 0, 0.25, 90, 1.5, 1.5)
    kernels[0] -= kernels[0].mean()
    # Selective above grey; black lifts the blank above everything that a grating can do.
    kernels[1] = kernels[0] - 0.4
    # Its answer to the mean image is above that to every grating.
    kernels[2] = kernels[0]
    image = np.full((EXTENT, EXTENT, 3), 0.5)
    network = network_of(kernels)
    probe = Probe(network, "conv1")
    top, left = probe.origin
    pattern = np.sign(kernels[0].transpose(1, 2, 0))
    image[top + 1 : top + 8, left + 1 : left + 8] = 0.5 + 0.5 * pattern
    plain = measure(network, "conv1", tmp_path / "a.h5")
    assert plain["grating_blank_dependent"].tolist() == [False, True, False]
    mean = measure(network, "conv1", tmp_path / "b.h5", mean_image=image)
    assert mean["grating_blank_dependent"].tolist() == [True, True, True]
    # What is reported stays that above mid grey.
    pd.testing.assert_series_equal(plain["osi"], mean["osi"])
    with h5py.File(tmp_path / "b.h5") as file:
        black = -(kernels[1] * (np.array(MEAN) / STD)[:, None, None]).sum()
        assert file["blank_black"][1] == pytest.approx(black, rel=1e-4)
        best = (kernels[0] * (image[top + 1 : top + 8, left + 1 : left + 8].transpose(2, 0, 1)
                - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]).sum()  # fmt: skip
        assert file["blank_mean_image"][0] == pytest.approx(best, rel=1e-4)


def test_reasons():
    tuned = np.zeros((5, 4, 4))
    tuned[0, 1, 1] = 1
    tuned[1, 2, 0] = 0.9 * tuning.WEAK
    tuned[2, 2, 0] = 1.1 * tuning.WEAK
    tuned[4, 0, 0] = 0.5
    blank = np.array([0, 0, 0, 0, 6e4])
    assert tuning.driven(tuned, blank).tolist() == ["", "weak", "", "no_response", "weak"]
    assert tuning.driven(tuned[3:4], blank[3:4]).tolist() == ["no_response"]


def test_a_layer_that_nothing_drives(tmp_path):
    table = measure(network_of(np.zeros((3, 3, 7, 7))), "conv1", tmp_path / "x.h5", SMALL)
    assert table["grating_reason"].tolist() == ["no_response"] * 3
    assert table[["osi", "f1_f0", "sf_lowpass", "grating_response"]].isna().all(axis=None)
    with h5py.File(tmp_path / "x.h5") as file:
        assert (file["best"][:] == -1).all() and np.isnan(file["best_response"][:]).all()
    assert list(table.columns) == [*gratings.COLUMNS, *size.COLUMNS, *contrast.COLUMNS]


# ---- the file


def test_the_file_holds_the_responses_and_their_axes(tmp_path):
    output = tmp_path / "x.h5"
    measure(loaded(resnet18(4), EXTENT), "conv1", output, SMALL)
    with store.open(output, "gratings") as file:
        assert file["response"].shape == (64, 8, 5, 4) and file["response"].dtype == np.float32
        assert file["frequency"][:] == pytest.approx(tuning.frequencies(7, 4))
