"""Receptive fields of units of torchvision's ResNet-34 at 224 px: ours against two peers, on the
CPU.

`original/<layer>`: the method of the original code (Kobayashi & Shouno 2020), one batch-of-one
forward and backward pass of the whole network per unit. `captum/<layer>`: Captum's NeuronGradient
with a callable selector, the same units in batches. All three see the same units, each in an image
of its own, and end with gradients cut to the receptive field. The last line is one JSON object of
ratios: the peer's time over ours.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from captum.attr import NeuronGradient

from rfatlas.fields import crops, receptive_fields
from rfatlas.network import graph, model
from rfatlas.network.torchvision_ops import torchvision

LAYERS = ("maxpool", "layer1.2", "layer2.0", "layer3.0", "layer3.5", "layer4.2")
EXTENT = 224
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    parser.add_argument("--units", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16, help="units in one of Captum's batches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    n = arguments.units
    # The peers get the network as torchvision makes it; ours is a copy of its own.
    peer = torchvision().models.resnet34().eval()
    network = torchvision().models.resnet34().eval()
    network.load_state_dict(peer.state_dict())
    traced = graph.trace(network, torch.zeros(1, 3, EXTENT, EXTENT))
    network.to(memory_format=torch.channels_last)
    description = {"input": {"resize": 256, "crop": EXTENT, "mean": MEAN, "std": STD}}
    ours = model.LoadedModel(network, traced, description, "", torch.device("cpu"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, EXTENT, EXTENT, 3), np.uint8)
    normalised = model.preprocess(images, MEAN, STD).contiguous()
    ratios = {}
    for layer in arguments.layers:
        channels, height, width = traced.shape(layer)
        cut = crops.window(traced.field(layer), EXTENT)
        units = crops.Units(
            rng.integers(0, channels, n),
            np.zeros(n, np.int64),
            np.arange(n),
            rng.integers(0, height, n),
            rng.integers(0, width, n),
            np.zeros(n, np.float32),
        )
        prefix = crops.differentiable(traced.prefix(layer), ours.device)
        kept = traced.kept_bytes(layer) * (cut.crop / EXTENT) ** 2
        _, batch = receptive_fields.plan(cut, channels, n, 9, kept, 3000)
        module = peer.get_submodule(layer)
        everything = np.arange(channels)

        def run_ours(units=units, prefix=prefix, cut=cut, batch=batch, everything=everything):
            found = np.zeros((n, 3, cut.size, cut.size), np.float32)
            for rounds in crops.batches(units, cut, batch):
                for seen_units, seen in receptive_fields.look(
                    ours, prefix, cut, images, everything, units, rounds
                ):
                    found[seen_units.image] = seen.gradient.numpy()
            return found

        def windows(gradient, units, cut=cut):
            top, left = (
                torch.from_numpy(cut.window_start(p, axis))
                for axis, p in enumerate((units.y, units.x))
            )
            # Ours is with respect to pixels in 0..1, before the division by std.
            gradient = gradient / torch.tensor(STD).view(1, 3, 1, 1)
            return crops.cut_windows(gradient, top, left, cut.size).numpy()

        def run_original(units=units, module=module, windows=windows):
            found = []
            for i in range(n):
                image = normalised[i : i + 1].clone().requires_grad_()
                value = {}
                handle = module.register_forward_hook(
                    lambda child, args, output, value=value: value.update(layer=output)
                )
                peer.zero_grad()
                peer(image)
                handle.remove()
                value["layer"][0, units.slot[i], units.y[i], units.x[i]].backward()
                found.append(windows(image.grad, units.take(np.array([i]))))
            return np.concatenate(found)

        def run_captum(units=units, module=module, windows=windows):
            found = []
            attribution = NeuronGradient(peer, module)
            for start in range(0, n, arguments.batch):
                rows = np.arange(start, min(start + arguments.batch, n))
                part = units.take(rows)
                index = [torch.from_numpy(a) for a in (part.slot, part.y, part.x)]
                gradient = attribution.attribute(
                    normalised[rows],
                    lambda output, index=index: output[torch.arange(len(output)), *index],
                )
                found.append(windows(gradient.detach(), part))
            return np.concatenate(found)

        expected, found, captums = run_original(), run_ours(), run_captum()
        for name, other in (("ours", found), ("captum", captums)):
            # Deep down, rounding flips a ReLU's gate here and there, for every method.
            error = np.linalg.norm(other - expected) / np.linalg.norm(expected)
            assert error < 1e-2, f"{layer}: {name} differs from the original method by {error:.2g}"
        times = {"original": [], "captum": [], "ours": []}
        for _ in range(arguments.repeats):
            times["ours"].append(seconds(run_ours))
            times["captum"].append(seconds(run_captum))
            times["original"].append(seconds(run_original))
        median = {name: float(np.median(values)) for name, values in times.items()}
        for name in ("original", "captum"):
            ratios[f"{name}/{layer}"] = round(median[name] / median["ours"], 2)
        print(
            f"{layer}: crop {cut.crop} px, batch {batch}, per unit "
            + ", ".join(f"{name} {1e3 * value / n:.2f} ms" for name, value in median.items()),
            flush=True,
        )
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
