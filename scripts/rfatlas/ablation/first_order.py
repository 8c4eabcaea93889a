"""How each image's prediction would change if the network were linear behind a channel: one forward
and two backward passes for all channels of all layers.

With g the gradient at the intact network, replacing the map a of a channel by r changes a quantity
by about sum_yx g (r - a). Two are followed: the log odds of the label, of which the loss is a
function, and its margin, the logit less the largest other one, whose sign is correctness. These are
estimates, biased where the network bends, and exact where only averaging and a linear layer follow;
`combined` makes unbiased effects of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rfatlas.ablation import ablate, combined
from rfatlas.files import store
from rfatlas.files.task import Task
from rfatlas.network.devices import channels_last, room
from rfatlas.network.graph import LOGITS
from rfatlas.network.model import LoadedModel

# What a forward pass keeps of an image, two gradients of it and what convolutions work in.
_KEPT_TIMES = 3


class FirstOrder:
    """A network with a classifier that tells what channels are worth, to first order.

    `modes` are those of each layer, by its name; `means` (C,) the data-set means of the channels of
    each layer; `site` as in the config: `weight` acts on the filters where `zero` is asked for;
    `channels` the first so many of each layer only, all for None; `memory_mb` megabytes of the
    process that batches are chosen to fit, and `batch` the number of images that fit.
    """

    def __init__(
        self,
        network: LoadedModel,
        modes: Mapping[str, Sequence[str]],
        means: Mapping[str, np.ndarray],
        site: str = "output",
        channels: int | None = None,
        memory_mb: float = 4000,
    ):
        self._network, self._channels = network, channels
        self._replacements = {
            layer: ablate.Replacement(network, layer, means[layer]) for layer in modes
        }
        # What acts where a mode of the config is asked for.
        self._modes = {
            layer: {mode: self._replacements[layer].at(site, mode) for mode in asked}
            for layer, asked in modes.items()
        }
        self._weights = {layer: network.graph.pooled_head(layer) for layer in modes}
        self._extract = channels_last(network.graph.extractor(list(modes)), network.device)
        each = _KEPT_TIMES * network.graph.kept_bytes()
        self.batch = max(1, int(room(memory_mb, network.device) / each))

    def __call__(
        self, images: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
        """Return log odds and margins (2, n) and, for each layer and mode, their changes (2, n, C),
        of images uint8 (n + 1, H, W, 3), the last a partner only, and int labels (n,)."""
        with torch.enable_grad():
            pixels = self._network.preprocess(images).requires_grad_()
            found = self._extract(pixels)
        logits = found[LOGITS]
        label = torch.as_tensor(np.asarray(labels), device=logits.device)[:, None]
        with torch.inference_mode():
            intact = _odds_and_margin(logits[:-1], label)
        by_logits = _slopes(logits.detach(), label)
        values = {layer: found[layer] for layer in self._modes}
        gradients = [
            torch.autograd.grad(
                logits, list(values.values()), slope, retain_graph=first, materialize_grads=True
            )
            for first, slope in zip((True, False), by_logits, strict=True)
        ]
        with torch.inference_mode():
            changes = {}
            for layer, value, *slopes in zip(values, values.values(), *gradients, strict=True):
                value, *slopes = (_flat(x.detach(), self._channels) for x in (value, *slopes))
                for mode, acting in self._modes[layer].items():
                    other = self._replacements[layer].of(found[layer].detach(), acting)
                    change = _flat(other, self._channels) - value[:-1]
                    if (weight := self._weights[layer]) is None:
                        made = torch.stack([(change * slope[:-1]).sum(2) for slope in slopes])
                    else:
                        made = _behind_pooling(change.mean(2), weight, logits[:-1], label)
                        made -= intact[..., None]
                    changes[layer, mode] = made.float().cpu().numpy()
        return intact.float().cpu().numpy(), changes


def _flat(values: torch.Tensor, channels: int | None) -> torch.Tensor:
    """Return values (n, C, ...) as (n, C, positions), the first channels only."""
    return values[:, :channels].flatten(2) if values.ndim > 2 else values[:, :channels, None]


def _odds_and_margin(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return log odds and margins (2, n, ...) of logits (n, ..., classes), labels (n, ..., 1)."""
    own = logits.gather(-1, label)
    others = logits.scatter(-1, label, -torch.inf)
    return own[..., 0] - torch.stack([others.logsumexp(-1), others.amax(-1)])


def _slopes(logits: torch.Tensor, label: torch.Tensor) -> list[torch.Tensor]:
    """Return the derivatives (n + 1, classes) of log odds and margins by the logits; the last row,
    of a partner only, is zero."""
    found = []
    for which in range(2):
        free = logits[:-1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(_odds_and_margin(free, label)[which].sum(), free)
        found.append(torch.cat([slope, torch.zeros_like(logits[-1:])]))
    return found


def _behind_pooling(
    change: torch.Tensor, weight: torch.Tensor, logits: torch.Tensor, label: torch.Tensor
) -> torch.Tensor:
    """Return log odds and margins (2, n, C) when the channels' means change by `change` (n, C), one
    at a time, before a classifier of `weight` (classes, C)."""
    found = []
    size = max(1, ablate.CLOSED_ELEMENTS[logits.device.type] // logits.numel())
    for some in torch.arange(change.shape[1], device=logits.device).split(size):
        new = logits[:, None] + change[:, some, None] * weight.T[some]
        found.append(_odds_and_margin(new, label[:, None].expand(-1, len(some), 1)))
    return torch.cat(found, 2)


def measure(
    first_order: FirstOrder,
    images: Any,
    labels: np.ndarray,
    order: np.ndarray,
    start: int,
    stop: int,
    exact: int | None,
    batch_size: int,
    task: Task,
) -> None:
    """Write the estimates of the images at the places [start, stop) of the order.

    `images` uint8 (N, H, W, 3), `labels` (N,) and the `order` (M,) as `ablation.sweep` takes them;
    images at places below `exact` (all, for None) keep their values, of the others only sums
    remain.
    """
    start, stop = min(start, len(order)), min(stop, len(order))
    exact = min(exact or len(order), len(order))
    size = min(batch_size, first_order.batch)
    kept = max(0, min(exact, stop) - start)
    totals: dict[str, np.ndarray] = {}
    place = {"start": start, "stop": stop, "total": len(order)}
    with (
        store.create(task.output, {**task.attrs, **place}) as file,
        task.bar(total=stop - start, unit="image", desc="images") as shown,
    ):

        def keep(name: str, first: int, values: np.ndarray) -> None:
            """Write those of exact images to their places."""
            if name not in file:
                shape = (len(values), kept, *values.shape[2:])
                file.create_dataset(name, shape, values.dtype)
            few = max(0, min(values.shape[1], kept - first))
            file[name][:, first : first + few] = values[:, :few]

        for first in range(start, stop, size):
            last = min(first + size, stop)
            rows = ablate.with_partner(order, first, last)
            intact, changes = first_order(ablate.read_rows(images, rows), labels[rows[:-1]])
            keep("intact", first - start, intact)
            for key, change in changes.items():
                name = "/".join(("layer", *key))
                known = combined.expected(*intact, *change)
                total = np.stack([known.sum(1), (known**2).sum(1)])
                totals[f"{name}/expected"] = totals.get(f"{name}/expected", 0) + total
                keep(f"{name}/change", first - start, change)
            shown.update(last - first)
        for name, total in totals.items():
            file[name] = total
