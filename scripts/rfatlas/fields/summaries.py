"""What is kept of a layer while the images go by: extremes with their places, and moments.

Plain numpy arrays on the host, of a size that does not depend on the number of images.
`Summary.update` reduces a batch on its device in a few passes and fetches (image, channel) tables
only. Nothing here imports torch before a batch comes: merging ranges starts in a fraction of a
second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h5py
import numpy as np

from rfatlas.errors import RfatlasError
from rfatlas.fields.top_lists import TopList

if TYPE_CHECKING:
    import torch

_PASS_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 30}
"""Elements reduced at once: on a CPU what stays in its cache between the passes."""
_SCAN_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Elements looked at between two updates of the top lists; bounds the memory of a scan."""
_CANCELLED = 0.01


class NonFiniteError(RfatlasError):
    """A NaN or an infinity among the activations; `image` is its index in the packed images."""

    def __init__(self, layer: str, channel: int, image: int, value: float):
        super().__init__(
            f"layer {layer}, channel {channel}, image {image}: the activation is {value}; "
            "every activation must be finite, check the weights and the preprocessing"
        )
        self.image = image


@dataclass
class Summary:
    """What is kept of one layer over the images [start, stop).

    `mean`, `m2` (sum of squared deviations from the mean), `maximum` f64 (C,) and `positive` i64
    (C,) run over all units. `lists` holds `top` (units), `top_per_image` (at most one unit per
    image) and, for layers that are not rectified, `bottom` and `bottom_per_image` of the negated
    values. Zeros of rectified layers enter no list.
    """

    layer: str
    channels: int
    height: int
    width: int
    rectified: bool
    top_k: int
    start: int = 0
    stop: int = 0
    mean: np.ndarray = field(init=False)
    m2: np.ndarray = field(init=False)
    maximum: np.ndarray = field(init=False)
    positive: np.ndarray = field(init=False)
    lists: dict[str, TopList] = field(init=False)

    def __post_init__(self) -> None:
        if max(self.height, self.width) > np.iinfo(np.int16).max:
            raise RfatlasError(
                f"layer {self.layer}: maps of {self.height} x {self.width} are too large; "
                f"at most {np.iinfo(np.int16).max} a side can be stored"
            )
        self.mean, self.m2 = np.zeros(self.channels), np.zeros(self.channels)
        self.maximum = np.full(self.channels, -np.inf)
        self.positive = np.zeros(self.channels, np.int64)
        floor = 0.0 if self.rectified else -np.inf
        names = ["top"] if self.rectified else ["top", "bottom"]
        self.lists = {
            key: TopList.empty(self.channels, self.top_k, floor)
            for name in names
            for key in (name, f"{name}_per_image")
        }

    @property
    def images(self) -> int:
        """Number of images seen."""
        return self.stop - self.start

    @property
    def units(self) -> int:
        """Number of values per channel that the moments run over."""
        return self.images * self.height * self.width

    def update(self, values: "torch.Tensor", first: int) -> tuple[np.ndarray, np.ndarray]:
        """Take in a batch of maps (B, C, H, W) or (B, C) of the images `first`, `first` + 1, ...

        They must follow the images seen. Returns the largest value and the mean of each map, f32
        (B, C) both. Raises NonFiniteError before anything has changed.
        """
        maps = as_maps(values)
        size = self.height * self.width
        # A view where the maps are channels-last; everything below runs along their memory.
        maps = maps.permute(0, 2, 3, 1).contiguous()
        peaks, troughs, total, m2, positive = self._reduce(maps, first)
        peak = peaks.amax(1).cpu().numpy()
        if not self.images:
            self.start = self.stop = first
        means = total / size
        mean = means.mean(0)
        self._add_moments(len(maps) * size, mean, m2.sum(0) + size * ((means - mean) ** 2).sum(0))
        self.maximum = np.maximum(self.maximum, peak.max(0))
        self.positive += positive.sum(0)
        while self.stop < first + len(maps):
            # No more images at once than the lists have seen: then at most about K units per
            # channel are expected to enter in each step, from the first image on.
            begin = self.stop - first
            step = min(self._fitting(_SCAN_ELEMENTS, maps), max(1, self.images))
            part = slice(begin, begin + step)
            self._rank("top", 1, maps[part], peaks[part], self.stop)
            if not self.rectified:
                self._rank("bottom", -1, maps[part], troughs[part], self.stop)
            self.stop = first + min(part.stop, len(maps))
        return peak, means.astype(np.float32)

    def _fitting(self, elements: Mapping[str, int], values: "torch.Tensor") -> int:
        """Return how many images of this layer have together at most that many elements."""
        return max(1, elements[values.device.type] // (self.height * self.width * self.channels))

    def _reduce(self, maps: "torch.Tensor", first: int) -> tuple:
        """Return what is needed of maps (B, H, W, C), each but the first two f64 or i64 (B, C).

        Largest and smallest value of each row of the maps, tensors (B, H, C); sum, sum of squared
        deviations from the map's mean, count of positive values.
        """
        import torch

        size = self.height * self.width
        step = self._fitting(_PASS_ELEMENTS, maps)
        extremes, sums, buffer = [], [], torch.empty_like(maps[:step])
        for part in maps.split(step):
            scratch = buffer[: len(part)]
            peaks = part.amax(2)
            extremes.append((peaks, peaks if self.rectified else part.amin(2)))
            total = part.sum((1, 2))
            squares = torch.mul(part, part, out=scratch).sum((1, 2))
            # Counts are exact in f32 up to 2^24 units per map.
            positive = torch.gt(part, 0, out=scratch).sum((1, 2))
            sums.append(torch.stack((total, squares, positive)))
        peaks, troughs = (torch.cat(column) for column in zip(*extremes, strict=True))
        total, squares, positive = torch.cat(sums, 1).cpu().numpy().astype(np.float64)
        with np.errstate(invalid="ignore"):
            m2 = squares - total**2 / size
        # An infinity or NaN among the values makes the sum one too.
        overflow = ~np.isfinite(total)
        again = overflow | (~(m2 > _CANCELLED * squares) & ((squares > 0) | (total != 0)))
        if size == 1:
            m2[:], again = 0, overflow
        image, channel = np.nonzero(again)
        step = max(1, _SCAN_ELEMENTS["cpu"] // size)
        for start in range(0, len(image), step):
            block = slice(start, start + step)
            self._reduce_exactly(maps, first, image[block], channel[block], total, m2)
        return peaks, troughs, total, m2, positive.astype(np.int64)

    def _reduce_exactly(
        self,
        maps: "torch.Tensor",
        first: int,
        image: np.ndarray,
        channel: np.ndarray,
        total: np.ndarray,
        m2: np.ndarray,
    ) -> None:
        """Replace sums that cancelled or overflowed in f32 by those of two passes in f64."""
        rows = _gather(maps, image, channel).cpu().numpy().astype(np.float64)
        bad = ~np.isfinite(rows)
        if bad.any():
            i, position = (int(index[0]) for index in np.nonzero(bad))
            raise NonFiniteError(
                self.layer, int(channel[i]), first + int(image[i]), rows[i, position]
            )
        sums = rows.sum(1)
        total[image, channel] = sums
        m2[image, channel] = ((rows - sums[:, None] / rows.shape[1]) ** 2).sum(1)

    def _rank(
        self,
        name: str,
        sign: int,
        maps: "torch.Tensor",
        extremes: "torch.Tensor",
        first: int,
    ) -> None:
        """Bring the lists `name` and `name`_per_image up to date with a few images.

        `extremes` (B, H, C) are the largest (`sign` 1) or smallest (-1) values of each row of the
        maps (B, H, W, C). A map whose extreme does not enter the list of one unit per image cannot
        enter the list of units, since K images then hold a unit that goes before all of its units:
        only maps that enter the former are looked at again, and of them only rows that can matter.
        """
        units, per_image = self.lists[name], self.lists[f"{name}_per_image"]
        extremes = extremes.mul(sign)
        score = extremes.amax(1).cpu().numpy()
        entering = score > per_image.threshold()
        image, channel = np.nonzero(entering)
        if not len(image):
            return
        # K units of earlier images are at least as large as the last of the per-image list.
        limit = np.maximum(units.threshold(), per_image.threshold())
        hopeful = score > limit
        limit = np.where(hopeful, limit, np.where(entering, _just_below(score), np.float32(np.inf)))
        if self.height * self.width > self.top_k:
            self._limit_first(maps, sign, limit, hopeful & (units.image[:, -1] < 0))
        i, c, position, value = _beyond(maps, extremes, sign, limit)
        # Of several places of the maximum the first is written last.
        peaks = np.nonzero(value == score[i, c])[0][::-1]
        place = np.empty(score.shape, np.int32)
        place[i[peaks], c[peaks]] = position[peaks]
        per_image.offer(channel, score[image, channel], first + image, place[image, channel])
        chosen = hopeful[i, c]
        units.offer(c[chosen], value[chosen], first + i[chosen], position[chosen])

    def _limit_first(
        self, maps: "torch.Tensor", sign: int, limit: np.ndarray, unfilled: np.ndarray
    ) -> None:
        """Raise the limit of maps whose list is not full yet: about K units of each enter."""
        image, channel = np.nonzero(unfilled)
        if len(image):
            # The order of equal values in topk is undefined, its K-th value is not.
            rows = _gather(maps, image, channel).mul(sign).topk(self.top_k).values
            kth = _just_below(rows[:, -1].cpu().numpy())
            limit[image, channel] = np.maximum(limit[image, channel], kth)

    def _add_moments(self, units: int, mean: np.ndarray, m2: np.ndarray) -> None:
        """Chan, Golub & LeVeque 1979: the moments of two groups of units from those of each."""
        both = self.units + units
        shift = mean - self.mean
        self.m2 += m2 + shift**2 * (self.units * (units / both))
        self.mean += shift * (units / both)

    def merge(self, later: "Summary") -> None:
        """Take in the summary of the same layer over the images that follow."""
        if not later.images:
            return
        if not self.images:
            self.start = self.stop = later.start
        self._add_moments(later.units, later.mean, later.m2)
        self.maximum = np.maximum(self.maximum, later.maximum)
        self.positive += later.positive
        for name, mine in self.lists.items():
            mine.extend(later.lists[name])
        self.stop = later.stop

    def write(self, file: h5py.File) -> None:
        """Write the datasets and attributes of this layer's group, but for the values per image.

        `var` is the population variance over all units. Empty slots of a list have value 0, image
        -1 and yx (-1, -1). Without images the moments are NaN.
        """
        attrs = file.require_group(self.layer).attrs
        attrs.update(height=self.height, width=self.width, rectified=self.rectified)
        seen = self.units > 0
        nothing = np.full(self.channels, np.nan)
        values = {
            "mean": self.mean if seen else nothing,
            "var": self.m2 / self.units if seen else nothing,
            "max": self.maximum if seen else nothing,
            "fraction_active": self.positive / self.units if seen else nothing,
        }
        for name, top in self.lists.items():
            top.settle()
            empty = top.image < 0
            value = 0 - top.value if name.startswith("bottom") else top.value
            values[f"{name}_value"] = np.where(empty, np.float32(0), value)
            values[f"{name}_image"] = top.image
            yx = np.stack(np.divmod(top.position, self.width), -1)
            values[f"{name}_yx"] = np.where(empty[..., None], -1, yx).astype(np.int16)
        # By their whole names: a group of a file does not know of its checksums.
        for name, array in values.items():
            file[f"{self.layer}/{name}"] = array

    @classmethod
    def read(cls, group: h5py.Group, start: int, stop: int) -> "Summary":
        """Return the summary that `write` wrote for the images [start, stop)."""
        channels, top_k = group["top_value"].shape
        attrs = group.attrs
        summary = cls(
            group.name.strip("/"),
            channels,
            int(attrs["height"]),
            int(attrs["width"]),
            bool(attrs["rectified"]),
            top_k,
            start,
            stop,
        )
        if start == stop:
            return summary
        summary.mean, summary.maximum = group["mean"][:], group["max"][:]
        summary.m2 = group["var"][:] * summary.units
        summary.positive = np.rint(group["fraction_active"][:] * summary.units).astype(np.int64)
        for name, top in summary.lists.items():
            top.image = group[f"{name}_image"][:]
            value = group[f"{name}_value"][:]
            if name.startswith("bottom"):
                value = 0 - value
            top.value = np.where(top.image < 0, np.float32(-np.inf), value)
            yx = group[f"{name}_yx"][:].astype(np.int32)
            top.position = np.where(top.image < 0, -1, yx[..., 0] * summary.width + yx[..., 1])
        return summary


def as_maps(values: "torch.Tensor") -> "torch.Tensor":
    """Return a layer's output as f32 (N, C, H, W); a global layer (N, C) gets H = W = 1."""
    if values.ndim == 2:
        values = values[:, :, None, None]
    return values.float()


def _just_below(value: np.ndarray) -> np.ndarray:
    return np.nextafter(value, np.float32(-np.inf))


def _gather(maps: "torch.Tensor", image: np.ndarray, channel: np.ndarray) -> "torch.Tensor":
    """Return the maps of the pairs (image, channel) of (B, H, W, C) as rows, (P, H * W)."""
    import torch

    i, c = (torch.from_numpy(index.astype(np.int64)).to(maps.device) for index in (image, channel))
    return maps.flatten(1, 2)[i, :, c]


def _beyond(
    maps: "torch.Tensor", extremes: "torch.Tensor", sign: int, limit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (image, channel, position, value) of all units with value above the map's limit.

    Value means `sign` times that of `maps` (B, H, W, C); `extremes` (B, H, C) are the largest
    values of their rows and `limit` f32 (B, C) is infinite for maps that need not be looked at.
    Units of one channel come in ascending order of (image, position).
    """
    import torch

    bar = torch.from_numpy(limit).to(maps.device)
    i, y, c = (extremes > bar[:, None, :]).nonzero(as_tuple=True)
    rows = maps[i, y, :, c].mul(sign)
    row, x = (rows > bar[i, c][:, None]).nonzero(as_tuple=True)
    found = (i[row], c[row], y[row] * maps.shape[2] + x, rows[row, x])
    i, c, position, value = (tensor.cpu().numpy() for tensor in found)
    return i, c, position.astype(np.int32), value
