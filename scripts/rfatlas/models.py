"""Plain networks: torchvision's ResNets of two-convolution blocks without their skip connections.

The twins that Kobayashi & Shouno 2020 and He et al. 2015 (arXiv 1512.03385, section 3.3) compare
residual networks with. Modules have torchvision's names, so that a plain block `layer2.0`
corresponds to the residual block of that name: its output is what follows the last ReLU. Importing
this module imports torchvision.
"""

import torch

from rfatlas.network.torchvision_ops import torchvision

_resnet = torchvision().models.resnet


class PlainBlock(_resnet.BasicBlock):
    """Two 3 x 3 convolutions, each with batch norm and ReLU; nothing goes around them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The network hands a downsampling convolution to blocks that change the shape.
        self.downsample = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


def plainnet18(num_classes: int = 1000) -> torch.nn.Module:
    """torchvision's `resnet18` without skip connections; weights drawn as there."""
    return _resnet.ResNet(PlainBlock, [2, 2, 2, 2], num_classes)


def plainnet34(num_classes: int = 1000) -> torch.nn.Module:
    """torchvision's `resnet34` without skip connections; weights drawn as there."""
    return _resnet.ResNet(PlainBlock, [3, 4, 6, 3], num_classes)
