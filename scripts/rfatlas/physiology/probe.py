"""Presenting stimuli to the centre unit of a layer.

All channels of a layer share the stimuli, which are drawn and shown on the exact crop of the centre
unit (see `crops`): for an early layer that is a few pixels, and the network stops at the layer. A
stimulus is a picture of pixel code values in 0..1, before the network's own normalisation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rfatlas.fields import crops
from rfatlas.network.devices import room
from rfatlas.network.model import LoadedModel, normalise

#: Code value of the mid grey around which stimuli are modulated, and which surrounds them.
GREY = 0.5

# Pixels of stimuli in one batch: beyond, a CPU leaves its cache and a GPU gains nothing more.
_BATCH_PIXELS = {"cpu": 2**19, "cuda": 2**24}


Show = Callable[..., tuple[np.ndarray, np.ndarray]]
Bar = Callable[..., Any]


class Probe:
    """The centre unit (H//2, W//2) of every channel of a layer, ready for stimuli.

    Batches are chosen to fit a process of `memory_mb` megabytes, libraries included (on a GPU half
    of its free memory counts instead).

    `channels` of the layer; `size` S, the edge of the receptive field's box in pixels, at most the
    image's; `stride`, the pixels between neighbouring units; `geometry` of the receptive fields;
    where every unit sees the whole image they are 0 and None. `respond` takes square stimuli with
    an edge of `crop` pixels, which begin at `origin` (top, left) of the image; `batch` of them are
    run at a time. `unit` (y, x) is the centre unit in the layer, `centre` (y, x) that of its
    receptive field in the crop; the centre of the first pixel is 0.5.
    """

    def __init__(self, network: LoadedModel, layer: str, memory_mb: float = 3000):
        self.device = network.device
        image_size = network.description["input"]["crop"]
        self.channels, *extent = network.graph.shape(layer)
        cut = crops.window(network.graph.field(layer), image_size)
        self.geometry = geometry = cut.geometry
        self.unit = tuple(length // 2 for length in extent)
        unit = [np.array([place]) for place in self.unit]
        self.size, self.crop = cut.size, cut.crop
        self.stride = max(geometry.stride) if geometry else 0
        self.origin = tuple(int(cut.crop_start(unit[axis], axis)[0]) for axis in (0, 1))
        self._unit = tuple(int(cut.position_in_crop(unit[axis], axis)[0]) for axis in (0, 1))
        if geometry is None:
            self.centre = (image_size / 2, image_size / 2)
        else:
            self.centre = tuple(
                geometry.start[axis] + extent[axis] // 2 * geometry.stride[axis] - self.origin[axis]
                for axis in (0, 1)
            )
        self._prefix = network.graph.prefix_and_unrectified(layer)
        self._input = network.description["input"]
        kept = network.graph.kept_bytes(layer) * (cut.crop / image_size) ** 2
        self.batch = self._batch(kept + 5 * 12.0 * cut.crop**2, memory_mb)

    def _batch(self, stimulus_bytes: float, memory_mb: float) -> int:
        pixels = _BATCH_PIXELS[self.device.type] // self.crop**2
        count = max(1, int(min(room(memory_mb, self.device) // stimulus_bytes, pixels)))
        # A power of two: convolutions of other batches take a tenth longer.
        return 1 << (count.bit_length() - 1)

    def answer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `respond` does for one batch of stimuli, float32 on the probe's device, as
        tensors (n, C) that can be differentiated."""
        outputs = self._prefix(normalise(pixels, self._input))
        return tuple(
            output[:, :, self._unit[0], self._unit[1]] if output.ndim == 4 else output
            for output in outputs
        )

    @torch.no_grad()
    def respond(self, stimuli: torch.Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the activations of the centre unit, float32 (n, C), and the same with the layer's
        last ReLU left out (see `graph.Graph.prefix_and_unrectified`).

        `stimuli` float (n, 3, crop, crop), code values in 0..1. What is asked of the centre unit
        equals what it does in the whole image with the stimulus in its place.
        """
        answers: list[list[np.ndarray]] = [[], []]
        for part in torch.as_tensor(stimuli).split(self.batch):
            outputs = self.answer(part.to(self.device, torch.float32))
            for answer, output in zip(answers, outputs, strict=True):
                answer.append(output.cpu().numpy())
        empty = np.zeros((0, self.channels), np.float32)
        value, unrectified = (np.concatenate([empty, *answer]) for answer in answers)
        return value, unrectified

    def over_grid(self, show: Show, axes: Sequence[np.ndarray], bar: Bar, name: str) -> np.ndarray:
        """Return the answers float32 (2, C, *lengths of axes), the second with the last ReLU left
        out, to a stimulus for every combination of values on some axes.

        `show` takes values (n,) of each axis and returns what `respond` does.
        """
        values = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
        count, parts = len(values[0]), []
        with bar(total=count, unit="stimulus", desc=name) as progress:
            # At least once, so that the shape of an answer is known.
            for first in range(0, max(count, 1), self.batch):
                part = slice(first, min(first + self.batch, count))
                parts.append(np.stack(show(*(value[part] for value in values)), 1))
                progress.update(part.stop - part.start)
        found = np.concatenate(parts)
        found = found.reshape(*map(len, axes), *found.shape[1:])
        return np.ascontiguousarray(np.moveaxis(found, (-2, -1), (0, 1)))

    def at_places(
        self, show: Show, place: np.ndarray, axes: Sequence[np.ndarray], bar: Bar, name: str
    ) -> np.ndarray:
        """Return the answers of each channel at its own place (C, k), k indices of what the caller
        likes, say of orientation and frequency, as `over_grid` does; NaN where these are -1.

        `show` takes the indices first. What several channels share is shown once.
        """
        known = np.flatnonzero(place[:, 0] >= 0)
        shown, member = np.unique(place[known], axis=0, return_inverse=True)
        answer = self.over_grid(
            lambda at, *values: show(*shown[at].T, *values),
            (np.arange(len(shown)), *axes),
            bar,
            name,
        )
        found = np.full((2, len(place), *map(len, axes)), np.nan, np.float32)
        found[:, known] = answer[:, known, member.reshape(-1)]
        return found

    def place(self) -> dict[str, Any]:
        """Return the attributes that tell a reader of a layer's file where its units are."""
        return {name: getattr(self, name) for name in ("size", "stride", "crop", "centre")}

    # ---- drawing

    def carriers(
        self,
        orientation_deg: np.ndarray,
        frequency: np.ndarray,
        phase_deg: np.ndarray,
        diameter: np.ndarray | float | None = None,
        contrast: np.ndarray | float = 1.0,
    ) -> torch.Tensor:
        """Return cosine gratings, float32 (n, crop, crop) in -1..1, in a round aperture.

        contrast * cos(2 pi f (x cos theta + y sin theta) + phase), x to the right and y upwards
        from the receptive field's centre: theta is the direction of modulation, degrees
        counter-clockwise from +x, and the bars lie at theta + 90. Arguments (n,) in degrees and
        cycles per pixel; those of the aperture, in pixels (`size` where it is left out), and of
        `contrast`, 0..1, may also be one number for all. Outside the aperture the carrier is 0.
        """
        theta, phase, frequency = (
            torch.as_tensor(np.asarray(values, float), device=self.device)[:, None]
            for values in (np.radians(orientation_deg), np.radians(phase_deg), frequency)
        )
        pixel = torch.arange(self.crop, dtype=torch.float64, device=self.device) + 0.5
        x, y = pixel - self.centre[1], self.centre[0] - pixel
        # cos(a + b) = cos a cos b - sin a sin b, with a along the rows and b along the columns.
        along = 2 * torch.pi * frequency * torch.cos(theta) * x + phase
        across = 2 * torch.pi * frequency * torch.sin(theta) * y
        rows = torch.stack([torch.cos(across), -torch.sin(across)], 2).float()
        columns = torch.stack([torch.cos(along), torch.sin(along)], 1).float()
        height = torch.as_tensor(np.asarray(contrast, np.float32), device=self.device)
        window = self.aperture(diameter) * height[..., None, None]
        return (rows @ columns).clamp_(-1, 1) * window

    def aperture(self, diameter: np.ndarray | float | None = None) -> torch.Tensor:
        """Return the round aperture, float32 (crop, crop), 1 where a pixel's centre is inside and 0
        outside; of diameters (n,) in pixels one each, (n, crop, crop)."""
        pixel = torch.arange(self.crop, dtype=torch.float64, device=self.device) + 0.5
        distance = torch.hypot(pixel[:, None] - self.centre[0], pixel[None] - self.centre[1])
        diameter = torch.as_tensor(
            np.asarray(self.size if diameter is None else diameter, float), device=self.device
        )
        return (distance <= diameter[..., None, None] / 2).float()

    def paint(self, carriers: torch.Tensor, direction: Any = (1, 1, 1)) -> torch.Tensor:
        """Return stimuli (n, 3, crop, crop): mid grey + 0.5 `direction` times the carrier.

        `direction`, one or (n, 3), is in code values, (1, 1, 1) the achromatic grating of full
        contrast; its entries must lie in -1..1, so that the stimulus stays in 0..1.
        """
        colour = torch.as_tensor(np.asarray(direction, np.float32), device=carriers.device)
        return GREY + 0.5 * colour.view(-1, 3, 1, 1) * carriers[:, None]

    def uniform(self, colours: np.ndarray) -> torch.Tensor:
        """Return crops (n, 3, crop, crop) filled with `colours` (n, 3), code values in 0..1."""
        colours = torch.as_tensor(np.asarray(colours, np.float32), device=self.device)
        return colours[:, :, None, None].expand(-1, -1, self.crop, self.crop)

    def cut(self, images: np.ndarray) -> torch.Tensor:
        """Return the crop's part (n, 3, crop, crop) of images (n, H, H, 3), float code values in
        0..1."""
        top, left = self.origin
        part = images[:, top : top + self.crop, left : left + self.crop]
        return torch.as_tensor(np.ascontiguousarray(part, np.float32)).permute(0, 3, 1, 2)
