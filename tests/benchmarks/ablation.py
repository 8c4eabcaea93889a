"""Ablation of channels of a network as large as torchvision's ResNet-34 at 224 px, on the CPU: ours
against the plain loop and two peers.

`loop/<layer>`: the whole network once per channel and batch of images, the channel zeroed by a
hook, which is how such sweeps are usually written. `grad_cam/<layer>`: pytorch-grad-cam's loop in
AblationCAM, whose AblationLayer stands in the place of the block and zeroes another channel in each
copy of an image. `captum/<layer>`: Captum's LayerFeatureAblation, one feature per channel. All take
out the same channels of the same images in the same memory layout and end with one score per pair.

Every method does the same work for each channel, so a few channels are timed, and what is done once
per image is shared out among all channels of the layer: our look at the intact image, and the
peers' own (which are not charged for it). `penultimate` is the last block, of which ours reads the
features and logits that the stage activations has cached; it is timed on all channels. The last
line is one JSON object of ratios: the peer's time over ours, per pair of image and channel.

`equal_loss/<layer>`, `equal_top1/<layer>`: the time that a plain exact sweep takes, over that of
ours with first-order estimates, to know the effects on loss and top-1 equally well: 95 % intervals
as narrow, on the mean over channels and modes, as 2,000 images of a data set of 10,000 make them
without estimates. From variances and times per image of a sample of channels of a trained network
on photographs (`--data`; left out where they are not there).
"""

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerFeatureAblation
from PIL import Image

from rfatlas.ablation import ablate, combined, first_order
from rfatlas.network import graph, model, weight_files
from rfatlas.network.torchvision_ops import torchvision

# Imports torchvision, which may need the operators that the line above declares.
torchvision()
from pytorch_grad_cam.ablation_layer import AblationLayer  # noqa: E402

LAYERS = ("layer1.0", "layer3.0", "layer4.0", "penultimate")
MODULES = {"penultimate": "layer4.2"}
EXTENT = 224
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def networks() -> tuple[torch.nn.Module, model.LoadedModel]:
    """The network of the peers and a copy of its own for ours, of the same memory layout."""
    peer, mine = (torchvision().models.resnet34().eval().requires_grad_(False) for _ in range(2))
    mine.load_state_dict(peer.state_dict())
    traced = graph.trace(mine, torch.zeros(1, 3, EXTENT, EXTENT))
    description = {"input": {"resize": 256, "crop": EXTENT, "mean": MEAN, "std": STD}}
    for network in (peer, mine):
        network.to(memory_format=torch.channels_last)
        for module in network.modules():
            # The peers' hooks must not see values that a later operation overwrites.
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False
    return peer, model.LoadedModel(mine, traced, description, "", torch.device("cpu"))


class Case:
    """One layer: the same channels of the same images, by everyone."""

    def __init__(self, name: str, peer, ours: model.LoadedModel, images: np.ndarray, batch: int):
        self.layer = MODULES.get(name, name)
        self._peer = peer
        self._target = peer.get_submodule(self.layer)
        pixels = model.preprocess(images, MEAN, STD)
        self._pixels = pixels.contiguous(memory_format=torch.channels_last)
        self._labels, self._batch = np.zeros(len(images), int), batch
        # Behind each image its partner, which zero does not need.
        self._images = np.concatenate([images, images[:1]])
        self._ablator = ablate.Ablator(ours, self.layer)
        self.channels = self._ablator.channels
        self.closed = self._ablator.closed
        values = ours.graph.extractor([])(ours.preprocess(self._images))
        self._cached = [values[key].numpy() for key in (graph.FEATURES, graph.LOGITS)]

    def look(self) -> ablate.Seen:
        """What ours does once for all channels."""
        if self.closed:
            return self._ablator.recall(self._cached[0], self._cached[1][:-1])
        return self._ablator.see(self._images)

    def ours(self, seen: ablate.Seen, channels: np.ndarray) -> np.ndarray:
        """Losses (channels, n)."""
        sets = channels[:, None]
        return self._ablator.ablate(seen, sets, "zero", self._labels).loss

    @torch.inference_mode()
    def loop(self, channels: np.ndarray) -> np.ndarray:
        """Losses (channels, n)."""
        found = np.zeros((len(channels), len(self._pixels)), np.float32)
        for row, channel in enumerate(channels):

            def zero(child, args, value, channel=channel):
                value[:, channel] = 0

            handle = self._target.register_forward_hook(zero)
            for part in torch.arange(len(self._pixels)).split(self._batch):
                logits = self._peer(self._pixels[part])
                found[row, part] = (logits.logsumexp(1) - logits[:, 0]).numpy()
            handle.remove()
        return found

    @torch.inference_mode()
    def activations(self) -> torch.Tensor:
        """What pytorch-grad-cam does once for all channels."""
        kept = []
        handle = self._target.register_forward_hook(lambda child, args, value: kept.append(value))
        self._peer(self._pixels)
        handle.remove()
        return kept[0]

    @torch.inference_mode()
    def grad_cam(self, activations: torch.Tensor, channels: np.ndarray) -> np.ndarray:
        """Logit 0 (channels, n), as AblationCAM.get_cam_weights finds it."""
        layer = AblationLayer()
        layer.activations_to_be_ablated(activations[0])
        parent, _, leaf = self.layer.rpartition(".")
        blocks = self._peer.get_submodule(parent)
        blocks[int(leaf)] = layer
        found = np.zeros((len(channels), len(self._pixels)), np.float32)
        for image in range(len(self._pixels)):
            for rows in np.split(
                np.arange(len(channels)), range(self._batch, len(channels), self._batch)
            ):
                copies = self._pixels[image].repeat(len(rows), 1, 1, 1)
                layer.indices = channels[rows]
                layer.set_next_batch(image, activations, len(rows))
                copies = copies.contiguous(memory_format=torch.channels_last)
                found[rows, image] = [score[0].cpu().item() for score in self._peer(copies)]
        blocks[int(leaf)] = self._target
        return found

    @torch.inference_mode()
    def captum(self, channels: np.ndarray) -> np.ndarray:
        """Change of logit 0 (channels, n)."""
        mask = torch.zeros(1, *self.activations().shape[1:], dtype=torch.long)
        mask[0, channels] = torch.arange(1, len(channels) + 1)[:, None, None]
        attribution = LayerFeatureAblation(self._peer, self._target)
        found = [
            attribution.attribute(part, target=0, layer_mask=mask)
            for part in self._pixels.split(self._batch)
        ]
        return torch.cat(found)[:, channels, 0, 0].T.numpy()

    def check(self, channels: np.ndarray) -> None:
        """Raise AssertionError unless everyone computes the same."""
        seen = self._ablator.see(self._images)
        logits = self._ablator.logits(seen, channels[:, None], "zero")[..., 0].numpy()
        intact = seen.logits[:, 0].numpy()
        close = 1e-4 * np.abs(seen.logits.numpy()).max()
        np.testing.assert_allclose(
            self.ours(self.look(), channels), self.loop(channels), atol=close
        )
        cams = self.grad_cam(self.activations(), channels)
        np.testing.assert_allclose(cams, logits, atol=close)
        np.testing.assert_allclose(self.captum(channels), intact - logits, atol=close)

    def times(self, channels: np.ndarray) -> dict[str, float]:
        """Seconds per pair of image and channel of each method."""
        images, few = len(self._pixels), len(channels)
        if self.closed:
            channels = np.arange(self.channels)
        look = seconds(self.look)
        seen, activations = self.look(), self.activations()
        pair = seconds(lambda: self.ours(seen, channels)) / len(channels)
        channels = channels[:few]
        return {
            "ours": (look / self.channels + pair) / images,
            "loop": seconds(lambda: self.loop(channels)) / few / images,
            "grad_cam": seconds(lambda: self.grad_cam(activations, channels)) / few / images,
            # Two passes more: the intact network, and all other channels, which are a feature too.
            "captum": seconds(lambda: self.captum(channels)) / (few + 2) / images,
        }


#: Layers and images of the comparison at equal precision.
EQUAL = ("maxpool", "layer1.1", "layer2.1", "layer3.1")
PLAIN, DATA_SET = 2_000, 10_000
MODES = ("zero", "mean", "shuffle")


def photographs(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A random sample of the photographs of a folder, cut as ResNets see them, and labels."""
    with (folder / "photographs" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]
    images = []
    for row in rows:
        image = Image.open(folder / "photographs" / row["file"]).convert("RGB")
        scale = 256 / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        left, top = (width - EXTENT) // 2, (height - EXTENT) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        images.append(np.asarray(image.crop((left, top, left + EXTENT, top + EXTENT))))
    return np.stack(images), np.array([int(row["label"]) for row in rows])


def equal_precision(folder: Path, images: int, channels: int) -> dict[str, float]:
    """Plain time over ours, by target and layer."""
    module = torchvision().models.resnet18().eval().requires_grad_(False)
    weights = weight_files.read_tensors(folder / "resnet18" / "resnet18.safetensors")
    module.load_state_dict(weights, strict=False)
    traced = graph.trace(module, torch.zeros(1, 3, EXTENT, EXTENT))
    description = {"input": {"resize": 256, "crop": EXTENT, "mean": MEAN, "std": STD}}
    network = model.LoadedModel(module, traced, description, "", torch.device("cpu"))
    pixels, labels = photographs(folder, images + 1)
    values = traced.extractor(EQUAL, output=False)(network.preprocess(pixels))
    means = {layer: values[layer].mean((0, 2, 3)).numpy() for layer in EQUAL}
    # All layers that a run has share one pass.
    every = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    none = {layer: np.zeros(traced.shape(layer)[0]) for layer in ["conv1", *every]}
    whole = first_order.FirstOrder(network, dict.fromkeys(none | means, MODES), none | means)
    whole(pixels[:9], labels[:8])
    pass_seconds = seconds(lambda: whole(pixels[:9], labels[:8])) / 8 / len(none | means)
    known = first_order.FirstOrder(network, dict.fromkeys(EQUAL, MODES), means)
    batches = [known(pixels[i : i + 9], labels[i : i + 8]) for i in range(0, images, 8)]
    intact = np.concatenate([found for found, _ in batches], axis=1)
    ratios = {}
    for layer in EQUAL:
        ablator = ablate.Ablator(network, layer, means[layer])
        few = np.random.default_rng(1).choice(ablator.channels, channels, replace=False)
        seen = ablator.see(pixels)
        before = ablator.intact(seen, labels[:-1])
        begun = time.perf_counter()
        after = {m: ablator.ablate(seen, few[:, None], m, labels[:-1]) for m in MODES}
        pair = (time.perf_counter() - begun) / images / channels / len(MODES)
        per_image = pair * ablator.channels * len(MODES)
        for place, target in enumerate(combined.TARGETS):
            fits = []
            for mode, found in after.items():
                change = np.concatenate([one[layer, mode] for _, one in batches], axis=1)
                expected = combined.expected(*intact, *change)[place].T[few]
                right = (found.prediction == labels[:-1]) * 1.0
                y = {
                    "loss": found.loss.astype(float) - before.loss,
                    "top1": right - (before.prediction == labels[:-1]),
                }[target]
                fits.append(combined.fit(y, expected, target == "top1"))
            plain, ours = (
                np.mean([np.sqrt(getattr(fit, kind)) for fit in fits])
                for kind in ("plain", "residual")
            )
            few_images = PLAIN * (ours / plain) ** 2
            cost = few_images * per_image + DATA_SET * pass_seconds
            ratios[f"equal_{target}/{layer}"] = round(float(PLAIN * per_image / cost), 2)
            r = np.nanmedian([fit.r for fit in fits])
            print(
                f"{layer}, {target}: r {r:.2f}; exact images {PLAIN} plain, {few_images:.0f} ours; "
                f"an image {per_image:.2f} s, its share of the pass {pass_seconds:.4f} s",
                flush=True,
            )
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--channels", type=int, default=8, help="channels that the peers take out")
    parser.add_argument("--batch", type=int, default=8, help="images in a peer's batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    data = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=data, help="a network and photographs")
    parser.add_argument(
        "--sample", type=int, nargs=2, default=(96, 12), metavar=("IMAGES", "CHANNELS")
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    peer, network = networks()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (arguments.images, EXTENT, EXTENT, 3), np.uint8)
    ratios = {}
    for name in arguments.layers:
        case = Case(name, peer, network, images, arguments.batch)
        few = rng.choice(case.channels, arguments.channels, replace=False)
        case.check(few)
        times = [case.times(few) for _ in range(arguments.repeats)]
        median = {key: float(np.median([found[key] for found in times])) for key in times[0]}
        for key in ("loop", "grad_cam", "captum"):
            ratios[f"{key}/{name}"] = round(median[key] / median["ours"], 2)
        print(
            f"{name}: per image and channel "
            + ", ".join(f"{key} {1e3 * value:.4f} ms" for key, value in median.items()),
            flush=True,
        )
    if arguments.data.is_dir():
        ratios |= equal_precision(arguments.data, *arguments.sample)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
