"""The network that several test files of this folder load and save."""

import pytest
import small_resnet
from torch import nn


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_resnet.make()
