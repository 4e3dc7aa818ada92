"""ALMA's parts, and linear models of real size."""

from __future__ import annotations

import pytest
import torch
from lab import assert_feasible, length, linear_case, make_target
from two_classes import INFO, Constant

from attacks.minimum_norm.alma import _Multipliers, _slope, alma
from attacks.toolkit.norm_walk import Look


def _penalty(c: float, rho: float, mu: float) -> float:
    return mu * c + mu * rho * c**2 + rho**2 * c**3 / 6 if c >= 0 else mu * c / (1 - rho * c)


@pytest.mark.parametrize("c", [-2.0, -0.3, 0.4, 1.5])
@pytest.mark.parametrize(("rho", "mu"), [(1.0, 1.0), (2.5, 0.3)])
def test_the_slope_is_that_of_the_penalty(c, rho, mu) -> None:
    found = _slope(*(torch.tensor([value], dtype=torch.float64) for value in (c, rho, mu)))
    expected = (_penalty(c + 1e-6, rho, mu) - _penalty(c - 1e-6, rho, mu)) / 2e-6
    torch.testing.assert_close(found.item(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_the_minimal_perturbation_of_large_images_is_reached(n, shape) -> None:
    case = linear_case(n, shape, "l2")
    target = case.target(4.0, "gradient")
    x_adv = alma(target, case.x, case.y, stop_inside=False)
    assert_feasible(target, case.x, x_adv)
    reached = length(x_adv - case.x, "l2")
    assert case.fooled(x_adv).all()
    assert (reached <= 1.01 * case.radius).all() and (reached >= 0.999 * case.radius).all()


def _look(step: int, loss: float, hit: bool) -> Look:
    x = torch.zeros(1, 1, 8, 8)
    one = torch.ones(1)
    return Look(step, torch.tensor([0]), x, x, torch.tensor([loss]), x, torch.tensor([hit]), one)


def test_the_multiplier_rises_while_the_constraint_is_violated_and_falls_beyond_the_boundary() -> None:
    state = _Multipliers(torch.zeros(1, 1, 8, 8), 100)
    state.weigh(_look(0, -2.0, False))
    risen = [state.weigh(_look(step, -2.0, False)).item() for step in range(1, 5)]
    assert risen == sorted(risen) and risen[0] < risen[-1]
    fallen = [state.weigh(_look(step, 2.0, True)).item() for step in range(5, 9)]
    assert fallen == sorted(fallen, reverse=True) and fallen[-1] < fallen[0]


def test_the_penalty_parameter_grows_only_until_a_first_success_and_where_nothing_improves() -> None:
    def rho(losses: list[float]) -> float:
        state = _Multipliers(torch.zeros(1, 1, 8, 8), 100)
        for step, loss in enumerate(losses):
            state.weigh(_look(step, loss, loss > 0))
        return state.rho.item()

    assert rho([-1.0] * 10) == pytest.approx(1.2)
    assert rho([-1.0] * 20) == pytest.approx(1.44)
    assert rho([-1.0] + [-0.5] * 9) == 1.0, "improved"
    assert rho([-1.0, 0.5] + [-1.0] * 8) == 1.0, "once adversarial"


def test_steps_shrink_from_the_first_success_on() -> None:
    state = _Multipliers(torch.zeros(1, 1, 8, 8), 100)
    state.weigh(_look(0, -1.0, False))
    assert state.progress(_look(40, -1.0, False)).item() == 0
    state.weigh(_look(50, 1.0, True))
    assert state.progress(_look(75, 1.0, True)).item() == 0.5
    assert state.progress(_look(100, 1.0, True)).item() == 1


def test_every_step_is_one_gradient() -> None:
    target = make_target(Constant(INFO), 2, "gradient", norm="l2")
    alma(target, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), steps=7)
    assert target.counts.forward.tolist() == [8, 8] and target.counts.backward.tolist() == [7, 7]
