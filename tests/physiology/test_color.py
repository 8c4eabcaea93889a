"""Colour: planted kernels of known class, closed forms, the whole network by brute force, grey
versions, killed jobs."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from color_units import SIZE, blob, covector, gabor_field
from tasks import Bar, task
from test_receptive_fields import MEAN, STD, loaded, photographs, resnet18, top_tables
from torch import nn

from rfatlas.files import store
from rfatlas.network import graph
from rfatlas.physiology import color, color_rules, colorspace, tuning

EXTENT = 64
RULES = {
    "sensitivity": 0.6, "color_ratio": 0.5, "lowpass": 0.5, "energy_share": 0.5,
    "harris_tolerance": 0.01,
}  # fmt: skip
SETTINGS = {
    "orientations": 6, "frequencies": 6, "phases": 8, "directions": 6, "hues": 72, **RULES,
}  # fmt: skip
SMALL = {"orientations": 3, "frequencies": 4, "phases": 4, "directions": 3, "hues": 12, **RULES}
ATTRS = store.provenance("color", {})
IMAGES = photographs(6, EXTENT)
SPACE = colorspace.space()


def no_units(channels: int, k: int = 2) -> dict[str, np.ndarray]:
    return {
        "value": np.zeros((channels, k), np.float32),
        "image": np.full((channels, k), -1, np.int32),
        "yx": np.zeros((channels, k, 2), np.int16),
    }


def measure(network, layer, output: Path, settings=SETTINGS, top=None, fields=None, virtual=None):
    top = no_units(network.graph.shape(layer)[0]) if top is None else top
    color.measure(network, layer, IMAGES, top, fields, virtual, settings, task("color", output))
    return store.read_table(output.with_suffix(".csv"))


# ---- planted kernels


def network_of(kernels: np.ndarray, bias: float = 0.0, relu: bool = False):
    """A network whose conv1 answers to code values as the kernels (n, 3, size, size) say."""
    n, _, size, _ = kernels.shape
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, n, size, 2, size // 2))
    if relu:
        network.add_module("relu", nn.ReLU())
    weight = kernels * np.array(STD)[:, None, None]
    with torch.no_grad():
        network.conv1.weight.copy_(torch.tensor(weight, dtype=torch.float32))
        # Without stimulus, at mid grey, the bias remains.
        grey = (weight * ((0.5 - np.array(MEAN)) / STD)[:, None, None]).sum((1, 2, 3))
        network.conv1.bias.copy_(torch.tensor(bias - grey, dtype=torch.float32))
    return loaded(network.eval(), EXTENT)


def field_of(kernels: np.ndarray) -> dict[str, np.ndarray]:
    return {"channel": np.arange(len(kernels)), "mean_gradient": kernels}


def planted(seed: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Kernels, their classes and their kinds, in random positions and signs.

    Half of the opponent ones see no grey at all, the other half see it a little.
    """
    random = np.random.default_rng(seed)
    kernels, classes, kinds = [], [], []

    def plant(kind, cls, colour, field):
        kernels.append(random.choice([-1, 1]) * np.multiply.outer(colour, field))
        classes.append(cls)
        kinds.append(kind)

    for number in range(6):
        x, y = random.uniform(-1, 1, 2)
        theta = random.uniform(0, 180)
        grating = gabor_field(theta, 0.18, random.uniform(0, 360))
        plant("grey_gabor", color_rules.NON, np.ones(3), grating)
        plant("grey_blob", color_rules.NON, np.ones(3), blob(1.8, x, y))
        for axis in (1, 2):
            pure = covector(axis)
            tinted = pure + 0.25 * np.linalg.norm(pure) / np.sqrt(3)
            colour, name = (pure, "pure") if number % 2 else (tinted, "tinted")
            plant(f"{name}_blob", color_rules.SINGLE, colour, blob(random.uniform(1.3, 2), x, y))
            side = 2.2 * np.array([np.cos(np.radians(theta)), np.sin(np.radians(theta))])
            pair = blob(1.4, *side) - blob(1.4, *-side)
            plant(f"{name}_pair", color_rules.DOUBLE, colour, pair)
            centre, surround = (blob(sigma, x / 2, y / 2) for sigma in (1.2, 2.6))
            centre -= 0.9 * surround * centre.sum() / surround.sum()
            plant(f"{name}_centre", color_rules.DOUBLE, colour, centre)
    for _ in range(3):
        plant("dead", color_rules.UNRESPONSIVE, np.ones(3), 1e-7 * random.normal(size=(SIZE, SIZE)))
    plant("dead", color_rules.UNRESPONSIVE, np.ones(3), np.zeros((SIZE, SIZE)))
    kernels = np.array(kernels)
    # All of one length, but for the dead.
    norm = np.sqrt(np.square(kernels).sum((1, 2, 3), keepdims=True))
    kernels /= np.where(norm > 1e-3, norm, 1)
    order = random.permutation(len(kernels))
    return kernels[order], [classes[i] for i in order], [kinds[i] for i in order]


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    kernels, classes, kinds = planted(0)
    network = network_of(kernels, 0.3)
    output = tmp_path_factory.mktemp("planted") / "conv1.h5"
    table = measure(network, "conv1", output, fields=field_of(kernels))
    return kernels, np.array(classes), np.array(kinds), table, output


def test_planted_classes_are_found_by_every_rule_where_they_must_agree(plant):
    _, classes, kinds, table, _ = plant
    assert table["color_class"].tolist() == classes.tolist()
    # A linear layer rectified at mid grey: nothing lies hidden below its blank.
    assert table["color_class_ratio_unrectified"].tolist() == classes.tolist()
    assert table["color_class_energy"].tolist() == classes.tolist()
    tinted = np.char.startswith(kinds, "tinted")
    for kind in ("grey_gabor", "grey_blob"):
        # Grey sees gratings and no hue.
        rows = table[kinds == kind]
        assert rows["harris_spatial"].all() and not rows["harris_spectral"].any()
    # Coloured and with a part that sees grey: double-opponent by both rules, except for ...
    rows = table[tinted & (kinds != "tinted_blob")]
    assert rows["harris_spatial"].all()
    assert table[kinds == "tinted_centre"]["harris_double"].all()
    assert table[kinds == "dead"]["harris_double"].isna().all()
    assert (table[kinds == "dead"]["color_reason"].isin(["weak", "no_response"])).all()


def test_where_harris_rule_differs_from_the_cone_rule(plant):
    """Its gratings are grey, its hues fill the field, and it asks for both signs of response."""
    _, _, kinds, table, _ = plant
    # A single-opponent blob that sees no grey: no grating moves it.
    rows = table[kinds == "pure_blob"]
    assert rows["harris_spectral"].all() and not rows["harris_spatial"].any()
    # With a little grey every linear blob goes up and down with a grating: "double", though one
    # blob of one sign has no spatial opponency whatever.
    assert table[kinds == "tinted_blob"]["harris_double"].all()
    # Side by side and balanced, a uniform field of any hue cancels out: not spectral; pure ones see
    # no grey grating either, and are nothing at all by Harris' rule.
    rows = table[np.isin(kinds, ["pure_pair", "tinted_pair"])]
    assert not rows["harris_spectral"].any()
    assert not table[kinds == "pure_pair"]["harris_spatial"].any()
    # A surround that leaves a tenth of the centre still shows in uniform fields.
    assert table[kinds == "pure_centre"]["harris_spectral"].all()


def test_negated_and_scaled_kernels(plant, tmp_path):
    kernels, _, _, table, output = plant
    negated = measure(
        network_of(-kernels, 0.3), "conv1", tmp_path / "n.h5", fields=field_of(-kernels)
    )
    scaled = measure(
        network_of(3 * kernels, 0.9), "conv1", tmp_path / "s.h5", fields=field_of(3 * kernels)
    )
    with h5py.File(output) as one, h5py.File(tmp_path / "n.h5") as other:
        np.testing.assert_array_equal(one["field_dkl"][:], -other["field_dkl"][:])
        assert np.abs(one["field_dkl"][:]).max() > 0
    for name in ("color_class", "color_class_ratio_unrectified", "color_class_energy"):
        assert negated[name].tolist() == table[name].tolist()
    alive = table["color_reason"].isna().to_numpy()
    np.testing.assert_allclose(negated["chromatic_share"], table["chromatic_share"], rtol=1e-6)
    for name in ("balance_lum", "balance_lm", "balance_s"):
        np.testing.assert_allclose(negated[name], -table[name], rtol=1e-6)
    assert negated["hue_linear_deg"].notna().equals(table["hue_linear_deg"].notna())
    opposite = (negated["hue_linear_deg"] - table["hue_linear_deg"]).dropna() % 360
    np.testing.assert_allclose(opposite, 180, atol=1e-5)
    for name in table.columns:
        one, other = scaled[name][alive], table[name][alive]
        if name.endswith("_deg") and name != "color_bandwidth_deg":
            period = 360 if "hue" in name else 180
            apart = np.abs((one - other + period / 2) % period - period / 2)
            # Of a round field the orientation is rounding.
            assert (apart.fillna(0)[table["color_osi"][alive] > 0.02] < 0.05).all(), name
            assert one.isna().equals(other.isna())
        elif other.dtype == float:
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4, err_msg=name)
        else:
            assert one.equals(other), name


def test_a_grey_kernel_scores_a_quarter_and_nothing_in_code_space(plant):
    """By hand, from the curve of sRGB: the sum of code values over one cycle of each grating."""
    _, _, kinds, table, _ = plant
    phase = np.radians(np.arange(3600) / 10)
    drift = {}
    for axis in (0, 1, 2):
        light = SPACE.grey * (1 + np.cos(phase)[:, None] * SPACE.axes[axis])
        drift[axis] = colorspace.code(light.clip(0, 1)).sum(1) - 1.5
    rows = table[kinds == "grey_blob"]
    expected = {
        sign: [np.maximum(sign * drift[axis], 0).mean() for axis in (0, 1, 2)] for sign in (-1, 1)
    }
    likes_light = rows["flash_s"] > 0
    for (_, row), sign in zip(rows.iterrows(), np.where(likes_light, 1, -1), strict=True):
        lightness, red_green, blue = expected[sign]
        assert row["color_ratio"] == pytest.approx(red_green / lightness, rel=0.02)
        assert row["color_ratio_s"] == pytest.approx(blue / lightness, rel=0.02)
    grey = table[np.isin(kinds, ["grey_blob", "grey_gabor"])]
    assert grey["color_ratio"].between(0.18, 0.3).all()
    assert grey["color_ratio"].mean() == pytest.approx(0.24, abs=0.02)
    assert grey["color_ratio_rgb"].to_numpy() == pytest.approx(0, abs=1e-5)
    assert grey["color_ratio_s"].max() < 0.5


def test_pooling_over_places_makes_no_blob_double_opponent(tmp_path):
    """A grating of any phase drives a pooled unit all the time, a uniform field half of it."""
    kernels, classes, kinds = planted(4)
    network = network_of(kernels, relu=True).module
    network.add_module("maxpool", nn.MaxPool2d(5, 1, 2))
    table = measure(loaded(network, EXTENT), "maxpool", tmp_path / "x.h5")
    # A rectified unit and one that sees grey, pooled: of the grey ones nothing changes either.
    assert table["color_class"].tolist() == classes
    with h5py.File(tmp_path / "x.h5") as file:
        blobs = np.flatnonzero([kind.endswith("_blob") and kind[0] != "g" for kind in kinds])
        tuned, flicker = file["tuned"][:][blobs], file["tuned_flicker"][:][blobs]
    share = flicker[:, 1:3].max(1) / tuned[:, 1:3].max((1, 2, 3))
    assert (share < 0.5).any(), "by mean responses some would be band-pass"


def test_a_grey_network_has_no_opponent_channel_by_any_rule(tmp_path):
    """Random filters of a network that sees R + G + B only, up to its third layer."""
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, 12, 7, 2, 3))
    network.add_module("relu", nn.ReLU())
    network.add_module("conv2", nn.Conv2d(12, 16, 3, 1, 1))
    network.add_module("relu2", nn.ReLU())
    with torch.no_grad():
        grey = torch.randn(12, 1, 7, 7) * torch.tensor(STD).view(1, 3, 1, 1)
        network.conv1.weight.copy_(grey / 7)
    one = loaded(network.eval(), EXTENT)
    for layer in ("conv1", "relu2"):
        table = measure(one, layer, tmp_path / f"{layer}.h5")
        responsive = table["color_class"] != color_rules.UNRESPONSIVE
        assert responsive.sum() > 0.6 * len(table)
        assert (table["color_class"][responsive] == color_rules.NON).all()
        assert (
            table["color_class_ratio_unrectified"]
            .isin([color_rules.NON, color_rules.UNRESPONSIVE])
            .all()
        )
        assert not table["harris_spectral"].any() and not table["harris_double"].any()
        assert table["color_ratio_rgb"][responsive].to_numpy() == pytest.approx(0, abs=1e-5)
        # A hue that such a network prefers is one that its code values make brighter.
        assert table["harris_spatial"].sum() >= responsive.sum()


# ---- the linear part


def test_cone_weights_of_planted_fields():
    """Fields made from cones up, of one or two lobes; where these are balanced a plain sum over
    pixels vanishes."""
    to_code = np.linalg.inv(SPACE.code_per_cone)
    lobes = gabor_field(40, 0.15, 50)
    assert abs(lobes.sum()) < 1e-9 * np.abs(lobes).sum()
    weights = np.array([[0.5, -0.5, 0], [0.3, 0.6, 0.1], [-0.2, -0.2, 0.6], [-0.5, 0.5, 0]])
    for field in (lobes, blob(1.5, 1, 0)):
        cones = weights[:, :, None, None] * field
        # sum_k g_k dp_k/dc = the field of cone c.
        found = color.linear(np.einsum("ncyx,ck->nkyx", cones, to_code))
        sign = 1 if np.abs(field).max() == field.max() else -1
        for cone, name in enumerate(("cone_l", "cone_m", "cone_s")):
            np.testing.assert_allclose(found[name], sign * weights[:, cone], atol=1e-9)
        balance = 0 if field is lobes else 1
        np.testing.assert_allclose(np.abs(found["balance_lm"][[0, 3]]), balance, atol=1e-9)


def test_maps_say_what_a_step_along_an_axis_does():
    """Against the numerical derivative of a linear unit of code values."""
    random = np.random.default_rng(3)
    fields = random.normal(size=(5, 3, 4, 4))
    maps = color.opponent_maps(fields)
    step = 1e-4
    for axis in range(3):
        for y, x in ((0, 0), (3, 2)):
            ends = [colorspace.uniform(sign * step * SPACE.axes[axis][None])[0] for sign in (-1, 1)]
            change = fields[:, :, y, x] @ (ends[1] - ends[0]) / (2 * step)
            np.testing.assert_allclose(maps[:, axis, y, x], change, rtol=1e-5, atol=1e-7)


def test_share_balance_and_hue_by_hand():
    red_green, blue = covector(1), covector(2)
    field = blob(1.5)
    fields = np.stack(
        [
            np.multiply.outer(covector(0), field),
            np.multiply.outer(3 * covector(0) + 4 * red_green, field),
            np.multiply.outer(red_green, gabor_field(0, 0.15, 90))
            + np.multiply.outer(blue, -field),
            np.multiply.outer(blue - red_green, field),
            np.zeros((3, SIZE, SIZE)),
        ]
    )
    found = color.linear(fields)
    np.testing.assert_allclose(found["chromatic_share"][[0, 1, 3]], [0, 0.64, 1], atol=1e-9)
    np.testing.assert_allclose(found["balance_s"][2:4], [-1, 1])
    assert found["balance_lm"][2] == pytest.approx(0, abs=1e-9)
    assert found["hue_linear_deg"][3] == pytest.approx(135)
    assert found["hue_linear_deg"][1] % 360 == pytest.approx(0, abs=1e-6)
    assert all(np.isnan(found[name][4]) for name in color.LINEAR)
    # What is only rounding is not given.
    assert np.isnan([found["hue_linear_deg"][0], *found["balance_lum"][2:4]]).all()
    classes = color.energy_class(found, RULES)
    expected = [
        color_rules.NON,
        color_rules.SINGLE,
        color_rules.SINGLE,
        color_rules.SINGLE,
        color_rules.UNRESPONSIVE,
    ]
    assert classes.tolist() == expected


def test_fields_of_some_channels_and_virtual_filters(tmp_path):
    kernels, *_ = planted(2)
    kernels = kernels[:6]
    fields = {"channel": np.array([1, 4]), "mean_gradient": kernels[[1, 4]]}
    table = measure(
        network_of(kernels), "conv1", tmp_path / "x.h5", SMALL, fields=fields,
        virtual=kernels[::-1].copy(),
    )  # fmt: skip
    assert table["cone_l"].notna().tolist() == [False, True, False, False, True, False]
    assert table["color_class_energy"].notna().tolist() == table["cone_l"].notna().tolist()
    # Hues of channels that are not opponent are left out.
    for name in color.LINEAR[:-1]:
        np.testing.assert_allclose(
            table[name][[1, 4]], table["kernel_" + name][[1, 4]], rtol=1e-5, atol=1e-7
        )
        np.testing.assert_allclose(
            table["virtual_" + name], table["kernel_" + name][::-1], rtol=1e-5, atol=1e-7
        )
    assert list(table.columns) == list(color.COLUMNS)


def test_kernels_are_those_of_one_convolution_with_its_batch_norms():
    network = resnet18(3)
    one = loaded(network, EXTENT)
    expected = network.conv1.weight.detach().double().numpy() / np.array(STD)[:, None, None]
    np.testing.assert_allclose(color.kernels(one, "conv1"), expected)
    scale = (network.bn1.weight / (network.bn1.running_var + network.bn1.eps).sqrt()).detach()
    behind = color.kernels(one, "bn1")
    np.testing.assert_allclose(behind, expected * scale.numpy()[:, None, None, None], rtol=1e-6)
    for layer in ("maxpool", "layer1.0.conv1", "layer2.0"):
        assert color.kernels(one, layer) is None
    norm = nn.BatchNorm2d(3)
    norm.running_var.copy_(torch.tensor([1.0, 4, 9]))
    conv = nn.Conv2d(3, 2, 3)
    before = graph.trace(nn.Sequential(norm, conv).eval(), torch.zeros(1, 3, 8, 8))
    found = graph.first_kernels(before, "1")
    np.testing.assert_allclose(
        found, conv.weight.detach().double() / torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1), rtol=1e-4
    )


# ---- measured


def test_hue_and_direction_of_linear_units(tmp_path):
    """Blobs of known preferred hue, behind a ReLU: the uniform fields, gratings and the gradient
    tell the same; a rectified cosine has the selectivity pi / 4."""
    angle = np.arange(8) * 45.0 + 10
    colours = [
        np.cos(np.radians(a)) * covector(1) + np.sin(np.radians(a)) * covector(2) for a in angle
    ]
    kernels = np.array([np.multiply.outer(colour, blob(1.5)) for colour in colours])
    table = measure(
        network_of(kernels, 0.0, relu=True), "relu", tmp_path / "x.h5",
        SETTINGS | {"directions": 12}, fields=field_of(kernels),
    )  # fmt: skip
    np.testing.assert_allclose((table["hue_linear_deg"] - angle + 180) % 360, 180, atol=1e-6)
    # The gradient is the slope at mid grey; full contrast is bent by gamma.
    shown = np.arange(72) * 5.0
    changes = colorspace.uniform(colorspace.equiluminant(shown)) - 0.5
    expected, selectivity = color.hue_tuning((np.array(colours) @ changes.T).clip(0), shown)
    np.testing.assert_allclose(table["hue_deg"], expected, atol=0.01)
    np.testing.assert_allclose(table["hue_selectivity"], selectivity, atol=1e-4)
    assert np.abs((table["hue_deg"] - angle + 180) % 360 - 180).max() < 20
    assert np.abs((table["color_direction_deg"] - angle + 90) % 180 - 90).max() < 20
    hue = np.arange(360.0)
    tuned = np.cos(np.radians(hue[None] - angle[:, None])).clip(0)
    found, selectivity = color.hue_tuning(tuned, hue)
    np.testing.assert_allclose(found, angle, atol=1e-6)
    np.testing.assert_allclose(selectivity, np.pi / 4, atol=1e-3)
    assert np.isnan(color.hue_tuning(np.zeros((1, 360)), hue)).all()
    assert color.preferred_direction(np.array([[0, 0, 3, 0.0]]), np.arange(4) * 45.0) == 90


def test_flashes_weigh_the_cones_as_the_kernel_does(tmp_path):
    weights = np.array([[0.5, -0.5, 0], [0.45, 0.45, 0.1], [-0.1, -0.1, 0.8]])
    to_code = np.linalg.inv(SPACE.code_per_cone)
    kernels = np.multiply.outer(weights @ to_code, blob(1.5))
    table = measure(network_of(kernels), "conv1", tmp_path / "x.h5", SMALL)
    found = table[["flash_l", "flash_m", "flash_s"]].to_numpy()
    # Bent a little by gamma: not quite the slopes at mid grey.
    np.testing.assert_allclose(found, weights, atol=0.05)


def test_a_class_can_differ_before_and_behind_the_relu(tmp_path):
    """A unit far above its threshold: behind the ReLU as before. One far below: nothing left."""
    kernels, *_ = planted(1)
    kernels = np.repeat(kernels[:1], 3, 0)
    network = network_of(kernels, relu=True)
    answers = np.abs(kernels).sum()
    with torch.no_grad():
        network.module.conv1.bias += torch.tensor([2.0, 0, -2]) * answers
    network = loaded(network.module, EXTENT)
    table = measure(network, "relu", tmp_path / "x.h5", SMALL)
    assert table["color_class_ratio_unrectified"].nunique() == 1
    same = table["color_class_ratio_unrectified"][0]
    assert same != color_rules.UNRESPONSIVE
    assert table["color_class"].tolist() == [same, same, color_rules.UNRESPONSIVE]
    assert table["color_reason"].fillna("").tolist() == ["", "", "no_response"]
    assert table["color_ratio"].isna().tolist() == [False, False, True]
    # Harris' rule reads the input of the ReLU.
    assert table["harris_spectral"].notna().all()
    with h5py.File(tmp_path / "x.h5") as file:
        assert np.array_equal(file["response"][:], file["unrectified"][:].clip(0))


def pasted(network, layer: str, stimuli: np.ndarray, before: bool) -> np.ndarray:
    """The centre unit's answer to code values (n, h, w, 3), in a plain pass of the network."""
    kept = {}
    module = network.module.get_submodule(layer)
    module = module.relu if before else module
    handle = module.register_forward_hook(
        lambda m, args, value: kept.update(value=args[0].clone() if before else value)
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    pixels = torch.tensor(stimuli, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        network.module((pixels - mean) / std)
    handle.remove()
    maps = kept["value"]
    return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].numpy()


@pytest.mark.parametrize("layer", ["conv1", "layer1.1", "layer3.0"])
def test_responses_are_those_of_the_whole_network(layer, tmp_path):
    """Stimuli drawn pixel by pixel with colour-science in a grey image, the whole network, a
    hook."""
    network = loaded(resnet18(3), EXTENT)
    measure(network, layer, tmp_path / "x.h5", SMALL)
    with store.open(tmp_path / "x.h5", "color") as file:
        found = {key: file[key][:] for key in file}
        size, axes = file.attrs["size"], list(file.attrs["axes"])
    geometry, extent = network.graph.field(layer).local, network.graph.shape(layer)[1]
    centre = geometry.start[0] + extent // 2 * geometry.stride[0]
    x, y = np.arange(EXTENT) + 0.5 - centre, centre - np.arange(EXTENT)[:, None] - 0.5
    window = np.hypot(x, y) <= size / 2
    code = {"RGB": [1, 1, 1], "R-G": [1, -1, 0], "R+G-2B": [1, 1, -2]}

    def drawn(axis, theta, frequency, phase):
        along = x * np.cos(np.radians(theta)) + y * np.sin(np.radians(theta))
        carrier = window * np.cos(2 * np.pi * frequency * along + np.radians(phase))
        if isinstance(axis, float):
            change = colorspace.equiluminant([axis])[0]
        elif axis in code:
            direction = np.array(code[axis]) / np.linalg.norm(code[axis]) * np.sqrt(6) / 2
            return 0.5 + 0.5 * direction * carrier[..., None]
        else:
            change = SPACE.axes[colorspace.AXES.index(axis)]
        return colorspace.code((SPACE.grey * (1 + change * carrier[..., None])).clip(0, 1))

    random = np.random.default_rng(0)
    stimuli, expected = [], []
    for a, axis in enumerate(axes):
        o, f, p = (random.integers(0, n) for n in found["response"].shape[2:])
        at = found["orientation"][o], found["frequency"][f], found["phase"][p]
        stimuli.append(drawn(axis, *at))
        expected.append(("response", "unrectified", (a, o, f, p)))
        stimuli.append(drawn(axis, 0, 0, found["phase"][p]))
        expected.append(("flicker", "flicker_unrectified", (a, p)))
    for index in (0, 5):
        hue = colorspace.uniform(colorspace.equiluminant([found["hue"][index]]))[0]
        stimuli.append(np.broadcast_to(hue, (EXTENT, EXTENT, 3)))
        expected.append(("hue_response", "hue_unrectified", (index,)))
        code_hue = colorspace.code_hues([found["hue"][index]])[0]
        stimuli.append(np.broadcast_to(code_hue, (EXTENT, EXTENT, 3)))
        expected.append(("code_hue_response", "code_hue_unrectified", (index,)))
    for cone, sign in ((0, 0), (2, 1)):
        flash = colorspace.uniform((0.5, -0.5)[sign] * SPACE.isolating[cone][None])[0]
        stimuli.append(np.broadcast_to(flash, (EXTENT, EXTENT, 3)))
        expected.append(("flash_response", "flash_unrectified", (cone, sign)))
    stimuli.append(np.full((EXTENT, EXTENT, 3), 0.5))
    expected.append(("blank", "blank_unrectified", ()))
    scale = np.abs(found["response"]).max()
    for before in (False, True) if layer != "conv1" else (False,):
        answer = pasted(network, layer, np.array(stimuli), before)
        for (name, raw, at), row in zip(expected, answer, strict=True):
            values = found[raw if before else name][(slice(None), *at)]
            np.testing.assert_allclose(values, row, atol=3e-5 * scale, err_msg=name)
    # Directions, each channel at its own place.
    place, rectified = found["place"], layer != "conv1"
    channel = int(np.flatnonzero(place[:, 0] >= 0)[0])
    at = found["orientation"][place[channel, 0]], found["frequency"][place[channel, 1]]
    for d, angle in enumerate(found["direction"].tolist()):
        own = np.array([drawn(angle, *at, phase) for phase in found["phase"]])
        answer = pasted(network, layer, own, rectified)[:, channel]
        mean = tuning.mean_above(answer[None], found["blank"][[channel]], rectified)
        assert found["direction_response"][channel, d] == pytest.approx(mean[0], rel=1e-3)


@pytest.mark.parametrize("layer", ["conv1", "layer1.1", "layer4.1"])
def test_colour_selectivity_is_that_of_whole_grey_images(layer, tmp_path):
    """Units at the border too: the padding there is the network's own."""
    network = loaded(resnet18(3), EXTENT)
    top = top_tables(network, layer, IMAGES, 6, 8)
    channels = network.graph.shape(layer)[0]
    full = {
        key: np.concatenate([values, values[:1].repeat(channels - 8, 0)])
        for key, values in top.items()
    }
    full["image"][8:] = -1
    full["image"][0, 4:] = -1
    full["image"][3] = -1
    found = color.color_selectivity(network, layer, IMAGES, full, 5, Bar)
    grey = np.empty((*IMAGES.shape[:3], 1))
    for image, picture in zip(grey, IMAGES / 255, strict=True):
        image[..., 0] = colorspace.code(colorspace.light(picture) @ [0.2126, 0.7152, 0.0722])
    pixels = torch.tensor(np.repeat(grey, 3, 3), dtype=torch.float32).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        maps = network.graph.prefix(layer)((pixels - mean) / std).numpy()
    for c in range(channels):
        used = full["image"][c] >= 0
        if not used.any():
            assert np.isnan(found[c])
            continue
        n, (y, x) = full["image"][c][used], full["yx"][c][used].T
        expected = 1 - maps[n, c, y, x].sum() / full["value"][c][used].sum()
        assert found[c] == pytest.approx(expected, abs=2e-4)


def test_threads_and_batches_change_nothing(tmp_path, monkeypatch):
    network = loaded(resnet18(3), EXTENT)
    top = top_tables(network, "layer1.0", IMAGES, 3, 64)
    threads = torch.get_num_threads()
    tables = []
    try:
        for number, (count, pixels) in enumerate([(1, 2**19), (2, 2**19), (1, 2**14)]):
            torch.set_num_threads(count)
            monkeypatch.setattr("rfatlas.physiology.probe._BATCH_PIXELS", {"cpu": pixels})
            tables.append(measure(network, "layer1.0", tmp_path / f"{number}.h5", SMALL, top))
    finally:
        torch.set_num_threads(threads)
    for other in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], other, rtol=1e-3, atol=2e-4)


def test_a_layer_that_nothing_drives(tmp_path):
    table = measure(network_of(np.zeros((3, 3, 7, 7))), "conv1", tmp_path / "x.h5", SMALL)
    assert table["color_class"].tolist() == [color_rules.UNRESPONSIVE] * 3
    assert table["color_reason"].tolist() == ["no_response"] * 3
    unknown = [c for c in color.COLUMNS[2:] if not c.startswith(("color_class", "color_reason"))]
    assert table[unknown].isna().all(axis=None)


# ---- the file


def test_the_file_holds_the_responses_and_their_axes(tmp_path):
    output = tmp_path / "x.h5"
    measure(loaded(resnet18(4), EXTENT), "conv1", output, SMALL)
    with store.open(output, "color") as file:
        assert file["response"].shape == (64, 6, 3, 4, 4) and file["response"].dtype == np.float32
        np.testing.assert_allclose(file.attrs["cone_contrast"], SPACE.contrast)
