"""Certificates: sound against exhaustive search and attacks, rounding included; what is stored, and what stops."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from piecewise_networks import Images, defense_of, perceptron
from registered import formula
from scipy.optimize import linprog
from torch import nn

from attacks.gradient.apgd import apgd
from attacks.gradient.pgd import pgd
from bench.certifying.branching import branch_and_bound
from bench.certifying.limits import box, by_intervals, by_relaxation
from bench.certifying.network import Layered
from bench.certifying.optimising import optimised
from bench.certifying.proving import TOLERANCE, check_precision, prove
from bench.certifying.relaxation import Limits, Relaxed, lower_bound
from bench.contracts.errors import NotApplicable
from bench.contracts.target import Target
from bench.contracts.threat import Lp

#: How far below the truth a linear program may end: HiGHS keeps conditions up to 1e-7.
LP = 1e-6


def _perceptron(seed: int, *sizes: int, slope: float = 0.0) -> nn.Module:
    return perceptron(torch.Generator().manual_seed(seed), *sizes, slope=slope)


def _smallest_margin(layered: Layered, ball: Limits, y: int) -> float:
    """Over the box: a linear program for every pattern of activity and every other class."""
    network, least = layered.network, float("inf")
    bounds = torch.cat([ball.low[0], ball.high[0]], 1).tolist()
    for pattern in itertools.product([False, True], repeat=len(network.slopes)):
        active = torch.tensor(pattern)
        affine = network.affine(active)
        sign = torch.where(active, 1.0, -1.0).double()
        for t in set(range(layered.classes)) - {y}:
            found = linprog(
                (affine.A[y] - affine.A[t]).numpy(), (-sign[:, None] * affine.Z).numpy(), (sign * affine.b).numpy(),
                bounds=bounds,
            )  # fmt: skip
            if found.status == 0:
                least = min(least, found.fun + float(affine.a[y] - affine.a[t]))
    return least


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_exactly_the_robust_examples_of_tiny_networks_are_certified(slope: float) -> None:
    decided = set()
    for seed, eps in itertools.product(range(5), (0.02, 0.1, 0.3)):
        layered = Layered(_perceptron(seed, 3, 3, 2, 3, slope=slope), torch.zeros(1, 1, 1, 3))
        x = torch.rand(1, 1, 3, generator=torch.Generator().manual_seed(seed))
        y, threat = int(layered.network.at(x[None]).logits.argmax()), Lp("linf", eps)
        least = _smallest_margin(layered, box(x, eps + threat.tolerance, 0.0, 1.0), y)
        proven = prove(layered, x, y, threat, seconds=30.0)
        assert proven.bound <= least + LP
        if abs(least - TOLERANCE) > 0.02:
            assert proven.certified == (least > TOLERANCE), (seed, eps, least, proven)
            decided.add(proven.certified)
    assert decided == {True, False}


@pytest.mark.parametrize("seed", range(2))
def test_bounds_and_limits_hold_of_every_point_and_each_step_is_tighter(seed: int) -> None:
    layered = Layered(_perceptron(seed, 6, 10, 10, 4), torch.zeros(1, 1, 2, 3))
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 2, 3, generator=draw)
    ball = box(x, 0.15, 0.0, 1.0)
    intervals = by_intervals(layered, ball)
    relaxed = by_relaxation(layered, intervals)
    rows = torch.eye(4, dtype=torch.float64) - torch.roll(torch.eye(4, dtype=torch.float64), 1, 0)
    plain = lower_bound(layered, 2, rows, intervals, Relaxed(layered, intervals)).value
    crown = lower_bound(layered, 2, rows, relaxed, Relaxed(layered, relaxed)).value
    best = optimised(layered, 2, rows, relaxed, steps=30, enough=None).value
    assert (crown >= plain - 1e-9).all() and (best >= crown).all() and (best > crown + 1e-4).any()
    shares = torch.rand(200, 6, generator=draw, dtype=torch.float64).round(decimals=1)
    for share in shares:
        point = (ball.low[0] + share[:, None] * (ball.high[0] - ball.low[0])).view(1, 1, 2, 3)
        piece = layered.network.at(point)
        assert (best <= rows.T @ piece.logits + 1e-12).all()
        for limits in (intervals, relaxed):
            assert (torch.cat(limits.low[1:3])[:, 0] <= piece.z).all()
            assert (torch.cat(limits.high[1:3])[:, 0] >= piece.z).all()


def test_branch_and_bound_proves_what_relaxation_does_not() -> None:
    gained = 0
    for seed in range(5):
        layered = Layered(_perceptron(seed, 3, 4, 3, 2), torch.zeros(1, 1, 1, 3))
        x = torch.rand(1, 1, 3, generator=torch.Generator().manual_seed(seed))
        row = torch.tensor([1.0, -1.0], dtype=torch.float64)
        limits = by_relaxation(layered, by_intervals(layered, box(x, 0.4, 0.0, 1.0)))
        relaxed = float(optimised(layered, 2, row[:, None], limits, steps=50, enough=None).value)
        least = _smallest_margin(layered, limits, 0)
        assert relaxed <= least + LP
        proof = branch_and_bound(layered, row, limits, least + 0.01, seconds=1.0)
        assert not proof.proven and proof.value <= least + LP, "what is not so is not proven"
        if least > relaxed + 0.05:
            proof = branch_and_bound(layered, row, limits, least - 0.02, seconds=30.0)
            assert proof.proven and least - 0.02 < proof.value <= least + LP
            gained += 1
    assert gained


def test_what_rounding_may_add_is_taken_off() -> None:
    """In exact arithmetic the same multipliers give no less than the bound that is claimed, on values that cancel."""
    model = _perceptron(1, 4, 6, 3)
    with torch.no_grad():
        model[1].weight.mul_(1e6)
        model[1].bias.add_(1e5)
    layered = Layered(model, torch.zeros(1, 1, 2, 2))
    limits = by_intervals(layered, box(torch.full((1, 2, 2), 0.3), 0.01, 0.0, 1.0))
    rows = torch.tensor([[1.0], [-1.0], [0.0]], dtype=torch.float64)
    lines = Relaxed(layered, limits)
    claimed = float(lower_bound(layered, 1, rows, limits, lines).value)
    weights = [{j: m.toarray() for j, m in stage.maps.items()} for stage in layered.stages]
    lam = [sum((Fraction(float(r)) * Fraction(float(w)) for r, w in zip(rows[:, 0], column, strict=True)), Fraction(0))
           for column in weights[1][1].T]  # fmt: skip
    nu = [Fraction(v) for v in lines(0, torch.tensor([[float(v)] for v in lam], dtype=torch.float64))[:, 0].tolist()]
    total = Fraction(0)
    for weight, bias in zip(rows[:, 0].tolist(), layered.stages[1].bias, strict=True):
        total += Fraction(weight) * Fraction(bias)
    for u, (value, line) in enumerate(zip(lam, nu, strict=True)):
        low, high = Fraction(float(limits.low[1][u])), Fraction(float(limits.high[1][u]))
        ends = [low, high] + [Fraction(0)] * (low < 0 < high)
        total += min(value * max(z, Fraction(0)) - line * z for z in ends) + line * Fraction(layered.stages[0].bias[u])
    for i in range(4):
        slope = sum((line * Fraction(w) for line, w in zip(nu, weights[0][0][:, i], strict=True)), Fraction(0))
        total += min(slope * Fraction(float(limits.low[0][i])), slope * Fraction(float(limits.high[0][i])))
    assert Fraction(claimed) <= total
    assert float(total) - claimed < 1e-6 * abs(float(total)), "and hardly more than that"


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
def test_no_attack_breaks_what_is_certified(shape) -> None:
    defense = defense_of(Images(shape[0], shape[1], norm=True), shape, 4)
    x = (0.5 + 0.55 * formula(5, *shape, seed=3.0)).clamp(0, 1).float()
    y, layered, certified = defense(x).argmax(1), Layered(defense, x[:1]), 0
    for eps in (0.003, 0.02):
        threat = Lp("linf", eps)
        check_precision(defense, layered, x, threat)
        proven = torch.tensor([prove(layered, x[i], int(y[i]), threat, 5.0).certified for i in range(5)])
        certified += int(proven.sum())
        for attack in (pgd, apgd):
            target = Target(defense, threat, 5, knowledge="gradient", generator=torch.Generator().manual_seed(0))
            assert not (proven & (defense(attack(target, x, y)).argmax(1) != y)).any()
    assert 0 < certified < 10


def test_a_linear_network_is_certified_up_to_its_margin() -> None:
    weight = np.array([[0.5, -1.0, 0.25, 1.0], [-0.5, 0.5, 0.0, 0.5]])
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data.copy_(torch.from_numpy(weight))
    model[1].bias.data.copy_(torch.tensor([0.3, -0.3]))
    layered, x = Layered(model, torch.zeros(1, 1, 2, 2)), torch.full((1, 2, 2), 0.5)
    logits = layered.network.at(x[None]).logits
    y = int(logits.argmax())
    largest = float(logits[y] - logits[1 - y] - TOLERANCE) / np.abs(weight[0] - weight[1]).sum()
    assert prove(layered, x, y, Lp("linf", 0.99 * largest), 1.0).certified
    assert not prove(layered, x, y, Lp("linf", 1.001 * largest), 1.0).certified


def test_where_bounds_are_not_of_the_defense_it_says_so() -> None:
    model = _perceptron(0, 4, 6, 3)
    layered, x = Layered(model, torch.zeros(1, 1, 2, 2)), torch.rand(3, 1, 2, 2)
    assert check_precision(defense_of(model, (1, 2, 2), 3), layered, x, Lp("linf", 0.1)) < 1e-5
    model[1].bias.add_(0.01)
    with pytest.raises(NotApplicable, match=r"the defense's logits differ by .* certificates allow for 2\.5e-04"):
        check_precision(defense_of(model, (1, 2, 2), 3), layered, x, Lp("linf", 0.1))
    with pytest.raises(NotApplicable, match="not known to be piecewise linear"):
        Layered(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh()), torch.zeros(1, 1, 2, 2))


def test_the_stages_themselves_are_compared_with_the_defense() -> None:
    model = _perceptron(0, 4, 6, 3)
    layered, x = Layered(model, torch.zeros(1, 1, 2, 2)), torch.rand(3, 1, 2, 2)
    for point in x:
        torch.testing.assert_close(layered.at(point[None]), layered.network.at(point[None]).logits)
    layered.stages[0].bias[0] += 0.5  # as an operation would have it that is not affine though it passes for it
    with pytest.raises(NotApplicable, match="the defense's logits differ by"):
        check_precision(defense_of(model, (1, 2, 2), 3), layered, x, Lp("linf", 0.1))


class Broken(nn.Module):
    """``model`` where all is below a half, and no number elsewhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where((x < 0.5).flatten(1).all(1, keepdim=True), self.model(x), torch.nan)


def test_a_defense_that_gives_no_numbers_differs_from_its_network() -> None:
    model = _perceptron(0, 4, 6, 3)
    layered, x = Layered(model, torch.zeros(1, 1, 2, 2)), torch.tensor([0.2, 0.7]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    with pytest.raises(NotApplicable, match="differ by nan"):
        check_precision(defense_of(Broken(model), (1, 2, 2), 3), layered, x, Lp("linf", 0.1))


def test_the_box_holds_what_the_judge_allows_at_its_ends() -> None:
    threat, x = Lp("linf", 0.1, low=-0.3, high=0.7), torch.tensor([-0.3, 0.7]).view(2, 1, 1)
    assert threat.violations(x[None], x[None]) == ["ok"]  # in float32, where both ends are rounded
    ball = box(x, threat.eps, threat.low, threat.high)
    assert (ball.low[0][:, 0] <= x.double().flatten()).all() and (x.double().flatten() <= ball.high[0][:, 0]).all()
