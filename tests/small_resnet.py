"""A ResNet-18 of five classes with random weights, and its entry in a config."""

import torch
from torch import nn

from rfatlas.network import model
from rfatlas.network.geometry import Geometry

FACTORY = "torchvision.models.resnet18"
KWARGS = {"num_classes": 5}
INPUT = {"resize": 64, "crop": 64, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def box(geometry: Geometry, y: int, x: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of what unit (y, x) sees, bottom and right exclusive, not clipped
    to the image."""
    top, left = (
        geometry.lo[axis] + unit * geometry.stride[axis] for axis, unit in ((0, y), (1, x))
    )
    return top, left, top + geometry.size[0], left + geometry.size[1]


def make(seed: int = 7) -> nn.Module:
    return model.build(FACTORY, KWARGS, seed)


def config(weights: str, **changes) -> dict:
    entry = {"factory": FACTORY, "kwargs": KWARGS, "sha256": None, "input": INPUT}
    return entry | {"weights": weights} | changes


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks have the same tensors."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
