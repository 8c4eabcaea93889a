"""Crops: where they lie, by brute force; stages that run them show that they are exact."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from rfatlas.fields import crops
from rfatlas.network import graph
from rfatlas.network.geometry import Field, Geometry


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [3, 7, 20, 43])
@pytest.mark.parametrize("extent", [96, 100, 224])
def test_every_crop_holds_its_box_and_is_aligned(stride, size, extent):
    for lo in (-size // 2, -size, 0, 1 - size):
        geometry = Geometry((stride,) * 2, (lo,) * 2, (lo + size - 1,) * 2)
        cut = crops.window(Field(local=geometry), extent)
        position = np.arange(extent // stride)
        start = cut.crop_start(position, 0)
        first = np.maximum(lo + position * stride, 0)
        last = np.minimum(lo + position * stride + size, extent)
        seen = last > first
        assert (start[seen] <= first[seen]).all() and (start + cut.crop >= last)[seen].all()
        assert (
            (start % stride == 0).all()
            and (start >= 0).all()
            and (start + cut.crop <= extent).all()
        )
        assert cut.crop == extent or cut.crop <= size + 2 * stride


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "first",
    [
        nn.Conv2d(3, 8, 7, 2, 3, bias=False),
        nn.Conv2d(3, 5, (3, 4), (2, 1), (0, 2), dilation=(2, 1)),
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 6, 3, groups=3),
    ],
    ids=str,
)
def test_gradients_of_pixels_are_those_of_autograd(first):
    network = nn.Sequential(copy.deepcopy(first), nn.ReLU(), nn.Conv2d(first.out_channels, 4, 3))
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    pixels = torch.randn(2, 3, 21, 18).requires_grad_()
    expected = network(pixels)
    traced = graph.trace(network, torch.zeros(1, 3, 21, 18)).prefix("2")
    for _ in range(2):
        found = crops.differentiable(traced, CPU)(pixels)
        torch.testing.assert_close(found, expected)
        gradients = [
            torch.autograd.grad(x.square().sum(), pixels)[0] for x in (found, network(pixels))
        ]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)
    assert isinstance(network[0], nn.Conv2d), "the network itself stays as it is"
