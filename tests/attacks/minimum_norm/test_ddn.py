"""DDN: passes, rounding, and a first radius far from the boundary."""

from __future__ import annotations

import pytest
import torch
from lab import length, linear_case, make_target

from attacks.minimum_norm.ddn import ddn


def test_every_pass_is_counted() -> None:
    case = linear_case(2, (1, 8, 8), "l2")
    target = case.target(4.0, "gradient")
    ddn(target, case.x, case.y, steps=7, stop_inside=False)
    assert target.counts.forward.tolist() == [8, 8]
    assert target.counts.backward.tolist() == [7, 7]
    target = case.target(4.0, "gradient")  # x is looked at, then the point at distance 1, inside eps = 2
    ddn(target, case.x, case.y, steps=7)
    assert target.counts.forward.tolist() == target.counts.backward.tolist() == [2, 2]


def test_a_stand_in_costs_one_more_forward_pass_a_step() -> None:
    case = linear_case(2, (1, 8, 8), "l2")
    target = case.target(4.0, "gradient")
    ddn(target, case.x, case.y, steps=7, stop_inside=False, estimator="classifier")
    assert target.counts.forward.tolist() == [15, 15]
    assert target.counts.backward.tolist() == [7, 7]


@pytest.mark.parametrize("levels", [16, 256])
def test_points_are_rounded_to_the_levels(levels) -> None:
    case = linear_case(3, (1, 8, 8), "l2")
    x = (case.x * (levels - 1)).round() / (levels - 1)
    y = case.defense(x).argmax(1)
    target = make_target(case.defense, 3, "gradient", norm="l2", eps=8)
    x_adv = ddn(target, x, y, levels=levels, stop_inside=False)
    assert (case.defense(x_adv).argmax(1) != y).all()
    torch.testing.assert_close(x_adv * (levels - 1), (x_adv * (levels - 1)).round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("init_norm", [0.01, 0.1, 8.0])
def test_the_first_radius_may_be_far_off(init_norm) -> None:
    case = linear_case(3, (1, 8, 8), "l2")
    target = case.target(16.0, "gradient")
    x_adv = ddn(target, case.x, case.y, init_norm=init_norm, steps=150, stop_inside=False)
    assert case.fooled(x_adv).all()
    assert length(x_adv - case.x, "l2").max() < 1.05 * case.radius
