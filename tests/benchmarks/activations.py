"""Speed of the activation stage against the bare forward pass.

Both run torchvision's resnet34 at 224 px with random weights over the same batches, in one
process, in turns, on the CPU. Ours goes from packed images on disk to the written file: reading,
preprocessing, every summary of the default layers, progress records. The peer is
`model(batch)` alone, in inference mode, on normalised batches that lie in memory, timed in the
default and in the channels-last memory format. The last line is one JSON object: `ratio` is the
peer's time in its faster format over ours (the bar is 0.9), `ratio_default_format` the same for
the default format, `images_per_second` is ours. Times are medians over the repeats of the turns'
ratios, so that a load that comes and goes meets both.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from rfatlas import activations, model, store

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


def ours(folder: Path, forward: activations.Forward, rectified: dict, batch: int, top_k: int):
    """Return the seconds of one range from packed images to the written file."""
    output = folder / "activations.h5"
    output.unlink(missing_ok=True)
    began = time.perf_counter()
    with store.open(folder / "images.h5", "images") as packed:
        images, labels = packed["images"], packed["labels"][:]
        run = activations.RangePass(
            store.Partial(output, {}),
            0,
            len(images),
            forward.shapes,
            rectified,
            forward.outputs,
            top_k,
        )
        while run.position < len(images):
            run.add(*forward(images[run.position : run.position + batch]))
        run.write(output, store.provenance("activations", {}), labels, 1000)
    return time.perf_counter() - began


def bare(network: torch.nn.Module, batches: list[torch.Tensor]) -> float:
    """Return the seconds of the bare forward pass over all batches."""
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            network(batch)
    return time.perf_counter() - began


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
    # Both sides: the setting is one of the whole process.
    activations.keep_freed_memory()
    config = {"factory": "torchvision.models.resnet34", "weights": "random:0"}
    input = {"resize": options.size, "crop": options.size, "mean": MEAN, "std": STD}
    packed = pictures(options.images, options.size)
    starts = range(0, options.images, options.batch)
    batches = [model.preprocess(packed[i : i + options.batch], MEAN, STD) for i in starts]
    network = model.build(config["factory"], {}, 0)
    model.reestimate_batch_norm(network, batches[:1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with store.create(folder / "images.h5", store.provenance("images", {})) as file:
            file["images"] = packed
            file["labels"] = np.random.default_rng(1).integers(0, 1000, options.images)
        model.save(network, folder / "model.safetensors", config, input)
        loaded = model.load(folder / "model.safetensors")
        layers = model.default_layers(loaded.module, loaded.graph.layers())
        forward = activations.Forward(loaded, layers)
        rectified = {layer: loaded.graph.rectified(layer) for layer in layers}
        last = torch.channels_last
        peers = {
            "default": (network, [batch.contiguous() for batch in batches]),
            "channels_last": (
                model.build(config["factory"], {}, 0).to(memory_format=last),
                batches,
            ),
        }
        peers["channels_last"][0].load_state_dict(network.state_dict())
        for peer, inputs in peers.values():
            bare(peer, inputs[:1])
        times: dict[str, list[float]] = {"ours": [], **{key: [] for key in peers}}
        for _ in range(options.repeats):
            times["ours"].append(ours(folder, forward, rectified, options.batch, options.top_k))
            for key, (peer, inputs) in peers.items():
                times[key].append(bare(peer, inputs))
            print({key: round(values[-1], 2) for key, values in times.items()}, flush=True)
    ratios = {
        key: statistics.median(
            peer / own for peer, own in zip(times[key], times["ours"], strict=True)
        )
        for key in peers
    }
    print(
        json.dumps(
            {
                "ratio": round(min(ratios.values()), 3),
                "ratio_default_format": round(ratios["default"], 3),
                "images_per_second": round(options.images / min(times["ours"]), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
