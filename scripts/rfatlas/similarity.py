"""How alike two layers are, from one number per image and channel: CKA, SVCCA, matched channels.

All of it follows from the cross products of channels over images, which `moments` sums up in
batches of images: memory does not grow with their number. Beside the products of layers that saw
the same image it keeps those of layers that saw different ones: what a measure gives by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import linear_sum_assignment

#: Numbers that a batch of images holds at most, over all layers: 64 MB in float64.
BATCH_NUMBERS = 8_000_000

#: Activations are good to about this share of their size.
ROUNDING_SHARE = 1e-6

#: A direction of a layer counts as variable above this share of its largest variance; below there
#: is rounding only.
ROUNDING = 1e-12


@dataclass
class Moments:
    """Cross products of the centred features of several layers over n images.

    `edges` (L + 1,) are the columns where each layer begins; `product` (D, D) is the sum over
    images of x x^T, `shuffled` (D, D) that of x y^T where y is x of another image; `norms` (L,) the
    sum of squared lengths of each layer's features, `norm_products` (L, L) that of their products,
    image by image.
    """

    n: int
    edges: np.ndarray
    product: np.ndarray
    shuffled: np.ndarray
    norms: np.ndarray
    norm_products: np.ndarray

    def cross(self, a: int, b: int, shuffled: bool = False) -> np.ndarray:
        """Return the cross products (C_a, C_b) of layers a and b."""
        source = self.shuffled if shuffled else self.product
        return source[self._columns(a), self._columns(b)]

    def _columns(self, layer: int) -> slice:
        return slice(self.edges[layer], self.edges[layer + 1])


def moments(layers: Sequence, seed: int = 0, batch: int | None = None) -> Moments:
    """Sum up the cross products of layers, arrays (or HDF5 datasets) of (n, C) over the same n
    images.

    Images are read in batches of `batch` (by default what fits `BATCH_NUMBERS`), twice: for the
    means, and for the products of what is left without them. A channel that varies by rounding
    alone counts as constant. For `shuffled` the images of each batch are permuted, with `seed`;
    where images are sorted by class, batches should thus hold many classes.
    """
    edges = np.concatenate([[0], np.cumsum([layer.shape[1] for layer in layers])])
    n, width = layers[0].shape[0], int(edges[-1])
    batch = batch or max(1, BATCH_NUMBERS // width)

    def batches():
        for start in range(0, n, batch):
            parts = [layer[start : start + batch] for layer in layers]
            yield np.concatenate(parts, axis=1, dtype=np.float64)

    total, low, high = np.zeros(width), np.full(width, np.inf), np.full(width, -np.inf)
    for rows in batches():
        total += rows.sum(axis=0)
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    mean, constant = total / n, high - low <= ROUNDING_SHARE * np.maximum(abs(low), abs(high))
    product, shuffled = np.zeros((width, width)), np.zeros((width, width))
    norms, norm_products = np.zeros(len(layers)), np.zeros((len(layers), len(layers)))
    random = np.random.default_rng(seed)
    for rows in batches():
        rows -= mean
        rows[:, constant] = 0
        product += rows.T @ rows
        shuffled += rows.T @ rows[random.permutation(len(rows))]
        lengths = np.add.reduceat(rows**2, edges[:-1], axis=1)
        norms += lengths.sum(axis=0)
        norm_products += lengths.T @ lengths
    return Moments(n, edges, product, shuffled, norms, norm_products)


def cka(found: Moments, a: int, b: int, shuffled: bool = False) -> float:
    """Return linear centred kernel alignment of layers a and b: 0 (unrelated) to 1.

    |X^T Y|^2 / (|X^T X| |Y^T Y|), Frobenius norms of centred features (Kornblith et al. 2019, arXiv
    1905.00414, eq. 5). It does not change if the features of a layer are turned or all multiplied
    by a number. NaN where a layer is the same for all images. With few images for its channels it
    is too large; see `cka_debiased`.
    """
    own = np.linalg.norm(found.cross(a, a)) * np.linalg.norm(found.cross(b, b))
    return np.sum(found.cross(a, b, shuffled) ** 2) / own if own > 0 else np.nan


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
    trace = np.sum(found.cross(a, b) ** 2) - diagonal
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
    first, second = (np.diagonal(found.cross(layer, layer)) for layer in (a, b))
    scale = np.sqrt(np.multiply.outer(first, second))
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
