"""Speed of the activation stage against the bare forward pass.

Both run torchvision's resnet34 at 224 px with random weights over the same batches, in one
process, on the CPU, in turns from batch to batch, so that a load that comes and goes meets both.
Ours goes from packed images on disk to the written file: reading, preprocessing, every summary of
the default layers, and the costly first images that fill the top lists. The peer
is `model(batch)` alone, in inference mode, on normalised batches that lie in memory, in the default
and in the channels-last memory format.

The last line is one JSON object of the peer's time over ours, medians over the repeats: `ratio`
against the bare pass as torchvision makes the network, in the default format (the bar is 0.9), and
`ratio_channels_last` against the same pass in the format that suits CPU convolutions;
`images_per_second` is ours.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rfatlas.fields import activations
from rfatlas.files import store
from rfatlas.network import model

FORMATS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pictures(count: int, size: int) -> np.ndarray:
    """Return coloured noise with a natural amplitude spectrum (1 / f), uint8 (count, S, S, 3)."""
    random = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    frequency[0, 0] = np.inf
    result = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        spectrum = np.fft.rfft2(random.normal(size=(3, size, size))) / frequency
        field = np.fft.irfft2(spectrum, (size, size))
        field *= 50 / field.std((1, 2), keepdims=True)
        result[i] = (field + 118).clip(0, 255).transpose(1, 2, 0)
    return result


@contextlib.contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of the block to `times[name]`."""
    began = time.perf_counter()
    yield
    times[name] += time.perf_counter() - began


def turn(
    folder: Path,
    forward: activations.Forward,
    rectified: dict[str, bool],
    peers: dict[str, torch.nn.Module],
    options: argparse.Namespace,
) -> dict[str, float]:
    """Return the seconds of each contestant for all images of `folder`."""
    output = folder / "activations.h5"
    times = dict.fromkeys(("ours", *peers), 0.0)
    with (
        store.open(folder / "images.h5", "images") as packed,
        store.create(output, store.provenance("activations", {})) as file,
    ):
        images = packed["images"]
        with timed(times, "ours"):
            run = activations.RangePass(
                file,
                0,
                len(images),
                forward.shapes,
                rectified,
                forward.outputs,
                options.top_k,
            )
        for start in range(0, len(images), options.batch):
            with timed(times, "ours"):
                run.add(*forward(images[start : start + options.batch]))
            batch = model.preprocess(images[start : start + options.batch], MEAN, STD)
            for name, network in peers.items():
                inputs = batch.contiguous(memory_format=FORMATS[name])
                with torch.inference_mode(), timed(times, name):
                    network(inputs)
        with timed(times, "ours"):
            run.finish(packed["labels"][:], 1000)
            file.flush()
    output.unlink()
    return times


def main() -> None:
    """Parse options, measure in turns, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = {"factory": "torchvision.models.resnet34", "weights": "random:0"}
    input = {"resize": options.size, "crop": options.size, "mean": MEAN, "std": STD}
    packed = pictures(options.images, options.size)
    network = model.build(config["factory"], {}, 0)
    model.reestimate_batch_norm(network, [model.preprocess(packed[: options.batch], MEAN, STD)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with store.create(folder / "images.h5", store.provenance("images", {})) as file:
            file["images"] = packed
            file["labels"] = np.random.default_rng(1).integers(0, 1000, options.images)
        model.save(
            network, model.trace(network, input), folder / "model.safetensors", config, input
        )
        loaded = model.load(folder / "model.safetensors")
        layers = model.default_layers(loaded.module, loaded.graph)
        forward = activations.Forward(loaded, layers)
        rectified = {layer: loaded.graph.rectified(layer) for layer in layers}
        peers = {}
        for name, memory_format in FORMATS.items():
            peers[name] = model.build(config["factory"], {}, 0).to(memory_format=memory_format)
            peers[name].load_state_dict(network.state_dict())
        turns = []
        for _ in range(options.repeats):
            turns.append(turn(folder, forward, rectified, peers, options))
            print({name: round(seconds, 2) for name, seconds in turns[-1].items()}, flush=True)
    ratios = {
        name: statistics.median(times[name] / times["ours"] for times in turns) for name in peers
    }
    fastest = min(times["ours"] for times in turns)
    print(
        json.dumps(
            {
                "ratio": round(ratios["default"], 3),
                "ratio_channels_last": round(ratios["channels_last"], 3),
                "images_per_second": round(options.images / fastest, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
