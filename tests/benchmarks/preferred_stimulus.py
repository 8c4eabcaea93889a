"""Preferred stimuli of a ResNet-18 at 224 px: ours against optimisation of the full image, on the
CPU, at equal activation reached.

Ours climbs on the receptive field's exact crop, all channels of a batch together, for the config's
number of steps from one noise start each. The peer is what Lucid made standard: the spectrum of the
full image in decorrelated colours, Adam, the whole network with a hook at the layer, gradients back
from there. Its channels share batches, too, and it may stop a channel as soon as this reaches what
ours ended with, while ours always goes to its end; the time in which it looks for targets that it
does not meet in `--most` steps counts only up to there, so ratios are lower bounds then. Neither
has penalties; both maximise the centre unit before the layer's last ReLU. The last line is one JSON
object of ratios by layer: the peer's time per channel over ours.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from rfatlas.network import graph, model
from rfatlas.network.torchvision_ops import torchvision
from rfatlas.physiology.probe import GREY, Probe
from rfatlas.stimuli import ascent
from rfatlas.stimuli import preferred_stimulus as stimulus

LAYERS = ("maxpool", "layer1.1", "layer2.0", "layer2.1")
EXTENT = 224
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
STEPS = 48
#: Decorrelated colours as natural photographs have them: light-dark, blue-yellow, red-green.
COLOURS = np.array([[1, 0.28, 0.12], [1, 0, -0.24], [1, -0.28, 0.12]])


def run_ours(probe: Probe, layer: str, channels: np.ndarray) -> np.ndarray:
    """Return the values (n,) of the units of channels (n,) that ours reaches."""
    square = stimulus.region(probe)
    n = len(channels)
    still = torch.zeros((0, n, 2), dtype=torch.int64)
    fourier = stimulus.Fourier(square.size, COLOURS)
    climbs = torch.from_numpy(channels), torch.ones(n), torch.ones(n), still
    objective = stimulus.Objective(probe, square, fourier, *climbs, 0, 0, STEPS)
    starts = [stimulus.noise(square.size, 0, layer, int(channel), 0) for channel in channels]
    begin = fourier.encode(torch.from_numpy(np.stack(starts)))
    end = ascent.lbfgs(objective, begin, STEPS, None)
    with torch.no_grad():
        images = fourier.decode(end)
    return objective.reached(images)[1].numpy()


def centre_values(
    network: torch.nn.Module, layer: str, unit: tuple[int, int]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function of images (n, 3, H, H) with the centre units (n, C) before the last ReLU,
    by a hook in a pass of the whole network."""
    kept = {}
    if layer == "maxpool":
        network.bn1.register_forward_hook(
            # The ReLU behind it works in place.
            lambda module, args, output: kept.update(value=F.max_pool2d(output.clone(), 3, 2, 1))
        )
    else:
        # The block calls its ReLU twice; the last call is the one at its end.
        network.get_submodule(layer).relu.register_forward_pre_hook(
            lambda module, args: kept.update(value=args[0].clone())
        )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def look(images: torch.Tensor) -> torch.Tensor:
        network(((images - mean) / std).contiguous(memory_format=torch.channels_last))
        return kept["value"][:, :, unit[0], unit[1]]

    return look


def run_peer(
    look: Callable[[torch.Tensor], torch.Tensor],
    channels: np.ndarray,
    targets: np.ndarray,
    batch: int,
    most: int,
    rate: float,
) -> int:
    """Climb on full images until each channel reaches its target; return how many do."""
    met = 0
    fourier = stimulus.Fourier(EXTENT, COLOURS)
    for first in range(0, len(channels), batch):
        channel = torch.from_numpy(channels[first : first + batch])
        target = torch.from_numpy(targets[first : first + batch])
        noise = 0.03 * torch.randn(len(channel), 3, EXTENT, EXTENT)
        variables = fourier.encode(GREY + noise)
        one, two = torch.zeros_like(variables), torch.zeros_like(variables)
        for step in range(1, most + 1):
            variables.requires_grad_()
            value = look(fourier.decode(variables)).gather(1, channel[:, None])[:, 0]
            (gradient,) = torch.autograd.grad(value.sum(), variables)
            live = value.detach() < target
            met += int((~live).sum())
            if not live.any():
                break
            channel, target, gradient = channel[live], target[live], gradient[live]
            one = 0.9 * one[live] + 0.1 * gradient
            two = 0.999 * two[live] + 0.001 * gradient.square()
            move = one / (1 - 0.9**step) / ((two / (1 - 0.999**step)).sqrt() + 1e-8)
            variables = variables.detach()[live] + rate * move
    return met


def seconds(run: Callable[[], object]) -> tuple[float, object]:
    begun = time.perf_counter()
    found = run()
    return time.perf_counter() - begun, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    parser.add_argument("--ours", type=int, default=32, help="channels that ours climbs for")
    parser.add_argument("--peer", type=int, default=8, help="of these, channels of the peer")
    parser.add_argument("--batch", type=int, default=8, help="images in one of the peer's batches")
    parser.add_argument("--most", type=int, default=128, help="steps of the peer at most")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate of the peer")
    parser.add_argument("--weights", help="state dict (.safetensors) instead of random weights")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # The peer gets the network as torchvision makes it; ours is a copy of its own.
    peer = torchvision().models.resnet18().eval()
    if arguments.weights:
        from safetensors.torch import load_file

        peer.load_state_dict(load_file(arguments.weights))
    network = torchvision().models.resnet18().eval()
    network.load_state_dict(peer.state_dict())
    peer.to(memory_format=torch.channels_last)
    traced = graph.trace(network, torch.zeros(1, 3, EXTENT, EXTENT))
    network.to(memory_format=torch.channels_last)
    for parameter in (*network.parameters(), *peer.parameters()):
        parameter.requires_grad_(False)
    description = {"input": {"resize": 256, "crop": EXTENT, "mean": MEAN, "std": STD}}
    loaded = model.LoadedModel(network, traced, description, "", torch.device("cpu"))
    random = np.random.default_rng(0)
    ratios = {}
    for layer in arguments.layers:
        probe = Probe(loaded, layer)
        channels = random.permutation(probe.channels)[: arguments.ours]
        # The first call of either meets kernels that are not chosen yet.
        run_ours(probe, layer, channels[:1])
        mine, reached = seconds(lambda: run_ours(probe, layer, channels))  # noqa: B023
        some = channels[: arguments.peer]
        look = centre_values(peer, layer, probe.unit)
        with torch.no_grad():
            look(torch.full((1, 3, EXTENT, EXTENT), GREY))
        theirs, met = seconds(
            lambda: run_peer(
                look,  # noqa: B023
                some,  # noqa: B023
                reached[: len(some)],  # noqa: B023
                arguments.batch,
                arguments.most,
                arguments.rate,
            )
        )
        each = {"ours": mine / len(channels), "peer": theirs / len(some)}
        ratios[layer] = round(each["peer"] / each["ours"], 2)
        print(
            f"{layer}: {probe.size} px, {len(channels)} channels; ours {each['ours']:.3f} s per "
            f"channel, full image {each['peer']:.2f} s ({met} of {len(some)} reach what ours does)",
            flush=True,
        )
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
