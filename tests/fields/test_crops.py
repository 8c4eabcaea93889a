"""Crops: where they lie, by brute force; stages that run them show that they are exact."""

import numpy as np
import pytest

from rfatlas.fields import crops
from rfatlas.network.graph import Geometry


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [3, 7, 20, 43])
@pytest.mark.parametrize("extent", [96, 100, 224])
def test_every_crop_holds_its_box_and_is_aligned(stride, size, extent):
    for lo in (-size // 2, -size, 0, 1 - size):
        geometry = Geometry((stride,) * 2, (lo,) * 2, (lo + size - 1,) * 2)
        cut = crops.window(geometry, extent)
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
