"""Projections against independent solutions, steps of unit norm, and starts inside the ball."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lab import Linear, assert_feasible, length, make_target
from scipy.optimize import brentq
from torch import Tensor

from attacks.score.noise import _corners
from attacks.toolkit.projections import movable, steepest, top_signs
from bench.contracts.balls import l1_projection, l2_projection, largest_positions
from bench.contracts.defense import BareModel
from bench.contracts.errors import NotApplicable
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.target import Target
from bench.contracts.threat import Lp

SHAPE = (3, 4, 5)


def _target(norm: str, eps: float, n: int = 40) -> Target:
    defense = BareModel(Linear(torch.zeros(2, 60), torch.zeros(2)), DataInfo("toy", InputSpec(SHAPE), 2))
    return make_target(defense, n, "gradient", norm=norm, eps=eps)


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _l1_by_root_finding(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """The dual of min ‖u - δ‖² over the ball and the box has one variable, whose root is searched for."""
    flat, low, high = (part.flatten(1).numpy() for part in (delta, -x, 1 - x))
    rows = []
    for d, lower, upper in zip(flat, low, high, strict=True):

        def shrunk(cut: float, d=d, lower=lower, upper=upper):
            return np.clip(np.sign(d) * np.maximum(np.abs(d) - cut, 0), lower, upper)

        def excess(cut: float, shrunk=shrunk) -> float:
            return float(np.abs(shrunk(cut)).sum() - eps)

        rows.append(shrunk(0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, np.abs(d).max(), xtol=1e-14)))
    return torch.tensor(np.stack(rows)).view_as(delta)


@pytest.mark.parametrize("eps", [0.05, 1.0, 4.0, 12.0, 100.0])
@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_the_l1_projection_is_the_nearest_feasible_point(eps, size) -> None:
    x = _rand(20, *SHAPE)
    x[:5] = x[:5].round()  # values at the edges of the box
    delta = size * (2 * _rand(20, *SHAPE, seed=1) - 1)
    ours = l1_projection(delta, -x, 1 - x, eps)
    torch.testing.assert_close(ours, _l1_by_root_finding(delta, x, eps), atol=1e-9, rtol=0)


def _l2_by_root_finding(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """The same in l2: the multiplier of the ball shortens δ before it is clipped."""
    flat, low, high = (part.flatten(1).numpy() for part in (delta, -x, 1 - x))
    rows = []
    for d, lower, upper in zip(flat, low, high, strict=True):

        def clipped(multiplier: float, d=d, lower=lower, upper=upper):
            return np.clip(d / (1 + multiplier), lower, upper)

        def excess(multiplier: float, clipped=clipped) -> float:
            return float(np.linalg.norm(clipped(multiplier)) - eps)

        rows.append(clipped(0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, 1e6, xtol=1e-13)))
    return torch.tensor(np.stack(rows)).view_as(delta)


@pytest.mark.parametrize("eps", [0.05, 0.5, 2.0, 4.0, 100.0])
@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_the_l2_projection_is_the_nearest_feasible_point(eps, size) -> None:
    x = _rand(20, *SHAPE)
    x[:5] = x[:5].round()
    delta = size * (2 * _rand(20, *SHAPE, seed=1) - 1)
    delta[0] = -x[0]  # nothing but clipped values, or none
    ours = l2_projection(delta, -x, 1 - x, eps)
    assert ours.flatten(1).norm(dim=1).max() <= eps * (1 + 1e-12)
    torch.testing.assert_close(ours, _l2_by_root_finding(delta, x, eps), atol=1e-5 * size, rtol=0)


def test_the_l1_projection_takes_a_radius_per_row_and_keeps_what_is_inside() -> None:
    x, delta = _rand(4, *SHAPE), 0.01 * _rand(4, *SHAPE, seed=2)
    radii = torch.tensor([0.01, 0.1, 0.2, 10.0], dtype=torch.float64)
    ours = l1_projection(delta, -x, 1 - x, radii)
    for row, radius in enumerate(radii.tolist()):
        one = slice(row, row + 1)
        torch.testing.assert_close(ours[one], l1_projection(delta[one], -x[one], 1 - x[one], radius))
    torch.testing.assert_close(ours[3], delta[3].clamp(-x[3], 1 - x[3]))
    zero = torch.zeros_like(delta)
    assert torch.equal(l1_projection(zero, -x, 1 - x, 1.0), zero)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.7), ("l1", 2.0), ("l0", 4.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_projected_is_feasible_and_stays_where_it_is(norm, eps, dtype) -> None:
    x = _rand(40, *SHAPE).to(dtype)
    far = (x + 2 * (2 * _rand(40, *SHAPE, seed=3) - 1)).to(dtype)
    target = _target(norm, eps)
    once = target.threat.project_(far.clone(), x)
    assert_feasible(target, x, once)
    torch.testing.assert_close(target.threat.project_(once.clone(), x), once)
    assert torch.equal(target.threat.project_(x.clone(), x), x)
    given = far.clone()
    assert target.threat.project_(given, x) is given, "in place"


def test_the_l0_projection_keeps_the_pixels_of_largest_change() -> None:
    x = torch.full((1, 2, 2, 2), 0.5)
    far = x.clone()
    far[0, :, 0, 0] += torch.tensor([0.2, 0.2])  # 0.28 in l2
    far[0, 0, 0, 1] += 0.25
    far[0, 1, 1, 0] += 9.0  # 0.5 once it is clipped
    out = Lp("l0", 2).project_(far.clone(), x)
    assert (out != x).any(1).flatten(1).tolist() == [[True, False, True, False]]
    assert out[0, 1, 1, 0] == 1
    assert largest_positions(far - x, 99).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_steepest_step_has_unit_norm_and_reaches_the_dual_norm(norm) -> None:
    grad = _rand(6, *SHAPE) - 0.5
    step = steepest(grad, norm)
    torch.testing.assert_close(length(step, norm), torch.ones(6, dtype=torch.float64))
    gain = (step * grad).flatten(1).sum(1)
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    torch.testing.assert_close(gain, grad.flatten(1).norm(p=dual, dim=1))
    assert (steepest(torch.zeros(2, *SHAPE), norm) == 0).all(), "no gradient, no step"


def test_sparse_steps_move_the_values_of_largest_gradient() -> None:
    grad = torch.tensor([[[[0.1, -5.0, 3.0, 0.0, 4.0]]]])
    torch.testing.assert_close(top_signs(grad, 2), torch.tensor([[[[0, -0.5, 0, 0, 0.5]]]]))
    torch.testing.assert_close(top_signs(grad, 99).abs().sum(), torch.tensor(0.8))


def test_what_is_stuck_at_the_box_has_no_gradient() -> None:
    x = torch.tensor([[[[0.0, 0.0, 1.0, 1.0, 0.5]]]])
    grad = torch.tensor([[[[-1.0, 1.0, -1.0, 1.0, 1.0]]]])
    assert movable(grad, x, Lp("l1", 1)).tolist() == [[[[0, 1, -1, 0, 1]]]]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.3), ("l1", 2.0), ("l0", 3.0)])
def test_random_starts_fill_the_ball(norm, eps) -> None:
    n = 400
    x = torch.full((n, *SHAPE), 0.5)
    target = _target(norm, eps, n)
    start = target.threat.sample(x, target.generator)
    assert_feasible(target, x, start)
    reach = length(start - x, norm) / eps
    assert reach.max() > 0.98
    # Uniform in a ball of d dimensions, the share of points beyond r is 1 - r^d; linf, l2 and l1 have d = 60.
    expected = 1.0 if norm == "l0" else 1 - 0.99**60
    assert abs((reach > 0.99).float().mean() - expected) < 0.08
    assert (start - x).mean().abs() < 0.01
    assert not torch.equal(start, target.threat.sample(x, target.generator))


def test_corners() -> None:
    x = torch.full((3, *SHAPE), 0.5)
    start = _corners(_target("linf", 0.1, 3), x)
    torch.testing.assert_close((start - x).abs(), torch.full_like(x, 0.1))
    with pytest.raises(NotApplicable):
        _corners(_target("l2", 0.1, 3), x)
