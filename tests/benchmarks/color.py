"""Tuning to hue, and contrasts in several apertures, of torchvision's ResNet-34 at 224 px: ours
against the method of ecs-vlc/opponency, on the CPU.

Both show 360 uniform fields of equiluminant hues (with `--stimuli gratings` as many gratings along
the opponent axes, of several diameters and contrasts: what the cone rule goes by), and end with the
answers of every channel's centre unit in one layer. The peer's way: one batch-of-one forward pass
of the whole network per stimulus and a hook on the layer. Ours, `color.measure`'s: batches of the
centre unit's crop, through the network up to the layer. The last line is one JSON object of ratios:
the peer's time over ours.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

from rfatlas.network import graph, model
from rfatlas.network.torchvision_ops import torchvision
from rfatlas.physiology import color_sensitivity, colorspace
from rfatlas.physiology.probe import GREY, Probe

LAYERS = ("maxpool", "layer1.2", "layer2.0", "layer3.0", "layer4.2")
EXTENT = 224
HUES = 360
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The result of a call and the seconds that it took."""
    begun = time.perf_counter()
    result = run()
    return result, time.perf_counter() - begun


def drawn(probe: Probe) -> torch.Tensor:
    """As many gratings as there are hues, in turn of each axis, diameter and contrast."""
    number = np.arange(HUES)
    shares, contrasts = color_sensitivity.APERTURES, color_sensitivity.CONTRASTS
    carriers = probe.carriers(
        number % 12 * 15.0,
        0.5 / probe.size * 2.0 ** (number % 5),
        number * 45.0,
        probe.size * shares[number % len(shares)],
        contrasts[number % len(contrasts)],
    )
    return colorspace.paint(carriers, colorspace.space().axes[number % 3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    parser.add_argument("--stimuli", choices=("hues", "gratings"), default="hues")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # The peer gets the network as torchvision makes it; ours is a copy of its own.
    peer = torchvision().models.resnet34().eval()
    network = torchvision().models.resnet34().eval()
    network.load_state_dict(peer.state_dict())
    traced = graph.trace(network, torch.zeros(1, 3, EXTENT, EXTENT))
    network.to(memory_format=torch.channels_last)
    description = {"input": {"resize": 256, "crop": EXTENT, "mean": MEAN, "std": STD}}
    ours = model.LoadedModel(network, traced, description, "", torch.device("cpu"))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    # Both need the colours; making them imports a large library once.
    colours = colorspace.uniform(colorspace.equiluminant(np.arange(HUES)))
    ratios = {}
    for layer in arguments.layers:
        module = peer.get_submodule(layer)

        probe = Probe(ours, layer)
        gratings = drawn(probe) if arguments.stimuli == "gratings" else None

        def run_ours(layer=layer, gratings=gratings):
            probe = Probe(ours, layer)
            return probe.respond(probe.uniform(colours) if gratings is None else gratings)[0]

        @torch.no_grad()
        def run_peer(module=module, probe=probe, gratings=gratings):
            found = []
            handle = module.register_forward_hook(
                lambda child, args, output: found.append(
                    output[0, :, output.shape[2] // 2, output.shape[3] // 2].numpy().copy()
                )
            )
            top, left = probe.origin
            for number, colour in enumerate(colours.astype(np.float32)):
                field = torch.from_numpy(colour).view(1, 3, 1, 1).expand(1, 3, EXTENT, EXTENT)
                if gratings is not None:
                    field = torch.full((1, 3, EXTENT, EXTENT), GREY)
                    rows, columns = (slice(at, at + probe.crop) for at in (top, left))
                    field[0, :, rows, columns] = gratings[number]
                peer((field - mean) / std)
            handle.remove()
            return np.array(found)

        times = {"peer": [], "ours": []}
        for _ in range(arguments.repeats):
            found, duration = timed(run_ours)
            times["ours"].append(duration)
            expected, duration = timed(run_peer)
            times["peer"].append(duration)
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert error < 1e-4, f"{layer}: ours differs from the peer's answers by {error:.2g}"
        median = {name: float(np.median(values)) for name, values in times.items()}
        ratios[layer] = round(median["peer"] / median["ours"], 2)
        print(
            f"{layer}: crop {Probe(ours, layer).crop} px, per hue "
            + ", ".join(f"{name} {1e3 * value / HUES:.3f} ms" for name, value in median.items()),
            flush=True,
        )
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
