"""DeepFool: closed form on linear models, passes, and defenses that return nothing useful."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lab import assert_feasible, curved_case, length, linear_case, make_target
from two_classes import INFO, Broken, CoinFlip, Constant

import attacks
from attacks.minimum_norm.deepfool import deepfool
from bench.contracts.errors import InputError, NotApplicable

NORMS = ["linf", "l2"]
VARIANTS = {
    "default": deepfool,
    "no-shortlist": partial(deepfool, shortlist=0),
    "no-search": partial(deepfool, search=0),
}
every_batch = pytest.mark.parametrize("n", [1, 3, 8])
every_shape = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)], ids=str)
every_norm = pytest.mark.parametrize("norm", NORMS)
every_variant = pytest.mark.parametrize("attack", VARIANTS.values(), ids=VARIANTS)


@every_batch
@every_shape
@every_norm
@pytest.mark.parametrize("rivals", [2, 4])
@every_variant
def test_the_minimal_perturbation_is_reached(attack, n, shape, norm, rivals) -> None:
    case = linear_case(n, shape, norm, rivals=rivals)
    target = case.target(4.0, "gradient")
    x_adv = attack(target, case.x, case.y, stop_inside=False)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()
    assert length(x_adv - case.x, norm).max() < 1.05 * case.radius


@every_batch
@every_norm
def test_it_succeeds_just_beyond_the_minimal_radius_and_not_below(n, norm) -> None:
    case = linear_case(n, (3, 5, 7), norm)
    for factor, fooled in ((1.02, True), (0.98, False)):
        target = case.target(factor, "gradient")
        x_adv = deepfool(target, case.x, case.y)
        assert_feasible(target, case.x, x_adv)
        assert (case.fooled(x_adv) == fooled).all()


@every_norm
def test_few_candidates_are_those_ranked_highest(norm) -> None:
    # Two classes out of reach are ranked lowest: leaving them out changes nothing but the gradients taken.
    case = linear_case(3, (1, 8, 8), norm)
    every, few = (case.target(4.0, "gradient") for _ in range(2))
    x_every = deepfool(every, case.x, case.y, shortlist=0)
    x_few = deepfool(few, case.x, case.y, candidates=1, shortlist=0)
    assert torch.equal(x_every, x_few)
    assert (every.counts.backward == 3 * few.counts.backward).all()
    assert torch.equal(few.counts.forward, every.counts.forward + 1)


@every_norm
def test_the_search_shortens_at_a_forward_pass_per_step(norm) -> None:
    defense, x, y = curved_case(16)
    plain, searched = (
        attacks.run("attacks.minimum_norm.deepfool:deepfool", defense, x, y, norm=norm, search=search)
        for search in (0, 3)
    )
    assert plain.success.all() and searched.success.all()
    assert torch.equal(plain.backward, searched.backward)
    assert torch.equal(plain.forward + 3, searched.forward)
    assert (length(searched.x_adv - x, norm) <= length(plain.x_adv - x, norm)).all()
    assert length(searched.x_adv - x, norm).mean() < 0.9995 * length(plain.x_adv - x, norm).mean()


def test_every_pass_is_counted() -> None:
    case = linear_case(2, (1, 8, 8), "l2")
    target = case.target(4.0, "gradient")
    deepfool(target, case.x, case.y)
    # One step fools a linear model; the evaluation that sees it differentiates the shortlist again. No search inside.
    assert target.counts.forward.tolist() == [2, 2]
    assert target.counts.backward.tolist() == [6, 6]
    target = case.target(4.0, "gradient")
    deepfool(target, case.x, case.y, steps=1, stop_inside=False, search=2)
    assert target.counts.forward.tolist() == [1 + 1 + 2] * 2
    assert target.counts.backward.tolist() == [3, 3]
    # Already misclassified: one look.
    target = case.target(4.0, "gradient")
    assert torch.equal(deepfool(target, case.x, 1 - case.y, stop_inside=False), case.x)
    assert target.counts.forward.tolist() == [1, 1]


@every_norm
@pytest.mark.parametrize("defense", [Constant, Broken])
def test_defenses_without_gradients_or_numbers_end_in_feasible_points(defense, norm) -> None:
    target = make_target(defense(INFO), 2, "gradient", norm=norm)
    x = torch.rand(2, 1, 8, 8)
    x_adv = deepfool(target, x, torch.zeros(2).long(), steps=4)
    assert_feasible(target, x, x_adv)
    if defense is Constant:
        assert target.counts.forward.tolist() == [5, 5]
        assert target.counts.zero_gradient.tolist() == [4, 4]


@every_norm
def test_a_randomised_defense_is_left_only_when_most_draws_are_fooled(norm) -> None:
    class Stubborn(CoinFlip):
        """Wrong in one draw of ten."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            right = torch.where(torch.rand(len(x)) < 0.1, 0.0, 2.0)
            return torch.stack([right, torch.ones(len(x))], 1)

    target = make_target(Stubborn(INFO), 32, "gradient", norm=norm, randomized=True)
    x = torch.rand(32, 1, 8, 8)
    x_adv = deepfool(target, x, torch.zeros(32).long(), steps=6, rescore=15)
    assert_feasible(target, x, x_adv)
    assert target.counts.backward.tolist() == [6] * 32


def test_there_is_no_targeted_form_and_no_other_norm() -> None:
    defense, x, y = curved_case(2)
    with pytest.raises(NotApplicable, match="no targeted form"):
        attacks.run("attacks.minimum_norm.deepfool:deepfool", defense, x, y, norm="l2", towards=(y + 1) % 4)
    with pytest.raises(NotApplicable, match="no l1 version"):
        attacks.run("attacks.minimum_norm.deepfool:deepfool", defense, x, y, norm="l1")
    with pytest.raises(InputError, match="steps"):
        attacks.run("attacks.minimum_norm.deepfool:deepfool", defense, x, y, norm="l2", steps=0)
