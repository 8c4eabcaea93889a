"""Gabor functions fitted to fields, all at once.

docs/columns.md has the function, its directions and its bounds. All fields and all their starts
are fitted at once, by variable projection: the amplitude A, the phase and the offset B are linear
(as A cos phase, A sin phase, B) and solved exactly for every trial of the other six, which damped
Newton steps improve (Levenberg-Marquardt with the exact Hessian: what no Gabor fits is often the
larger part, and Gauss-Newton steps then take hundreds of rounds). No Jacobian is formed.
With z = A e^{i phase} and g = exp(envelope + i carrier) the model is Re[z g] + B, and its
derivative by any parameter is Re[z g q] with a polynomial q of degree 2 at most in x and y. All
that the iteration needs are then moments of |g|^2, g^2 and g times the field; the carrier separates
into factors of x and y, and so a moment is two matrix products.
"""

from typing import Any, NamedTuple

import numpy as np

from rfatlas.statistics import circular_difference, wrapped

#: Parameters of a fit, in the order of the arrays here.
PARAMETERS = (
    "x", "y", "sigma_x", "sigma_y", "theta_deg", "frequency", "phase_deg", "amplitude", "offset",
)  # fmt: skip

#: Fields with a smaller edge have too few pixels for nine parameters.
SMALLEST = 5

#: Fields up to this edge are fitted whole, larger ones in a window around their energy.
WHOLE = 31

#: The window holds this share of the field's energy and a margin of a quarter to each side.
ENERGY = 0.9

#: Smallest sigma, in pixels: less is a single pixel.
SIGMA_MIN = 0.4

#: Starts of a field, each with another carrier; the best is then turned by a right angle once.
STARTS = 6

#: Starts agree with the best one if they explain as much of the variance as it, up to this share.
AGREEING = 1e-3

#: A field is ambiguous if a start ends with an orientation more than so many degrees away from the
#: best one's, explains at least the share `RIVAL` of what that explains, and leaves at most
#: `RIVAL_REST` times as much.
RIVAL_DEG, RIVAL, RIVAL_REST = 20.0, 0.9, 1.2

#: A Gabor of an amplitude beyond so many times the field's largest value describes no field: its
#: carrier is near zero at every pixel (near the Nyquist frequency).
STEEP = 50

#: A Gabor that explains less than this share of a field's variance says nothing of it.
POOR = 0.1

#: A Gabor is oriented from this orientation selectivity on, as a response to gratings is.
SELECTIVE_OSI = 0.5

# Frequencies at which the selectivity of a Gabor is looked for.
_FREQUENCIES = 24


class _Rest(NamedTuple):
    """When an iteration has come to rest: the residual is orthogonal to every derivative, up to a
    `cosine`; or the sum of squares changes by less than the share `change`; or no more is left of
    the variance than the share `left`. Without any of that it ends after so many `iterations`.
    """

    cosine: float
    change: float
    left: float
    iterations: int


# All starts go far enough to tell how good they end, the best goes on to the end.
_ROUGH = _Rest(1e-2, 1e-6, 1e-6, 20)
_FINE = _Rest(1e-5, 1e-10, 1e-11, 150)
# Of two linear columns that are nearly the same, as a share of their squares.
_RIDGE = 1e-12
# Pixels that are worked on at a time: a few arrays of them fit a cache.
_PIXELS = 2**17
# Pixels of the fields that are fitted together.
_BLOCK = 2**20

# Exponents (of x, of y) of the polynomials of degree 2.
_MONOMIALS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
_PX, _PY = (np.array(powers) for powers in zip(*_MONOMIALS, strict=True))
# In a Gram matrix of the two linear columns and the six derivatives: which polynomial each has.
_ROWS = np.array([0, 0, 1, 2, 3, 4, 5, 6])
_BELOW = np.tril_indices(6, -1)
_X, _Y, _SX, _SY, _THETA, _F = range(6)


# ---- the model


def gabors(size: int, parameters: np.ndarray) -> np.ndarray:
    """Return Gabor functions (n, size, size) with `PARAMETERS` (n, 9) on the pixels of a field."""
    x, y, sx, sy, theta, f, phase, amplitude, offset = np.asarray(parameters, float).T[
        :, :, None, None
    ]
    place = np.arange(size) - (size - 1) / 2
    dx, dy = place - x, -place[:, None] - y
    c, s = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    along, across = c * dx + s * dy, c * dy - s * dx
    envelope = np.exp(-0.5 * ((along / sx) ** 2 + (across / sy) ** 2))
    return amplitude * envelope * np.cos(2 * np.pi * f * along + np.radians(phase)) + offset


def bounds(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest x, y, sigma_x, sigma_y and frequency (5,) each in a field.

    The centre lies within the field, no sigma is longer than its edge, and the frequency is between
    a quarter of a cycle per edge (less, and a cosine is a constant) and the Nyquist frequency.
    """
    half = size / 2
    low = (-half, -half, SIGMA_MIN, SIGMA_MIN, 0.25 / size)
    return np.array(low), np.array((half, half, size, size, 0.5))


class _Moments(NamedTuple):
    """Sums over the pixels at shapes (n, 6): x, y, log sigma_x, log sigma_y, theta (radians),
    frequency.

    `square` of |g|^2, `double` of g^2, `data` of g times the field and `plain` of g alone, each
    times the powers of y and of x from the Gabor's centre (n, power of y, power of x).
    """

    square: np.ndarray
    double: np.ndarray
    data: np.ndarray
    plain: np.ndarray


class _Grid:
    """Fields (m, S, S), each with mean 0, the `total` of its squares and the memory that sums over
    its pixels need.

    Arrays as large as the fields are made once: for every trial anew, the system would spend more
    time on their pages than the arithmetic takes.
    """

    def __init__(self, fields: np.ndarray):
        self.fields, self.size = fields, fields.shape[1]
        self.pixels, self.total = self.size**2, np.square(fields).sum((1, 2))
        self._place = np.arange(self.size) - (self.size - 1) / 2
        self._rows = max(1, _PIXELS // self.pixels)
        self._square = np.empty((self._rows, self.size, self.size))
        self._pair = np.empty((2, *self._square.shape))

    def moments(self, owner: np.ndarray, shape: np.ndarray) -> _Moments:
        """Return the moments at shapes (n, 6) of the fields with the numbers `owner` (n,)."""
        parts = []
        for first in range(0, max(len(shape), 1), self._rows):
            rows = slice(first, first + self._rows)
            parts.append(self._moments(owner[rows], shape[rows]))
        return _Moments(*map(np.concatenate, zip(*parts, strict=True)))

    def _moments(self, owner: np.ndarray, shape: np.ndarray) -> _Moments:
        n = len(shape)
        square, pair = self._square[:n], self._pair[:, :n]
        product, envelope = pair
        c, s, ax, ay, k = _turned(shape)
        dx, dy = self._place - shape[:, :1], -self._place - shape[:, 1:2]
        a, b, d = c * c * ax + s * s * ay, c * s * (ax - ay), s * s * ax + c * c * ay
        left = np.stack([np.ones_like(dy), dy, dy * dy], 2)
        right = np.empty((n, 3, self.size))
        right[:, 0], right[:, 1] = -0.5 * a[:, None] * dx * dx, -b[:, None] * dx
        right[:, 2] = -0.5 * d[:, None]
        np.matmul(left, right, out=envelope)
        # Beyond, squares would be too small to be normal numbers, which are slow.
        np.exp(np.maximum(envelope, -300, out=envelope), out=envelope)
        np.multiply(envelope, envelope, out=square)
        np.multiply(np.take(self.fields, owner, 0, out=product, mode="clip"), envelope, out=product)
        waves = tuple(
            np.exp(1j * (k * part)[:, None] * distance) for part, distance in ((c, dx), (s, dy))
        )
        powers = _powers(dx, 4), _powers(dy, 4).swapaxes(1, 2)
        m0 = powers[1] @ (square @ powers[0])
        m2 = _sums(square, powers, tuple(wave * wave for wave in waves))
        return _Moments(m0, m2, *_sums(pair, powers, waves))


def _sums(
    planes: np.ndarray,
    powers: tuple[np.ndarray, np.ndarray],
    waves: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Return the sums (..., n, power of y, power of x) of planes (..., n, S, S) times a wave times
    powers; powers (n, S, p) and (n, p, S), waves (n, S) each."""
    x = powers[0] * waves[0][..., None]
    y = powers[1] * waves[1][:, None]
    count = x.shape[2]
    parts = planes @ np.concatenate([x.real, x.imag], 2)
    return y @ (parts[..., :count] + 1j * parts[..., count:])


def _powers(values: np.ndarray, degree: int) -> np.ndarray:
    """Return the powers 0 to `degree` of values (n, m) along a last axis."""
    powers = np.ones((*values.shape, degree + 1))
    for exponent in range(1, degree + 1):
        powers[..., exponent] = powers[..., exponent - 1] * values
    return powers


def _turned(shape: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return cos and sin of theta, 1 / sigma_x^2, 1 / sigma_y^2, 2 pi f of shapes, (n,) each."""
    _, _, log_sx, log_sy, theta, f = shape.T
    sigma = np.exp(-2 * log_sx), np.exp(-2 * log_sy)
    return np.cos(theta), np.sin(theta), *sigma, 2 * np.pi * f


def _polynomials(shape: np.ndarray) -> np.ndarray:
    """Return the polynomials (n, 7, 6), in `_MONOMIALS`, of g and of its derivatives over g."""
    c, s, ax, ay, k = _turned(shape)
    q = np.zeros((len(c), 7, 6), complex)
    q[:, 0, 0] = 1
    q[:, 1, 0], q[:, 2, 0] = -1j * k * c, -1j * k * s
    q[:, 1, 1], q[:, 1, 2] = c * c * ax + s * s * ay, c * s * (ax - ay)
    q[:, 2, 1], q[:, 2, 2] = q[:, 1, 2], s * s * ax + c * c * ay
    q[:, 3, 3], q[:, 3, 4], q[:, 3, 5] = ax * c * c, 2 * ax * c * s, ax * s * s
    q[:, 4, 3], q[:, 4, 4], q[:, 4, 5] = ay * s * s, -2 * ay * c * s, ay * c * c
    q[:, 5, 1], q[:, 5, 2] = -1j * k * s, 1j * k * c
    q[:, 5, 3], q[:, 5, 5] = (ax - ay) * c * s, (ay - ax) * c * s
    q[:, 5, 4] = (ay - ax) * (c * c - s * s)
    q[:, 6, 1], q[:, 6, 2] = 2j * np.pi * c, 2j * np.pi * s
    return q


def _second(shape: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return the sums (n, 6, 6) over the monomials' moments `left` (n, 6) of the second derivatives
    of log g."""
    c, s, ax, ay, k = _turned(shape)
    one, x, y, xx, xy, yy = left.T
    along, across = c * x + s * y, c * y - s * x
    both = c * s * (yy - xx) + (c * c - s * s) * xy
    along2 = c * c * xx + 2 * c * s * xy + s * s * yy
    across2 = s * s * xx - 2 * c * s * xy + c * c * yy
    found = np.zeros((len(c), 6, 6), complex)
    found[:, _X, _X] = -(c * c * ax + s * s * ay) * one
    found[:, _X, _Y] = -c * s * (ax - ay) * one
    found[:, _Y, _Y] = -(s * s * ax + c * c * ay) * one
    found[:, _X, _SX], found[:, _Y, _SX] = -2 * ax * c * along, -2 * ax * s * along
    found[:, _X, _SY], found[:, _Y, _SY] = 2 * ay * s * across, -2 * ay * c * across
    found[:, _SX, _SX], found[:, _SY, _SY] = -2 * ax * along2, -2 * ay * across2
    found[:, _X, _THETA] = (ay - ax) * (s * along - c * across) + 1j * k * s * one
    found[:, _Y, _THETA] = -(ay - ax) * (c * along + s * across) - 1j * k * c * one
    found[:, _SX, _THETA], found[:, _SY, _THETA] = 2 * ax * both, -2 * ay * both
    found[:, _THETA, _THETA] = (ay - ax) * (across2 - along2) - 1j * k * along
    found[:, _X, _F], found[:, _Y, _F] = -2j * np.pi * c * one, -2j * np.pi * s * one
    found[:, _THETA, _F] = 2j * np.pi * across
    found[:, *_BELOW] = found[:, _BELOW[1], _BELOW[0]]
    return found


def _linear(moments: _Moments, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best z (n,) of Re[z g] + B and what it explains of the sum of squares (n,)."""
    k0, k2 = moments.square[:, 0, 0], moments.double[:, 0, 0]
    data, plain = moments.data[:, 0, 0], moments.plain[:, 0, 0]
    aa = 0.5 * (k0 + k2.real) - plain.real**2 / pixels
    bb = 0.5 * (k0 - k2.real) - plain.imag**2 / pixels
    # The second column is Re[i g] = -Im[g].
    ab = -0.5 * k2.imag + plain.real * plain.imag / pixels
    # At the Nyquist frequency the two columns can be the same.
    ridge = _RIDGE * (aa + bb) + 1e-300
    aa, bb = aa + ridge, bb + ridge
    determinant = aa * bb - ab * ab
    da, db = data.real, -data.imag
    za, zb = (bb * da - ab * db) / determinant, (aa * db - ab * da) / determinant
    return za + 1j * zb, za * da + zb * db


def _gram(moments: _Moments, q: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gram matrix (n, 8, 8) of the columns Re[g], Re[i g] and the six derivatives
    Re[z g q], and their sums (n, 8); `q` (n, 7, 6) as `_polynomials` has them."""
    pairs = _PY[:, None] + _PY, _PX[:, None] + _PX
    turned = q.swapaxes(1, 2)
    k0 = q @ moments.square[:, *pairs] @ turned.conj()
    k2 = q @ moments.double[:, *pairs] @ turned
    plain = (q @ moments.plain[:, _PY, _PX, None])[..., 0]
    alpha = np.empty((len(z), 8), complex)
    alpha[:, 0], alpha[:, 1], alpha[:, 2:] = 1, 1j, z[:, None]
    k0, k2 = (k[:, _ROWS[:, None], _ROWS] for k in (k0, k2))
    gram = 0.5 * (alpha[:, :, None] * (alpha[:, None] * k2 + alpha.conj()[:, None] * k0)).real
    return gram, (alpha * plain[:, _ROWS]).real


# ---- iteration


class _State(NamedTuple):
    """The state of fits: shapes (n, 6), z (n,), residual sums of squares (n,); of half of that sum,
    the linear parameters always at their best, the downhill gradient (n, 6) and the Hessian
    (n, 6, 6); and the lengths (n, 6) of the derivatives, less what the linear parameters take up.
    """

    shape: np.ndarray
    z: np.ndarray
    rss: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    length: np.ndarray

    @classmethod
    def at(cls, grid: _Grid, owner: np.ndarray, shape: np.ndarray) -> "_State":
        pixels = grid.pixels
        moments = grid.moments(owner, shape)
        z, explained = _linear(moments, pixels)
        q = _polynomials(shape)
        gram, sums = _gram(moments, q, z)
        gram -= sums[:, :, None] * sums[:, None] / pixels
        # Moments of the residual times g: field less Re[z g] less B.
        offset = -(z * moments.plain[:, 0, 0]).real / pixels
        z_ = z[:, None, None]
        left = moments.data - 0.5 * (z_ * moments.double + z_.conj() * moments.square)
        left -= offset[:, None, None] * moments.plain
        pairs = left[:, _PY[:, None] + _PY, _PX[:, None] + _PX]
        single = left[:, _PY, _PX]
        q = q[:, 1:]
        slope = (q @ single[..., None])[..., 0]
        curved = (z_ * (q @ pairs @ q.swapaxes(1, 2) + _second(shape, single))).real
        linear, mixed = gram[:, :2, :2], gram[:, 2:, :2]
        linear = linear + (_RIDGE * np.trace(linear, axis1=1, axis2=2) + 1e-300)[
            :, None, None
        ] * np.eye(2)
        # The Gauss-Newton part has only the lengths to tell; the rest is the Newton step's.
        solved = np.linalg.solve(linear, mixed.swapaxes(1, 2))
        length = np.einsum("nii->ni", gram[:, 2:, 2:]) - (mixed.swapaxes(1, 2) * solved).sum(1)
        mixed = mixed - np.stack([slope.real, -slope.imag], 2)
        solved = np.linalg.solve(linear, mixed.swapaxes(1, 2))
        hessian = gram[:, 2:, 2:] - curved - mixed @ solved
        gradient, rss = (z[:, None] * slope).real, grid.total[owner] - explained
        return cls(shape, z, rss, gradient, hessian, np.sqrt(length.clip(1e-300)))

    def take(self, rows: np.ndarray) -> "_State":
        return _State(*(values[rows] for values in self))

    def put(self, rows: np.ndarray, other: "_State") -> None:
        for mine, theirs in zip(self, other, strict=True):
            mine[rows] = theirs


def _step(
    state: _State, damping: np.ndarray, low: np.ndarray, high: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the next shapes (n, 6), the reduction of the sum of squares that the quadratic model
    promises (n,), and the largest cosine of the residual with a derivative (n,).

    Parameters at a bound that would leave it stay. Directions of negative curvature are followed as
    if it were positive, so that saddles repel.
    """
    gradient = state.gradient
    held = (state.shape <= low) & (gradient < 0) | (state.shape >= high) & (gradient > 0)
    # Scaled by the lengths of the derivatives, so that the step does not depend on units.
    right = np.where(held, 0, gradient / state.length)
    cosine = np.abs(right).max(1) / np.sqrt(state.rss.clip(1e-300))
    matrix = state.hessian / (state.length[:, :, None] * state.length[:, None])
    # Steps in pixels, in logarithms, in radians and in cycles per pixel are no longer than this.
    limit = np.full_like(right, 0.7)
    limit[:, [_X, _Y]] = np.exp(state.shape[:, [_SX, _SY]].min(1))[:, None].clip(0.5)
    limit[:, _THETA], limit[:, _F] = 0.4, 0.5 / size
    scaled, promised = _solve(matrix, right, held, damping)
    step = scaled / state.length
    step *= (limit / np.abs(step).clip(1e-300)).min(1, keepdims=True).clip(max=1)
    target = (state.shape + step).clip(low, high)
    # Where a parameter runs into its bound it goes there, and the others are solved for anew.
    stops = (target != state.shape + step) & ~held
    rows = np.flatnonzero(stops.any(1))
    if len(rows):
        fixed = np.where(stops, (target - state.shape) * state.length, 0)[rows]
        other = right[rows] - (matrix[rows] @ fixed[..., None])[..., 0]
        free = held[rows] | stops[rows]
        scaled, _ = _solve(matrix[rows], np.where(free, 0, other), free, damping[rows])
        step = (scaled + fixed) / state.length[rows]
        step *= (limit[rows] / np.abs(step).clip(1e-300)).min(1, keepdims=True).clip(max=1)
        target[rows] = (state.shape[rows] + step).clip(low, high)
    return target, promised, cosine


def _solve(
    matrix: np.ndarray, right: np.ndarray, held: np.ndarray, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the damped steps (n, 6), 0 where held, of scaled problems, and what they promise."""
    matrix = np.where(held[:, :, None] | held[:, None], 0, matrix)
    value, vector = np.linalg.eigh(matrix)
    turned = (vector.swapaxes(1, 2) @ right[..., None])[..., 0]
    value = np.abs(value).clip(1e-6)
    scaled = turned / (value + damping[:, None])
    promised = (scaled * (2 * turned - value * scaled)).sum(1)
    return (vector @ scaled[..., None])[..., 0], promised


def refine(
    fields: np.ndarray, owner: np.ndarray, shape: np.ndarray, rest: _Rest = _FINE
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit Gabors from the given starts, each until it has converged.

    `fields` (m, S, S) with mean 0; `owner` (n,) the field of each start; `shape` (n, 6) its x, y,
    log sigma_x, log sigma_y, theta in radians, frequency; `rest` when to stop. Returns shapes (n,
    6), z = A e^{i phase} (n,), residual sums of squares (n,), and whether the iteration has
    converged (n,).
    """
    grid = _Grid(fields)
    low, high = _shape_bounds(grid.size)
    state = _State.at(grid, owner, shape.clip(low, high))
    final = state.take(np.arange(len(shape)))
    converged = np.zeros(len(shape), bool)
    active, damping = np.arange(len(shape)), np.full(len(shape), 1e-1)
    for _ in range(rest.iterations):
        trial, promised, cosine = _step(state, damping, low, high, grid.size)
        done = (cosine < rest.cosine) | (state.rss <= rest.left * grid.total[owner[active]])
        converged[active[done]] = True
        left = ~done
        active, state, damping = active[left], state.take(left), damping[left]
        if not len(active):
            break
        new = _State.at(grid, owner[active], trial[left])
        better = new.rss < state.rss
        small = rest.change * state.rss
        done = (damping <= 1) & (promised[left] < small) & (np.abs(new.rss - state.rss) < small)
        state.put(better, new.take(better))
        final.put(active, state)
        converged[active[done]] = True
        damping = np.where(better, np.maximum(damping / 8, 1e-9), damping * 5)
        left = ~done & (damping < 1e10)
        active, state, damping = active[left], state.take(left), damping[left]
        if not len(active):
            break
    return final.shape, final.z, final.rss, converged


def _shape_bounds(size: int) -> tuple[np.ndarray, np.ndarray]:
    rows = []
    for bound, turn in zip(bounds(size), (-np.inf, np.inf), strict=True):
        rows.append(np.array([*bound[:2], *np.log(bound[2:4]), turn, bound[4]]))
    return rows[0], rows[1]


# ---- starts


def _spread(fields: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the centre x, y (n,) of fields and their sigma (n,), from moments of the squared
    energy, which noise around a field moves little.

    The square of the energy of a Gaussian of sigma s is a Gaussian of s / 2.
    """
    size = fields.shape[1]
    place = np.arange(size) - (size - 1) / 2
    weight = np.square(np.square(fields))
    weight = weight / weight.sum((1, 2), keepdims=True)
    columns, rows = weight.sum(1), weight.sum(2)
    x, y = columns @ place, rows @ -place
    variance = columns @ place**2 - x**2 + rows @ place**2 - y**2
    return x, y, 2 * np.sqrt(variance / 2)


def _carriers(fields: np.ndarray) -> np.ndarray:
    """Return `STARTS` pairs of theta (radians) and frequency of each field (n, STARTS, 2).

    The highest peaks of the spectrum, one resolution apart, and last the direction in which the
    field changes most (its structure tensor) with the field's mean frequency along it.
    """
    n, size = fields.shape[:2]
    low, high = bounds(size)
    padded = max(32, -(-size // 8) * 16) if size <= 64 else size + size % 2
    power = np.abs(np.fft.rfft2(fields, (padded, padded)))
    v, u = -np.fft.fftfreq(padded), np.fft.rfftfreq(padded)
    radius = np.hypot(u, v[:, None])
    power[:, (radius < low[4]) | (radius > high[4]) | (u == 0) & (v[:, None] < 0)] = 0
    found = np.empty((n, STARTS, 2))
    row = np.arange(n)[:, None, None]
    reach = np.arange(-(padded // size), padded // size + 1)
    for number in range(STARTS - 1):
        iv, iu = np.unravel_index(power.reshape(n, -1).argmax(1), power.shape[1:])
        found[:, number, 0] = np.arctan2(v[iv], u[iu])
        found[:, number, 1] = np.hypot(u[iu], v[iv])
        beside, above = np.broadcast_arrays(
            iu[:, None, None] + reach, iv[:, None, None] + reach[:, None]
        )
        # The half of the plane that is not stored is the stored one turned by 180 degrees.
        above = np.where(beside < 0, -above, above) % padded
        power[row, above, np.abs(beside).clip(max=power.shape[2] - 1)] = 0
    gx = np.diff(fields, axis=2)[:, 1:] + np.diff(fields, axis=2)[:, :-1]
    gy = -np.diff(fields, axis=1)[:, :, 1:] - np.diff(fields, axis=1)[:, :, :-1]
    xx, yy, xy = ((p * q).sum((1, 2)) / 4 for p, q in ((gx, gx), (gy, gy), (gx, gy)))
    theta = 0.5 * np.arctan2(2 * xy, xx - yy)
    strongest = 0.5 * (xx + yy + np.hypot(xx - yy, 2 * xy))
    found[:, -1, 0] = theta
    found[:, -1, 1] = np.sqrt(strongest / np.square(fields).sum((1, 2))) / (2 * np.pi)
    return found


def starts(fields: np.ndarray) -> np.ndarray:
    """Return the shapes (n, STARTS, 6) from which fields (n, S, S), mean 0, are fitted.

    For each carrier the best round envelope of three widths at two centres, the centre of mass and
    the middle between it and that of the field; the linear parameters are solved for, as in the
    fit. A Gabor with a round envelope is a product of factors of x and y.
    """
    n, size = fields.shape[:2]
    low, high = _shape_bounds(size)
    place = np.arange(size) - (size - 1) / 2
    x, y, sigma = _spread(fields)
    carriers = _carriers(fields)
    carriers[..., 1] = carriers[..., 1].clip(low[_F], high[_F])
    widths = (sigma[:, None] * (0.6, 1.0, 1.6)).clip(0.5, size / 2)
    envelopes = np.stack(
        [(pull * x, pull * y, width) for pull in (1.0, 0.5) for width in widths.T], 2
    )
    k = 2 * np.pi * carriers[..., 1]
    wave = k * np.cos(carriers[..., 0]), k * np.sin(carriers[..., 0])
    factors = []
    for along, middle, number in ((place, envelopes[0], wave[0]), (-place, envelopes[1], wave[1])):
        distance = along - middle[..., None]
        round_ = np.exp(-0.5 * np.square(distance / envelopes[2][..., None]))
        # (carrier, envelope, pixel); the phase is that at the envelope's centre.
        factors.append(round_[:, None] * np.exp(1j * number[:, :, None, None] * distance[:, None]))
    gx, gy = (factor.reshape(n, -1, size) for factor in factors)
    columns = np.concatenate([gx.real, gx.imag], 1).swapaxes(1, 2)
    inner = fields @ columns
    count = gx.shape[1]
    inner = (inner[..., :count] + 1j * inner[..., count:]).swapaxes(1, 2)

    def both(function: Any) -> np.ndarray:
        return (function(gx).sum(2) * function(gy).sum(2)).reshape(-1, 1, 1)

    moments = _Moments(
        both(lambda g: np.square(np.abs(g))),
        both(np.square),
        (gy * inner).sum(2).reshape(-1, 1, 1),
        both(lambda g: g),
    )
    _, explained = _linear(moments, size * size)
    best = explained.reshape(n, STARTS, -1).argmax(2)
    chosen = np.take_along_axis(envelopes.swapaxes(1, 2), best[None].swapaxes(1, 2), 1)
    bx, by, width = chosen.swapaxes(1, 2)
    parts = (bx, by, np.log(width), np.log(width), carriers[..., 0], carriers[..., 1])
    return np.stack(parts, 2).clip(low, high)


# ---- fits


class Fits(NamedTuple):
    """Gabors fitted to n fields.

    `parameters` and their standard errors `errors` (n, 9) in the order of `PARAMETERS`, x and y
    from the middle of the whole field; `r2` share of the window's variance that they explain;
    `osi` see `selectivity`; `converged`; `agreeing` starts, the turned one among them, that ended
    as well; `window` edge of what was fitted; `reason` "" for an oriented field, else why there is
    no orientation ("blob") or no fit at all ("blank", "small", "steep", "noise", "poor", or
    "ambiguous": Gabors of other orientations fit about as well; all that describes the Gabor is NaN
    then).
    """

    parameters: np.ndarray
    errors: np.ndarray
    r2: np.ndarray
    osi: np.ndarray
    converged: np.ndarray
    agreeing: np.ndarray
    window: np.ndarray
    reason: np.ndarray


def windows(fields: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first row and column, and the edge (n,) each, of the part of each field to fit.

    The whole field up to an edge of `WHOLE`; of larger ones a square around the median of their
    energy that holds the share `ENERGY` of it, a quarter wider, and never less than `WHOLE`.
    """
    n, size = fields.shape[:2]
    if size <= WHOLE:
        return np.zeros(n, int), np.zeros(n, int), np.full(n, size)
    place = np.arange(size)
    top, left, edge = (np.zeros(n, int) for _ in range(3))
    for index, field in enumerate(fields):
        # Around most fields is a plain ground.
        energy = np.square(field - np.median(field))
        rows, columns = (energy.sum(axis).cumsum() for axis in (1, 0))
        y, x = (int(np.searchsorted(total, total[-1] / 2)) for total in (rows, columns))
        distance = np.maximum(np.abs(place - y)[:, None], np.abs(place - x))
        inside = np.bincount(distance.ravel(), energy.ravel()).cumsum()
        radius = int(np.searchsorted(inside, ENERGY * inside[-1]))
        # Few different sizes, each odd so that there is a middle pixel.
        wanted = 2 * int(np.ceil(1.25 * radius)) + 1
        edge[index] = min(size, max(WHOLE, -(-(wanted + 1) // 16) * 16 - 1))
        top[index], left[index] = (
            np.clip(middle - edge[index] // 2, 0, size - edge[index]) for middle in (y, x)
        )
    return top, left, edge


def noise_r2(edge: np.ndarray) -> np.ndarray:
    """Return the share of white noise in windows of these edges that a Gabor explains at most, in
    99 of 100 cases: 0.49 of 7 x 7 pixels, 0.04 of 31 x 31.

    The logarithm is what a simulation with edges from 5 to 64 and 100 to 3000 fields each gave, to
    5 % of the exponent.
    """
    edge = np.maximum(edge, 1)
    return 1 - np.exp(-(29 + 2.2 * np.log(edge)) / edge**2)


def fit(fields: np.ndarray) -> Fits:
    """Fit a Gabor to each of n fields (n, S, S), real and finite."""
    n, size = fields.shape[:2]
    found = Fits(
        np.full((n, 9), np.nan),
        np.full((n, 9), np.nan),
        *(np.full(n, np.nan) for _ in range(2)),
        np.zeros(n, bool),
        np.zeros(n, int),
        np.zeros(n, int),
        np.full(n, "", object),
    )
    peak = np.abs(fields).max((1, 2))
    varied = np.ptp(fields.reshape(n, -1), axis=1) > 1e-9 * peak
    found.reason[~varied] = "blank"
    if size < SMALLEST:
        found.reason[varied] = "small"
        return found
    todo = np.flatnonzero(varied)
    top, left, edge = windows(fields[todo])
    found.window[todo] = edge
    for width in np.unique(edge):
        count = max(1, _BLOCK // int(width) ** 2)
        members = np.flatnonzero(edge == width)
        for first in range(0, len(members), count):
            part = members[first : first + count]
            rows = todo[part]
            cut = np.stack(
                [
                    fields[row, y : y + width, x : x + width]
                    for row, y, x in zip(rows, top[part], left[part], strict=True)
                ]
            ).astype(float)
            # Neither very small nor very large numbers in the sums.
            unit = peak[rows]
            _fit(cut / unit[:, None, None], rows, found, size)
            for array in (found.parameters, found.errors):
                array[rows, 7:] *= unit[:, None]
            shift = (size - width) / 2
            found.parameters[rows, 0] += left[part] - shift
            found.parameters[rows, 1] -= top[part] - shift
    found.reason[varied & (found.r2 <= noise_r2(found.window))] = "noise"
    for reason, holds in (("poor", found.r2 < POOR), ("blob", found.osi < SELECTIVE_OSI)):
        found.reason[np.isin(found.reason, ("", "ambiguous")) & holds] = reason
    nothing = np.isin(found.reason, ("steep", "noise", "poor", "ambiguous"))
    for array in (found.parameters, found.errors, found.osi):
        array[nothing] = np.nan
    return found


def _fit(cut: np.ndarray, rows: np.ndarray, found: Fits, field: int) -> None:
    """Fit windows (m, S, S) of fields of `field` pixels; write the results to the given rows."""
    m, size = cut.shape[:2]
    mean = cut.mean((1, 2))
    cut = cut - mean[:, None, None]
    each, total = np.arange(m), np.square(cut).sum((1, 2))

    def ends(shape: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape, z, rss, _ = refine(cut, owner, shape, _ROUGH)
        # Those on their way to become steep had better not be followed.
        rss = np.where(np.abs(z) > STEEP / 2, np.inf, rss)
        return shape.reshape(m, -1, 6), rss.reshape(m, -1)

    shape, every = ends(starts(cut).reshape(-1, 6), np.repeat(each, STARTS))
    # What fits a ring or a plaid fits it as well when turned by a right angle.
    turned, rss = ends(shape[each, every.argmin(1)] + [0, 0, 0, 0, np.pi / 2, 0], each)
    shape, every = np.concatenate([shape, turned], 1), np.concatenate([every, rss], 1)
    best, lowest = every.argmin(1), every.min(1)
    found.agreeing[rows] = (every <= (lowest + AGREEING * total)[:, None]).sum(1)
    theta = np.degrees(shape[..., _THETA])
    other = circular_difference(theta, theta[each, best][:, None]) > RIVAL_DEG
    rival = total - RIVAL * (total - lowest)
    rival = every <= np.minimum(rival, RIVAL_REST * lowest)[:, None]
    found.reason[rows[(rival & other).any(1)]] = "ambiguous"
    shape, z, lowest, found.converged[rows] = refine(cut, each, shape[each, best])
    found.reason[rows[np.abs(z) > STEEP]] = "steep"
    found.r2[rows] = 1 - lowest / total
    moments = _Grid(cut).moments(each, shape)
    parameters = np.empty((m, 9))
    parameters[:, :2], parameters[:, 2:4] = shape[:, :2], np.exp(shape[:, 2:4])
    parameters[:, 4], parameters[:, 5] = np.degrees(shape[:, 4]), shape[:, 5]
    parameters[:, 6], parameters[:, 7] = np.degrees(np.angle(z)), np.abs(z)
    parameters[:, 8] = mean - (z * moments.plain[:, 0, 0]).real / size**2
    found.parameters[rows] = canonical(parameters)
    # What lies around a window is not part of the fit, nor is the offset.
    alone = found.parameters[rows]
    if size < field:
        alone[:, 8] = 0
    found.osi[rows] = selectivity(alone, size, 0.5 / field)
    found.errors[rows] = _errors(moments, shape, z, lowest, size)


def canonical(parameters: np.ndarray) -> np.ndarray:
    """Return the same Gabors with amplitude >= 0, theta in [0, 180) and phase in [-180, 180)."""
    result = np.array(parameters, float)
    theta, phase = wrapped(result[:, 4], 360), result[:, 6]
    phase = np.where(result[:, 7] < 0, phase + 180, phase)
    turned = theta >= 180
    result[:, 4] = np.where(turned, theta - 180, theta)
    result[:, 6] = wrapped(np.where(turned, -phase, phase) + 180, 360) - 180
    result[:, 7] = np.abs(result[:, 7])
    return result


def _errors(
    moments: _Moments, shape: np.ndarray, z: np.ndarray, rss: np.ndarray, size: int
) -> np.ndarray:
    """Return the standard errors (n, 9) of `PARAMETERS`, from the Jacobian at the optimum.

    sqrt(diag((J'J)^-1) RSS / (pixels - 9)), as for independent noise in the pixels. NaN for a
    parameter at its bound, which the others count as known.
    """
    n, pixels = len(z), size * size
    gram, sums = _gram(moments, _polynomials(shape), z)
    full = np.empty((n, 9, 9))
    full[:, :8, :8], full[:, 8, 8] = gram, pixels
    full[:, :8, 8] = full[:, 8, :8] = sums
    low, high = _shape_bounds(size)
    held = np.zeros((n, 9), bool)
    held[:, 2:8] = (shape <= low) | (shape >= high)
    scale = 1 / np.sqrt(np.einsum("nii->ni", full).clip(1e-300))
    matrix = full * scale[:, :, None] * scale[:, None]
    matrix[held[:, :, None] | held[:, None]] = 0
    matrix[:, range(9), range(9)] = 1 + 1e-12
    covariance = np.linalg.inv(matrix) * scale[:, :, None] * scale[:, None]
    # From (Re z, Im z, x, y, log sx, log sy, theta, f, B) to PARAMETERS.
    amplitude = np.abs(z)
    turn = np.zeros((n, 9, 9))
    turn[:, 0, 2] = turn[:, 1, 3] = turn[:, 5, 7] = turn[:, 8, 8] = 1
    turn[:, 2, 4], turn[:, 3, 5] = np.exp(shape[:, 2:4]).T
    turn[:, 4, 6] = np.degrees(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        turn[:, 6, 0] = np.degrees(-z.imag / amplitude**2)
        turn[:, 6, 1] = np.degrees(z.real / amplitude**2)
        turn[:, 7, 0], turn[:, 7, 1] = z.real / amplitude, z.imag / amplitude
        variance = np.einsum("nij,njk,nik->ni", turn, covariance, turn)
        errors = np.sqrt(variance * (rss.clip(0) / (pixels - 9))[:, None])
    errors[:, :6][held[:, 2:8]] = np.nan
    return errors


def selectivity(parameters: np.ndarray, size: int, lowest: float) -> np.ndarray:
    """Return the orientation selectivity (n,) of linear units whose fields are Gabors (n, 9).

    (P - O) / (P + O) of the answers to gratings in a round aperture as wide as the field of `size`
    pixels: P at the frequency between `lowest` and the Nyquist frequency where the answer along
    theta is largest, O at that frequency across. As `osi` of the stage gratings; 0 for a round
    blob.
    """
    place = np.arange(size) - (size - 1) / 2
    aperture = np.hypot(place, place[:, None]) <= size / 2
    fields = gabors(size, parameters) * aperture
    u = np.geomspace(lowest, 0.5, _FREQUENCIES)
    curves = []
    for turn in (0, np.pi / 2):
        angle = np.radians(parameters[:, 4]) + turn
        x, y = (
            np.exp(-2j * np.pi * (part[:, None] * u)[..., None] * along)
            for part, along in ((np.cos(angle), place), (np.sin(angle), -place))
        )
        inner = fields @ np.concatenate([x.real, x.imag], 1).swapaxes(1, 2)
        inner = (inner[..., :_FREQUENCIES] + 1j * inner[..., _FREQUENCIES:]).swapaxes(1, 2)
        curves.append(np.abs((inner * y).sum(2)))
    best = curves[0].argmax(1)[:, None]
    p, o = (np.take_along_axis(curve, best, 1)[:, 0] for curve in curves)
    return (p - o) / (p + o)
