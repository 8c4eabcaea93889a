"""The demo's networks: a small ResNet with torchvision's module names, and its plain twin.

Both are for 64-pixel scenes.

Like the networks of Kobayashi & Shouno 2020 it opens with 64 filters of 7 x 7 pixels at stride 2;
the rest is slim, so that it trains in minutes on two cores. Imports torch only.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

WIDTHS = (32, 64, 128)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a skip connection around them.

    With `skip`, the input, through a 1 x 1 `downsample` where its shape differs, is added before
    the last ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, skip: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = skip
        self.downsample = None
        if skip and (stride != 1 or inputs != outputs):
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.skip:
            y = y + (x if self.downsample is None else self.downsample(x))
        return self.relu(y)


class DemoNet(nn.Module):
    """Stem (conv1, bn1, relu, maxpool), three layers of two basic blocks, avgpool and fc."""

    def __init__(self, num_classes: int = 24, skip: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = 64
        for number, width in enumerate(WIDTHS, start=1):
            stride = 1 if number == 1 else 2
            blocks = [BasicBlock(inputs, width, stride, skip), BasicBlock(width, width, 1, skip)]
            named = OrderedDict((str(place), block) for place, block in enumerate(blocks))
            self.add_module(f"layer{number}", nn.Sequential(named))
            inputs = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised images (N, 3, H, W) -> logits (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet_demo(num_classes: int = 24, skip: bool = True) -> DemoNet:
    """The demo network with fresh weights from torch's generator.

    Without `skip` it is a plain network of the same depth.
    """
    return DemoNet(num_classes, skip)


def plainnet_demo(num_classes: int = 24) -> DemoNet:
    """The plain twin of `resnet_demo`: the same modules less the skip connections."""
    return DemoNet(num_classes, skip=False)
