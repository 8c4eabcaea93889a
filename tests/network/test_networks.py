"""Networks that people have, at random weights, against the plain network with hooks and autograd:
values, fields, activations and gradients of units through crops, and changed values."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_resnet import box
from torch import nn

from rfatlas.fields import crops
from rfatlas.network import devices, export, graph, model
from rfatlas.network.torchvision_ops import torchvision

EXTENT = 64

#: The network, some of its default layers, and the kind of their fields.
NETWORKS = {
    "resnet18": (["conv1", "maxpool", "layer1.0", "layer2.1"], "exact"),
    "resnet50": (["conv1", "maxpool", "layer1.2", "layer4.2"], "exact"),
    "resnext50_32x4d": (["layer1.0", "layer3.5"], "exact"),
    "wide_resnet50_2": (["layer1.0"], "exact"),
    "regnet_y_400mf": (["stem.0", "trunk_output.block1.block1-0"], "local"),
    "densenet121": (["features.conv0", "features.pool0", "features.denseblock1"], "exact"),
    "googlenet": (["conv1", "inception3a", "inception4e"], "exact"),
    "mobilenet_v3_small": (["features.0.0", "features.2", "features.5"], "local"),
    "efficientnet_b0": (["features.0.0", "features.2.0", "features.3.1"], "local"),
    "convnext_tiny": (["features.0.0", "features.1.0", "features.3.2"], "exact"),
    "shufflenet_v2_x0_5": (["conv1", "maxpool", "stage2.0", "stage2.3"], "exact"),
    "vgg11": (["features.0", "features.1", "features.4"], "exact"),
    "seresnet18": (["conv1", "layer1.0", "layer2.1"], "local"),
    "resnetblur18": (["conv1", "layer1.0", "layer2.1"], "exact"),
    "resnetv2_18": (["stem.conv", "stages.0.blocks.0", "stages.1.blocks.1"], "exact"),
    "ecaresnet26t": (["conv1", "layer1.0", "layer2.1"], "local"),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    models = torchvision().models
    if hasattr(models, name):
        network = getattr(models, name)(**{"init_weights": False} if name == "googlenet" else {})
    else:
        network = pytest.importorskip("timm").create_model(name)
    for child in network.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(child.running_mean, 0, 0.1)
            nn.init.uniform_(child.running_var, 0.5, 1.5)
            nn.init.uniform_(child.weight, 0.5, 1.5)
    return network.eval()


@functools.cache
def traced_network(name: str) -> tuple[nn.Module, graph.Graph]:
    network = make(name)
    return network, graph.trace(network, torch.zeros(1, 3, EXTENT, EXTENT))


def hooked(network: nn.Module, images: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    """Values of modules (their last calls) by hooks."""
    values = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda child, args, value, name=name: values.__setitem__(name, value.clone())
        )
        for name in names
    ]
    network(images)
    for handle in handles:
        handle.remove()
    return values


def close(found, expected, limit: float = 2e-5) -> bool:
    return bool((found - expected).abs().max() <= limit * expected.abs().max())


every = pytest.mark.parametrize("name", NETWORKS)


@every
def test_layers_kinds_and_values(name):
    network, traced = traced_network(name)
    layers, kind = NETWORKS[name]
    default = model.default_layers(network, traced)
    assert set(layers) <= set(default), default
    assert {traced.field(layer).kind for layer in layers[1:] or layers} == {kind}
    assert not any(traced.field(layer).probed for layer in traced.layers())
    images = torch.rand(3, 3, EXTENT, EXTENT)
    with torch.no_grad():
        expected = hooked(network, images, traced.layers())
        found = traced.extractor(traced.layers())(images)
        assert traced.classes() == 1000 and close(found[graph.LOGITS], network(images))
    assert all(torch.equal(found[layer], expected[layer]) for layer in traced.layers())


@every
def test_units_by_crops_are_those_of_the_whole_image(name):
    """Activation and gradient at the centre and in corners; nothing outside the box of an exact
    field, and its first and last rows are reached."""
    network, traced = traced_network(name)
    images = torch.rand(2, 3, EXTENT, EXTENT, generator=torch.Generator().manual_seed(1))
    for layer in NETWORKS[name][0]:
        cut = crops.window(traced.field(layer), EXTENT)
        prefix = traced.prefix(layer)
        _, height, width = traced.shape(layer)
        pixels = images.clone().requires_grad_()
        value = hooked(network, pixels, [layer])[layer]
        for y, x in ((0, 0), (height // 2, width // 2), (height - 1, 0), (1 % height, width - 1)):
            one = value[:, :, y, x]
            (whole,) = torch.autograd.grad(one.sum(), pixels, retain_graph=True)
            places = [np.array([place]) for place in (y, x)]
            top, left = (int(cut.crop_start(p, axis)[0]) for axis, p in enumerate(places))
            row, column = (int(cut.position_in_crop(p, a)[0]) for a, p in enumerate(places))
            rows, columns = slice(top, top + cut.crop), slice(left, left + cut.crop)
            part = images[:, :, rows, columns].clone().requires_grad_()
            own = prefix(part)[:, :, row, column]
            (gradient,) = torch.autograd.grad(own.sum(), part)
            assert close(own, one), (layer, y, x)
            inside = torch.zeros_like(whole)
            inside[:, :, rows, columns] = gradient
            # Rounding tips units on the edge of a ReLU, each by a finite step.
            assert close(inside, whole, 1e-2), (layer, y, x)
            if traced.field(layer).kind != "exact":
                continue
            seen = box(traced.field(layer).local, y, x)
            hit = (whole.abs().sum((0, 1)) > 0).nonzero()
            low, high = hit.min(0).values.tolist(), hit.max(0).values.tolist()
            assert (
                low[0] >= seen[0] and low[1] >= seen[1] and high[0] < seen[2] and high[1] < seen[3]
            )
            if traced.field(layer).local.size[0] < 12 and (y, x) == (height // 2, width // 2):
                assert (low[0], low[1], high[0] + 1, high[1] + 1) == seen


@every
def test_changed_values_reach_the_output_as_by_a_hook(name):
    network, traced = traced_network(name)
    images = torch.rand(2, 3, EXTENT, EXTENT)
    for layer in NETWORKS[name][0][-2:]:
        prefix, suffix = traced.split(layer)

        def change(value):
            return torch.cat([value[:, :1] * 0, value[:, 1:]], 1)

        with torch.no_grad():
            value, *crossing = prefix(images)
            found = suffix(change(value), *crossing)
            # The suffix runs on other numbers of images, too.
            again = suffix(*(torch.cat([one, one]) for one in (change(value), *crossing)))
            handle = network.get_submodule(layer).register_forward_hook(
                lambda child, args, value: change(value)
            )
            expected = network(images)
            handle.remove()
        assert close(found, expected, 1e-4) and close(again[2:], expected, 1e-4)


def test_a_gate_leaves_the_field_of_the_network_without_it():
    _, gated = traced_network("seresnet18")
    plain = graph.trace(make("resnet18"), torch.zeros(1, 3, EXTENT, EXTENT))
    for layer in ("layer1.0", "layer2.1", "layer4.1"):
        assert gated.field(layer).local == plain.field(layer).local
        assert gated.field(layer).kind != "exact"
        block = traced_network("seresnet18")[0].get_submodule(layer)
        norms = block.conv2.weight.double().flatten(1).norm(dim=1)
        scale = block.bn2.weight.double() / (block.bn2.running_var.double() + block.bn2.eps).sqrt()
        assert torch.allclose(gated.filter_norms(layer), norms * scale.abs())


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "convnext_tiny"])
def test_the_graph_comes_back_from_json(name):
    _, traced = traced_network(name)
    kept = export.to_json(traced.exported)
    again = graph.Graph(export.from_json(kept, traced.exported.tensors, torch.device("cpu")))
    images = torch.rand(3, 3, EXTENT, EXTENT)
    one, two = (net.extractor(traced.layers())(images) for net in (traced, again))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    for layer in traced.layers():
        assert again.field(layer) == traced.field(layer)
        assert again.gflops(layer) == traced.gflops(layer)


# ---- forms of writing the same


class Net(nn.Module):
    def __init__(self, act=F.relu, norm=nn.BatchNorm2d, branch=lambda y: y):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
        self.end, self.fc = nn.Identity(), nn.Linear(8, 3)
        self.act, self.branch = act, branch

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        x = self.end(self.act(x + self.branch(self.bn2(self.conv2(x)))))
        x = F.avg_pool2d(x, x.size()[3])
        return self.fc(x.view(x.size(0), -1))


def drawn(network: nn.Module, make=lambda module: module) -> nn.Module:
    network.conv1 = make(network.conv1)
    return network


def written_into(x):
    y = x.clone()
    y[:, :2] = y[:, :2] * 1
    return y


FORMS = {
    "SyncBatchNorm": lambda: Net(norm=nn.SyncBatchNorm),
    "StochasticDepth": lambda: Net(branch=torchvision().ops.StochasticDepth(0.2, "row").eval()),
    "clamp_min": lambda: Net(lambda x: torch.clamp_min(x, 0)),
    "gate": lambda: Net(lambda x: x * (x > 0)),
    "threshold": lambda: Net(lambda x: F.threshold(x, 0, 0)),
    "maximum": lambda: Net(lambda x: torch.maximum(x, torch.zeros_like(x))),
    "type_as": lambda: Net(branch=lambda y: y.type_as(y)),
    "stack": lambda: Net(branch=lambda y: torch.stack([y / 2, y / 2]).sum(0)),
    "permute": lambda: Net(branch=lambda y: y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
    "in a view": lambda: Net(branch=written_into),
    "weight_norm": lambda: drawn(Net(), nn.utils.weight_norm),
    "spectral_norm": lambda: drawn(Net(), lambda m: nn.utils.spectral_norm(m).eval()),
    "parametrized": lambda: drawn(Net(), nn.utils.parametrizations.weight_norm),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_compute_the_same_are_read_as_the_same(form):
    network = FORMS[form]().eval()
    images = torch.rand(2, 3, 12, 12)
    expected = network(images)
    traced = graph.trace(network, images)
    assert close(traced.extractor([])(images)[graph.LOGITS], expected)
    plain = graph.trace(Net().eval(), images)
    assert traced.field("end").kind == "exact"
    assert traced.field("end").local == plain.field("end").local
    assert traced.field("end").local.size == (5, 5) and traced.rectified("end")
    norms = traced.filter_norms("end"), plain.filter_norms("end")
    assert torch.allclose(*norms)


def test_hooks_of_the_network_are_part_of_it():
    network = Net().eval()
    network.conv2.register_forward_hook(lambda child, args, value: 2 * value)
    images = torch.rand(2, 3, 12, 12)
    traced = graph.trace(network, images)
    assert close(traced.prefix("conv2")(images), hooked(network, images, ["conv2"])["conv2"])
    assert close(traced.whole()(images), network(images))


class Named(nn.Module):
    """Its modules have the names of attributes of torch's and of groups in our files."""

    NAMES = ("graph", "code", "output", "logits", "3x3 conv", "NA")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        blocks = {
            name: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for name in self.NAMES
        }
        for name in self.NAMES:
            self.add_module(name, blocks[name])
        self.features = nn.Linear(3, 5)

    def forward(self, x):
        for name in self.NAMES:
            x = x + getattr(self, name)(x)
        return self.features(x.mean((2, 3)))


def test_modules_may_have_any_name():
    network = Named().eval()
    images = torch.rand(2, 3, 12, 12)
    traced = graph.trace(network, images)
    expected = hooked(network, images, list(Named.NAMES))
    found = traced.extractor(Named.NAMES)(images)
    assert close(found[graph.LOGITS], network(images))
    for name in Named.NAMES:
        assert torch.equal(found[name], expected[name])
        prefix, suffix = traced.split(name)
        assert close(suffix(*prefix(images)), network(images))


class Blur(nn.Module):
    """A pooling as anti-aliased networks have it: the same fixed filter for every channel."""

    def __init__(self, channels: int, most: int):
        super().__init__()
        kernel = torch.tensor([1.0, 2, 1])
        self.register_buffer("filt", (kernel[:, None] * kernel / 16).expand(channels, 1, 3, 3))
        self.most = nn.MaxPool2d(most, stride=1, padding=most // 2)

    def forward(self, x):
        x = F.pad(self.most(x), (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.filt.clone(), stride=2, groups=len(self.filt))


def test_a_blur_is_a_pooling_and_no_filter():
    """Its layer has the filter norms of the convolution before it, and stays rectified."""
    network = Net().eval()
    network.end = nn.Sequential(Blur(8, 1))
    images = torch.rand(2, 3, 24, 24)
    traced, plain = graph.trace(network, images), graph.trace(Net().eval(), images)
    assert torch.allclose(traced.filter_norms("end"), plain.filter_norms("end"))
    assert traced.rectified("end") and traced.is_pooling("end") and not traced.filters("end")
    assert traced.field("end").local.size == (7, 7)
    value, unrectified = traced.prefix_and_unrectified("end")(images)
    assert close(value, hooked(network, images, ["end"])["end"]) and (unrectified < 0).any()
    path = traced.linear_path("end")
    assert [step for step, _ in path.steps if step in ("conv2d", "blur")][-1] == "blur"
    timms = make("resnetblur18")
    traced = traced_network("resnetblur18")[1]
    assert model.default_layers(timms, traced)[:3] == ["conv1", "maxpool", "layer1.0"]
    weight = timms.conv1.weight.double().flatten(1).norm(dim=1)
    scale = timms.bn1.weight.double() / (timms.bn1.running_var.double() + timms.bn1.eps).sqrt()
    assert torch.allclose(traced.filter_norms("maxpool"), weight * scale.abs())


class Windows(nn.Module):
    """Channels last, and values of windows of positions, as transformers have them."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 4, 4), nn.Identity()
        self.windows, self.back = nn.Identity(), nn.Identity()
        self.maps, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = self.last(self.stem(x).permute(0, 2, 3, 1))
        tokens = x.flatten(1, 2)
        tokens = torch.softmax(tokens @ tokens.transpose(1, 2), 2) @ tokens
        x = self.windows(tokens.view(-1, 4, 4, 8))
        return self.fc(self.maps(self.back(x.permute(0, 3, 1, 2))).mean((2, 3)))


def test_maps_of_channels_are_told_from_others():
    traced = graph.trace(Windows().eval(), torch.rand(1, 3, 16, 16))
    assert [layer for layer in traced.layers() if traced.is_map(layer)] == ["stem", "maps", "fc"]
    assert traced.field("stem").kind == "exact" and traced.field("maps").kind == "global"
    with pytest.raises(model.RfatlasError, match="'windows' has shape .*must be"):
        traced.shape("windows")


class Tokens(nn.Module):
    """An embedding of patches, with attention behind it and a constant of five axes."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
        self.register_buffer("shift", torch.randn(1, 1, 1, 16, 8))

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.shift[0, 0]
        tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.fc((tokens + self.shift).mean((0, 1, 3)))


def test_a_prefix_leaves_out_the_attention_behind_it():
    """It would not work for crops, and torch counts attention among what may not be left out."""
    network = Tokens().eval()
    images = torch.rand(2, 3, 16, 16)
    traced = graph.trace(network, images)
    expected = network.stem(images)
    assert close(traced.prefix("stem")(images[:, :, 4:8, 4:12]), expected[:, :, 1:2, 1:3])
    extract = devices.channels_last(traced.extractor(["stem"]), "cpu")
    found = extract(images)
    assert close(found["stem"], expected) and close(found[graph.LOGITS], network(images))
    weights = [tensor for tensor in extract.buffers() if tensor.ndim == 4]
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in weights)


class Odd(nn.Module):
    """Ends with an operation that only a probe can place."""

    def __init__(self, last):
        super().__init__()
        self.conv, self.end, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Identity(), last

    def forward(self, x):
        return self.end(self.last(self.conv(x)))


def test_operations_that_are_not_known_are_found_out(caplog):
    caplog.set_level("INFO", "rfatlas")
    images = torch.rand(1, 3, 24, 24)
    traced = graph.trace(Odd(lambda x: F.pixel_unshuffle(x, 2)), images)
    field = traced.field("end")
    assert (field.kind, field.local.stride, field.local.size) == ("exact", (2, 2), (4, 4))
    assert field.probed == ("pixel_unshuffle",) and "by the support of its gradient" in caplog.text
    for last in (lambda x: x.roll(3, 2), lambda x: x.flip(3), lambda x: x.cumsum(2)):
        assert graph.trace(Odd(last), images).field("end").kind == "global"
    grouped = graph.trace(Odd(nn.GroupNorm(2, 4)), images).field("end")
    assert (grouped.kind, grouped.local.size, grouped.probed) == ("local", (3, 3), ())


# ---- networks that are refused, and heads

INPUT = {"resize": 12, "crop": 12, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: Net(branch=lambda y: F.dropout(y)), "draws random numbers"),
        (lambda: Net(norm=lambda c: nn.BatchNorm2d(c, track_running_stats=False)), "other images"),
        (lambda: Net(branch=lambda y: -y if y.std() < 0.25 else y), "other images"),
        (lambda: Net(branch=lambda y: -y if y.std() < 0.12 else y), "by the values"),
    ],
)
def test_networks_that_are_not_the_same_twice_are_refused(network, message):
    with pytest.raises(model.RfatlasError, match=message):
        model.trace(network().eval(), INPUT)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3))

    def forward(self, x):
        return F.normalize(x, dim=1).mm(F.normalize(self.weight, dim=0)) * 30


def headed(fc: nn.Module, before: bool = False) -> nn.Module:
    class Headed(Net):
        def forward(self, x):
            x = self.end(F.relu(self.bn1(self.conv1(x))))
            if before:
                return self.fc(x).mean((2, 3))
            return self.fc(x.mean((2, 3), keepdim=isinstance(self.fc, nn.Conv2d))).flatten(1)

    network = Headed()
    network.fc = fc
    return network.eval()


@pytest.mark.parametrize(
    ("network", "classes", "width"),
    [
        (lambda: headed(nn.Linear(8, 3)), 3, 8),
        (lambda: headed(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))), 3, 6),
        (lambda: headed(Normed()), 3, 8),
        (lambda: headed(nn.Conv2d(8, 3, 1)), 3, None),
        (lambda: headed(nn.Conv2d(8, 3, 1), before=True), 3, None),
        (lambda: headed(nn.Identity()), None, None),
    ],
)
def test_heads(network, classes, width):
    network = network()
    images = torch.rand(2, 3, 12, 12)
    traced = graph.trace(network, images)
    found = traced.extractor(["conv1"])(images)
    assert traced.classes() == classes and (graph.LOGITS in found) == (classes is not None)
    if classes:
        assert close(found[graph.LOGITS], network(images))
    assert (found[graph.FEATURES].shape[1] if graph.FEATURES in found else None) == width
