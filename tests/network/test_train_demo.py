"""The demo's networks, their training, and the weights that are shipped."""

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy import stats
from torch import fx, nn

from rfatlas import demo_net
from rfatlas.images import scenes
from rfatlas.network import graph, train_demo
from rfatlas.network.model import preprocess

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "resources/demo"
TINY = train_demo.Settings(
    count=64, size=32, seed=1, held_out=24, held_out_seed=2, epochs=2, batch=16, shift=2
)


def loaded_from(network: str, weights: Path) -> nn.Module:
    module = train_demo.NETWORKS[network]()
    module.load_state_dict(load_file(weights))
    return module.eval()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Work this small only loses by sharing it among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_network_is_small_and_named_like_torchvision():
    network = demo_net.resnet_demo()
    assert sum(parameter.numel() for parameter in network.parameters()) <= 1_000_000
    top = [name for name, _ in network.named_children()]
    layers = ["layer1", "layer2", "layer3"]
    assert top == ["conv1", "bn1", "relu", "maxpool", *layers, "avgpool", "fc"]
    for layer in layers:
        assert [name for name, _ in network.get_submodule(layer).named_children()] == ["0", "1"]
    first = network.conv1
    assert (first.out_channels, first.kernel_size, first.stride) == (64, (7, 7), (2, 2))
    assert (network.maxpool.kernel_size, network.maxpool.stride) == (3, 2)
    assert network.layer2[0].downsample[0].kernel_size == (1, 1)
    assert network.layer2[1].downsample is None


@pytest.mark.parametrize("factory", [demo_net.resnet_demo, demo_net.plainnet_demo])
def test_network_shapes_and_tracing(factory):
    network = factory(num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert network.maxpool(network.relu(network.bn1(network.conv1(x)))).shape == (2, 64, 16, 16)
    traced = fx.symbolic_trace(network)
    with torch.no_grad():
        logits = network(x)
        assert logits.shape == (2, 10)
        torch.testing.assert_close(traced(x), logits, rtol=0, atol=0)


def test_skip_adds_the_input():
    x = torch.rand(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    for skip, expected in ((True, x), (False, torch.zeros_like(x))):
        block = demo_net.BasicBlock(8, 8, skip=skip).eval()
        nn.init.zeros_(block.conv2.weight)
        with torch.no_grad():
            torch.testing.assert_close(block(x), expected)


def test_epochs_lower_the_loss():
    # By more than rounding, which differs with the number of threads.
    settings = replace(TINY, epochs=6)
    result = train_demo.train("resnet_demo", settings)
    assert len(result.losses) == 6
    assert result.losses[-1] < 0.9 * result.losses[0]
    assert 0 <= result.accuracy_held_out <= 1
    assert not result.module.training


def test_training_ends_with_the_same_bits_each_time():
    first, again = (train_demo.train("plainnet_demo", TINY) for _ in range(2))
    assert first.losses == again.losses
    expected = first.module.state_dict()
    for name, tensor in again.module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_training_leaves_torchs_own_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    settings = train_demo.Settings(count=24, size=32, held_out=24, epochs=1, batch=24)
    train_demo.train("resnet_demo", settings)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("network", train_demo.NETWORKS)
def test_weights_and_provenance_are_written_and_read(tmp_path, network):
    torch.manual_seed(0)
    module = train_demo.NETWORKS[network]().eval().to(memory_format=torch.channels_last)
    result = train_demo.Result(
        network, module, [0.5, 0.4, 0.3], [0.1, 0.2, 0.3], [2.0, 1.0], 0.9, 0.8
    )
    weights, provenance = tmp_path / "w.safetensors", tmp_path / "p.json"
    train_demo.write(result, TINY, weights, provenance)
    loaded = loaded_from(network, weights)
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    record = json.loads(provenance.read_text())
    assert record["factory"] == f"rfatlas.demo_net.{network}"
    assert record["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["settings"]["count"] == 64
    assert (record["accuracy_train"], record["accuracy_held_out"]) == (0.9, 0.8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "w.safetensors"]


def test_filter_norms_are_those_of_the_folded_filters():
    torch.manual_seed(0)
    network = demo_net.resnet_demo()
    nn.init.uniform_(network.bn1.weight, -1, 1)
    nn.init.uniform_(network.bn1.running_var, 0.5, 2)
    nn.init.uniform_(network.bn1.running_mean, -1, 1)
    network.eval()
    folded = nn.utils.fusion.fuse_conv_bn_eval(network.conv1, network.bn1)
    expected = folded.weight.detach().flatten(1).norm(dim=1)
    norms = graph.trace(network, torch.zeros(1, 3, 64, 64)).filter_norms("conv1")
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_augmentation_is_flips_turns_and_shifts():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    batch = np.repeat(image[None], 400, axis=0)
    labels = np.zeros(400, int)
    turned = [
        np.rot90(side, quarter).tobytes() for side in (image, image[::-1]) for quarter in range(4)
    ]
    pictures, truth = train_demo.augment(batch, labels, rng, shift=0)
    assert {one.tobytes() for one in pictures} == set(turned)
    # Upright stripes become level ones where rows and columns are exchanged, in half of the poses.
    upright = [each for each in turned if each in {p.tobytes() for p in pictures[truth == 0]}]
    assert len(upright) == 4 and set(truth) == {0, 6}
    assert not {p.tobytes() for p in pictures[truth == 6]} & set(upright)
    shifted = {one.tobytes() for one in train_demo.augment(batch, labels, rng, shift=1)[0]}
    # 8 poses at 9 places, of which 400 draws show most.
    assert 60 < len(shifted) <= 72


def test_jitter_changes_contrast_and_colour_of_whole_images():
    batch = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = train_demo.jitter(batch, np.random.default_rng(0), gain=0.3, cast=0.2)
    assert changed.dtype == torch.float32
    spread = [each.flatten(2) - each.flatten(2).mean(2, keepdim=True) for each in (batch, changed)]
    gains = (spread[1] / spread[0]).flatten(1)
    assert float(gains.std(1).max()) < 1e-2
    low, high = gains.median(1).values.log().aminmax()
    assert -0.3 <= low < -0.25 and 0.25 < high <= 0.3
    casts = (changed - batch * gains.median(1).values[:, None, None, None]).mean((2, 3))
    assert float(casts.std()) == pytest.approx(0.2, rel=0.15)
    same = train_demo.jitter(batch, np.random.default_rng(0), gain=0, cast=0)
    torch.testing.assert_close(same, batch)


def test_normalised_images_have_mean_0_and_deviation_1():
    images, _ = scenes.draw(24, 32, seed=4)
    mean, std = train_demo.colour_statistics(images)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)) / 255, atol=6e-5)
    np.testing.assert_allclose(std, images.std(axis=(0, 1, 2)) / 255, atol=6e-5)
    tensor = preprocess(images, mean, std)
    assert tensor.shape == (24, 3, 32, 32)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(tensor.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(tensor.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_learning_rate_warms_up_and_falls_to_nothing():
    settings = train_demo.Settings(epochs=10, rate=0.2)
    rates = [train_demo.learning_rate(step, 100, settings) for step in range(1000)]
    assert rates[0] == pytest.approx(0.002)
    assert max(rates) < 0.2 and 90 <= int(np.argmax(rates)) <= 100
    assert rates[500] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.1 * (1 + math.cos(math.pi * 0.999)))


@pytest.fixture(scope="module", params=train_demo.NETWORKS)
def network(request):
    return request.param


@pytest.fixture(scope="module")
def provenance(network):
    return json.loads((SHIPPED / f"{network}.json").read_text())


def test_shipped_weights_are_those_of_the_provenance(network, provenance):
    weights = SHIPPED / f"{network}.safetensors"
    assert weights.stat().st_size <= 4_000_000
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == provenance["sha256"]
    assert provenance["settings"] == asdict(train_demo.SETTINGS[network])
    assert provenance["factory"] == f"rfatlas.demo_net.{network}"
    assert provenance["class_names"] == list(scenes.CLASS_NAMES)


def test_the_default_config_normalises_as_the_training_did(network, provenance):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    name = {"resnet_demo": "demo", "plainnet_demo": "demo_plain"}[network]
    assert config["models"][name]["factory"] == provenance["factory"]
    assert config["models"][name]["input"] == provenance["input"]
    # The demo's scenes are new to the network.
    seeds = {provenance["settings"][key] for key in ("seed", "held_out_seed")}
    assert config["datasets"]["scenes"]["seed"] not in seeds


def test_shipped_weights_have_the_stated_accuracy_on_fresh_scenes(network, provenance):
    module = loaded_from(network, SHIPPED / f"{network}.safetensors")
    images, labels = scenes.draw(200, provenance["settings"]["size"], seed=909)
    given = provenance["input"]
    right = round(200 * train_demo.accuracy(module, images, labels, given["mean"], given["std"]))
    stated = provenance["accuracy_held_out"]
    assert stats.binomtest(right, 200, stated).pvalue > 0.001
