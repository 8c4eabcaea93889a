"""Virtual filters: brute-force loops over kernels and taps, gradients of networks that are linear,
products of published matrices."""

import copy
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from small_resnet import box
from test_receptive_fields import STD, loaded, photographs, resnet18, whole_image
from torch import nn

from rfatlas.demo_net import resnet_demo
from rfatlas.fields import crops, virtual_filters
from rfatlas.files import store
from rfatlas.network import graph
from rfatlas.network.geometry import Field, Geometry
from rfatlas.network.graph import NoPath
from rfatlas.network.torchvision_ops import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from resnet20 import resnet20

INPUT_STD = np.array(STD)[:, None, None]


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with statistics and factors of their own, some negative."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in network.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.running_mean.normal_(0, 0.3, generator=generator)
                child.running_var.uniform_(0.3, 2, generator=generator)
                child.weight.normal_(1, 0.5, generator=generator)
                child.bias.normal_(0, 0.3, generator=generator)
    return network.eval()


def factor(norm: nn.BatchNorm2d) -> np.ndarray:
    """What a batch norm multiplies each channel by, by the formula of Ioffe & Szegedy 2015."""
    weight, variance = norm.weight.detach().double(), norm.running_var.double()
    return (weight / torch.sqrt(variance + norm.eps)).numpy()


def linear_resnet(seed: int = 0) -> nn.Module:
    """A ResNet-18 whose residual branches give nothing, without ReLU, with average pooling."""
    network = randomise(resnet18(seed), seed)
    for child in list(network.modules()):
        for part, grandchild in list(child.named_children()):
            if isinstance(grandchild, nn.ReLU):
                setattr(child, part, nn.Identity())
            elif isinstance(grandchild, nn.MaxPool2d):
                setattr(child, part, nn.AvgPool2d(3, 2, 1, count_include_pad=False))
        if hasattr(child, "conv2"):
            with torch.no_grad():
                child.conv2.weight.zero_()
    return network


# ---- composition


def test_largest_tap_of_every_kernel_with_its_sign():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 2, 3, 3))
    found = virtual_filters.largest_taps(weight, groups=3)
    expected = np.zeros((6, 6))
    for o in range(6):
        for i in range(2):
            best = 0.0
            for y in range(3):
                for x in range(3):
                    if abs(weight[o, i, y, x]) > abs(best):
                        best = weight[o, i, y, x]
            # Six outputs in three groups of two: outputs 2g and 2g + 1 see inputs 2g and 2g + 1.
            expected[o, o // 2 * 2 + i] = best
    assert np.array_equal(found, expected)
    assert (found < 0).any()


def test_composition_is_that_of_a_loop_over_channels():
    """Batch norms, a 1 x 1 and a 3 x 3 convolution behind the first, ReLU and pooling between."""
    torch.manual_seed(0)
    steps = [nn.Conv2d(3, 5, 7, 2, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    steps += [nn.Conv2d(5, 4, 1, 2, bias=False), nn.BatchNorm2d(4)]
    steps += [nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)]
    network = loaded(randomise(nn.Sequential(*steps), 1), 64)
    found = virtual_filters.virtual(network, "7", 3000)
    conv1, bn1, conv2, bn2, conv3, bn3 = (steps[i] for i in (0, 1, 4, 5, 6, 7))
    expected = np.zeros((6, 3, 7, 7))
    for o in range(6):
        for m in range(4):
            taps = conv3.weight[o, m].detach().double().numpy().ravel()
            tap = max(taps, key=abs)
            for k in range(5):
                between = float(conv2.weight[m, k, 0, 0])
                kernel = conv1.weight[k].detach().double().numpy() / INPUT_STD
                weight = factor(bn3)[o] * tap * factor(bn2)[m] * between * factor(bn1)[k]
                expected[o] += weight * kernel
    np.testing.assert_allclose(found.filter, expected, rtol=1e-6, atol=1e-9)
    assert (found.path, found.convolutions) == ("plain", 3) and found.linear is None


def test_conv1_is_its_kernel_over_the_input_std():
    network = loaded(resnet18(1), 64)
    found = virtual_filters.virtual(network, "conv1", 3000)
    kernel = network.module.conv1.weight.numpy() / INPUT_STD
    np.testing.assert_allclose(found.filter, kernel, rtol=1e-12)
    np.testing.assert_allclose(found.linear, kernel, rtol=1e-12)
    assert np.array_equal(found.weights, np.eye(64))
    assert (found.path, found.convolutions, found.geometry.size) == ("kernel", 1, (7, 7))


def test_bottlenecks_are_products_of_their_downsample_matrices():
    network = randomise(torchvision().models.resnet50(num_classes=10), 2)
    ours = loaded(network, 64)
    state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}

    def norm(name: str) -> np.ndarray:
        variance = state[f"{name}.running_var"] + 1e-5
        return state[f"{name}.weight"] / np.sqrt(variance)

    product = np.diag(norm("bn1"))
    for block in ("layer1.0", "layer2.0", "layer3.0"):
        matrix = state[f"{block}.downsample.0.weight"][:, :, 0, 0]
        product = norm(f"{block}.downsample.1")[:, None] * matrix @ product
    found = virtual_filters.virtual(ours, "layer3.1", 3000)
    np.testing.assert_allclose(found.weights, product, rtol=1e-6, atol=1e-9)
    assert (found.path, found.convolutions) == ("skip", 4)


def test_shortcuts_without_parameters_hand_kernels_on_and_leave_new_channels_empty():
    """Option A: 16 kernels, then 8 channels of zeros on either side, then 16 more."""
    network = loaded(randomise(resnet20(), 3), 32)
    kernels = factor(network.module.bn1)[:, None, None, None] * (
        network.module.conv1.weight.double().numpy() / INPUT_STD
    )
    found = virtual_filters.virtual(network, "layer3.0", 3000)
    np.testing.assert_allclose(found.filter[24:40], kernels, rtol=1e-6)
    assert not found.filter[:24].any() and not found.filter[40:].any()
    # Nothing but slices lies behind the kernel: the linear response is the kernel again.
    np.testing.assert_allclose(found.linear, found.filter, rtol=1e-6, atol=1e-12)
    table = virtual_filters.table("layer3.0", 64, found, {})
    assert (table["virtual_reason"][:24] == virtual_filters.UNREACHED).all()
    assert (table["virtual_reason"][24:40] == "").all()
    assert table["virtual_main_kernel"][24:40].tolist() == list(range(16))
    assert table["virtual_main_kernel"][:24].isna().all()
    assert table["virtual_kernels"][24:40].to_numpy() == pytest.approx(1)


def test_plain_blocks_compose_largest_taps():
    network = loaded(randomise(resnet_demo(5, skip=False), 4), 64)
    module = network.module
    product = np.diag(factor(module.bn1))
    for block in (module.layer1[0], module.layer1[1]):
        for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
            flat = conv.weight.detach().double().numpy().reshape(*conv.weight.shape[:2], 9)
            taps = np.where(-flat.min(2) > flat.max(2), flat.min(2), flat.max(2))
            product = factor(norm)[:, None] * taps @ product
    found = virtual_filters.virtual(network, "layer1.1", 3000)
    np.testing.assert_allclose(found.weights, product, rtol=1e-6, atol=1e-9)
    assert (found.path, found.linear) == ("plain", None)


# ---- linear networks


@pytest.mark.parametrize("layer", ["conv1", "maxpool", "layer1.1", "layer2.0", "layer3.1"])
def test_linear_response_is_the_gradient_of_a_linear_network(layer):
    """Residual branches that give nothing, no ReLU, average pooling: the gradient of the whole
    network, by one plain backward pass, is the linear response and nothing beside it."""
    extent = 128
    network = loaded(linear_resnet(), extent)
    found = virtual_filters.virtual(network, layer, 3000)
    _, height, width = network.graph.shape(layer)
    y, x = height // 2, width // 2
    top, left, bottom, right = box(found.geometry, y, x)
    for channel in (0, 7, 33):
        _, whole = whole_image(network, layer, photographs(1, extent)[0], channel, y, x)
        scale = np.abs(whole).max()
        inside = whole[:, top:bottom, left:right]
        assert np.abs(found.linear[channel] - inside).max() < 1e-5 * scale
        assert np.square(inside).sum() == pytest.approx(np.square(whole).sum(), rel=1e-6)


def test_filter_is_the_gradient_of_a_linear_network_without_pooling():
    """With strides in place of pooling, the composition is the whole truth."""
    network = linear_resnet(5)
    network.maxpool = nn.Identity()
    network = loaded(network, 64)
    for layer in ("layer1.0", "layer2.1", "layer3.0"):
        found = virtual_filters.virtual(network, layer, 3000)
        _, height, width = network.graph.shape(layer)
        y, x = height // 2, width // 2
        top, left, bottom, right = box(found.geometry, y, x)
        for channel in (0, 20):
            _, whole = whole_image(network, layer, photographs(1, 64)[0], channel, y, x)
            expected = np.zeros_like(whole)
            expected[:, top:bottom, left:right] = found.filter[channel]
            assert np.abs(whole - expected).max() < 1e-5 * np.abs(whole).max()


def test_linear_response_is_the_centre_unit_s_also_where_the_image_ends():
    """A path that sees more than the image: the network's own padding, in the stored window."""
    torch.manual_seed(1)
    body = nn.Sequential(*(nn.Conv2d(4, 4, 5, 2, 2, bias=False) for _ in range(4)))
    steps = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *body)
    traced = graph.trace(copy.deepcopy(steps).double(), torch.zeros(1, 3, 32, 32).double())
    found, geometry = virtual_filters.linear_response(traced, 32, 3000)
    cut = crops.window(Field(local=geometry), 32)
    assert cut.size == 32 < geometry.size[0]
    pixels = torch.zeros(1, 3, 32, 32, requires_grad=True)
    output = steps(pixels)
    place = output.shape[-1] // 2
    (whole,) = torch.autograd.grad(output[0, 2, place, place], pixels)
    start = int(cut.window_start(np.array([place]), 0)[0])
    shifted = np.zeros((3, 32, 32))
    for y in range(32):
        for x in range(32):
            if 0 <= y + start < 32 and 0 <= x + start < 32:
                shifted[:, y, x] = whole[0, :, y + start, x + start]
    np.testing.assert_allclose(found[2], shifted, rtol=1e-4, atol=1e-8)


def test_batches_do_not_change_the_response(monkeypatch):
    network = loaded(linear_resnet(2), 64)
    path = network.graph.linear_path("layer2.0").graph
    whole, _ = virtual_filters.linear_response(path, 64, 3000)
    monkeypatch.setattr(crops, "plan", lambda *args: (1, 7))
    parts, _ = virtual_filters.linear_response(path, 64, 3000)
    np.testing.assert_allclose(whole, parts, rtol=1e-9, atol=1e-15)


# ---- no path


class TwoWays(nn.Module):
    """Two branches of one convolution each, then a step that is not linear."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 3, padding=1)
        self.both = nn.Identity()
        self.soft = nn.Softmax2d()

    def forward(self, x):
        x = self.conv1(x)
        return self.soft(self.both(self.left(x) + self.right(x)))


class Normed(nn.Module):
    """A layer norm over the channels, as ConvNeXt has it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.turned = nn.Identity()

    def forward(self, x):
        return self.turned(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("make", "layer", "reason"),
    [
        (TwoWays, "both", "both terms of the sum add are equally deep"),
        (TwoWays, "soft", "the operation softmax is not linear"),
        (Normed, "turned", "the operation layer_norm is not linear"),
    ],
)
def test_where_there_is_no_path_the_table_says_why(make, layer, reason):
    network = loaded(make().eval(), 16)
    with pytest.raises(NoPath, match=reason):
        virtual_filters.virtual(network, layer, 3000)
    table = virtual_filters.table(layer, 4, None, {}, reason)
    assert (table["virtual_reason"] == reason).all()
    empty = table.drop(columns=["layer", "channel", "virtual_path", "virtual_reason"])
    assert empty.isna().all(axis=None)


# ---- comparison


def test_correlations_are_scipy_s_and_the_null_is_never_the_channel_s_own():
    rng = np.random.default_rng(0)
    filters, gradients = rng.normal(size=(2, 9, 3, 5, 5))
    gradients += 0.7 * filters
    gradients[4] = 0.25
    filters[6] = 0
    found = virtual_filters.agreement(filters, gradients)
    usable = [i for i in range(9) if i not in (4, 6)]
    every = np.array(
        [[stats.pearsonr(filters[i].ravel(), gradients[j].ravel())[0] for j in usable]
         for i in usable]
    )  # fmt: skip
    np.testing.assert_allclose(found["correlation"][usable], np.diag(every), rtol=1e-9)
    assert (
        np.isnan(found["correlation"][[4, 6]]).all()
        and np.isnan(found["correlation_null"][[4, 6]]).all()
    )
    others = []
    for row, null in zip(every, found["correlation_null"][usable], strict=True):
        others.append(int(np.abs(row - null).argmin()))
        assert row[others[-1]] == pytest.approx(null, rel=1e-9)
    assert sorted(others) == list(range(7)), "each gradient serves once as another's null"
    assert all(own != other for own, other in enumerate(others))
    expected = [np.mean(np.delete(row, i) < row[i]) for i, row in enumerate(every)]
    np.testing.assert_allclose(found["match"][usable], expected)


def test_match_of_unrelated_filters_is_a_half_on_average():
    filters, gradients = np.random.default_rng(1).normal(size=(2, 200, 3, 7, 7))
    found = virtual_filters.agreement(filters, gradients)
    assert found["match"].mean() == pytest.approx(0.5, abs=0.05)
    assert np.abs(found["correlation_null"]).mean() == pytest.approx(
        np.abs(found["correlation"]).mean(), rel=0.2
    )


@pytest.mark.parametrize("layer", ["conv1", "layer1.0", "layer2.1", "layer3.0"])
def test_filters_and_gradients_are_compared_pixel_on_pixel(layer):
    """The gradient of a linear network, cut as stage receptive_fields cuts it, correlates fully: a
    pixel's displacement would show."""
    extent = 128
    network = linear_resnet(6)
    network.maxpool = nn.AvgPool2d(1, 2)
    network = loaded(network, extent)
    geometry = network.graph.field(layer).local
    cut = crops.window(Field(local=geometry), extent)
    _, height, width = network.graph.shape(layer)
    place = np.array([height // 2])
    start = int(cut.window_start(place, 0)[0])
    gradients = []
    channel = np.array([1, 5, 40])
    for c in channel:
        _, whole = whole_image(network, layer, photographs(1, extent)[0], c, *place, *place)
        padded = np.pad(whole, ((0, 0), (cut.size,) * 2, (cut.size,) * 2))
        window = slice(cut.size + start, 2 * cut.size + start)
        gradients.append(padded[:, window, window])
    found = virtual_filters.virtual(network, layer, 3000)
    columns = virtual_filters.compare(found, geometry, channel, np.array(gradients))
    for name in ("virtual_correlation", "virtual_linear_correlation"):
        assert columns[name][channel] == pytest.approx(1, abs=1e-5)
        assert np.isnan(np.delete(columns[name], channel)).all()
    assert columns["virtual_match"][channel].tolist() == [1, 1, 1]
    assert columns["virtual_window_share"][channel] == pytest.approx(1, abs=1e-5)


def test_window_share_counts_the_energy_outside_the_filter(monkeypatch):
    rng = np.random.default_rng(2)
    fields = rng.normal(size=(5, 3, 11, 11))
    monkeypatch.setattr(crops, "_PIECE_BYTES", 2 * 3 * 11 * 11 * 8)
    inside, total = virtual_filters.energies(fields, slice(2, 9), slice(3, 10))
    for i in range(5):
        assert total[i] == pytest.approx((fields[i] ** 2).sum())
        assert inside[i] == pytest.approx((fields[i, :, 2:9, 3:10] ** 2).sum())


def test_overlap_of_boxes_that_reach_beyond_each_other():
    """A 3-pixel filter about pixel 0.5 in a 9-pixel window, and one larger than its window."""
    layer, path = Geometry((4, 4), (-4, -4), (4, 4)), Geometry((4, 4), (-1, -1), (1, 1))
    ours, theirs = virtual_filters.overlap(path, (3, 3), layer, 9)
    assert ours == (slice(0, 3),) * 2 and theirs == (slice(3, 6),) * 2
    ours, theirs = virtual_filters.overlap(layer, (9, 9), path, 3)
    assert ours == (slice(3, 6),) * 2 and theirs == (slice(0, 3),) * 2


def test_mixture_counts_the_kernels_that_contribute():
    kernels = np.zeros((4, 3, 2, 2))
    kernels[:, 0, 0, 0] = [1, 1, 1, 10]
    weights = np.array([[1, 1, 1, 0], [0, -1, 0, 0], [0, 0, 1, 0.1], [1, 0, 0, 1], [0, 0, 0, 0]])
    number, main, share = virtual_filters.mixture(weights, kernels)
    assert number[:4] == pytest.approx([3, 1, 2, 101**2 / (1 + 100**2)])
    assert main.tolist() == [0, 1, 2, 3, -1]
    assert share[:4] == pytest.approx([1 / 3, 1, 0.5, 100 / 101])
    assert np.isnan([number[4], share[4]]).all()


# ---- files


def test_files_hold_every_channel_and_read_back(tmp_path):
    network = loaded(randomise(resnet_demo(5), 8), 64)
    channels, kept = 64, np.arange(10)
    found = virtual_filters.virtual(network, "layer2.0", 3000)
    size = crops.window(network.graph.field("layer2.0"), 64).size
    gradient = np.random.default_rng(0).normal(size=(10, 3, size, size))
    with h5py.File(tmp_path / "fields.h5", "w") as file:
        file["mean_gradient"] = gradient
        compared = virtual_filters.compare(
            found, network.graph.field("layer2.0").local, kept, file["mean_gradient"]
        )
    store.write_table(
        virtual_filters.table("layer2.0", channels, found, compared), tmp_path / "layer2.0.csv"
    )
    table = pd.read_csv(tmp_path / "layer2.0.csv")
    assert tuple(table.columns) == virtual_filters.COLUMNS
    assert table["channel"].tolist() == list(range(channels))
    assert table["virtual_correlation"].notna().tolist() == [c < 10 for c in range(channels)]
    assert table["virtual_norm"].notna().all()
    with store.create(tmp_path / "v.h5", store.provenance("virtual_filters", {})) as file:
        virtual_filters.write(file.create_group("layer2.0"), found)
        virtual_filters.write(file.create_group("soft"), None, "why")
    with store.open(tmp_path / "v.h5", "virtual_filters") as file:
        group = file["layer2.0"]
        np.testing.assert_allclose(group["filter"][:], found.filter, rtol=1e-6)
        assert group["linear"].shape == (64, 3, 11, 11) and group.attrs["size"] == 11
        assert group.attrs["path"] == "skip" and group.attrs["reason"] == ""
        kernels = network.module.conv1.weight.double().numpy() / INPUT_STD
        rebuilt = np.einsum("ck,kabd->cabd", group["weights"][:], kernels)
        np.testing.assert_allclose(rebuilt, found.filter, rtol=1e-5, atol=1e-6)
        assert list(file["soft"]) == [] and file["soft"].attrs["reason"] == "why"


def test_first_convolutions_that_see_something_else_are_no_kernels():
    torch.manual_seed(0)
    normed = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    randomise(normed, 9)

    def steps_of(*modules):
        traced = graph.trace(nn.Sequential(*modules), torch.zeros(1, 3, 16, 16))
        return traced.linear_path(str(len(modules) - 1)).steps

    weights, kernels = virtual_filters.compose(steps_of(*normed))
    expected = normed[1].weight.double().detach().numpy() * factor(normed[0])[:, None, None]
    np.testing.assert_allclose(np.tensordot(weights, kernels, 1), expected, rtol=1e-6)
    for steps, reason in (
        ([nn.AvgPool2d(2), nn.Conv2d(3, 4, 3)], "the first operation is no convolution"),
        ([nn.Conv2d(3, 6, 3, groups=3)], "the first convolution has groups"),
        ([nn.BatchNorm2d(3)], "there is no convolution before it"),
    ):
        with pytest.raises(graph.NoPath, match=reason):
            virtual_filters.compose(steps_of(*steps))
