"""Exact crops: the part of an image that gives a unit's activation, and its gradient, as the whole
image does.

A crop is the unit's receptive-field box, aligned to the layer's total stride and moved inside the
image. Where the box reaches over the image border the crop ends at that border, so that the
padding there is the network's own, and everywhere else the unit depends on nothing outside the
crop. All crops of a layer have one size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from rfatlas.network import operations
from rfatlas.network.devices import room
from rfatlas.network.geometry import Field, Geometry
from rfatlas.network.model import normalise

_CPU = torch.device("cpu")


# ---- geometry


@dataclass(frozen=True)
class Window:
    """How the receptive fields of one layer are cut out of an image of `image_size` pixels.

    `size` (S): edge of the stored window, the receptive field's size or the image's where that is
    smaller. `crop`: edge of the crop that is run through the network. `geometry` None: no unit
    has a place of its own in the image.
    """

    geometry: Geometry | None
    image_size: int
    size: int
    crop: int

    def crop_start(self, position: np.ndarray, axis: int) -> np.ndarray:
        """Return the first pixel of the crops of units at `position` (n,) along an axis (0 = y)."""
        if self.crop == self.image_size:
            return np.zeros_like(position)
        stride = self.geometry.stride[axis]
        first = self.geometry.lo[axis] + position * stride
        return np.clip(first // stride * stride, 0, self.image_size - self.crop)

    def window_start(self, position: np.ndarray, axis: int) -> np.ndarray:
        """Return the first pixel, possibly outside the image, of the stored windows of units at
        `position`."""
        if self.geometry is None:
            return np.zeros_like(position)
        centre = self.geometry.start[axis] + position * self.geometry.stride[axis]
        return np.floor(centre - self.size / 2).astype(position.dtype)

    def position_in_crop(self, position: np.ndarray, axis: int) -> np.ndarray:
        """Return where in the crop's own feature map the units at `position` lie."""
        if self.crop == self.image_size:
            return position
        return position - self.crop_start(position, axis) // self.geometry.stride[axis]


def window(field: Field, image_size: int) -> Window:
    """Return how a layer's receptive fields are cut out of square images of `image_size` pixels.

    The whole image is run where its parts do not give a unit's value; the windows that are stored
    hold the local field all the same.
    The crop must hold the box from any alignment to the total stride J, and what it leaves of the
    image must be a multiple of J, so that a crop at the far border is aligned too.
    """
    geometry = field.local
    if geometry is None:
        return Window(None, image_size, image_size, image_size)
    crop = 1
    for axis in (0, 1):
        stride = geometry.stride[axis]
        needed = geometry.size[axis] + geometry.lo[axis] % stride
        needed += (image_size - needed) % stride
        crop = max(crop, needed)
    fits = field.crops and crop < image_size
    fits = fits and all((image_size - crop) % stride == 0 for stride in geometry.stride)
    return Window(
        geometry, image_size, min(max(geometry.size), image_size), crop if fits else image_size
    )


def attributes(cut: Window) -> dict[str, Any]:
    """Return the attributes that tell a reader of a layer's file where its windows lie: `size`,
    `stride` and `start` (the centre of unit 0) along (y, x), and `image_size`, in pixels."""
    geometry = cut.geometry
    return {
        "size": max(geometry.size) if geometry else cut.image_size,
        "stride": geometry.stride if geometry else (0, 0),
        "start": geometry.start if geometry else (cut.image_size / 2,) * 2,
        "image_size": cut.image_size,
    }


# ---- units


@dataclass(frozen=True)
class Units:
    """Units to analyse, one row each: channel slot, rank, image, y, x, cached activation (all of
    shape (n,))."""

    slot: np.ndarray
    rank: np.ndarray
    image: np.ndarray
    y: np.ndarray
    x: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.slot)

    def take(self, rows: np.ndarray) -> "Units":
        """Return the units of the given rows."""
        return Units(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def top_tables(
    group: Mapping[str, Any], source: str, top_k: int | None, channels: int | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the numbers (C,) of a layer's first `channels` channels, and the `value` (C, K),
    `image` (C, K) and `yx` (C, K, 2) of their `top_k` strongest units; None takes all.

    `group` is the layer's in `activations.h5`; `source` (top, top_per_image) the tables to take.
    """
    numbers = np.arange(len(group[f"{source}_image"]))[:channels]
    return numbers, {
        key: group[f"{source}_{key}"][: len(numbers), :top_k] for key in ("value", "image", "yx")
    }


def list_units(value: np.ndarray, image: np.ndarray, yx: np.ndarray) -> Units:
    """Return the units of top-K tables: value (C, K), image (C, K), yx (C, K, 2); image -1 marks an
    empty place."""
    slot, rank = np.nonzero(image >= 0)
    return Units(
        slot,
        rank,
        image[slot, rank].astype(np.int64),
        yx[slot, rank, 0].astype(np.int64),
        yx[slot, rank, 1].astype(np.int64),
        value[slot, rank].astype(np.float32),
    )


def batches(units: Units, cut: Window, size: int) -> Iterator[list[np.ndarray]]:
    """Yield batches of at most `size` crops, each a list of rounds of units (rows).

    Units of the same image and crop share the crop. A round holds one unit in each of the first
    crops of its batch: crops come in order of how many units they hold, so that later rounds need
    fewer and few batches are left partly idle.
    """
    keys = np.stack([units.image, cut.crop_start(units.y, 0), cut.crop_start(units.x, 1)], 1)
    _, crop, members = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    crop = crop.reshape(-1)
    order = np.lexsort((crop, -members[crop]))
    starts = np.flatnonzero(np.r_[True, np.diff(crop[order]) != 0]) if len(order) else order
    groups = np.split(order, starts[1:])
    for first in range(0, len(groups) if len(order) else 0, size):
        chunk = groups[first : first + size]
        deepest = max(len(group) for group in chunk)
        yield [
            np.array([group[round] for group in chunk if len(group) > round])
            for round in range(deepest)
        ]


# ---- pixels


def gather(images: Any, cut: Window, units: Units, device: torch.device) -> torch.Tensor:
    """Return the crops uint8 (n, 3, h, w), on a device, of the given units.

    `images` uint8 (N, H, H, 3) is indexed by the units' image.
    """
    corners = zip(units.image, cut.crop_start(units.y, 0), cut.crop_start(units.x, 1), strict=True)
    pictures = np.stack([images[i, t : t + cut.crop, u : u + cut.crop] for i, t, u in corners])
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2)


def cut_windows(
    fields: torch.Tensor, top: torch.Tensor, left: torch.Tensor, size: int
) -> torch.Tensor:
    """Return the windows (n, c, size, size) of `fields` (n, c, h, w) that begin at (top, left),
    int64 (n,).

    A window may reach outside its field; there it is zero.
    """
    height, width = fields.shape[2:]
    span = torch.arange(size, device=fields.device)
    rows, columns = top[:, None] + span, left[:, None] + span
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    number = torch.arange(len(fields), device=fields.device)[:, None, None]
    picked = fields.permute(0, 2, 3, 1)[
        number, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ]
    return (picked * inside[..., None]).permute(0, 3, 1, 2)


# ---- memory


# Fields are read and written in pieces of about this size.
_PIECE_BYTES = 64e6


def pieces(fields: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield fields (n, 3, h, w), an array or open dataset, in pieces of float64 with their rows."""
    size = max(1, int(_PIECE_BYTES // (8 * np.prod(fields.shape[1:]))))
    for first in range(0, len(fields), size):
        rows = slice(first, first + size)
        yield rows, np.asarray(fields[rows], float)


# Pixels of crops in one batch: beyond, a CPU leaves its cache and a GPU gains nothing more.
_BATCH_PIXELS = {"cpu": 2**19, "cuda": 2**23}


def plan(
    cut: Window,
    channels: int,
    units: int,
    sum_bytes: float,
    crop_bytes: float,
    memory_mb: float,
    device: torch.device = _CPU,
) -> tuple[int, int]:
    """Return how many channels of a layer make a block, and how many crops a batch, in a budget.

    `crop_bytes`: what one crop's forward pass keeps; `units`: units per channel; `sum_bytes`: what
    is held of a channel, per pixel of its window. Half of `memory_mb`, less a base for the
    libraries, goes to the sums of a block. The other half goes to the batch, or on a GPU half of
    its free memory.
    """
    budget = room(memory_mb)
    area = cut.size**2
    per_crop = crop_bytes + cut.crop**2 * 3 * 4 * 4 + area * 3 * 8 * 5
    pixels = _BATCH_PIXELS[device.type]
    batch = int(min(room(memory_mb, device) // per_crop, pixels // cut.crop**2, channels * units))
    block = max(1, min(channels, int(budget // (area * sum_bytes))))
    return block, max(1, batch)


def forward(
    model: Any,
    network: nn.Module,
    pictures: torch.Tensor,
    rounds: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> Iterator[tuple[torch.Tensor, Any, tuple, bool]]:
    """Yield, per round of a batch, what its gradients are taken of.

    These are pixels (m, 3, h, w) of the first m crops; what `network` makes of them; the round's
    places in it, (crop, channel, y, x), each int64 (n,); and whether later rounds need the same
    graph. `pictures` float (B, 3, h, w) in 0..1, before the model's normalisation. A round is
    (channel, y, x), each int64 (n,), of units that lie in the first n crops.

    A backward pass goes through all crops that went forward, and later rounds need few of them:
    once half are idle, the others go forward again alone.
    """
    kept = 0
    for number, (channel, y, x) in enumerate(rounds):
        if 2 * len(channel) <= kept or number == 0:
            kept = len(channel)
            pixels = pictures[:kept].detach().requires_grad_()
            output = network(normalise(pixels, model.description["input"]))
        crop = torch.arange(len(channel), device=pixels.device)
        following = len(rounds[number + 1][0]) if number + 1 < len(rounds) else 0
        yield pixels, output, (crop, channel, y, x), 2 * following > kept


# ---- gradients of pixels


class _Product(torch.autograd.Function):
    """A convolution whose gradient is a product of matrices."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        ctx.weight, ctx.size, (_, *ctx.places) = weight, x.shape[2:], others
        return functional.conv2d(x, weight, *others)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        stride, padding, dilation = ctx.places
        columns = ctx.weight.flatten(1).t() @ gradient.flatten(2)
        places = ctx.weight.shape[2:], dilation, padding, stride
        return functional.fold(columns, ctx.size, *places), *(None,) * 5


def _product(x: torch.Tensor, *others: Any) -> torch.Tensor:
    return _Product.apply(x, *others)


def differentiable(network: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Return a network whose gradients with respect to images are to be taken.

    On a CPU, torch takes up to twice as long as a product of matrices for the gradient of a
    convolution with three input channels, and half of a backward pass is that of the first one.
    """
    for node in network.graph.nodes if device.type == "cpu" else ():
        if node.target is torch.ops.aten.conv2d.default and node.args[0].op == "placeholder":
            a = operations.arguments(node)
            if a["groups"] == 1:
                node.args = tuple(a[key] for key in ("input", "weight", "bias", "stride"))
                node.args += (a["padding"], a["dilation"])
                node.kwargs, node.target = {}, _product
                network.recompile()
    return network
