"""Graph: cutting, naming and receptive-field arithmetic, against the plain network and autograd."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from small_resnet import box
from torch import nn

from rfatlas.errors import RfatlasError
from rfatlas.network import graph
from rfatlas.network.torchvision_ops import torchvision


def positive(module: nn.Module) -> nn.Module:
    """All weights positive and no cancellation, so that every pixel of the box has a gradient."""
    module = module.eval()
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, (nn.Conv2d, nn.Linear)):
                child.weight.uniform_(0.5, 1.5).div_(child.weight[0].numel())
                if child.bias is not None:
                    child.bias.zero_()
    return module


def close(value: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal to float rounding, on the scale of the tensor's largest value."""
    return (value - expected).abs().max() <= 1e-5 * expected.abs().max()


def support(
    module: nn.Module, layer: str, extent: int, y: int, x: int
) -> tuple[int, int, int, int]:
    """Bounding box (top, left, bottom, right) of the pixels that can change a unit, by autograd.

    Max pooling passes a gradient to one pixel only, so it is replaced by average pooling of the
    same window.
    """
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.MaxPool2d):
            parent = module.get_submodule(name.rpartition(".")[0])
            pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
            setattr(parent, name.rpartition(".")[2], pool)
    kept = {}
    handle = module.get_submodule(layer).register_forward_hook(
        lambda child, args, value: kept.__setitem__("value", value)
    )
    image = torch.rand(1, 3, extent, extent, dtype=torch.float64, requires_grad=True)
    module.double()(image)
    handle.remove()
    kept["value"][0, :, y, x].sum().backward()
    rows, columns = (image.grad[0].abs().sum(0) > 0).nonzero(as_tuple=True)
    return rows.min().item(), columns.min().item(), rows.max().item() + 1, columns.max().item() + 1


class Dilated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 5, stride=2, padding=4, dilation=2, bias=False)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=3, dilation=3, bias=False)
        self.asymmetric = nn.Conv2d(4, 4, (1, 5), stride=(2, 1), padding=(0, 2), bias=False)

    def forward(self, x):
        return self.asymmetric(F.relu(self.conv2(self.pool(self.conv1(x)))))


class EvenKernels(nn.Module):
    """Even kernels, functional pooling, option-A shortcut, a padded branch and a concatenation."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 4, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(4, 8, 2, stride=2, bias=False)
        self.conv3 = nn.Conv2d(16, 4, 4, padding="same", bias=False)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.conv1(x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = F.relu(self.conv2(x), inplace=True)
        x = torch.cat([x, x + short], dim=1)
        x = F.avg_pool2d(x, 2, 2)
        return self.act(self.conv3(F.pad(x, (1, 0, 1, 0))))


def torchvision_network(name):
    return lambda: getattr(torchvision().models, name)()


CASES = [
    *[("resnet18", layer, 96) for layer in ("conv1", "maxpool", "layer1.1", "layer2.0.conv1")],
    ("resnet18", "layer3.1", 256),
    ("resnet34", "layer1.2", 96),
    ("resnet34", "layer2.3", 224),
    ("resnet50", "layer1.0", 64),
    ("resnet50", "layer2.0.bn3", 96),
    *[("dilated", layer, 96) for layer in ("conv1", "pool", "conv2", "asymmetric")],
    *[("even", layer, 96) for layer in ("conv1", "conv2", "conv3", "act")],
]
MAKE = {
    **{name: torchvision_network(name) for name in ("resnet18", "resnet34", "resnet50")},
    "dilated": Dilated,
    "even": EvenKernels,
}


@pytest.mark.parametrize(("name", "layer", "extent"), CASES)
def test_box_is_the_support_of_the_gradient(name, layer, extent):
    torch.manual_seed(0)
    network = positive(MAKE[name]())
    traced = graph.trace(network, torch.zeros(1, 3, extent, extent))
    geometry = traced.field(layer).local
    _, height, width = traced.shape(layer)
    top, left, bottom, right = support(network, layer, extent, height // 2, width // 2)
    assert (top, left, bottom, right) == box(geometry, height // 2, width // 2)
    # At the border a dilated window may have no tap on the image's first pixels.
    top, left, bottom, right = support(network, layer, extent, 0, width - 1)
    first = box(geometry, 0, width - 1)
    assert top >= first[0] and left >= first[1] and bottom <= first[2] and extent < first[3]
    assert right > extent - 3


def test_published_receptive_field_sizes():
    """Araujo, Norris & Sim 2019 (Distill), table of receptive fields: ResNet-18/34/50 at 435, 899,
    427."""
    sizes = {}
    for name in ("resnet18", "resnet34", "resnet50"):
        traced = graph.trace(MAKE[name](), torch.zeros(1, 3, 224, 224))
        last = [layer for layer in traced.layers() if layer.startswith("layer4.")][-1].split(".")[1]
        geometry = traced.field(f"layer4.{last}").local
        sizes[name] = geometry.size[0]
        assert geometry.stride == (32, 32)
    assert sizes["resnet18"] == 435
    assert sizes["resnet34"] == 899
    assert sizes["resnet50"] == 483 - 2 * (4 + 8 + 16)


def test_global_layers_have_no_box():
    traced = graph.trace(MAKE["resnet18"](), torch.zeros(1, 3, 64, 64))
    assert traced.field("avgpool").kind == traced.field("fc").kind == "global"
    assert traced.field("layer4.1").kind == "exact"
    assert traced.shape("fc") == (1000, 1, 1)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "even"])
def test_extractor_prefix_and_split_change_nothing(name):
    torch.manual_seed(1)
    network = MAKE[name]().eval()
    for child in network.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.normal_(0, 0.2)
            child.running_var.uniform_(0.5, 2)
            child.weight.data.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 64, 64)
    expected = {}
    for layer, child in network.named_modules():
        # Before tracing, so that in-place operations of the network cannot be blamed on us.
        child.register_forward_hook(
            lambda child, args, value, layer=layer: expected.__setitem__(layer, value.clone())
        )
    with torch.no_grad():
        logits = network(images)
        for child in network.modules():
            child._forward_hooks.clear()
        traced = graph.trace(network, images[:1])
        layers = [layer for layer in traced.layers() if layer in expected and "relu" not in layer]
        values = traced.extractor(layers)(images)
        for layer in layers:
            assert close(values[layer], expected[layer]), layer
        for layer in layers[:: max(1, len(layers) // 5)]:
            assert close(traced.prefix(layer)(images), expected[layer])
            prefix, suffix = traced.split(layer)
            assert close(suffix(*prefix(images)), logits), layer


def test_split_inside_a_block_feels_a_changed_value():
    """The suffix with a changed value equals the whole network with the same change made by a
    hook."""
    torch.manual_seed(2)
    network = MAKE["resnet18"]().eval()
    images = torch.randn(2, 3, 64, 64)
    traced = graph.trace(network, images[:1])
    for layer in ("layer1.0.conv1", "layer2.0.bn1", "layer3.0", "maxpool"):
        prefix, suffix = traced.split(layer)
        with torch.no_grad():
            value, *crossing = prefix(images)
            changed = value.clone()
            changed[:, 3] = 0
            handle = network.get_submodule(layer).register_forward_hook(
                lambda child, args, old: torch.cat([old[:, :3], 0 * old[:, 3:4], old[:, 4:]], 1)
            )
            expected = network(images)
            handle.remove()
            assert close(suffix(changed, *crossing), expected)
        inside = layer.count(".") == 2
        assert len(crossing) == int(inside), layer


def test_prefix_stops_at_the_layer():
    traced = graph.trace(MAKE["resnet18"](), torch.zeros(1, 3, 64, 64))
    # conv1, and two of the first block; batch norms are folded in.
    tensors = traced.prefix("layer1.0").state_dict().values()
    assert [tensor.ndim for tensor in tensors].count(4) == 3


def test_rectified_and_gflops():
    traced = graph.trace(MAKE["resnet18"](), torch.zeros(1, 3, 224, 224))
    layers = ("conv1", "maxpool", "layer2.0", "avgpool", "fc")
    assert [traced.rectified(layer) for layer in layers] == [False, True, True, True, False]
    # torchvision's own meta data: 1.814 GMAC for ResNet-18.
    published = torchvision().models.ResNet18_Weights.IMAGENET1K_V1.meta["_ops"]
    assert traced.gflops() == pytest.approx(2 * published, rel=0.01)


def test_filter_norm_is_the_norm_of_the_response_to_unit_impulses():
    """The folded filter, read out by impulses through convolution and batch norm, has that norm."""
    torch.manual_seed(3)
    network = MAKE["resnet18"]().eval()
    with torch.no_grad():
        network.bn1.running_var.uniform_(0.5, 2)
        network.bn1.weight.uniform_(-1, 1)
        network.layer2[0].bn2.weight.uniform_(-1, 1)
    traced = graph.trace(network, torch.zeros(1, 3, 64, 64))
    impulses = F.pad(torch.eye(3 * 49).view(3 * 49, 3, 7, 7), (1, 0, 1, 0))
    with torch.no_grad():
        kernel = nn.Sequential(network.conv1, network.bn1)
        response = kernel(impulses)[:, :, 2, 2] - kernel(torch.zeros(1, 3, 8, 8))[:, :, 2, 2]
        block = network.layer2[0]
        impulses = torch.eye(128 * 9).view(128 * 9, 128, 3, 3)
        second = nn.Sequential(block.conv2, block.bn2)
        deep = second(impulses)[:, :, 1, 1] - second(torch.zeros(1, 128, 3, 3))[:, :, 1, 1]
    assert torch.allclose(traced.filter_norms("conv1").float(), response.norm(dim=0), rtol=1e-4)
    assert torch.equal(traced.filter_norms("maxpool"), traced.filter_norms("conv1"))
    assert torch.allclose(traced.filter_norms("layer2.0").float(), deep.norm(dim=0), rtol=1e-4)


def test_next_norms_are_those_of_the_weights_that_read_a_channel():
    torch.manual_seed(4)
    network = MAKE["resnet18"]().eval()
    with torch.no_grad():
        for child in network.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.running_var.uniform_(0.5, 2)
                child.weight.uniform_(-1, 1)
    traced = graph.trace(network, torch.zeros(1, 3, 64, 64))

    def scale(norm):
        return (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()

    def squares(conv, norm):
        return (conv.weight.detach() * scale(norm).view(-1, 1, 1, 1)).square().sum((0, 2, 3))

    # The stream of layer1 is read by both of its blocks, and twice by the first of layer2.
    first, second, third = network.layer1[0], network.layer1[1], network.layer2[0]
    stream = squares(second.conv1, second.bn1) + squares(third.conv1, third.bn1)
    stream += squares(*third.downsample)
    found = [traced.next_norms(name).float() for name in ("maxpool", "layer1.0", "conv1")]
    expected = (squares(first.conv1, first.bn1) + stream).sqrt()
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(found[1], stream.sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[2], expected * scale(network.bn1).abs(), rtol=1e-4, atol=0)
    inner = squares(first.conv2, first.bn2).sqrt()
    torch.testing.assert_close(traced.next_norms("layer1.0.bn1").float(), inner, rtol=1e-4, atol=0)
    last = network.fc.weight.detach().norm(dim=0)
    torch.testing.assert_close(traced.next_norms("layer4.1").float(), last, rtol=1e-4, atol=0)
    assert traced.next_norms("fc") is None


def test_next_norms_of_groups_and_of_flattened_maps():
    torch.manual_seed(0)
    network = nn.Sequential(
        OrderedDict(
            a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 4, 3, groups=2), c=nn.Flatten(),
            d=nn.Linear(4 * 16, 5),
        )
    )  # fmt: skip
    traced = graph.trace(network, torch.zeros(1, 3, 8, 8))
    grouped, flat = network.b.weight.detach(), network.d.weight.detach()
    squares = torch.cat([half.square().sum((0, 2, 3)) for half in grouped.split(2)])
    torch.testing.assert_close(traced.next_norms("a").float(), squares.sqrt())
    squares = flat.view(5, 4, 16).square().sum((0, 2))
    torch.testing.assert_close(traced.next_norms("b").float(), squares.sqrt())


class ByValues(nn.Module):
    """Chooses by a value, and calls a module twice."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 7)

    def forward(self, x):
        x = self.relu(self.conv1(x))
        if x.sum() > -1e9:
            x = self.relu(self.conv2(x))
        return self.fc(x.mean((2, 3)))


def test_a_choice_by_values_is_taken_as_made_and_the_last_call_counts(caplog):
    torch.manual_seed(4)
    network = ByValues().eval()
    images = torch.randn(3, 3, 16, 16)
    traced = graph.trace(network, images[:1])
    assert "chooses by the values in an image" in caplog.text
    assert traced.layers() == ["conv1", "conv2", "relu", "fc"]
    assert traced.field("relu").local.size == (5, 5) and traced.rectified("relu")
    with torch.no_grad():
        last = network.conv2(network.conv1(images).relu()).relu()
        assert close(traced.prefix("relu")(images), last)
        values = traced.extractor(["relu"])(images)
        assert close(values["relu"], last)
        assert torch.equal(values[graph.LOGITS], network(images))
        prefix, suffix = traced.split("relu")
        value, *crossing = prefix(images)
        assert close(suffix(2 * value, *crossing), network.fc(2 * last.mean((2, 3))))
    assert not any(child._forward_hooks for child in network.modules()), "hooks are removed"


def test_unknown_layer_is_named():
    traced = graph.trace(MAKE["resnet18"](), torch.zeros(1, 3, 64, 64))
    with pytest.raises(RfatlasError, match="layer5.7"):
        traced.prefix("layer5.7")
