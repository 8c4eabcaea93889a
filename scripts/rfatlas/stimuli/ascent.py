"""Maximising many functions at once, each of its own variables: the climbs of one batch share the
evaluation of all functions and nothing else.

An evaluation is a forward and a backward pass, and the only cost that counts; so both methods take
exactly one per step. torch's own L-BFGS sees a batch as one problem, with one line search and one
curvature for all: what one climb does would depend on its neighbours.

`evaluate(rows, x)` takes the numbers (r,) of the climbs asked for and their points (r, ...), and
returns the values (r,) and gradients (r, ...) there.
"""

from collections.abc import Callable

import torch

Evaluate = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Box = tuple[float, float]

# Pairs of steps and changes of gradient from which L-BFGS knows the curvature.
_MEMORY = 6
# Share of the gain that the gradient promises which a step must bring (Armijo's rule).
_ARMIJO = 1e-4
# Largest change of a variable in the first step.
_FIRST = 0.1
# So many refused steps in a row, and a climb forgets its curvature; as many again, and it ends.
_REFUSALS = 10
# A climb ends after so many steps in a row that each gain less than this share of its value.
_PATIENCE, _TOLERANCE = 5, 1e-5


def adam(
    evaluate: Evaluate,
    start: torch.Tensor,
    steps: int,
    rate: float,
    box: Box | None = None,
    settled: int = 0,
) -> torch.Tensor:
    """Return the best points (n, ...) that Adam meets from `start` (n, ...) in `steps` evaluations.

    `rate` is about the change of a variable per step. Points stay in `box`: what a step leads out
    is put back on its edge. Points of the first `settled` steps do not count as met, for functions
    that are still shaken there. Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1.
    """
    x, best = start.clone(), start.clone()
    optimiser = torch.optim.Adam([x], rate, maximize=True)
    highest = x.new_full((len(x),), -torch.inf)
    rows = torch.arange(len(x), device=x.device)
    for step in range(steps):
        value, x.grad = evaluate(rows, x)
        if step >= settled:
            better = value > highest
            highest[better], best[better] = value[better], x[better]
        optimiser.step()
        if box is not None:
            x.clamp_(*box)
    return best


def lbfgs(
    evaluate: Evaluate, start: torch.Tensor, steps: int, box: Box | None = None
) -> torch.Tensor:
    """Return the points (n, ...) that L-BFGS reaches from `start` (n, ...) in `steps` evaluations.

    Each climb has its own curvature pairs, step length and end, so it goes the same way in any
    company. In a `box` variables at an edge that the gradient pushes outwards are held, the others
    move along the quasi-Newton direction, and the step is bent into the box (Bertsekas 1982, SIAM
    J. Control Optim. 20:221, with the inverse Hessian of Nocedal 1980, Math. Comp. 35:773). A step
    that does not bring its share is halved in the next evaluation. Where a step met no positive
    curvature the next is four times as long: networks of ReLUs are linear in pieces.
    """
    climb = _Climb(evaluate, start, box)
    for _ in range(steps - 1):
        rows = climb.live.nonzero()[:, 0]
        if not len(rows):
            break
        climb.step(rows)
    return climb.x.view_as(start)


class _Climb:
    """State of L-BFGS for n problems of d variables; it descends on the negative functions."""

    def __init__(self, evaluate: Evaluate, start: torch.Tensor, box: Box | None):
        self._evaluate, self._shape, self._box = evaluate, start.shape[1:], box
        self.x = start.flatten(1).clone()
        n = len(self.x)
        everything = torch.arange(n, device=start.device)
        self._value, self._gradient = self._look(everything, self.x)
        self._steps = self.x.new_zeros(_MEMORY, *self.x.shape)
        self._changes = torch.zeros_like(self._steps)
        # 1 / (s y) of each pair; 0 where there is none yet, which takes the pair out of every sum.
        self._weights = self.x.new_zeros(_MEMORY, n)
        self._scale = self.x.new_zeros(n)
        self._stretch, self._length = self.x.new_ones(n), self.x.new_ones(n)
        self._refusals = torch.zeros(n, dtype=torch.int64, device=start.device)
        self._idle = torch.zeros_like(self._refusals)
        self.live = torch.ones(n, dtype=torch.bool, device=start.device)
        self._direction = torch.zeros_like(self.x)
        self._aim(everything)

    def step(self, rows: torch.Tensor) -> None:
        """Try one step of the climbs `rows`."""
        here, gradient, value = self.x[rows], self._gradient[rows], self._value[rows]
        there = self._inside(here + self._length[rows, None] * self._direction[rows])
        moved = there - here
        new_value, new_gradient = self._look(rows, there)
        taken = new_value <= value + _ARMIJO * (gradient * moved).sum(1)
        found = rows, there, moved, new_value, new_gradient
        self._take(*(each[taken] for each in found))
        self._refuse(rows[~taken])

    def _look(self, rows: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient = self._evaluate(rows, x.view(-1, *self._shape))
        return -value, -gradient.flatten(1)

    def _inside(self, x: torch.Tensor) -> torch.Tensor:
        return x if self._box is None else x.clamp_(*self._box)

    def _take(
        self,
        rows: torch.Tensor,
        there: torch.Tensor,
        moved: torch.Tensor,
        value: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        change = gradient - self._gradient[rows]
        product = (moved * change).sum(1)
        bent = product > 1e-6 * moved.norm(dim=1) * change.norm(dim=1)
        kept = rows[bent]
        for memory, new in ((self._steps, moved), (self._changes, change)):
            memory[:, kept] = torch.cat([memory[1:, kept], new[None, bent]])
        weight = 1 / product[bent]
        self._weights[:, kept] = torch.cat([self._weights[1:, kept], weight[None]])
        self._scale[kept] = product[bent] / change[bent].square().sum(1)
        self._stretch[rows] = torch.where(bent, 1.0, 4 * self._stretch[rows])
        gained = self._value[rows] - value
        idle = gained <= _TOLERANCE * value.abs()
        self._idle[rows] = torch.where(idle, self._idle[rows] + 1, 0)
        self.x[rows], self._value[rows], self._gradient[rows] = there, value, gradient
        self._length[rows], self._refusals[rows] = 1.0, 0
        self.live[rows] = self._idle[rows] < _PATIENCE
        self._aim(rows)

    def _refuse(self, rows: torch.Tensor) -> None:
        self._length[rows] /= 2
        self._refusals[rows] += 1
        lost = rows[self._refusals[rows] >= _REFUSALS]
        if len(lost):
            known = (self._weights[:, lost] != 0).any(0)
            self.live[lost] = known
            self._weights[:, lost] = 0
            self._stretch[lost], self._length[lost], self._refusals[lost] = 1.0, 1.0, 0
            self._aim(lost)

    def _aim(self, rows: torch.Tensor) -> None:
        """Choose the directions of the climbs `rows`; those that have none end."""
        x, gradient = self.x[rows], self._gradient[rows]
        if self._box is not None:
            low, high = self._box
            held = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))
            gradient = gradient.masked_fill(held, 0)
        direction = -gradient
        used = []
        for i in reversed(range(_MEMORY)):
            share = self._weights[i, rows] * (self._steps[i, rows] * direction).sum(1)
            direction = direction - share[:, None] * self._changes[i, rows]
            used.append(share)
        known = (self._weights[:, rows] != 0).any(0)
        plain = _FIRST / gradient.abs().amax(1).clamp(min=torch.finfo(x.dtype).tiny)
        direction = direction * torch.where(known, self._scale[rows], plain)[:, None]
        for i, share in zip(range(_MEMORY), reversed(used), strict=True):
            back = self._weights[i, rows] * (self._changes[i, rows] * direction).sum(1)
            direction = direction + (share - back)[:, None] * self._steps[i, rows]
        if self._box is not None:
            direction = direction.masked_fill(held, 0)
        uphill = (direction * gradient).sum(1) >= 0
        direction = torch.where(uphill[:, None], -gradient * plain[:, None], direction)
        self._direction[rows] = direction * self._stretch[rows, None]
        self.live[rows] &= (gradient != 0).any(1)
