"""Gratings at the centre units of torchvision's ResNet-18 at 224 px: ours against batched forward
passes of the whole network, on the CPU.

The peer shows the same stimuli, pasted into full grey images, to the whole network and takes the
centre unit of the layer from a hook. Both see a share of the default grid of orientations,
frequencies and phases, since each stimulus takes the same time; where they see the same ones, their
answers are compared. Drawing the gratings counts for both. Then the same for gratings of all
diameters and contrasts, as the parts `size` and `contrast` show them. The last line is one JSON
object of ratios by layer, the latter as `size/<layer>`: the peer's time per stimulus over ours.
"""

import argparse
import json
import time

import numpy as np
import torch

from rfatlas.network import graph, model
from rfatlas.network.torchvision_ops import torchvision
from rfatlas.physiology import contrast, size, tuning
from rfatlas.physiology.probe import GREY, Probe

LAYERS = ("conv1", "maxpool", "layer1.1", "layer2.0", "layer2.1", "layer3.0")
EXTENT = 224
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ORIENTATIONS, FREQUENCIES, PHASES = 36, 12, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    parser.add_argument("--share", type=int, default=96, help="stimuli that the peer sees")
    parser.add_argument("--ours", type=int, default=1024, help="stimuli that ours sees")
    parser.add_argument("--batch", type=int, default=32, help="images in one of the peer's batches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # The peer gets the network as torchvision makes it; ours is a copy of its own.
    peer = torchvision().models.resnet18().eval()
    network = torchvision().models.resnet18().eval()
    network.load_state_dict(peer.state_dict())
    peer.to(memory_format=torch.channels_last)
    traced = graph.trace(network, torch.zeros(1, 3, EXTENT, EXTENT))
    network.to(memory_format=torch.channels_last)
    description = {"input": {"resize": 256, "crop": EXTENT, "mean": MEAN, "std": STD}}
    loaded = model.LoadedModel(network, traced, description, "", torch.device("cpu"))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    ratios = {}
    for layer in arguments.layers:
        probe = Probe(loaded, layer)
        axes = (
            tuning.orientations(ORIENTATIONS),
            tuning.frequencies(probe.size, FREQUENCIES),
            tuning.phases(PHASES),
        )
        own = (size.diameters(probe.size, 12), contrast.contrasts(12))

        def draw(stimuli, probe=probe):
            return probe.paint(probe.carriers(*stimuli.T))

        def run_ours(stimuli, probe=probe, draw=draw):
            parts = [
                probe.respond(draw(stimuli[first : first + probe.batch]))[0]
                for first in range(0, len(stimuli), probe.batch)
            ]
            return np.concatenate(parts)

        @torch.no_grad()
        def run_peer(stimuli, probe=probe, draw=draw, layer=layer):
            found, (top, left) = [], probe.origin
            y, x = probe.unit
            handle = peer.get_submodule(layer).register_forward_hook(
                lambda module, args, output: found.append(output[:, :, y, x].clone())
            )
            for first in range(0, len(stimuli), arguments.batch):
                part = draw(stimuli[first : first + arguments.batch])
                images = torch.full((len(part), 3, EXTENT, EXTENT), GREY)
                images[:, :, top : top + probe.crop, left : left + probe.crop] = part
                peer(((images - mean) / std).contiguous(memory_format=torch.channels_last))
            handle.remove()
            return torch.cat(found).numpy()

        for name, grid in ((layer, axes), (f"size/{layer}", (*axes, *own))):
            random = np.random.default_rng(0)
            grid = np.stack([axis.ravel() for axis in np.meshgrid(*grid, indexing="ij")], 1)
            shown = np.sort(random.permutation(len(grid))[: arguments.share])
            ours = grid[random.permutation(len(grid))[: arguments.ours]]
            mine, theirs = run_ours(grid[shown]), run_peer(grid[shown])
            error = np.abs(mine - theirs).max() / np.abs(theirs).max()
            assert error < 1e-4, f"{name}: the answers differ by {error:.2g} of the largest"
            times = {"ours": [], "peer": []}
            for _ in range(arguments.repeats):
                for who, run in (("ours", run_ours), ("peer", run_peer)):
                    stimuli = ours if who == "ours" else grid[shown]
                    begun = time.perf_counter()
                    run(stimuli)
                    times[who].append((time.perf_counter() - begun) / len(stimuli))
            each = {who: float(np.median(values)) for who, values in times.items()}
            ratios[name] = round(each["peer"] / each["ours"], 2)
            print(
                f"{name}: crop {probe.crop} px, batch {probe.batch}, {len(grid)} stimuli; ours "
                f"{1e3 * each['ours']:.3f} ms per stimulus, whole network "
                f"{1e3 * each['peer']:.2f} ms (from {len(shown)} of them)",
                flush=True,
            )
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
