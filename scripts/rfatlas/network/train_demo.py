"""Stage `train_demo`: train the demo's networks on scenes that the workflow draws.

Deterministic from its seeds on one kind of processor and one number of threads: scenes, initial
weights, order and augmentation of every epoch each have a generator of their own.

The weight decay acts on every parameter, the scales of batch normalisation too: first-layer filters
that the task does not need fade away, as in the networks of Kobayashi & Shouno 2020.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from rfatlas import demo_net
from rfatlas.files import disk, versions
from rfatlas.images import scenes
from rfatlas.network import graph
from rfatlas.network.model import preprocess

log = logging.getLogger("rfatlas")

#: What can be trained, by name; the factories are in `rfatlas.demo_net`.
NETWORKS = {"resnet_demo": demo_net.resnet_demo, "plainnet_demo": demo_net.plainnet_demo}


@dataclass(frozen=True)
class Settings:
    """What defines a training, with the values of the shipped ResNet.

    `count` scenes of `size` pixels from `seed`, `held_out` scenes from `held_out_seed`; `rate` is
    the peak of a cosine schedule with one epoch of warm-up; `shift` is the largest random shift in
    pixels; for `gain` and `cast` see `jitter`.
    """

    count: int = 8000
    size: int = 64
    seed: int = 1
    held_out: int = 1000
    held_out_seed: int = 2
    epochs: int = 16
    batch: int = 64
    rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift: int = 6
    gain: float = 0.3
    cast: float = 0.3


#: How the shipped weights were trained: the plain twin, which is there to be compared, for half as
#: long.
SETTINGS = {"resnet_demo": Settings(), "plainnet_demo": Settings(epochs=8)}


@dataclass
class Result:
    """A trained network with its figures; `network` is its name in `NETWORKS`, accuracies are
    shares in 0..1, `losses` one mean per epoch.
    """

    network: str
    module: nn.Module
    mean: list[float]
    std: list[float]
    losses: list[float]
    accuracy_train: float
    accuracy_held_out: float


def train(
    network: str,
    settings: Settings,
    processes: int = 1,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Result:
    """Train one of `NETWORKS`. `processes` draw the scenes; `progress` wraps the iterator over the
    epochs."""
    (images, labels), held_out = (
        scenes.draw(count, settings.size, seed, processes=processes)
        for count, seed in (
            (settings.count, settings.seed),
            (settings.held_out, settings.held_out_seed),
        )
    )
    mean, std = colour_statistics(images)
    log.info("%d scenes, mean %s, std %s", len(images), mean, std)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        module = NETWORKS[network](len(scenes.CLASS_NAMES))
    module.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        module.parameters(), settings.rate, settings.momentum, weight_decay=settings.weight_decay
    )
    losses: list[float] = []
    for epoch in progress(range(settings.epochs)):
        losses.append(_epoch(epoch, settings, module, optimiser, images, labels, mean, std))
        log.info("epoch %d of %d: loss %.4f", epoch + 1, settings.epochs, losses[-1])

    module.eval()
    return Result(
        network=network,
        module=module,
        mean=mean,
        std=std,
        losses=losses,
        accuracy_train=accuracy(module, images, labels, mean, std),
        accuracy_held_out=accuracy(module, *held_out, mean, std),
    )


def colour_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images (N, H, W, 3).

    In units of the code range (0..1), rounded to four decimals.
    """
    mean = images.mean((0, 1, 2)) / 255
    square = np.square(images, dtype=np.uint16).mean((0, 1, 2)) / 255**2
    return mean.round(4).tolist(), np.sqrt(square - mean**2).round(4).tolist()


def augment(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """Flip, turn and shift each image (N, H, H, 3) at random; return them with the labels (N,) that
    they then have.

    Shifted-in pixels mirror the border.
    """
    size = images.shape[1]
    pad = ((0, 0), (shift, shift), (shift, shift), (0, 0))
    padded = np.pad(images, pad, mode="reflect")
    result = np.empty_like(images)
    turns = rng.integers(0, 8, len(images))
    offsets = rng.integers(0, 2 * shift + 1, (len(images), 2))
    for index, (turn, (y, x)) in enumerate(zip(turns, offsets, strict=True)):
        image = padded[index, y : y + size, x : x + size]
        image = image[:: 1 - 2 * (turn & 1), :: 1 - (turn & 2)]
        result[index] = image.transpose(1, 0, 2) if turn & 4 else image
    return result, scenes.turned(labels, turns)


def jitter(batch: torch.Tensor, rng: np.random.Generator, gain: float, cast: float) -> torch.Tensor:
    """Change the contrast of each normalised image (N, 3, H, W) by a factor of e^+-`gain` at most,
    and add a colour to it, normal with the standard deviation `cast` in each channel."""
    gains = np.exp(rng.uniform(-gain, gain, (len(batch), 1, 1, 1)))
    casts = rng.normal(0, cast, (len(batch), 3, 1, 1))
    return batch * torch.from_numpy(gains).float() + torch.from_numpy(casts).float()


def learning_rate(step: int, per_epoch: int, settings: Settings) -> float:
    """Learning rate of a step (from 0): half a cosine down to 0, rising linearly in epoch 1."""
    total = per_epoch * settings.epochs
    warm = min(1.0, (step + 1) / per_epoch)
    return settings.rate * warm * 0.5 * (1 + math.cos(math.pi * step / total))


@torch.no_grad()
def accuracy(
    module: nn.Module, images: np.ndarray, labels: np.ndarray, mean: list[float], std: list[float]
) -> float:
    """Share of uint8 images (N, H, W, 3) that the module, in eval mode, labels correctly."""
    right = 0
    for begin in range(0, len(images), 256):
        logits = module(preprocess(images[begin : begin + 256], mean, std))
        right += int((logits.argmax(1).numpy() == labels[begin : begin + 256]).sum())
    return right / len(images)


def write(result: Result, settings: Settings, weights: Path | str, provenance: Path | str) -> None:
    """Write the weights (safetensors) and the provenance (JSON), each whole or not at all."""
    tensors = {
        name: tensor.contiguous().clone() for name, tensor in result.module.state_dict().items()
    }
    factory = f"rfatlas.demo_net.{result.network}"
    with disk.whole(weights) as temporary:
        save_file(tensors, temporary, metadata={"factory": factory})

    image = torch.zeros(1, 3, settings.size, settings.size)
    norms = graph.trace(result.module, image).filter_norms("conv1")
    record = {
        "factory": factory,
        "command": "snakemake --cores 2 --forcerun train_demo_network "
        f"results/train_demo/{result.network}.safetensors",
        "sha256": disk.sha256(weights),
        "bytes": Path(weights).stat().st_size,
        "parameters": sum(parameter.numel() for parameter in result.module.parameters()),
        "class_names": list(scenes.CLASS_NAMES),
        "settings": dataclasses.asdict(settings),
        "input": {
            "resize": settings.size,
            "crop": settings.size,
            "mean": result.mean,
            "std": result.std,
        },
        "accuracy_train": round(result.accuracy_train, 5),
        "accuracy_held_out": round(result.accuracy_held_out, 5),
        "losses": [round(loss, 5) for loss in result.losses],
        "conv1_inactive": int((norms < 0.1 * norms.max()).sum()),
        "stage_versions": {name: versions.stage(name) for name in ("scenes", "train_demo")},
        "packages": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    with disk.text(provenance) as file:
        file.write(json.dumps(record, indent=2) + "\n")


def _epoch(epoch, settings, module, optimiser, images, labels, mean, std):
    """Train for one epoch; return the mean loss."""
    module.train()
    rng = np.random.default_rng([settings.seed, 2, epoch])
    order = rng.permutation(len(images))
    per_epoch = math.ceil(len(order) / settings.batch)
    total = 0.0
    for step in range(per_epoch):
        chosen = order[step * settings.batch : (step + 1) * settings.batch]
        pictures, truth = augment(images[chosen], labels[chosen], rng, settings.shift)
        batch = jitter(preprocess(pictures, mean, std), rng, settings.gain, settings.cast)
        rate = learning_rate(epoch * per_epoch + step, per_epoch, settings)
        for group in optimiser.param_groups:
            group["lr"] = rate
        # Products in bfloat16 train twice as fast; parameters, sums and losses stay f32.
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(batch)
        loss = nn.functional.cross_entropy(logits.float(), torch.from_numpy(truth))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.item() * len(chosen)
    return total / len(order)
