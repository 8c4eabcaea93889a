"""The K largest values of each channel with their places, kept while the images go by."""

from dataclasses import dataclass, field

import numpy as np

_WAITING = 0.25
"""Share of a top list that may wait to be sorted in: fewer sorts against looser thresholds."""


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
        columns = (later.value, later.image, later.position)
        self.offer(channel, *(column[channel, slot] for column in columns))
        self.settle()


def _descending(value: np.ndarray) -> np.ndarray:
    """Return i64 in 0..2^32 - 1 that ascend where the f32 values descend; -0 equals 0."""
    bits = (value + np.float32(0)).view(np.uint32)
    negative = bits >> 31 == 1
    return np.where(negative, bits, ~bits & np.uint32(0x7FFFFFFF)).astype(np.int64)
