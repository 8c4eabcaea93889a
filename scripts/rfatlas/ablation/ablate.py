"""Taking channels out of a network: what it predicts with some channels of a layer replaced.

An `Ablator` runs the network up to a layer once per image and then only what lies behind the
layer, for many (image, set of channels) pairs at a time. Images on which every channel of a set is
at its replacement already keep the prediction they have. Behind a layer from which only global
average pooling and a linear layer remain nothing runs at all: the logits change by the pooled
change of the channels times their weights. A channel is replaced by

* `zero`;
* `mean`: its mean over the data set, a number;
* `shuffle`: its map of another image (see `sequence`);
* `weight`: what it is when the filter of the first layer that feeds it is zero, and the
  normalisation behind the filter, with its bias, stays.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from rfatlas.ablation.paired import Predictions
from rfatlas.errors import RfatlasError
from rfatlas.network.devices import channels_last, room
from rfatlas.network.graph import FEATURES, LOGITS, elements
from rfatlas.network.model import LoadedModel

MODES = ("zero", "mean", "shuffle", "weight")

# What the libraries, the network and a batch of images take before the first pair.
_BASE_MB = 1000
# Elements of the largest tensor of a batch of pairs: beyond, a CPU leaves its cache and a GPU gains
# nothing more.
_BATCH_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}
#: Logits judged at once in the closed form.
CLOSED_ELEMENTS = {"cpu": 2**18, "cuda": 2**27}


def sequence(labels: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """Return the images of an ablation in their order: those of known class, shuffled, the first
    `count` of them.

    The order decides what `shuffle` puts in the place of what: each image gets the maps of the next
    one in the order, the last those of the first. That is a single cycle, so no image keeps its
    own, and the same partner for all channels and layers. Any number of first images is a random
    sample.

    `labels` (N,) class of each image, -1 = unknown; `count` how many images at most, all for None;
    `seed` of the order. Raises RfatlasError if fewer than two images have a class.
    """
    known = np.flatnonzero(np.asarray(labels) >= 0)
    if len(known) < 2:
        raise RfatlasError(
            f"ablation needs images whose class is known: {len(known)} of {len(labels)} have a "
            "label; give labels, or switch the stage off (stages.ablation: false)"
        )
    return np.random.default_rng(seed).permutation(known)[:count]


def with_partner(order: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return the images at the places [start, stop) of the order and, last, the partner of the last
    of them: what `Ablator.see` takes."""
    return order[np.arange(start, stop + 1) % len(order)]


def read_rows(array: Any, rows: np.ndarray) -> np.ndarray:
    """Return the rows (n, ...) of an array or a dataset, such as images, in any order."""
    return np.stack([array[int(row)] for row in rows])


def judge(logits: torch.Tensor, labels: torch.Tensor) -> Predictions:
    """Return what logits (..., n, classes) say of images with `labels` (n,)."""
    label = labels.expand(logits.shape[:-1])[..., None]
    own = logits.gather(-1, label)
    rank = (logits > own).sum(-1)
    # Equal logits are rare: look at their classes only where there are any.
    equal = logits == own
    if equal.sum() > own.numel():
        classes = torch.arange(logits.shape[-1], device=logits.device)
        rank += (equal & (classes < label)).sum(-1)
    loss = logits.logsumexp(-1) - own[..., 0]
    return Predictions(
        logits.argmax(-1).to(torch.int16).cpu().numpy(),
        (rank < 5).cpu().numpy(),
        loss.float().cpu().numpy(),
    )


class Replacement:
    """What the channels of a layer are replaced by; `mean` (C,), their means over the data set, is
    needed for the mode `mean` only."""

    def __init__(self, network: LoadedModel, layer: str, mean: np.ndarray | None = None):
        self._network, self._layer, self._mean = network, layer, mean

    def has_filters(self) -> bool:
        """Return whether each channel of the layer is fed by one filter of the first convolution
        and by nothing else, so that the mode `weight` is defined."""
        return self._network.graph.without_filters(self._layer) is not None

    def at(self, site: str, mode: str) -> str:
        """Return the mode that a mode of the config is where `ablation.site` is `site`."""
        filters = mode == "zero" and site == "weight" and self.has_filters()
        return "weight" if filters else mode

    def of(self, value: torch.Tensor, mode: str) -> torch.Tensor:
        """Return the replacement (1 or n, C, ...) of a layer's `value` (n + 1, C, ...), in which
        each image's partner comes behind it; of pooled values (n + 1, C) the pooled one."""
        shape = (1, -1, *(1,) * (value.ndim - 2))
        if mode == "zero":
            return torch.zeros(value.shape[1], device=value.device).view(shape)
        if mode == "mean":
            return torch.as_tensor(self._mean, dtype=torch.float32, device=value.device).view(shape)
        if mode == "shuffle":
            return value[1:]
        if mode != "weight":
            raise ValueError(f"mode {mode!r}, expected one of {', '.join(MODES)}")
        found = self._without_filters
        return found.flatten(2).mean(2) if value.ndim < found.ndim else found

    @cached_property
    def _without_filters(self) -> torch.Tensor:
        """Return the layer's value (1, C, H, W) when all filters of the first layer are zero."""
        prefix = self._network.graph.without_filters(self._layer)
        if prefix is None:
            raise RfatlasError(
                f"layer {self._layer!r}: not the first convolution's filters, each by itself, feed "
                "its channels; ablation at the weights is for the first layers (conv1, maxpool)"
            )
        crop = self._network.description["input"]["crop"]
        return prefix(torch.zeros(1, 3, crop, crop, device=self._network.device))


@dataclass(frozen=True)
class Seen:
    """What an `Ablator` remembers of n images and, in the last row, of one partner more.

    `value` of the layer and `crossing`, what else reaches what lies behind it, have n + 1 rows;
    `logits` (n, classes) belong to the intact network.
    """

    value: torch.Tensor
    crossing: tuple[torch.Tensor, ...]
    logits: torch.Tensor

    def __len__(self) -> int:
        return len(self.logits)


class Ablator:
    """A network that can lose channels of a layer.

    `mean` (C,) data-set mean of every channel, needed for the mode `mean` only; `memory_mb`
    megabytes of the process, libraries included, that batches are chosen to fit (on a GPU half of
    its free memory counts instead). Raises RfatlasError if the network has no classifier or no such
    layer.

    `channels` is the number of channels of the layer, `replacement` what they are replaced by,
    `closed` whether nothing but global average pooling and a linear layer is left behind the layer.
    """

    def __init__(
        self,
        network: LoadedModel,
        layer: str,
        mean: np.ndarray | None = None,
        memory_mb: float = 3000,
    ):
        classes = network.graph.classes()
        if classes is None or classes > 2**15:
            raise RfatlasError(
                "ablation needs a network with a classifier, whose output is (images, classes), "
                f"with at most {2**15} classes; this one has {classes or 'none'}: "
                "switch the stage off (stages.ablation: false)"
            )
        self._network = network
        self.layer, self.channels = layer, network.graph.shape(layer)[0]
        self._suffix = channels_last(network.graph.split(layer)[1], network.device)
        self._weight = network.graph.pooled_head(layer)
        self.closed = self._weight is not None
        cuts = network.graph.cuts([] if self.closed else [layer])
        self._cuts = channels_last(cuts, network.device)
        self.replacement = Replacement(network, layer, mean)
        self._batch = 0 if self.closed else self._pairs(memory_mb)

    # ---- images

    @torch.inference_mode()
    def see(self, images: np.ndarray) -> Seen:
        """Run the intact network on images uint8 (n + 1, H, W, 3): n images and behind each its
        partner (see `sequence`), so that the last row is a partner only."""
        found = self._cuts(self._network.preprocess(images))
        logits = found.pop(LOGITS)[:-1]
        value, *crossing = (found[FEATURES],) if self.closed else found[self.layer]
        return Seen(value, tuple(crossing), logits)

    def recall(self, features: np.ndarray, logits: np.ndarray) -> Seen:
        """Return the same for a layer that is `closed` from cached features (n + 1, D), the input
        of the last linear layer, and logits (n, classes): no network runs."""
        device = self._network.device
        return Seen(
            torch.as_tensor(features, device=device), (), torch.as_tensor(logits, device=device)
        )

    def intact(self, seen: Seen, labels: np.ndarray) -> Predictions:
        """Return the predictions (n,) of the intact network."""
        return judge(seen.logits, self._on_device(labels))

    def batches(
        self, images: Any, order: np.ndarray, start: int, stop: int, size: int
    ) -> Iterator[tuple[np.ndarray, Seen]]:
        """Yield (images (n,), what was seen of them) for the places [start, stop) of the order, at
        most `size` images at a time. `images` uint8 (N, H, W, 3) is an array or dataset."""
        for first in range(start, stop, size):
            rows = with_partner(order, first, min(first + size, stop))
            yield rows[:-1], self.see(read_rows(images, rows))

    # ---- ablation

    @torch.inference_mode()
    def ablate(
        self, seen: Seen, sets: Sequence[Sequence[int]], mode: str, labels: np.ndarray
    ) -> Predictions:
        """Return the predictions (sets, n) with the channels of each set replaced.

        `mode` is one of `MODES`; `labels` int (n,) are the classes of the images.
        """
        intact, target = self.intact(seen, labels), self._on_device(labels)
        found = intact.take(np.tile(np.arange(len(seen)), (len(sets), 1)))
        for which, image, logits in self._rerun(seen, sets, mode):
            at = which.cpu().numpy(), image.cpu().numpy()
            found.put(at, judge(logits, target[image]))
        return found

    @torch.inference_mode()
    def logits(self, seen: Seen, sets: Sequence[Sequence[int]], mode: str) -> torch.Tensor:
        """Return the logits (sets, n, classes) with the channels of each set replaced."""
        found = seen.logits.expand(len(sets), *seen.logits.shape).clone()
        for which, image, logits in self._rerun(seen, sets, mode):
            found[which, image] = logits
        return found

    def _rerun(
        self, seen: Seen, sets: Sequence[Sequence[int]], mode: str
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield (set, image, logits (b, classes)) in batches: all pairs whose logits change."""
        replacement = self.replacement.of(seen.value, mode)
        value, crossing = seen.value[:-1], [tensor[:-1] for tensor in seen.crossing]
        if self.closed:
            yield from self._closed_form(value - replacement, seen.logits, sets)
            return
        device = value.device
        differs = (value != replacement).reshape(*value.shape[:2], -1).any(2)
        member = torch.zeros(len(sets), value.shape[1], device=device)
        for row, channels in enumerate(sets):
            member[row, self._on_device(channels)] = 1
        which, image = (member @ differs.T.float() > 0).nonzero(as_tuple=True)
        for part in torch.arange(len(which), device=device).split(self._batch):
            rows, place = member[which[part]].nonzero(as_tuple=True)
            changed = value[image[part]]
            source = image[part][rows] if len(replacement) > 1 else torch.zeros_like(rows)
            changed[rows, place] = replacement[source, place]
            others = [tensor[image[part]] for tensor in crossing]
            logits = self._suffix(*map(_channels_last, (changed, *others)))
            yield which[part], image[part], logits

    def _closed_form(
        self, change: torch.Tensor, logits: torch.Tensor, sets: Sequence[Sequence[int]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield (set, image, logits) of all pairs; `change` (n, D) is what the features lose."""
        weight, (n, classes) = self._weight, logits.shape
        size = max(1, CLOSED_ELEMENTS[logits.device.type] // (n * classes))
        every = torch.arange(n, device=logits.device)
        for first in range(0, len(sets), size):
            some = sets[first : first + size]
            lost = torch.stack(
                [change[:, list(channels)] @ weight[:, list(channels)].T for channels in some]
            )
            which = torch.arange(first, first + len(some), device=logits.device)
            yield (
                which.repeat_interleave(n),
                every.repeat(len(some)),
                (logits - lost).flatten(0, 1),
            )

    # ---- what lies behind a layer

    def _pairs(self, memory_mb: float) -> int:
        """Return how many pairs are run at a time."""
        device = self._network.device
        nodes = list(self._suffix.graph.nodes)
        carried = sum(elements(node) for node in nodes if node.op == "placeholder")
        largest = max(map(elements, nodes))
        # Live at once: what crosses, and inside a block its input, two values and a workspace.
        by_memory = room(memory_mb, device, _BASE_MB) / (4.0 * (carried + 4 * largest))
        return max(1, int(min(by_memory, _BATCH_ELEMENTS[device.type] / largest)))

    def _on_device(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, np.int64), device=self._network.device)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
