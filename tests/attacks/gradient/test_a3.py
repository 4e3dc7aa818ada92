"""A3 on linear models, what it learns from restarts, and whom it attacks with the last ones."""

from __future__ import annotations

import pytest
import torch
from lab import DIGITS, assert_feasible, digits, digits_classifier, linear_case, make_target
from two_classes import INFO, Constant

from attacks.gradient.a3 import _Along, _Learnt, a3
from attacks.toolkit.losses import Goal, margin
from bench.contracts.defense import BareModel, freeze


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_succeeds_just_beyond_the_minimal_radius_and_not_below(n, shape, norm) -> None:
    case = linear_case(n, shape, norm)
    case.defense.classifier.bias[2:] = -1e4  # out of reach with many values too
    for factor in (1.02, 0.98):
        target = case.target(factor, "gradient")
        x_adv = a3(target, case.x, case.y, restarts=5)
        assert_feasible(target, case.x, x_adv)
        assert (case.fooled(x_adv) == (factor > 1)).all()


def test_the_last_restart_attacks_a_share_of_those_that_stand() -> None:
    target = make_target(Constant(INFO), 10, "gradient")
    x, y = torch.rand(10, 1, 8, 8), torch.zeros(10).long()
    a3(target, x, y, restarts=2, first_steps=3, last_steps=5, initial_steps=2, share=0.3)
    spent = target.counts.backward
    assert sorted(spent.tolist()) == [5] * 7 + [12] * 3


def test_a_row_has_its_own_combination_of_logits() -> None:
    goal = Goal(margin, torch.tensor([0, 1]))
    along = _Along(goal, torch.tensor([[1.0, -1.0], [0.5, 2.0]]))
    logits = torch.tensor([[3.0, 1.0], [2.0, 4.0]])
    assert along(logits).tolist() == [2.0, 9.0]
    assert along.at(torch.tensor([1]))(logits[1:]).tolist() == [9.0]
    assert along.repeat(2)(logits.repeat(2, 1)).tolist() == [2.0, 9.0, 2.0, 9.0]
    assert torch.equal(along.margin(logits), goal.margin(logits))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_later_starts_keep_the_signs_of_those_that_fooled(sign) -> None:
    defense = freeze(BareModel(digits_classifier(), DIGITS))
    x, y = (part[:20] for part in digits()[2:])
    target = make_target(defense, 20, "gradient")
    learnt = _Learnt(target, x, y)
    first = learnt.weights(target, 0, 10, x)
    assert first.abs().max() <= 1 and first.min() < -0.9 and first.max() > 0.9
    other = learnt.ranked[0]
    weights = torch.zeros(20, 10).scatter(1, y[:, None], -sign).scatter(1, other[:, None], sign)
    learnt.see(target, x, torch.arange(20), weights)  # at x the likeliest other class counts as the one reached
    later = learnt.weights(target, 1, 10, x)
    own = later.gather(1, y[:, None])
    assert own.mean() * -sign > 0 and own.min() >= -0.5 and own.max() <= 0.5
    assert (later.gather(1, learnt.ranked[1][:, None]) == pytest.approx(0.8 * sign))


def test_starts_along_logits_leave_fewer_standing_than_random_ones_alone() -> None:
    defense = freeze(BareModel(digits_classifier(), DIGITS))
    x, y = (part[:200] for part in digits()[2:])
    left = []
    for initial in (7, 0):
        x_adv = a3(make_target(defense, 200, "gradient", eps=0.1), x, y, initial_steps=initial, last_steps=10)
        left.append((defense(x_adv).argmax(1) == y).sum().item())
    assert left[0] <= left[1] < 160
