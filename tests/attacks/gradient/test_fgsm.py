"""FGSM, BIM and MI-FGSM: closed forms on linear models, exact steps and counts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lab import DIGITS, assert_feasible, digits, digits_classifier, linear_case, make_target
from torch import Tensor

from attacks.gradient.fgsm import bim, fgsm, mi_fgsm
from attacks.toolkit.losses import ce
from attacks.toolkit.projections import steepest
from bench.contracts.defense import BareModel, Defense
from bench.contracts.inputs import DataInfo, InputSpec

FAMILY = {"fgsm": fgsm, "bim": bim, "mi-fgsm": mi_fgsm, "bpda-i": partial(fgsm, estimator="identity")}
every_attack = pytest.mark.parametrize("name", FAMILY)
every_norm = pytest.mark.parametrize("norm", ["linf", "l2"])


class Sick(Defense):
    """A constant, or NaN."""

    def __init__(self, value: float) -> None:
        super().__init__(DataInfo("toy", InputSpec((1, 8, 8)), 3))
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[self.value, 0.0, 0.0]]).repeat(len(x), 1).to(x)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)], ids=str)
@every_norm
@every_attack
def test_they_succeed_just_beyond_the_minimal_radius_and_not_below(name, norm, shape, n) -> None:
    case = linear_case(n, shape, norm)
    for factor, expected in ((1.02, True), (0.98, False)):
        target = case.target(factor, "gradient")
        x_adv = FAMILY[name](target, case.x, case.y)
        assert_feasible(target, case.x, x_adv)
        assert (case.fooled(x_adv) == expected).all()


@every_norm
@every_attack
def test_they_reach_the_class_they_are_asked_for(name, norm) -> None:
    case = linear_case(3, (1, 8, 8), norm)
    target = case.target(1.02, "gradient", towards=1 - case.y)
    assert torch.equal(case.defense(FAMILY[name](target, case.x, case.y)).argmax(1), 1 - case.y)


@every_norm
@pytest.mark.parametrize("downhill", [False, True])
def test_fgsm_is_one_step_of_length_eps(norm, downhill) -> None:
    x, y = (part[:20] for part in digits()[2:])
    x = 0.2 + 0.6 * x  # the box does not interfere
    model = digits_classifier()
    at = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ce(model(at), y).sum(), at)
    target = make_target(BareModel(model, DIGITS), 20, "gradient", norm=norm, eps=0.1)
    x_adv = fgsm(target, x, y, downhill=downhill)
    torch.testing.assert_close(x_adv, x + (-0.1 if downhill else 0.1) * steepest(grad, norm))
    assert target.counts.forward.tolist() == [1] * 20 and target.counts.backward.tolist() == [1] * 20
    before, after = (ce(model(points), y).mean() for points in (x, x_adv))
    assert (after < before) if downhill else (after > before)


def test_more_steps_are_stronger() -> None:
    x, y = (part[:150] for part in digits()[2:])
    defense = BareModel(digits_classifier(), DIGITS)
    left = {}
    for name in ("fgsm", "bim", "mi-fgsm"):
        x_adv = FAMILY[name](make_target(defense, 150, "gradient", eps=0.15), x, y)
        left[name] = (defense(x_adv).argmax(1) == y).float().mean()
    assert left["bim"] < left["fgsm"] - 0.03 and left["mi-fgsm"] < left["fgsm"] - 0.03


@every_norm
@pytest.mark.parametrize("value", [1.0, torch.nan])
@pytest.mark.parametrize(("name", "passes"), [("fgsm", 1), ("bim", 11), ("mi-fgsm", 11)])
def test_defenses_without_a_gradient_end_in_feasible_points(name, passes, value, norm) -> None:
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    target = make_target(Sick(value), 2, "gradient", norm=norm)
    x_adv = FAMILY[name](target, x, torch.zeros(2).long())
    assert_feasible(target, x, x_adv)
    assert target.counts.forward.tolist() == [passes if value == 1 else 1] * 2
