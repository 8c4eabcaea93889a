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
        channel, *new = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        self._waiting.clear()
        rows, k = np.unique(channel), self.value.shape[1]
        every = np.concatenate((np.repeat(rows, k), channel))
        arrays = (self.value, self.image, self.position)
        value, *places = (
            np.concatenate((array[rows].ravel(), added))
            for array, added in zip(arrays, new, strict=True)
        )
        # Stable: of equal values, what was there or came first stays first.
        order = np.lexsort((-value, every))
        best = order[np.searchsorted(every[order], rows)[:, None] + np.arange(k)]
        for array, values in zip(arrays, (value, *places), strict=True):
            array[rows] = values[best]

    def extend(self, later: "TopList") -> None:
        """Merge in a list whose images all come after this one's."""
        later.settle()
        channel, slot = np.nonzero(later.image >= 0)
        columns = (later.value, later.image, later.position)
        self.offer(channel, *(column[channel, slot] for column in columns))
        self.settle()
