"""PMA on linear models, and the order of what it climbs."""

from __future__ import annotations

import pytest
import torch
from lab import DIGITS, assert_feasible, digits, digits_classifier, linear_case, make_target
from two_classes import INFO, Constant

from attacks.gradient.pma import pma
from bench.contracts.defense import BareModel, Defense, freeze

every_shape = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 28, 28), (3, 32, 32)], ids=str)


@pytest.mark.parametrize("n", [1, 3, 8])
@every_shape
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_succeeds_just_beyond_the_minimal_radius_and_not_below(n, shape, norm) -> None:
    case = linear_case(n, shape, norm)
    case.defense.classifier.weight *= 0.1  # a softmax that is saturated in single precision has no gradient
    case.defense.classifier.bias[2:] = -1e4  # out of reach with many values too
    for factor in (1.02, 0.98):
        target = case.target(factor, "gradient")
        x_adv = pma(target, case.x, case.y)
        assert_feasible(target, case.x, x_adv)
        assert (case.fooled(x_adv) == (factor > 1)).all()


def test_every_step_is_one_gradient_and_every_pass_ends_with_a_look() -> None:
    target = make_target(Constant(INFO), 2, "gradient")
    pma(target, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), steps=7, passes=3)
    assert target.counts.forward.tolist() == [24, 24] and target.counts.backward.tolist() == [21, 21]


class Watched(Defense):
    """Notes the derivatives of what is climbed with respect to the logits."""

    def __init__(self) -> None:
        super().__init__(DIGITS)
        self.net, self.seen = digits_classifier(), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.net(x)
        if logits.requires_grad:
            logits.register_hook(lambda grad: self.seen.append(grad[0]))
        return logits


def test_logits_are_climbed_first_and_the_margin_of_probabilities_then() -> None:
    defense = freeze(Watched())
    x, y = digits()[2][:1], digits()[3][:1]
    pma(make_target(defense, 1, "gradient", eps=1e-3), x, y, steps=6)
    own = torch.zeros(10).scatter(0, y, 1.0)
    first, second = defense.seen[:6], defense.seen[6:]
    assert torch.equal(first[0], own) and torch.equal(second[0], own), "a step towards y"
    for grad in first[1:3]:  # the largest other logit alone
        assert grad.sum() == 1 and grad.max() == 1 and grad[y] == 0
    for grad in second[1:3]:
        assert torch.equal(grad, -own)
    for grad in (*first[3:], *second[3:]):  # softmax: the logits' common shift changes nothing
        assert grad[y] < 0 and abs(grad.sum()) < 1e-6 and (grad != 0).all()


def test_two_passes_leave_no_more_standing_than_one_or_than_steps_without_them() -> None:
    defense = freeze(BareModel(digits_classifier(), DIGITS))
    x, y = (part[:200] for part in digits()[2:])

    def standing(**settings) -> float:
        x_adv = pma(make_target(defense, 200, "gradient", eps=0.1), x, y, steps=20, **settings)
        return (defense(x_adv).argmax(1) == y).float().mean().item()

    assert standing(passes=2) <= standing(passes=1)
    assert 0.2 < standing(passes=2) < 0.7
