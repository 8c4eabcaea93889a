"""Many ascents at once: against scipy's bounded L-BFGS, closed forms, and each ascent alone."""

import numpy as np
import pytest
import torch
from scipy import optimize

from rfatlas.stimuli import ascent

N, D = 5, 30


class Quadratics:
    """n concave quadratics b x - x H x / 2 in d variables; counts its evaluations."""

    def __init__(self):
        random = np.random.default_rng(0)
        root = torch.tensor(random.normal(size=(N, D, D)))
        self.h = root @ root.mT / D + 0.05 * torch.eye(D)
        self.b = torch.tensor(random.normal(size=(N, D)))
        self.calls = 0

    def __call__(self, rows, x):
        self.calls += 1
        bent = (self.h[rows] @ x[..., None])[..., 0]
        return (self.b[rows] * x).sum(1) - (x * bent).sum(1) / 2, self.b[rows] - bent

    def best(self, row: int, bounds) -> float:
        """The maximum in the bounds, by scipy."""

        def negative(x):
            value, gradient = self(torch.tensor([row]), torch.tensor(x)[None])
            return -value.item(), -gradient[0].numpy()

        found = optimize.minimize(
            negative, np.full(D, 0.5), jac=True, method="L-BFGS-B", bounds=[bounds] * D,
            options={"ftol": 1e-14, "gtol": 1e-10, "maxiter": 10000},
        )  # fmt: skip
        return -found.fun


@pytest.mark.parametrize("box", [None, (0.0, 1.0), (-0.2, 0.3)])
def test_lbfgs_finds_what_scipy_finds(box):
    function = Quadratics()
    end = ascent.lbfgs(function, torch.full((N, D), 0.2).double(), 200, box)
    if box:
        assert (end >= box[0]).all() and (end <= box[1]).all()
    for row in range(N):
        found = function(torch.tensor([row]), end[row : row + 1])[0].item()
        best = function.best(row, box or (None, None))
        assert found == pytest.approx(best, rel=1e-4, abs=1e-4)


def test_adam_comes_as_near_as_its_steps_are_small():
    function = Quadratics()
    end = ascent.adam(function, torch.full((N, D), 0.2).double(), 3000, 0.002, (0.0, 1.0))
    for row in range(N):
        found = function(torch.tensor([row]), end[row : row + 1])[0].item()
        assert found == pytest.approx(function.best(row, (0, 1)), abs=2e-3)


def test_adam_takes_the_steps_of_torchs_own():
    function = Quadratics()
    start = torch.full((N, D), 0.2).double()
    x = start.clone().requires_grad_()
    theirs = torch.optim.Adam([x], lr=0.05)
    for _ in range(12):
        x.grad = -function(torch.arange(N), x.detach())[1]
        theirs.step()
    # The last point is not evaluated, so one evaluation more; values grow at every step.
    np.testing.assert_allclose(ascent.adam(function, start, 13, 0.05), x.detach(), rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_linear_function_ends_in_the_corner_of_its_signs(scale):
    """Slopes over four decades: the small ones must not be left behind."""
    slope = torch.tensor(np.random.default_rng(1).normal(size=(N, D))) * torch.logspace(-4, 0, D)

    def linear(rows, x):
        return (scale * slope[rows] * x).sum(1), scale * slope[rows]

    end = ascent.lbfgs(linear, torch.full((N, D), 0.5).double(), 20, (0.0, 1.0))
    assert torch.equal(end, (slope > 0).double())


def test_lbfgs_climbs_a_curved_ridge():
    def ridge(rows, x):
        x = x.detach().requires_grad_()
        value = -(100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    end = ascent.lbfgs(ridge, torch.zeros(3, 8).double(), 200)
    np.testing.assert_allclose(end, 1, atol=1e-2)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_a_climb_goes_its_own_way_in_any_company(method):
    """Also in the company of one that is at its goal, and of one that goes nowhere."""
    start = torch.tensor(np.random.default_rng(2).uniform(0, 1, (N, D)))
    function = Quadratics()
    function.b[3], function.h[3] = 0, 0

    def run(rows):
        def part(those, x):
            return function(rows[those], x)

        if method == "adam":
            return ascent.adam(part, start[rows], 30, 0.05, (0.0, 1.0))
        return ascent.lbfgs(part, start[rows], 30, (0.0, 1.0))

    together = run(torch.arange(N))
    assert torch.equal(together[3], start[3])
    for row in range(N):
        np.testing.assert_allclose(run(torch.tensor([row]))[0], together[row], rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_evaluations_are_counted_and_those_at_their_goal_stop(method):
    function = Quadratics()
    start = torch.full((N, D), 0.2).double()
    if method == "adam":
        ascent.adam(function, start, 17, 0.05)
        assert function.calls == 17
        return
    ascent.lbfgs(function, start, 17)
    assert function.calls == 17
    ascent.lbfgs(function, start, 10000)
    assert function.calls < 500


def test_steps_of_a_shaken_function_do_not_count():
    """Values are huge in the first steps; the best point is one of the later ones."""
    seen = []

    def shaken(rows, x):
        seen.append(x.clone())
        early = len(seen) <= 5
        return torch.full((len(x),), 1e9 if early else 0.0) + x.sum(1), torch.ones_like(x)

    end = ascent.adam(shaken, torch.zeros(1, 3), 8, 0.1, settled=5)
    assert torch.equal(end, seen[7])
