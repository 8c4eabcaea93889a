"""Exact crops: the part of an image that gives a unit's activation, and its gradient, as the whole
image does.

A crop is the unit's receptive-field box, aligned to the layer's total stride and moved inside the
image. Where the box reaches over the image border the crop ends at that border, so that the
padding there is the network's own, and everywhere else the unit depends on nothing outside the
crop. All crops of a layer have one size.
"""

from dataclasses import dataclass

import numpy as np

from rfatlas.graph import Geometry


@dataclass(frozen=True)
class Window:
    """How the receptive fields of one layer are cut out of an image of `image_size` pixels.

    `size` (S): edge of the stored window, the receptive field's size or the image's where that is
    smaller. `crop`: edge of the crop that is run through the network. `geometry` None: every unit
    sees the whole image.
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


def window(geometry: Geometry | None, image_size: int) -> Window:
    """Return how a layer's receptive fields are cut out of square images of `image_size` pixels.

    The crop must hold the box from any alignment to the total stride J, and what it leaves of the
    image must be a multiple of J, so that a crop at the far border is aligned too.
    """
    if geometry is None:
        return Window(None, image_size, image_size, image_size)
    crop = 1
    for axis in (0, 1):
        stride = geometry.stride[axis]
        needed = geometry.size[axis] + geometry.lo[axis] % stride
        needed += (image_size - needed) % stride
        crop = max(crop, needed)
    fits = crop < image_size and all(
        (image_size - crop) % stride == 0 for stride in geometry.stride
    )
    return Window(
        geometry, image_size, min(max(geometry.size), image_size), crop if fits else image_size
    )
