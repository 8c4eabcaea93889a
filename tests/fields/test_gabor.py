"""Gabor fits: planted Gabors, scipy's curve_fit from the same starts, fields that are none, turned
and mirrored fields, whole layers."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy import optimize
from tasks import task
from test_gratings import EXTENT, SETTINGS, apart, colour, network_of
from test_gratings import measure as show_gratings
from test_receptive_fields import STD as NETWORK_STD
from test_receptive_fields import measure as measure_fields
from test_receptive_fields import photographs, top_tables

from rfatlas.fields import gabor, gabor_fit
from rfatlas.files import store
from rfatlas.tables import channels, orientation


def drawn(size, x, y, sigma_x, sigma_y, theta, frequency, phase, amplitude, offset) -> np.ndarray:
    """One Gabor (size, size), pixel by pixel, from the formula of the documentation."""
    field = np.zeros((size, size))
    turn = np.radians(theta)
    for row in range(size):
        for column in range(size):
            dx, dy = column - (size - 1) / 2 - x, (size - 1) / 2 - row - y
            along = dx * np.cos(turn) + dy * np.sin(turn)
            across = -dx * np.sin(turn) + dy * np.cos(turn)
            envelope = np.exp(-(along**2) / (2 * sigma_x**2) - across**2 / (2 * sigma_y**2))
            wave = np.cos(2 * np.pi * frequency * along + np.radians(phase))
            field[row, column] = amplitude * envelope * wave + offset
    return field


def planted(count: int, size: int, seed: int) -> np.ndarray:
    """Parameters (count, 9) of Gabors as they are in first layers, that pixels tell well."""
    random = np.random.default_rng(seed)
    frequency = random.uniform(1.2 / size, 0.33, count)
    sigma = np.minimum(random.uniform(0.4, 0.65, (2, count)) / frequency, size / 4)
    half = size / 10
    return np.stack(
        [
            *random.uniform(-half, half, (2, count)),
            *sigma,
            random.uniform(0, 180, count),
            frequency,
            random.uniform(-180, 180, count),
            random.uniform(0.5, 2, count),
            random.uniform(-0.1, 0.1, count),
        ],
        1,
    )


def differences(found: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """What the fits differ by: degrees, and shares of the truth."""
    turned = np.abs(found[:, 4] - true[:, 4]) > 90
    # Half a turn reverses the direction along which the phase is counted.
    phase = np.where(turned, -found[:, 6], found[:, 6])
    cycles = [parameters[:, 2:4] * parameters[:, 5:6] for parameters in (found, true)]
    return {
        "theta": apart(found[:, 4], true[:, 4]),
        "frequency": np.abs(found[:, 5] / true[:, 5] - 1),
        "phase": np.abs((phase - true[:, 6] + 180) % 360 - 180),
        "cycles": np.abs(cycles[0] / cycles[1] - 1).max(1),
    }


def right(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Orientation within 2 degrees, frequency 5 %, phase 10 degrees, nx and ny 10 %."""
    apart_ = differences(found, true)
    limits = {"theta": 2, "frequency": 0.05, "phase": 10, "cycles": 0.1}
    return np.logical_and.reduce([apart_[name] < limit for name, limit in limits.items()])


def noisy(fields: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return fields + share * fields.std((1, 2), keepdims=True) * random.normal(size=fields.shape)


# ---- planted Gabors


@pytest.mark.parametrize("size", [7, 11, 43])
def test_planted_gabors_are_recovered(size):
    true = planted(100, size, size)
    fields = np.array([drawn(size, *parameters) for parameters in true])
    np.testing.assert_allclose(gabor_fit.gabors(size, true), fields, atol=1e-12)
    clean = gabor_fit.fit(fields)
    assert (clean.reason == "").all() and clean.converged.all()
    assert right(clean.parameters, true).all()
    np.testing.assert_allclose(clean.parameters[:, :4], true[:, :4], atol=1e-4)
    np.testing.assert_allclose(clean.parameters[:, 7:], true[:, 7:], atol=1e-4)
    assert (clean.r2 > 1 - 1e-9).all() and (clean.agreeing >= 2).all()
    found = gabor_fit.fit(noisy(fields, 0.05))
    assert right(found.parameters, true).mean() >= 0.95
    assert found.r2 == pytest.approx(1 / (1 + 0.05**2), abs=0.002)


def test_standard_errors_are_the_scatter_of_repeated_fits():
    true = planted(1, 11, 3)
    fields = np.repeat(gabor_fit.gabors(11, true), 400, 0)
    found = gabor_fit.fit(noisy(fields, 0.1))
    scatter = (found.parameters - true).std(0)
    np.testing.assert_allclose(np.median(found.errors, 0), scatter, rtol=0.15)


def test_units_do_not_matter():
    fields = noisy(gabor_fit.gabors(9, planted(10, 9, 1)), 0.3)
    plain = gabor_fit.fit(fields)
    for factor in (1e-9, 1e7):
        scaled = gabor_fit.fit(factor * fields + 3 * factor)
        np.testing.assert_allclose(scaled.parameters[:, :7], plain.parameters[:, :7], atol=1e-4)
        np.testing.assert_allclose(
            scaled.parameters[:, 7] / factor, plain.parameters[:, 7], rtol=1e-5
        )
        np.testing.assert_allclose(
            scaled.parameters[:, 8] / factor - 3, plain.parameters[:, 8], atol=1e-4
        )


def test_vertical_bars_have_orientation_zero_and_stand_where_they_stand():
    field = np.zeros((15, 15))
    field[:, 9] = 1
    field[:, [7, 11]] = -0.5
    found = gabor_fit.fit(np.stack([field, field.T]))
    theta, x, y = found.parameters[:, 4], found.parameters[:, 0], found.parameters[:, 1]
    assert apart(theta, [0, 90]).max() < 0.1
    # The bar is two pixels to the right of the middle; transposed, two below it, so y = -2.
    assert x[0] == pytest.approx(2, abs=0.1) and y[1] == pytest.approx(-2, abs=0.1)
    assert found.parameters[:, 5] == pytest.approx(0.25, abs=0.05)


# ---- against curve_fit


def curve_fit(field: np.ndarray, start: np.ndarray):
    """scipy's fit of one field from one start (x, y, log sigmas, theta, frequency), same bounds."""
    size = len(field)
    place = np.arange(size) - (size - 1) / 2
    pixels = np.meshgrid(place, -place)

    def function(_, x, y, sx, sy, theta, f, phase, a, b):
        dx, dy = pixels[0] - x, pixels[1] - y
        along = dx * np.cos(theta) + dy * np.sin(theta)
        across = -dx * np.sin(theta) + dy * np.cos(theta)
        envelope = np.exp(-(along**2) / (2 * sx**2) - across**2 / (2 * sy**2))
        return (a * envelope * np.cos(2 * np.pi * f * along + phase) + b).ravel()

    low, high = gabor_fit.bounds(size)
    bounds = [
        [*low[:4], -np.inf, low[4], -np.inf, -np.inf, -np.inf],
        [*high[:4], np.inf, high[4], np.inf, np.inf, np.inf],
    ]
    x, y, log_sx, log_sy, theta, f = start
    best = None
    for phase in (0, np.pi / 2):
        given = np.clip([x, y, np.exp(log_sx), np.exp(log_sy), theta, f, phase, 1, 0], *bounds)
        try:
            found, covariance = optimize.curve_fit(
                function, None, field.ravel(), given, bounds=bounds, max_nfev=2000
            )
        except RuntimeError:
            continue
        rss = np.square(function(None, *found) - field.ravel()).sum()
        if best is None or rss < best[0]:
            best = rss, found, covariance
    return best


def test_fits_and_errors_are_those_of_curve_fit_from_the_same_starts():
    """Half of each field is noise; scipy differentiates numerically."""
    fields = noisy(gabor_fit.gabors(9, planted(12, 9, 5)), 0.7, 2)
    found = gabor_fit.fit(fields)
    centred = fields - fields.mean((1, 2), keepdims=True)
    for index, field in enumerate(fields):
        results = [curve_fit(field, start) for start in gabor_fit.starts(centred)[index]]
        rss, parameters, covariance = min((r for r in results if r), key=lambda r: r[0])
        r2 = 1 - rss / np.square(field - field.mean()).sum()
        assert found.r2[index] >= r2 - 1e-6
        if found.r2[index] > r2 + 1e-6 or np.isnan(found.errors[index]).any():
            continue
        theta = np.degrees(parameters[4])
        assert apart(found.parameters[index, 4], theta) < 0.05
        assert found.parameters[index, :4] == pytest.approx(parameters[:4], abs=0.01)
        errors = np.sqrt(np.diag(covariance))
        errors[[4, 6]] = np.degrees(errors[[4, 6]])
        assert found.errors[index] == pytest.approx(errors, rel=0.05)


def test_real_fields_are_fitted_as_well_as_from_random_starts(shared_data):
    """Luminance of ResNet-18's kernels; the first is one that the spectrum alone leads astray."""
    channels = [17, 12, 35, 58]
    with safe_open(shared_data / "resnet18" / "resnet18.safetensors", "np") as file:
        weight = file.get_tensor("conv1.weight")[channels].astype(float)
    fields = (weight / np.array([0.229, 0.224, 0.225])[:, None, None]).sum(1)
    fields /= np.abs(fields).max((1, 2), keepdims=True)
    found = gabor_fit.fit(fields)
    random = np.random.default_rng(0)
    for field, r2 in zip(fields, found.r2, strict=True):
        for _ in range(6):
            place, widths = random.uniform(-3, 3, 2), random.uniform(-0.5, 1.7, 2)
            start = *place, *widths, random.uniform(0, np.pi), random.uniform(0.05, 0.4)
            if (result := curve_fit(field, start)) and abs(result[1][7]) < gabor_fit.STEEP:
                best = 1 - result[0] / np.square(field - field.mean()).sum()
                assert r2 >= best - 1e-4


def test_large_fields_are_fitted_in_a_window_around_their_energy():
    true = planted(6, 21, 4)
    true[:, :2] = [(20, 9), (-25, 25), (0, 0), (3, -28), (14.3, 0), (-8, -8)]
    fields = noisy(gabor_fit.gabors(81, true), 0.02)
    found = gabor_fit.fit(fields)
    assert (found.window < 81).all() and (found.window >= gabor_fit.WHOLE).all()
    assert right(found.parameters, true).all()
    np.testing.assert_allclose(found.parameters[:, :2], true[:, :2], atol=0.1)


# ---- fields without a Gabor


def rings(size: int, cycles: float = 3) -> np.ndarray:
    """Waves that run from the middle, in a round window."""
    place = np.arange(size) - (size - 1) / 2
    distance = np.hypot(place, place[:, None])
    return np.cos(2 * np.pi * cycles / size * distance) * np.exp(-8 * (distance / size) ** 2)


def plaid(size: int) -> np.ndarray:
    """Two gratings, along x and along y, in a round window."""
    place = np.arange(size) - (size - 1) / 2
    wave = np.cos(2 * np.pi * 2.5 / size * place)
    window = np.exp(-(place**2) / (2 * (size / 5) ** 2))
    return (wave + wave[:, None]) * window * window[:, None]


@pytest.mark.parametrize("size", [7, 11, 15, 43])
def test_fields_that_several_orientations_fit_alike_have_none(size):
    fields = np.stack([rings(size), plaid(size), -plaid(size)])
    for share in (0, 0.1):
        found = gabor_fit.fit(noisy(fields, share))
        assert found.reason.tolist() == ["ambiguous"] * 3
        assert np.isnan(found.parameters).all() and np.isnan(found.osi).all()
        assert (found.r2 > 0.2).all()
    # A single ring is a poor blob, or noise to a Gabor, or ambiguous; never oriented.
    place = np.arange(size) - (size - 1) / 2
    distance = np.hypot(place, place[:, None]) / size
    width = np.array([0.05, 0.1, 0.15])[:, None, None]
    single = np.exp(-(((distance - 0.3) / width) ** 2))
    assert (gabor_fit.fit(noisy(single, 0.1)).reason != "").all()


def test_blobs_noise_and_dead_fields_are_not_called_oriented():
    place = np.arange(11) - 5
    distance = place[None] ** 2 + place[:, None] ** 2
    blobs = np.array([np.exp(-distance / (2 * s**2)) for s in (1.0, 1.8, 2.5)])
    surround = blobs[:1] - 0.3 * blobs[2:]
    blobs = np.concatenate([blobs, -blobs, surround])
    for fields in (blobs, noisy(blobs, 0.05)):
        found = gabor_fit.fit(fields)
        assert found.reason.tolist() == ["blob"] * 7
        assert (found.osi < 0.3).all() and np.isfinite(found.parameters).all()
    random = np.random.default_rng(0)
    noise = gabor_fit.fit(random.normal(size=(300, 11, 11)))
    nothing = np.isin(noise.reason, ("noise", "steep"))
    assert nothing.mean() >= 0.97 and (noise.reason == "noise").mean() >= 0.96
    assert np.isnan(noise.parameters[nothing]).all()
    # Eighteen gratings at once: no noise, but no Gabor either.
    place = np.arange(31)
    waves = [np.cos(2 * np.pi * f * place) for f in (0.1, 0.23, 0.4)]
    woven = sum(np.outer(a, b) for a in waves for b in waves)
    poor = gabor_fit.fit(woven[None])
    assert poor.reason.tolist() == ["poor"] and 0.04 < poor.r2[0] < 0.1
    assert np.isnan(poor.parameters).all()
    blank = gabor_fit.fit(np.stack([np.zeros((11, 11)), np.full((11, 11), 0.3)]))
    assert blank.reason.tolist() == ["blank"] * 2
    assert np.isnan(blank.parameters).all() and np.isnan(blank.r2).all()
    small = gabor_fit.fit(random.normal(size=(2, 3, 3)))
    assert small.reason.tolist() == ["small"] * 2 and np.isnan(small.parameters).all()


@pytest.mark.parametrize("edge", [5, 7, 15, 31])
def test_a_hundredth_of_white_noise_passes_as_a_gabor(edge):
    random = np.random.default_rng(edge)
    count = 600 if edge < 15 else 150
    found = gabor_fit.fit(random.normal(size=(count, edge, edge)))
    passed = np.isin(found.reason, ("", "blob")).mean()
    assert passed <= 0.03
    assert np.quantile(found.r2, 0.99) == pytest.approx(
        gabor_fit.noise_r2(np.array([edge]))[0], rel=0.12
    )


def test_white_noise_in_three_colours_is_noise_along_its_principal_colour():
    kernels = np.random.default_rng(5).normal(size=(300, 3, 7, 7))
    for source in gabor.fit_fields(np.arange(300), kernels, True):
        reason = source.fits.reason
        assert np.isin(reason, ("noise", "steep", "ambiguous")).mean() >= 0.97
        assert (reason == "noise").mean() >= 0.95


def test_an_edge_is_oriented_and_a_slightly_oblong_spot_is_not():
    place = np.arange(15) - 7
    x, y = np.meshgrid(place, -place)
    edge = x * np.exp(-(x**2 + y**2) / 18)
    spot = np.exp(-(x**2) / 8 - y**2 / 12)
    found = gabor_fit.fit(np.stack([edge, spot]))
    assert found.reason.tolist() == ["", "blob"]
    assert apart(found.parameters[0, 4], 0) < 0.1 and found.osi[0] > 0.95


def test_selectivity_is_that_of_answers_to_drawn_gratings():
    """Cosines of both phases, summed over the pixels of a round aperture; the field as it is."""
    true = planted(8, 15, 6)
    true[:, 8] = np.linspace(-0.3, 0.3, 8)
    found = gabor_fit.selectivity(true, 15, 0.5 / 15)
    x, y = np.meshgrid(np.arange(15) - 7, 7 - np.arange(15))
    aperture = np.hypot(x, y) <= 7.5
    for parameters, osi in zip(true, found, strict=True):
        field = drawn(15, *parameters)

        def amplitude(angle, frequency, field=field):
            along = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
            waves = (np.cos(2 * np.pi * frequency * along), np.sin(2 * np.pi * frequency * along))
            return np.hypot(*((field * wave)[aperture].sum() for wave in waves))

        frequencies = np.geomspace(0.5 / 15, 0.5, 300)
        along = [amplitude(parameters[4], frequency) for frequency in frequencies]
        best = int(np.argmax(along))
        p, o = along[best], amplitude(parameters[4] + 90, frequencies[best])
        assert osi == pytest.approx((p - o) / (p + o), abs=0.03)


# ---- symmetries


@pytest.mark.parametrize("size", [7, 41])
def test_turned_and_mirrored_fields_turn_and_mirror_what_is_reported(size):
    fields = noisy(gabor_fit.gabors(size, planted(20, size, 8)), 0.2)
    plain = gabor_fit.fit(fields).parameters
    turned = gabor_fit.fit(np.rot90(fields, axes=(1, 2)).copy()).parameters
    mirrored = gabor_fit.fit(fields[:, :, ::-1].copy()).parameters
    # rot90 turns counter-clockwise as a picture is seen: (x, y) -> (-y, x).
    assert apart(turned[:, 4], plain[:, 4] + 90).max() < 1e-3
    np.testing.assert_allclose(turned[:, 0], -plain[:, 1], atol=1e-4)
    np.testing.assert_allclose(turned[:, 1], plain[:, 0], atol=1e-4)
    assert apart(mirrored[:, 4], 180 - plain[:, 4]).max() < 1e-3
    np.testing.assert_allclose(mirrored[:, 0], -plain[:, 0], atol=1e-4)
    for other in (turned, mirrored):
        np.testing.assert_allclose(other[:, [2, 3, 5, 7]], plain[:, [2, 3, 5, 7]], rtol=1e-4)
    negative = gabor_fit.fit(-fields).parameters
    assert np.abs((negative[:, 6] - plain[:, 6]) % 360 - 180).max() < 1e-2


def test_the_canonical_form_is_the_same_function():
    random = np.random.default_rng(2)
    raw = planted(50, 9, 2)
    raw[:, 4], raw[:, 6] = random.uniform(-720, 720, 50), random.uniform(-720, 720, 50)
    raw[::2, 7] *= -1
    found = gabor_fit.canonical(raw)
    np.testing.assert_allclose(gabor_fit.gabors(9, found), gabor_fit.gabors(9, raw), atol=1e-6)
    assert (found[:, 4] >= 0).all() and (found[:, 4] < 180).all()
    assert (found[:, 6] >= -180).all() and (found[:, 6] < 180).all() and (found[:, 7] > 0).all()
    edge = gabor_fit.canonical([[0, 0, 1, 1, -1e-15, 0.2, 180, 1, 0]])
    assert edge[0, 4] < 180 and edge[0, 6] == -180


# ---- colours


def test_the_principal_colour_is_the_first_singular_vector():
    random = np.random.default_rng(0)
    fields = random.normal(size=(9, 3, 7, 7)) * random.uniform(0.1, 3, (9, 3, 1, 1))
    fields[8] = 0
    along, colour, share = gabor.principal(fields)
    for index in range(8):
        u, s, _ = np.linalg.svd(fields[index].reshape(3, -1), full_matrices=False)
        assert abs(u[:, 0] @ colour[index]) == pytest.approx(1)
        assert colour[index].sum() > 0
        assert share[index] == pytest.approx(s[0] ** 2 / (s**2).sum())
        expected = np.tensordot(colour[index], fields[index], 1)
        np.testing.assert_allclose(along[index], expected, atol=1e-12)
    assert np.isnan(share[8]) and np.isnan(colour[8]).all() and not along[8].any()
    opponent = np.multiply.outer(np.array([-1, 1, 0]), random.normal(size=(5, 5)))
    _, colour, _ = gabor.principal(opponent[None])
    np.testing.assert_allclose(np.abs(colour[0]), [np.sqrt(0.5), np.sqrt(0.5), 0], atol=1e-9)


# ---- layers

STD = (0.2, 0.25, 0.3)


@pytest.fixture
def layer(tmp_path):
    """Writes the inputs of a layer whose kernels are given, as a network with it would have them.

    The gradients that are measured are the kernels over std; channel 1 of 5 is not measured.
    """

    def write(kernels: np.ndarray, name: str = "conv1", virtual: bool = True) -> dict:
        size = kernels.shape[-1]
        header = {"input": {"std": STD}}
        tensors = {"conv1.weight": kernels.astype(np.float32), "conv1.bias": np.zeros(5, "f4")}
        save_file(tensors, tmp_path / "model.safetensors", {"rfatlas": json.dumps(header)})
        gradient = kernels / np.array(STD)[:, None, None]
        channel = np.delete(np.arange(len(kernels)), 1)
        path = tmp_path / f"{name}_fields.h5"
        with store.create(path, store.provenance("receptive_fields", {})) as file:
            file["channel"], file["mean_gradient"] = channel, gradient[channel]
            file.attrs["size"] = size
        with store.create(tmp_path / "virtual.h5", store.provenance("virtual_filters", {})) as file:
            file.create_group(name)
            if virtual:
                file[name]["filter"] = (-gradient).astype(np.float32)
        return {
            "layer": name,
            "channels": len(kernels),
            "fields": path,
            "weights": tmp_path / "model.safetensors",
            "virtual": tmp_path / "virtual.h5",
            "output": tmp_path / f"{name}.h5",
        }

    return write


def measured(given: dict) -> pd.DataFrame:
    with store.open(given["fields"]) as fields, store.open(given["virtual"]) as virtual:
        gabor.measure(
            given["layer"],
            given["channels"],
            fields,
            given["weights"],
            virtual,
            task("gabor", given["output"]),
        )
    return store.read_table(given["output"].with_suffix(".csv"))


def five_kernels() -> np.ndarray:
    """Four Gabors and a weak one, in colours that add up to more than 0."""
    true = planted(5, 9, 7)
    true[:, 8] = 0
    colour = np.array([(1, 1, 1), (1, 0.5, -0.2), (0.2, 1, 0.4), (1, -0.4, 0.3), (1e-6, 0, 0)])
    return colour[:, :, None, None] * gabor_fit.gabors(9, true)[:, None]


def test_a_layers_kernels_gradients_and_virtual_filters_agree(layer):
    given = layer(five_kernels())
    table = measured(given)
    assert table.columns.tolist()[: len(gabor.COLUMNS)] == list(gabor.COLUMNS)
    prefixes = [
        column.removesuffix("_theta_deg") for column in table if column.endswith("_theta_deg")
    ]
    prefixes = [prefix for prefix in prefixes if "_se" not in prefix]
    assert prefixes == list(gabor.SOURCES.values())
    for prefix in prefixes:
        reasons = ["", "", "", "", "weak"]
        if "kernel" not in prefix and "virtual" not in prefix:
            reasons[1] = "not_measured"
        assert table[f"{prefix}_reason"].fillna("").tolist() == reasons
        fitted = np.array([reason == "" for reason in reasons])
        numbers = [
            f"{prefix}_{name}" for name in gabor.NAMES if name not in ("reason", "color_share")
        ]
        assert table.loc[fitted, numbers].notna().all(axis=None)
        assert table.loc[~fitted, numbers].isna().all(axis=None)
        true = planted(5, 9, 7)
        assert apart(table[f"{prefix}_theta_deg"], true[:, 4])[fitted].max() < 0.01
        for name, expected in (
            ("nx", true[:, 2] * true[:, 5]),
            ("ny", true[:, 3] * true[:, 5]),
            ("aspect", true[:, 3] / true[:, 2]),
        ):
            found = table[f"{prefix}_{name}"][fitted]
            np.testing.assert_allclose(found, expected[fitted], rtol=1e-3)
    # The virtual filters are the kernels' negative; half a period of the cosine further.
    shift = (table["gabor_virtual_phase_deg"] - table["gabor_kernel_phase_deg"])[:4]
    assert np.abs(shift % 360 - 180).max() < 0.1
    # The gradient is the kernel over std, so its amplitude along a grey kernel's colour follows.
    grey = np.linalg.norm(1 / np.array(STD))
    assert table["gabor_amplitude"][0] == pytest.approx(planted(5, 9, 7)[0, 7] * grey, rel=1e-3)
    assert table["gabor_kernel_color_share"][:4].to_numpy() == pytest.approx(1)
    assert table["gabor_kernel_lum_color_share"].isna().all()
    with store.open(given["output"], "gabor") as file:
        assert file.attrs["parameters"].tolist() == list(gabor_fit.PARAMETERS)
        assert set(file) == set(gabor.SOURCES)
        assert file["gradient"]["channel"][:].tolist() == [0, 2, 3, 4]
        colour = np.array([0.2, 1, 0.4]) / STD
        found = file["kernel/colour"][2]
        np.testing.assert_allclose(found, colour / np.linalg.norm(colour), atol=1e-6)


def test_a_deeper_layer_has_no_kernels_and_perhaps_no_virtual_filters(layer):
    table = measured(layer(five_kernels(), "layer1.0", virtual=False))
    for prefix in ("gabor_kernel", "gabor_kernel_lum", "gabor_virtual"):
        assert (table[f"{prefix}_reason"] == "not_measured").all()
        assert table[f"{prefix}_theta_deg"].isna().all()
    assert (table["gabor_reason"].fillna("") == "").sum() == 3


def test_a_kernel_is_only_what_looks_at_the_image_itself(layer):
    given = layer(five_kernels())
    kernels = gabor.kernels(given["weights"], "conv1", 9)
    np.testing.assert_allclose(kernels * np.array(STD)[:, None, None], five_kernels(), rtol=1e-6)
    assert gabor.kernels(given["weights"], "conv1", 11) is None, "dilated, or a deeper layer"
    assert gabor.kernels(given["weights"], "layer1.0", 9) is None


def test_blobs_have_no_orientation_but_a_size(layer):
    place = np.arange(9) - 4
    blob = np.exp(-(place[None] ** 2 + place[:, None] ** 2) / 6)
    kernels = np.multiply.outer(np.ones((5, 3)), blob)
    table = measured(layer(kernels))
    assert (table["gabor_kernel_reason"] == "blob").all()
    oriented = [
        f"gabor_kernel_{name}" for name in ("theta_deg", "se_theta_deg", "nx", "ny", "aspect")
    ]
    assert table[oriented].isna().all(axis=None)
    assert table["gabor_kernel_sigma_x"].notna().all() and table["gabor_kernel_r2"].gt(0.99).all()


def test_blocks_change_nothing(layer, monkeypatch):
    given = layer(five_kernels())
    whole = measured(given)
    monkeypatch.setattr(gabor, "_BLOCK", 2 * 81)
    monkeypatch.setattr(gabor_fit, "_BLOCK", 81)
    monkeypatch.setattr(gabor_fit, "_PIXELS", 162)
    pd.testing.assert_frame_equal(whole, measured(given), rtol=1e-6, atol=1e-6)


# ---- a network


def planted_network(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (60, 9) of Gabors, in units of the gradient, and kernels (66, 3, 7, 7): Gabors in
    random colours with noise, a blob, white noise, a dead filter, one of zeros, rings and a
    plaid."""
    random = np.random.default_rng(11)
    true = planted(60, 7, 13)
    true[:, 8] = 0
    colours = np.array([colour(random) for _ in true])
    kernels = colours[:, :, None, None] * gabor_fit.gabors(7, true)[:, None]
    size = np.sqrt(np.square(kernels).mean((1, 2, 3), keepdims=True))
    kernels += noise * size * random.normal(size=kernels.shape)
    # Fields are fitted along the side of their colour that adds up to more than 0.
    gradients = colours / NETWORK_STD
    true[gradients.sum(1) < 0, 6] += 180
    place = np.arange(7) - 3
    blob = np.exp(-(place[None] ** 2 + place[:, None] ** 2) / 5)
    others = [
        colour(random)[:, None, None] * blob,
        random.normal(size=(3, 7, 7)),
        1e-6 * kernels[0],
        np.zeros((3, 7, 7)),
        *np.multiply.outer(np.ones(3), np.stack([rings(7), plaid(7)])).swapaxes(0, 1),
    ]
    return true, np.concatenate([kernels, others])


@pytest.mark.parametrize("noise", [0, 0.05])
def test_kernels_gradients_and_gratings_of_a_planted_network_agree(noise, tmp_path):
    """The stages receptive_fields, gabor, gratings and the columns that compare them."""
    true, kernels = planted_network(noise)
    network = network_of(kernels, bias=0.1)
    images = photographs(6, EXTENT)
    top = top_tables(network, "conv1", images, 4, len(kernels))
    measure_fields(network, "conv1", images, top, tmp_path / "fields.h5")
    header = {"input": {"std": list(NETWORK_STD)}}
    weights = {"conv1.weight": network.module.conv1.weight.detach().contiguous().numpy()}
    save_file(weights, tmp_path / "model.safetensors", {"rfatlas": json.dumps(header)})
    output = tmp_path / "conv1.h5"
    with store.open(tmp_path / "fields.h5") as fields:
        model = tmp_path / "model.safetensors"
        gabor.measure("conv1", len(kernels), fields, model, None, task("gabor", output))
    table = store.read_table(output.with_suffix(".csv"))
    share = 1 if noise == 0 else 0.95
    for prefix in ("gabor", "gabor_kernel"):
        found = table[[f"{prefix}_{name}" for name in gabor_fit.PARAMETERS]].to_numpy(float)[:60]
        assert right(found, true).mean() >= share
        assert table[f"{prefix}_reason"].isna()[:60].all()
        reasons = ["blob", "noise", "weak", "blank", "ambiguous", "ambiguous"]
        assert table[f"{prefix}_reason"][60:].tolist() == reasons
        empty = [f"{prefix}_{name}" for name in ("theta_deg", "nx", "ny", "aspect")]
        assert table.loc[60:, empty].isna().all(axis=None)
        assert table[f"{prefix}_osi"][61:].isna().all()
    shown = show_gratings(network, "conv1", tmp_path / "gratings.h5", SETTINGS)
    table = table.merge(shown, on=["layer", "channel"]).copy().assign(depth=0)
    table["split_half"] = store.read_table(tmp_path / "fields.csv")["split_half"]
    table = pd.concat([table, channels.derived(table, 0.5)], axis=1)
    for name in ("kernel_gradient", "kernel_gratings", "gradient_gratings"):
        distance = table[f"orientation_{name}_deg"][:60]
        assert (distance < 2).mean() >= 0.95, name
    found = orientation.agreement(table)
    every = found[found["channels"] == "selective"].set_index(["first", "second"])
    assert len(every) == 3 and (every["n"] >= 58).all()
    assert (every["median_deg"] < 0.6).all() and (every["share_within_10_deg"] > 0.97).all()
    assert not table["orientation_selective"].fillna(False)[[60, 62, 63, 64, 65]].any()
