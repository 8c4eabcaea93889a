"""The plain twins of torchvision's ResNets, module by module and beside the ResNets themselves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rfatlas import demo_net, models
from rfatlas.network import graph, model
from rfatlas.network.torchvision_ops import torchvision

# Networks of ImageNet's size.
pytestmark = pytest.mark.slow

INPUT = {"resize": 64, "crop": 64, "mean": [0.5] * 3, "std": [0.25] * 3}
PAIRS = [
    ("rfatlas.models.plainnet18", "torchvision.models.resnet18", 8, 17),
    ("rfatlas.models.plainnet34", "torchvision.models.resnet34", 16, 33),
    ("rfatlas.demo_net.plainnet_demo", "rfatlas.demo_net.resnet_demo", 6, 13),
]
pairs = pytest.mark.parametrize(("plain", "residual", "blocks", "convolutions"), PAIRS)


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Statistics and gains that a forward pass cannot ignore, and that keep its values finite."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.normal_(0, 0.2, generator=generator)
            child.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(child.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(child.bias, -0.3, 0.3, generator=generator)
    return module.eval()


def by_hand(tensors: dict, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """A plain network from its tensors alone: what conv1, maxpool and each block put out."""

    def convolved(x, conv, norm, stride):
        weight = tensors[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance, gain, shift = (
            tensors[f"{norm}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.relu((x - mean) / torch.sqrt(variance + 1e-5) * gain + shift)

    values = {"conv1": F.conv2d(x, tensors["conv1.weight"], stride=2, padding=3)}
    x = F.max_pool2d(convolved(x, "conv1", "bn1", 2), 3, 2, 1)
    values["maxpool"] = x
    blocks = dict.fromkeys(name.rsplit(".", 2)[0] for name in tensors if name.startswith("layer"))
    for block in blocks:
        stride = 2 if block.endswith(".0") and not block.startswith("layer1") else 1
        x = convolved(x, f"{block}.conv1", f"{block}.bn1", stride)
        x = values[block] = convolved(x, f"{block}.conv2", f"{block}.bn2", 1)
    values["logits"] = x.mean((2, 3)) @ tensors["fc.weight"].T + tensors["fc.bias"]
    return values


@pairs
def test_forward_is_the_modules_one_after_the_other(plain, residual, blocks, convolutions):
    network = randomise(model.build(plain, {"num_classes": 7}, seed=3), 4)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = by_hand(network.state_dict(), x)
        traced = graph.trace(network, x)
        layers = [name for name in expected if name != "logits"]
        found = traced.extractor(layers)(x)
    assert len(layers) == 2 + blocks
    for name in layers:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[graph.LOGITS], expected["logits"], rtol=1e-4, atol=1e-4)


@pairs
def test_a_plain_network_is_its_resnet_less_the_skip_connections(
    plain, residual, blocks, convolutions
):
    twin, original = model.build(plain, {}, 0), model.build(residual, {}, 0)
    kept = {
        name: tuple(tensor.shape)
        for name, tensor in original.state_dict().items()
        if "downsample" not in name
    }
    assert {name: tuple(t.shape) for name, t in twin.state_dict().items()} == kept
    found = [child for child in twin.modules() if isinstance(child, nn.Conv2d)]
    assert len(found) == convolutions


@pairs
def test_layers_and_receptive_fields_are_those_of_the_resnet(plain, residual, blocks, convolutions):
    networks = [model.build(name, {}, 0) for name in (plain, residual)]
    described = [model.describe(one, model.trace(one, INPUT), INPUT) for one in networks]
    assert described[0]["default_layers"] == described[1]["default_layers"]
    assert len(described[0]["default_layers"]) == 2 + blocks
    facts = [
        {
            layer["name"]: [layer[key] for key in ("channels", "height", "rectified", "size")]
            + [layer["stride"], layer["start"]]
            for layer in one["layers"]
            if layer["name"] in one["default_layers"]
        }
        for one in described
    ]
    assert facts[0] == facts[1]


def test_a_plain_block_has_the_norms_of_its_last_convolution():
    network = randomise(models.plainnet18(5), 1)
    traced = graph.trace(network, torch.zeros(1, 3, 64, 64))
    block = network.layer2[0]
    fused = nn.utils.fusion.fuse_conv_bn_eval(block.conv2, block.bn2)
    expected = fused.weight.detach().flatten(1).norm(dim=1).double()
    torch.testing.assert_close(traced.filter_norms("layer2.0"), expected, rtol=1e-5, atol=0)
    assert traced.skipless("layer2.0")
    whole = graph.trace(torchvision().models.resnet18(num_classes=5), torch.zeros(1, 3, 64, 64))
    assert not whole.skipless("layer2.0")


def test_the_demo_network_without_skips_is_the_plain_one():
    torch.manual_seed(0)
    expected = demo_net.resnet_demo(5, skip=False).state_dict()
    torch.manual_seed(0)
    for name, tensor in demo_net.plainnet_demo(5).state_dict().items():
        assert torch.equal(tensor, expected[name]), name
