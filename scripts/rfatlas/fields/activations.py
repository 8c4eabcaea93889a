"""Stage `activations`: one forward pass per range of images; extremes, moments, per-image values.

Each layer has a `Summary`: plain numpy arrays on the host, of a size that does not depend on the
number of images. `Summary.update` reduces a batch on its device in a few passes and fetches (image,
channel) tables only; `Summary.merge` serves ranges and resumption alike. Values per image (maxima,
means, logits, features, maps) go straight to disk. Nothing here imports torch before a forward
pass is wanted: merging ranges starts in a fraction of a second.

A layer's output is (N, C, H, W) or, after global pooling, (N, C), which counts as H = W = 1. A unit
is one position of one channel in one image; "all units" of a channel are N * H * W values.
"""

import ctypes
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from rfatlas.errors import RfatlasError
from rfatlas.files import jobs, store

if TYPE_CHECKING:
    import torch

    from rfatlas.network import model

log = logging.getLogger("rfatlas")

STAGE = "activations"
SAVE_EVERY_S = 5.0
"""Seconds between two saved states: what a killed job does again, if a batch is not longer."""

_WAITING = 0.25
"""Share of a top list that may wait to be sorted in: fewer sorts against looser thresholds."""
_PASS_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 30}
"""Elements reduced at once: on a CPU what stays in its cache between the passes."""
_SCAN_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Elements looked at between two updates of the top lists; bounds the memory of a scan."""
_COPY_BYTES = 1 << 20
_CANCELLED = 0.01
_F16_MAX = 65504.0
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
"""Options of glibc's mallopt, from malloc.h."""


class NonFiniteError(RfatlasError):
    """A NaN or an infinity among the activations; `image` is its index in the packed images."""

    def __init__(self, layer: str, channel: int, image: int, value: float):
        super().__init__(
            f"layer {layer}, channel {channel}, image {image}: the activation is {value}; "
            "every activation must be finite, check the weights and the preprocessing"
        )
        self.image = image


@dataclass
class TopList:
    """The K largest values of each channel with their places, sorted from the largest down.

    `value` f32 (C, K) is -inf in empty slots, `image` i32 (C, K) and `position` i32 (C, K), the
    flat index y * W + x, are -1 there. Equal values are in ascending order of (image, position).
    Values not above `floor` never enter. Candidates wait until they are many or `settle` is called:
    the arrays do not know of them before.
    """

    value: np.ndarray
    image: np.ndarray
    position: np.ndarray
    floor: float = -np.inf
    _waiting: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    @classmethod
    def empty(cls, channels: int, k: int, floor: float = -np.inf) -> "TopList":
        """Return a list with every slot empty."""
        return cls(
            np.full((channels, k), -np.inf, np.float32),
            np.full((channels, k), -1, np.int32),
            np.full((channels, k), -1, np.int32),
            floor,
        )

    def threshold(self) -> np.ndarray:
        """Return (C,) what a value of a later image must exceed to enter (or less, unsettled)."""
        return np.maximum(self.value[:, -1], np.float32(self.floor))

    def offer(
        self, channel: np.ndarray, value: np.ndarray, image: np.ndarray, position: np.ndarray
    ) -> None:
        """Merge in candidates, four flat arrays of one length.

        Within a channel, equal values must be given in ascending order of (image, position) and
        after all units that the list has seen: every sort here is stable and keeps that order.
        """
        wanted = value > self.threshold()[channel]
        self._waiting.append(tuple(array[wanted] for array in (channel, value, image, position)))
        if sum(len(columns[0]) for columns in self._waiting) > _WAITING * self.value.size:
            self.settle()

    def settle(self) -> None:
        """Put the candidates that wait into the arrays."""
        if not self._waiting:
            return
        columns = [np.concatenate(column) for column in zip(*self._waiting, strict=True)]
        self._waiting.clear()
        # Keys of 64 bits hold channel, value and place in line of so many candidates.
        step = 1 << (32 - len(self.value).bit_length())
        for start in range(0, len(columns[0]), step):
            self._insert(*(column[start : start + step] for column in columns))

    def _insert(
        self, channel: np.ndarray, value: np.ndarray, image: np.ndarray, position: np.ndarray
    ) -> None:
        k = self.value.shape[1]
        touched = np.zeros(len(self.value), bool)
        touched[channel] = True
        rows = np.nonzero(touched)[0]
        first_key = np.arange(len(rows)) << 32
        old = (first_key[:, None] | _descending(self.value[rows])).ravel()
        new = first_key[np.cumsum(touched)[channel] - 1] | _descending(value)
        # One sort of (row, value, place in line), packed into one number each, is many times
        # faster than a stable sort by several keys.
        bits = np.uint64(len(new).bit_length())
        packed = (new.astype(np.uint64) << bits) | np.arange(len(new), dtype=np.uint64)
        packed.sort()
        order = (packed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
        new = new[order]
        landing = np.searchsorted(old, new, side="right") + np.arange(len(new))
        is_old = np.ones(len(old) + len(new), bool)
        is_old[landing] = False
        source = np.empty(len(is_old), np.int64)
        source[landing] = len(old) + order
        source[is_old] = np.arange(len(old))
        begin = np.arange(len(rows)) * k + np.searchsorted(new, first_key)
        best = source[begin[:, None] + np.arange(k)]
        self.value[rows] = np.concatenate((self.value[rows].ravel(), value))[best]
        self.image[rows] = np.concatenate((self.image[rows].ravel(), image))[best]
        self.position[rows] = np.concatenate((self.position[rows].ravel(), position))[best]

    def extend(self, later: "TopList") -> None:
        """Merge in a list whose images all come after this one's."""
        later.settle()
        channel, slot = np.nonzero(later.image >= 0)
        self.offer(channel, *(getattr(later, name)[channel, slot] for name in _TOP_LIST_ARRAYS))
        self.settle()


_TOP_LIST_ARRAYS = ("value", "image", "position")
_MOMENTS = ("mean", "m2", "maximum", "positive")


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

        Returns the largest value and the mean of each map, f32 (B, C) both. Raises NonFiniteError
        before anything has changed, ValueError if the batch does not follow the images seen.
        """
        maps = as_maps(values)
        if tuple(maps.shape[1:]) != (self.channels, self.height, self.width):
            expected = (self.channels, self.height, self.width)
            raise ValueError(f"layer {self.layer}: {tuple(maps.shape[1:])} is not {expected}")
        if self.images and first != self.stop:
            raise ValueError(f"layer {self.layer}: image {first} does not follow {self.stop - 1}")
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

    def merge(self, other: "Summary") -> None:
        """Take in the summary of the images just before or just after.

        Raises ValueError if the two do not touch or are not of the same layer.
        """
        if not other.images:
            return
        if not self.images:
            self.start, self.stop = other.start, other.start
        elif other.start != self.stop and other.stop != self.start:
            raise ValueError(
                f"layer {self.layer}: images {self.start}-{self.stop} and "
                f"{other.start}-{other.stop} do not touch"
            )
        shape = ("layer", "channels", "height", "width", "rectified", "top_k")
        if any(getattr(self, name) != getattr(other, name) for name in shape):
            raise ValueError(f"layer {self.layer}: summaries of different layers or top_k")
        self._add_moments(other.units, other.mean, other.m2)
        self.maximum = np.maximum(self.maximum, other.maximum)
        self.positive += other.positive
        for name, mine in self.lists.items():
            theirs = other.lists[name]
            if other.start >= self.stop:
                mine.extend(theirs)
            else:
                theirs.settle()
                joined = TopList(*(getattr(theirs, a).copy() for a in _TOP_LIST_ARRAYS), mine.floor)
                joined.extend(mine)
                self.lists[name] = joined
        self.start = min(self.start, other.start)
        self.stop = max(self.stop, other.stop)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the state as named arrays, for a progress record."""
        arrays = {name: getattr(self, name) for name in _MOMENTS}
        arrays["span"] = np.array([self.start, self.stop])
        for name, top in self.lists.items():
            top.settle()
            arrays |= {f"{name}/{array}": getattr(top, array) for array in _TOP_LIST_ARRAYS}
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set the state from what `arrays` gave."""
        for name in _MOMENTS:
            setattr(self, name, arrays[name])
        self.start, self.stop = (int(i) for i in arrays["span"])
        for name, top in self.lists.items():
            for array in _TOP_LIST_ARRAYS:
                setattr(top, array, arrays[f"{name}/{array}"])

    def write(self, group: h5py.Group) -> None:
        """Write the datasets and attributes of this layer, but for the values per image.

        `var` is the population variance over all units. Empty slots of a list have value 0, image
        -1 and yx (-1, -1). Without images the moments are NaN.
        """
        group.attrs.update(height=self.height, width=self.width, rectified=self.rectified)
        seen = self.units > 0
        nothing = np.full(self.channels, np.nan)
        group["mean"] = self.mean if seen else nothing
        group["var"] = self.m2 / self.units if seen else nothing
        group["max"] = self.maximum if seen else nothing
        group["fraction_active"] = self.positive / self.units if seen else nothing
        for name, top in self.lists.items():
            top.settle()
            empty = top.image < 0
            value = 0 - top.value if name.startswith("bottom") else top.value
            group[f"{name}_value"] = np.where(empty, np.float32(0), value)
            group[f"{name}_image"] = top.image
            yx = np.stack(np.divmod(top.position, self.width), -1)
            group[f"{name}_yx"] = np.where(empty[..., None], -1, yx).astype(np.int16)

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
    if values.ndim != 4:
        raise ValueError(f"expected (N, C, H, W) or (N, C), got {tuple(values.shape)}")
    return values.float()


def _descending(value: np.ndarray) -> np.ndarray:
    """Return i64 in 0..2^32 - 1 that ascend where the f32 values descend; -0 equals 0."""
    bits = (value + np.float32(0)).view(np.uint32)
    negative = bits >> 31 == 1
    return np.where(negative, bits, ~bits & np.uint32(0x7FFFFFFF)).astype(np.int64)


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


class RowFiles:
    """Values per image, appended to raw files while the images go by.

    `kinds` maps each name to (dtype, shape of one image's row). A killed process may leave rows
    that no saved state knows of: `cut` removes them.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, tuple[np.dtype, tuple[int, ...]]]):
        self.kinds = dict(kinds)
        self._paths = {name: folder / f"{name.replace('/', '-')}.bin" for name in kinds}

    def row_bytes(self, name: str) -> int:
        """Return the size of one image's row."""
        dtype, shape = self.kinds[name]
        return int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))

    def rows(self) -> int:
        """Return the number of whole rows that every file has."""
        return min(
            path.stat().st_size // self.row_bytes(name) if path.exists() else 0
            for name, path in self._paths.items()
        )

    def cut(self, rows: int) -> None:
        """Keep the first `rows` rows of every file; makes files that are missing."""
        for name, path in self._paths.items():
            with path.open("ab") as file:
                file.truncate(rows * self.row_bytes(name))

    def append(self, name: str, values: np.ndarray) -> None:
        """Append the rows of a batch, (B, ...)."""
        dtype, shape = self.kinds[name]
        if values.shape[1:] != shape:
            raise ValueError(f"{name}: rows of shape {values.shape[1:]}, expected {shape}")
        with self._paths[name].open("ab", buffering=0) as file:
            file.write(np.ascontiguousarray(values, dtype))

    def copy(self, file: h5py.File, rows: int) -> None:
        """Write the first `rows` rows of every name to a dataset of that name."""
        for name, (dtype, shape) in self.kinds.items():
            data = file.create_dataset(name, (rows, *shape), dtype)
            step = max(1, _COPY_BYTES // self.row_bytes(name))
            with self._paths[name].open("rb") as source:
                for start in range(0, rows, step):
                    count = min(step, rows - start)
                    values = np.fromfile(source, dtype, count * int(np.prod(shape)))
                    data[start : start + count] = values.reshape(count, *shape)


class RangePass:
    """The images [start, stop) of one run, taken in batch by batch; resumes what was killed.

    `shapes` maps each layer to the (C, H, W) of one image, `rectified` to whether it follows a
    ReLU; `outputs` maps `logits` and `features` to their lengths, as far as the model has them.
    """

    def __init__(
        self,
        partial: store.Partial,
        start: int,
        stop: int,
        shapes: Mapping[str, tuple[int, int, int]],
        rectified: Mapping[str, bool],
        outputs: Mapping[str, int],
        top_k: int,
        keep_maps: Sequence[str] = (),
        save_every: float = SAVE_EVERY_S,
    ):
        import torch

        self.start, self.stop, self.position = start, stop, start
        self._partial, self._save_every, self._saved = partial, save_every, time.monotonic()
        self.summaries = {
            layer: Summary(layer, *shape, rectified[layer], top_k, start, start)
            for layer, shape in shapes.items()
        }
        kinds = {}
        for layer, shape in shapes.items():
            kinds[f"{layer}/image_max"] = kinds[f"{layer}/image_mean"] = np.float32, shape[:1]
            if layer in keep_maps:
                kinds[f"{layer}/maps"] = np.float16, shape
        for name, length in outputs.items():
            kinds[f"output/{name}"] = np.float32, (length,)
        self._rows = RowFiles(partial.folder, kinds)
        self._keep_maps = set(keep_maps)
        self._outputs = tuple(outputs)
        # A layer per thread: much of a summary is NumPy's work, which has one thread only.
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, "layer", torch.set_num_threads, (1,))
        self._resume()

    def _resume(self) -> None:
        if "state" in self._partial.names():
            arrays = self._partial.load("state")
            position = int(arrays["position"])
            if self._rows.rows() < position - self.start:
                # Only a machine that went down can lose rows older than a saved state.
                log.warning("%s: rows are missing, starting this range again", self._partial.folder)
            else:
                self.position = position
                for layer, summary in self.summaries.items():
                    prefix = f"{layer}/"
                    summary.restore(
                        {
                            k.removeprefix(prefix): v
                            for k, v in arrays.items()
                            if k.startswith(prefix)
                        }
                    )
                log.info("resuming at image %d of %d-%d", position, self.start, self.stop)
        self._rows.cut(self.position - self.start)

    def add(
        self, values: Mapping[str, "torch.Tensor"], outputs: Mapping[str, "torch.Tensor"]
    ) -> None:
        """Take in the next batch: the values of each layer, and logits and features (B, D).

        Raises NonFiniteError for a NaN or an infinity anywhere.
        """
        import torch

        first = self.position

        def summarise(layer: str) -> int:
            peak, mean = self.summaries[layer].update(values[layer], first)
            self._rows.append(f"{layer}/image_max", peak)
            self._rows.append(f"{layer}/image_mean", mean)
            if layer in self._keep_maps:
                maps = as_maps(values[layer]).clamp(-_F16_MAX, _F16_MAX).to(torch.float16)
                self._rows.append(f"{layer}/maps", maps.cpu().numpy())
            return len(peak)

        on_cpu = all(value.device.type == "cpu" for value in values.values())
        counts = list((self._pool.map if on_cpu else map)(summarise, self.summaries))
        for name in self._outputs:
            rows = outputs[name].float().cpu().numpy()
            bad = np.argwhere(~np.isfinite(rows))
            if len(bad):
                image, channel = bad[0]
                raise NonFiniteError(
                    f"output/{name}", int(channel), first + int(image), rows[image, channel]
                )
            self._rows.append(f"output/{name}", rows)
        self.position += counts[0]
        if time.monotonic() - self._saved >= self._save_every:
            self.save()

    def save(self) -> None:
        """Save the state: a job killed later goes on from here."""
        arrays = {"position": np.array(self.position)}
        for layer, summary in self.summaries.items():
            arrays |= {f"{layer}/{name}": array for name, array in summary.arrays().items()}
        self._partial.save("state", arrays)
        self._saved = time.monotonic()

    def write(
        self, output: str | Path, attrs: Mapping[str, Any], labels: np.ndarray, classes: int
    ) -> None:
        """Write the range's file and remove the progress folder.

        `labels` i64 (images,) are those of [start, stop), -1 = unknown.
        """
        if self.position != self.stop:
            raise ValueError(f"images {self.position}-{self.stop} have not been seen")
        self._pool.shutdown()
        with store.create(output, attrs) as file:
            for layer, summary in self.summaries.items():
                summary.write(file.create_group(layer))
            file.require_group("output")
            self._rows.copy(file, self.stop - self.start)
            file["output/labels"] = labels.astype(np.int64)
            _finish(file, list(self.summaries), classes)
        self._partial.finish()


def _finish(file: h5py.File, layers: Sequence[str], classes: int) -> None:
    """Derive class means and accuracy from the values per image that the file holds."""
    labels = file["output/labels"][:]
    for layer in layers:
        file[layer]["class_mean"] = class_means(file[layer]["image_mean"], labels, classes)
    logits = file["output"].get("logits")
    file["output"].attrs.update(
        dict.fromkeys(("top1", "top5", "loss"), np.nan) | {"labelled": 0}
        if logits is None
        else accuracy(logits, labels)
    )


def _row_blocks(data: h5py.Dataset | np.ndarray) -> Iterator[slice]:
    row = max(1, data.dtype.itemsize * int(np.prod(data.shape[1:], dtype=np.int64)))
    step = max(1, _COPY_BYTES // row)
    for start in range(0, len(data), step):
        yield slice(start, min(start + step, len(data)))


def class_means(
    image_mean: h5py.Dataset | np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray:
    """Return f64 (classes, C): `image_mean` (N, C) averaged over the images of each class.

    NaN for classes without images; images of unknown class (-1) do not count.
    """
    sums = np.zeros((classes, image_mean.shape[1]))
    for block in _row_blocks(image_mean):
        known = labels[block] >= 0
        np.add.at(sums, labels[block][known], image_mean[block][known].astype(np.float64))
    count = np.bincount(labels[labels >= 0], minlength=classes)
    with np.errstate(invalid="ignore"):
        return sums / count[:, None]


def accuracy(logits: h5py.Dataset | np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return `top1`, `top5` (fractions), `loss` (mean cross entropy, nats) and `labelled`.

    Over the `labelled` images whose class is known; NaN without any. Of equal logits, the one of
    the lower class goes first. With fewer than five classes `top5` is 1.
    """
    top1 = top5 = count = 0
    loss = 0.0
    for block in _row_blocks(logits):
        known = np.nonzero(labels[block] >= 0)[0]
        label = labels[block][known]
        values = logits[block][known].astype(np.float64)
        own = values[np.arange(len(label)), label][:, None]
        earlier = np.arange(values.shape[1]) < label[:, None]
        rank = ((values > own) | ((values == own) & earlier)).sum(1)
        top1 += int((rank < 1).sum())
        top5 += int((rank < 5).sum())
        peak = values.max(1, initial=-np.inf, keepdims=True)
        total = np.log(np.exp(values - peak).sum(1, keepdims=True)) + peak
        loss += float((total - own).sum())
        count += len(label)
    if not count:
        return {"top1": np.nan, "top5": np.nan, "loss": np.nan, "labelled": 0}
    return {
        "top1": top1 / count,
        "top5": top5 / count,
        "loss": loss / count,
        "labelled": count,
    }


# ---- the stage's two jobs


def compute(
    images: str | Path,
    weights: str | Path,
    output: str | Path,
    *,
    start: int,
    stop: int,
    layers: Sequence[str],
    top_k: int,
    batch_size: int = 64,
    keep_maps: Sequence[str] = (),
    device: str = "auto",
    tf32: bool = False,
) -> None:
    """Write the activations of the packed images [start, stop) to `output`.

    A `stop` beyond the last image is clipped, an empty range gives a file without images. Killed,
    it goes on from the last saved state. Raises RfatlasError for activations that are not finite,
    for labels that the network's classifier does not have, and for unknown layers.
    """
    from rfatlas.network import devices, model

    unknown = sorted(set(keep_maps) - set(layers))
    if unknown:
        raise RfatlasError(
            f"activations.keep_maps: {', '.join(unknown)}: not among the analysed layers, "
            f"which are {', '.join(layers)}"
        )
    keep_freed_memory()
    with devices.acquire(device, tf32) as where, store.open(images, "images") as packed:
        loaded = model.load(weights, where)
        total = len(packed["images"])
        start, stop = min(start, total), min(stop, total)
        forward = Forward(loaded, layers)
        labels = packed["labels"][:]
        classes = _count_classes(packed, labels, forward.outputs.get("logits"))
        header = loaded.description
        config = {
            "layers": sorted(layers),
            "top_k": top_k,
            "keep_maps": sorted(keep_maps),
            "tf32": tf32,
            "model": {key: header[key] for key in ("factory", "kwargs", "input")},
            "range": [start, stop],
        }
        attrs = store.provenance(
            STAGE, config, loaded.weights_sha256, {"images": store.identity(images)}, str(where)
        )
        # A range that was begun on one device may be finished on another.
        fingerprint = {key: value for key, value in attrs.items() if key != "device"}
        run = RangePass(
            store.Partial(output, fingerprint),
            start,
            stop,
            forward.shapes,
            {layer: loaded.graph.rectified(layer) for layer in layers},
            forward.outputs,
            top_k,
            keep_maps,
        )
        with jobs.progress(total=stop - start, initial=run.position - start, desc="images") as bar:
            while run.position < stop:
                count = min(batch_size, stop - run.position)
                try:
                    run.add(*forward(packed["images"][run.position : run.position + count]))
                except NonFiniteError as error:
                    name = packed["names"].asstr()[error.image]
                    raise RfatlasError(f"{error}; image {error.image} is {name}") from None
                bar.update(count)
        attrs |= {"start": start, "stop": stop, "total": total}
        run.write(output, attrs, labels[start:stop], classes)


def keep_freed_memory() -> None:
    """Let this process reuse the memory of freed tensors, where its C library is glibc.

    By default glibc hands large blocks back and fetches them anew for every batch; the system then
    clears each page again, which takes a tenth of a forward pass.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        libc.mallopt(option, 2**31 - 1)


class Forward:
    """The network as this stage wants it: packed images in, layers and outputs out.

    `shapes` maps each layer to the (C, H, W) of one image; `outputs` maps `logits` and `features`
    to their lengths, as far as the network has them and they are (N, D).
    """

    def __init__(self, loaded: "model.LoadedModel", layers: Sequence[str]):
        import torch

        from rfatlas.network import graph

        self._loaded, self._layers = loaded, tuple(layers)
        self._keys = {"logits": graph.LOGITS, "features": graph.FEATURES}
        # Channels-last convolutions are 1.5 times as fast on a CPU, and no slower on a GPU.
        self._extract = loaded.graph.extractor(self._layers).to(
            loaded.device, memory_format=torch.channels_last
        )
        self.outputs = dict.fromkeys(self._keys, 0)
        crop = loaded.description["input"]["crop"]
        values, outputs = self(np.zeros((1, crop, crop, 3), np.uint8))
        self.shapes = {layer: tuple(as_maps(value).shape[1:]) for layer, value in values.items()}
        self.outputs = {
            name: value.shape[1]
            for name, value in outputs.items()
            if value is not None and value.ndim == 2
        }

    def __call__(
        self, images: np.ndarray
    ) -> tuple[dict[str, "torch.Tensor"], dict[str, "torch.Tensor"]]:
        """Return (values by layer, outputs by name) of images uint8 (B, H, W, 3)."""
        import torch

        with torch.inference_mode():
            values = self._extract(self._loaded.preprocess(images))
        return (
            {layer: values[layer] for layer in self._layers},
            {name: values.get(self._keys[name]) for name in self.outputs},
        )


def _count_classes(packed: h5py.File, labels: np.ndarray, logits: int | None) -> int:
    """Return the number of classes; raises RfatlasError for a label beyond it."""
    named = len(packed.attrs.get("class_names", ()))
    classes = logits or max(named, int(labels.max(initial=-1)) + 1)
    wrong = np.nonzero((labels < -1) | (labels >= classes))[0]
    if len(wrong):
        name = packed["names"].asstr()[wrong[0]]
        raise RfatlasError(
            f"{name}: label {labels[wrong[0]]} of {len(wrong)} image(s) like it is not among the "
            f"{classes} classes of the network; use 0 to {classes - 1}, or -1 for unknown"
        )
    return classes


def merge(ranges: Sequence[str | Path], output: str | Path) -> None:
    """Merge the files of consecutive ranges, in order, into `output`.

    The result is what one range over all images gives; memory does not grow with the number of
    ranges or images. Raises RfatlasError if a range is missing, out of order or overlaps, or if the
    files were made from different images, weights or settings.
    """
    attrs, devices, names = _check_ranges(ranges)
    total = attrs["stop"]
    with store.create(output, attrs | {"device": ", ".join(sorted(devices))}) as file:
        summaries: dict[str, Summary] = {}
        classes = None
        for path in jobs.progress(ranges, unit="range", desc="ranges"):
            with store.open(path, STAGE) as part:
                start, stop = int(part.attrs["start"]), int(part.attrs["stop"])
                for layer in names:
                    summary = Summary.read(part[layer], start, stop)
                    if layer in summaries:
                        summaries[layer].merge(summary)
                    else:
                        summaries[layer] = summary
                classes = len(part[names[0]]["class_mean"])
                for name in _per_image(part, names):
                    source = part[name]
                    if name not in file:
                        file.create_dataset(name, (total, *source.shape[1:]), source.dtype)
                    for block in _row_blocks(source):
                        file[name][start + block.start : start + block.stop] = source[block]
        for layer, summary in summaries.items():
            summary.write(file[layer])
        _finish(file, names, classes)


def _check_ranges(ranges: Sequence[str | Path]) -> tuple[dict[str, Any], set[str], list[str]]:
    """Return (attributes of the whole, devices, layers), or raise RfatlasError."""
    whole: dict[str, Any] = {}
    devices: set[str] = set()
    expected = 0
    for path in ranges:
        with store.open(path, STAGE) as part:
            attrs = dict(part.attrs)
            names = [name for name in part if name != "output"]
        attrs.pop("complete")
        start, stop = int(attrs.pop("start")), int(attrs.pop("stop"))
        devices.add(attrs.pop("device"))
        config = json.loads(attrs["config"])
        config.pop("range", None)
        attrs["config"] = json.dumps(config, sort_keys=True)
        whole = whole or attrs
        differing = sorted(
            key
            for key in whole
            if key != "rfatlas_version" and str(whole[key]) != str(attrs.get(key))
        )
        if differing:
            raise RfatlasError(
                f"{path}: its {', '.join(differing)} differ(s) from that of {ranges[0]}; ranges of "
                "one run must come from the same images, weights and settings: delete and rerun"
            )
        if start != expected:
            raise RfatlasError(
                f"{path}: starts at image {start}, expected {expected}; ranges must be given in "
                "order, without gap or overlap"
            )
        expected = stop
    if expected != int(whole["total"]):
        raise RfatlasError(
            f"{ranges[-1]}: the ranges end at image {expected}, expected {int(whole['total'])}; "
            "a range is missing"
        )
    return whole | {"start": 0, "stop": expected}, devices, names


def _per_image(part: h5py.File, layers: Sequence[str]) -> list[str]:
    """Return the names of the datasets that have one row per image."""
    names = [f"{layer}/{kind}" for layer in layers for kind in ("image_max", "image_mean", "maps")]
    names += [f"output/{kind}" for kind in ("labels", "logits", "features")]
    return [name for name in names if name in part]
