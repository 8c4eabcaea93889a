"""How alike two layers are, from one number per image and channel: CKA, SVCCA, matched channels.

All of it follows from the cross products of channels over images, which `Moments` sums up in
batches of images, and for `TILE` channels with `TILE` others at a time: memory grows neither with
the number of images nor with that of layers. Beside the products of layers that saw the same image
it keeps those of layers that saw different ones: what a measure gives by chance.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from scipy.optimize import linear_sum_assignment

#: Numbers that a batch of images holds at most, over all layers: 64 MB in float64.
BATCH_NUMBERS = 8_000_000

#: Products are held in squares of so many channels; of more only where a single layer has more.
#: The images are read again for every two such groups of channels.
TILE = 4096

#: Activations are good to about this share of their size.
ROUNDING_SHARE = 1e-6

#: A direction of a layer counts as variable above this share of its largest variance; below there
#: is rounding only.
ROUNDING = 1e-12


class Moments:
    """Cross products of the centred features of several layers over n images.

    `layers` are arrays (or open HDF5 datasets) of (n, C) over the same n images, of which `batch`
    are read at once (by default what fits `BATCH_NUMBERS`); for `shuffled`, the images of each
    batch are permuted by `seed`: where images are sorted by class, batches should thus hold many
    classes. Groups have `tile` channels, see `TILE`.

    A channel that varies by rounding alone counts as constant. `squares` holds the sum of the
    squares of each channel (C,) by layer, `norms` (L,) that of all channels of a layer, and
    `norm_products` (L, L) the sum of the products of two layers' squared lengths, image by image.
    """

    def __init__(self, layers: Sequence, seed: int = 0, batch: int | None = None, tile: int = TILE):
        self._layers, self._seed = layers, seed
        widths = [layer.shape[1] for layer in layers]
        self.n = layers[0].shape[0]
        self._batch = batch or max(1, BATCH_NUMBERS // sum(widths))
        self._groups = _groups(widths, tile)
        self._group = {layer: group for group in self._groups for layer in group}
        self._mean, self._constant = self._centre(widths)
        self.squares = [np.zeros(width) for width in widths]
        self.norm_products = np.zeros((len(layers), len(layers)))
        for start in self._starts():
            lengths = np.empty((min(self._batch, self.n - start), len(layers)))
            for layer in range(len(layers)):
                squared = self._rows(start, range(layer, layer + 1)) ** 2
                self.squares[layer] += squared.sum(axis=0)
                lengths[:, layer] = squared.sum(axis=1)
            self.norm_products += lengths.T @ lengths
        self.norms = np.array([squares.sum() for squares in self.squares])
        self._held: tuple[tuple[range, range], np.ndarray, np.ndarray] | None = None
        self._squared: dict[tuple[int, int, bool], float] = {}

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield every two layers (a, b), a <= b, in an order in which the images are read least:
        those of one group first, which hold every layer with itself."""
        for group in self._groups:
            yield from itertools.combinations_with_replacement(group, 2)
        for first, second in itertools.combinations(self._groups, 2):
            yield from itertools.product(first, second)

    def cross(self, a: int, b: int, shuffled: bool = False) -> np.ndarray:
        """Return the cross products (C_a, C_b) of layers a and b: the sum over images of x y^T, or
        of x z^T where z is y of another image.

        Quick for layers of the two groups that were asked for last; see `pairs`.
        """
        groups = self._group[a], self._group[b]
        if self._held is None or self._held[0] != groups:
            # What is held goes first: never two at a time.
            self._held = None
            self._held = groups, *self._products(*groups)
        source = self._held[2] if shuffled else self._held[1]
        return source[self._columns(a, groups[0]), self._columns(b, groups[1])]

    def squared(self, a: int, b: int, shuffled: bool = False) -> float:
        """Return the sum of the squares of `cross`, which is computed once."""
        key = a, b, shuffled
        if key not in self._squared:
            self._squared[key] = float(np.sum(self.cross(a, b, shuffled) ** 2))
        return self._squared[key]

    def _centre(self, widths: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Mean of each channel (C,), and whether it is constant (C,), by layer."""
        total = [np.zeros(width) for width in widths]
        low = [np.full(width, np.inf) for width in widths]
        high = [np.full(width, -np.inf) for width in widths]
        for start in self._starts():
            for i, layer in enumerate(self._layers):
                rows = layer[start : start + self._batch].astype(np.float64)
                total[i] += rows.sum(axis=0)
                low[i] = np.minimum(low[i], rows.min(axis=0))
                high[i] = np.maximum(high[i], rows.max(axis=0))
        constant = [
            top - bottom <= ROUNDING_SHARE * np.maximum(abs(bottom), abs(top))
            for bottom, top in zip(low, high, strict=True)
        ]
        return [each / self.n for each in total], constant

    def _starts(self) -> range:
        return range(0, self.n, self._batch)

    def _rows(self, start: int, layers: range) -> np.ndarray:
        """The centred features of a batch of images, the channels of these layers side by side."""
        parts = []
        for layer in layers:
            rows = self._layers[layer][start : start + self._batch] - self._mean[layer]
            rows[:, self._constant[layer]] = 0
            parts.append(rows)
        return np.concatenate(parts, axis=1)

    def _products(self, first: range, second: range) -> tuple[np.ndarray, np.ndarray]:
        shape = [sum(len(self._mean[layer]) for layer in group) for group in (first, second)]
        product, shuffled = np.zeros(shape), np.zeros(shape)
        random = np.random.default_rng(self._seed)
        for start in self._starts():
            rows = self._rows(start, first)
            others = rows if first == second else self._rows(start, second)
            product += rows.T @ others
            shuffled += rows.T @ others[random.permutation(len(others))]
        return product, shuffled

    def _columns(self, layer: int, group: range) -> slice:
        """The place of a layer's channels among those of its group."""
        begin = sum(len(self._mean[other]) for other in range(group.start, layer))
        return slice(begin, begin + len(self._mean[layer]))


def _groups(widths: Sequence[int], tile: int) -> list[range]:
    """Consecutive layers of together at most `tile` channels; a wider layer has its own group."""
    groups, start = [], 0
    for stop in range(1, len(widths) + 1):
        if stop == len(widths) or sum(widths[start : stop + 1]) > tile:
            groups.append(range(start, stop))
            start = stop
    return groups


def cka(found: Moments, a: int, b: int, shuffled: bool = False) -> float:
    """Return linear centred kernel alignment of layers a and b: 0 (unrelated) to 1.

    |X^T Y|^2 / (|X^T X| |Y^T Y|), Frobenius norms of centred features (Kornblith et al. 2019, arXiv
    1905.00414, eq. 5). It does not change if the features of a layer are turned or all multiplied
    by a number. NaN where a layer is the same for all images. With few images for its channels it
    is too large; see `cka_debiased`.
    """
    own = np.sqrt(found.squared(a, a)) * np.sqrt(found.squared(b, b))
    return found.squared(a, b, shuffled) / own if own > 0 else np.nan


def cka_debiased(found: Moments, a: int, b: int) -> float:
    """Return linear CKA from the unbiased estimate of HSIC: about 0, also below, where unrelated.

    HSIC of Song et al. 2012 (JMLR 13:1393, eq. 5), written for centred features, in whose kernel
    matrices K every row sums up to 0. NaN below four images and where a layer varies too little
    for an estimate.
    """
    if found.n < 4:
        return np.nan
    own = _hsic(found, a, a) * _hsic(found, b, b)
    positive = min(_hsic(found, a, a), _hsic(found, b, b)) > 0
    return _hsic(found, a, b) / np.sqrt(own) if positive else np.nan


def _hsic(found: Moments, a: int, b: int) -> float:
    n, diagonal = found.n, found.norm_products[a, b]
    trace = found.squared(a, b) - diagonal
    sums = found.norms[a] * found.norms[b] / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * diagonal) / (n * (n - 3))


class Canonical:
    """SVCCA of any two of several layers (Raghu et al. 2017, arXiv 1706.05806).

    Each layer is reduced to the fewest principal directions that hold at least the share `variance`
    of its variance; SVCCA is the mean canonical correlation of what is left of two layers. With
    share 1 it does not change if a layer's features are mixed by any invertible matrix.
    """

    def __init__(self, found: Moments, variance: float = 0.99):
        self._found, self._variance = found, variance
        self._whitening = cache(self._whitened)

    def directions(self, layer: int) -> int:
        """Return the number of principal directions kept; 0 for a layer that never changes."""
        return self._whitening(layer).shape[1]

    def svcca(self, a: int, b: int, shuffled: bool = False) -> float:
        """Return the mean canonical correlation of layers a and b, 0 to 1; NaN without variance."""
        first, second = self._whitening(a), self._whitening(b)
        if not first.shape[1] or not second.shape[1]:
            return np.nan
        cross = first.T @ self._found.cross(a, b, shuffled) @ second
        return float(np.linalg.svd(cross, compute_uv=False).clip(0, 1).mean())

    def _whitened(self, layer: int) -> np.ndarray:
        """Return the matrix (C, directions) that makes a layer's kept directions uncorrelated."""
        values, vectors = np.linalg.eigh(self._found.cross(layer, layer))
        values, vectors = values[::-1], vectors[:, ::-1]
        if values[0] <= 0:
            return vectors[:, :0]
        explained = np.cumsum(values.clip(0)) / values.clip(0).sum()
        kept = 1 + int(np.searchsorted(explained, self._variance - ROUNDING))
        kept = min(kept, int((values > ROUNDING * values[0]).sum()))
        return vectors[:, :kept] / np.sqrt(values[:kept])


def correlations(found: Moments, a: int, b: int, shuffled: bool = False) -> np.ndarray:
    """Return Pearson's correlation of every channel of layer a with every one of layer b, (C_a,
    C_b); NaN for channels that never change."""
    scale = np.sqrt(np.multiply.outer(found.squares[a], found.squares[b]))
    cross = found.cross(a, b, shuffled)
    return np.divide(cross, scale, out=np.full(cross.shape, np.nan), where=scale > 0)


def match(correlation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair rows with columns of (C, D), one to one, so that the sum of correlations is largest.

    Returns the rows, ascending, and the column of each. As many pairs are made as the smaller side
    allows; rows and columns without a correlation (NaN) stay alone.
    """
    rows = np.flatnonzero(np.isfinite(correlation).any(axis=1))
    columns = np.flatnonzero(np.isfinite(correlation).any(axis=0))
    chosen = linear_sum_assignment(correlation[np.ix_(rows, columns)], maximize=True)
    return rows[chosen[0]], columns[chosen[1]]
