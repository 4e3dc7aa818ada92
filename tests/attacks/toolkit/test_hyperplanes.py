"""Projections onto hyperplanes in the box against a solver; pulling points back; the choice of the nearest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lab import linear_case, make_target
from scipy.optimize import linprog, minimize
from torch import Tensor
from two_classes import CoinFlip

from attacks.toolkit.hyperplanes import Shortest, onto_hyperplane
from attacks.toolkit.losses import Goal, margin
from attacks.toolkit.projections import flat_length, length
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.threat import Lp

NORMS = ["linf", "l2", "l1"]
every_norm = pytest.mark.parametrize("norm", NORMS)


def _cases(n: int, dim: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Points on and off the edges of the box, normals with zeros, gains from a little to most of what is possible."""
    generator = torch.Generator().manual_seed(dim)
    points = torch.rand(n, dim, generator=generator, dtype=torch.float64)
    points[:, 0], points[:, 1] = 0.0, 1.0
    normal = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    normal[:, 2] = 0.0
    share = torch.linspace(0.05, 0.95, n, dtype=torch.float64) * (-1.0) ** torch.arange(n)
    return points, normal, share * _most(points, normal, share)


def _most(points: Tensor, normal: Tensor, sign: Tensor) -> Tensor:
    """The largest gain that the box allows on the side of ``sign``."""
    toward = normal * sign.sign()[:, None]
    return (toward.abs() * torch.where(toward > 0, 1 - points, points)).sum(1)


def _solved(point: np.ndarray, normal: np.ndarray, gain: float, norm: str) -> float:
    """The length of the shortest solution, by a solver."""
    dim = len(point)
    if norm == "l2":
        best = minimize(
            lambda d: d @ d,
            np.zeros(dim),
            jac=lambda d: 2 * d,
            bounds=list(zip(-point, 1 - point, strict=True)),
            constraints={"type": "eq", "fun": lambda d: normal @ d - gain, "jac": lambda d: normal},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )
        return float(np.sqrt(best.fun))
    # δ = a - b with a, b ≥ 0, and for linf a bound τ on all of them.
    bounds = [(0, 1 - p) for p in point] + [(0, p) for p in point]
    equation = np.concatenate([normal, -normal])
    if norm == "l1":
        return float(linprog(np.ones(2 * dim), A_eq=equation[None], b_eq=[gain], bounds=bounds).fun)
    below = np.hstack([np.eye(2 * dim), -np.ones((2 * dim, 1))])
    cost = np.append(np.zeros(2 * dim), 1.0)
    equation = np.append(equation, 0.0)[None]
    return float(linprog(cost, below, np.zeros(2 * dim), equation, [gain], bounds=[*bounds, (0, None)]).fun)


@every_norm
def test_the_projection_is_the_shortest_way_to_the_plane_within_the_box(norm) -> None:
    points, normal, gain = _cases(12)
    delta = onto_hyperplane(points, normal, gain, Lp(norm, 1.0))
    assert ((points + delta) >= -1e-12).all() and ((points + delta) <= 1 + 1e-12).all()
    torch.testing.assert_close((delta * normal).sum(1), gain, atol=1e-9, rtol=1e-9)
    solved = [_solved(p.numpy(), w.numpy(), float(g), norm) for p, w, g in zip(points, normal, gain, strict=True)]
    torch.testing.assert_close(flat_length(delta, norm), torch.tensor(solved).double(), atol=1e-5, rtol=1e-5)


@every_norm
def test_several_points_share_a_plane(norm) -> None:
    points, normal, gain = _cases(6)
    threat = Lp(norm, 1.0)
    both = onto_hyperplane(torch.stack([points, 1 - points]), normal, torch.stack([gain, -gain / 2]), threat)
    torch.testing.assert_close(both[0], onto_hyperplane(points, normal, gain, threat))
    torch.testing.assert_close(both[1], onto_hyperplane(1 - points, normal, -gain / 2, threat))


@every_norm
def test_out_of_reach_the_projection_is_the_corner_that_gains_most(norm) -> None:
    points, normal, _ = _cases(4)
    delta = onto_hyperplane(points, normal, torch.full((4,), 1e6, dtype=torch.float64), Lp(norm, 1.0))
    torch.testing.assert_close((points + delta)[:, 3:], (normal[:, 3:] > 0).double(), atol=1e-12, rtol=0)
    assert (delta[:, 2] == 0).all()


@every_norm
def test_vanishing_and_tiny_normals_stay_finite(norm) -> None:
    threat = Lp(norm, 1.0)
    nothing = onto_hyperplane(torch.rand(3, 5), torch.zeros(3, 5), torch.tensor([1.0, -1.0, 0.0]), threat)
    assert (nothing == 0).all()
    points, normal, gain = (t.float() for t in _cases(6))
    tiny = onto_hyperplane(points, normal * 1e-25, gain * 1e-25, threat)
    torch.testing.assert_close(tiny, onto_hyperplane(points, normal, gain, threat), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_points_are_pulled_back_to_the_boundary(norm) -> None:
    case = linear_case(3, (1, 8, 8), norm)
    target = case.target(4.0, "gradient")
    best = Shortest(target, case.x, case.y, rescore=1, stop_inside=False)
    rows = torch.arange(3)
    away = (torch.autograd.functional.jacobian(lambda x: margin(case.defense(x), case.y).sum(), case.x)).sign()
    points = (case.x + 3 * case.radius * away).clamp(0, 1)
    assert best.offer(points, target.logits(points), rows).all()
    before = best.distance.clone()
    goal = Goal(margin, case.y)
    best.shorten(goal, goal.margin(target.logits(case.x)), rows, steps=4)
    assert case.fooled(best.points).all()
    # The margin is linear, hence has one zero on the way: the points are within 1 % of it.
    again = case.x + 0.99 * (best.points - case.x)
    assert not case.fooled(again).any()
    assert (best.distance < before).all()
    torch.testing.assert_close(best.distance, length(best.points - case.x, norm))


def test_longer_and_harmless_points_are_not_kept() -> None:
    case = linear_case(2, (1, 8, 8), "l2")
    target = case.target(4.0, "gradient")
    best = Shortest(target, case.x, case.y, rescore=1, stop_inside=True)
    rows = torch.arange(2)
    assert not best.offer(case.x, target.logits(case.x), rows).any()
    assert best.distance.isinf().all() and not best.done(rows).any()
    other = 1 - case.x  # mirrored at the middle: the other of the two classes
    assert best.offer(other, target.logits(other), rows).all()
    kept = best.distance.clone()
    further = (0.5 + 1.1 * (0.5 - case.x)).clamp(0, 1)
    assert best.offer(further, target.logits(further), rows).all()
    assert torch.equal(best.distance, kept) and torch.equal(best.points, other)


def test_on_a_randomised_defense_no_lucky_draw_counts_and_nothing_is_done_early() -> None:
    class Lucky(CoinFlip):
        """Wrong in one draw of ten."""

        def forward(self, x: Tensor) -> Tensor:
            wrong = torch.rand(len(x)) < 0.1
            return torch.stack([torch.where(wrong, 0.0, 2.0), torch.ones(len(x))], 1)

    n = 64
    target = make_target(Lucky(DataInfo("toy", InputSpec((1, 8, 8)), 2)), n, "gradient", randomized=True)
    x = torch.rand(n, 1, 8, 8)
    best = Shortest(target, x, torch.zeros(n).long(), rescore=15, stop_inside=True)
    rows = torch.arange(n)
    hits = sum(int(best.offer(x, target.logits(x), rows).sum()) for _ in range(3))
    assert hits > 0
    assert best.distance.isinf().all() and not best.done(rows).any()
