"""FAB: closed form on linear models, passes, targeted form, and defenses that return nothing useful."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lab import assert_feasible, curved_case, length, linear_case, make_target
from two_classes import INFO, Broken, CoinFlip, Constant

import attacks
from attacks.minimum_norm.fab import fab
from bench.contracts.defense import BareModel

NORMS = ["linf", "l2", "l1"]
VARIANTS = {"untargeted": fab, "all-gradients": partial(fab, shortlist=0), "one-by-one": partial(fab, targets=3)}
every_batch = pytest.mark.parametrize("n", [1, 3, 8])
every_shape = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)], ids=str)
every_norm = pytest.mark.parametrize("norm", NORMS)
every_variant = pytest.mark.parametrize("attack", VARIANTS.values(), ids=VARIANTS)


@every_batch
@every_shape
@every_norm
@every_variant
def test_the_minimal_perturbation_is_reached(attack, n, shape, norm) -> None:
    case = linear_case(n, shape, norm)
    target = case.target(4.0, "gradient")
    x_adv = attack(target, case.x, case.y, steps=30, stop_inside=False)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()
    assert length(x_adv - case.x, norm).max() < 1.05 * case.radius


@every_batch
@every_norm
@every_variant
def test_the_nearest_of_several_classes_is_found(attack, n, norm) -> None:
    case = linear_case(n, (3, 5, 7), norm, rivals=4)
    x_adv = attack(case.target(4.0, "gradient"), case.x, case.y, steps=40, stop_inside=False)
    assert case.fooled(x_adv).all()
    assert length(x_adv - case.x, norm).max() < 1.05 * case.radius


@every_batch
@every_norm
@every_variant
def test_it_succeeds_just_beyond_the_minimal_radius_and_not_below(attack, n, norm) -> None:
    case = linear_case(n, (3, 5, 7), norm)
    for factor, fooled in ((1.02, True), (0.98, False)):
        target = case.target(factor, "gradient")
        x_adv = attack(target, case.x, case.y, steps=20)
        assert_feasible(target, case.x, x_adv)
        assert (case.fooled(x_adv) == fooled).all()


@every_norm
def test_restarts_are_seeded_and_leave_global_randomness_alone(norm) -> None:
    defense, x, y = curved_case(8)
    state = torch.get_rng_state()

    def run(seed: int) -> torch.Tensor:
        target = make_target(defense, 8, "gradient", norm=norm, eps=3.0, seed=seed)
        return fab(target, x, y, steps=20, restarts=3, search=0, stop_inside=False)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(state, torch.get_rng_state())


@every_norm
@pytest.mark.parametrize("targets", [0, 2])
def test_the_micro_batch_size_changes_nothing(norm, targets) -> None:
    case = linear_case(5, (1, 8, 8), norm, dtype=torch.float64, rivals=4)
    whole, split = (
        fab(
            case.target(1.3, "gradient", batch_size=size),
            case.x,
            case.y,
            steps=10,
            restarts=2,
            targets=targets,
            stop_inside=False,
        )
        for size in (512, 2)
    )
    torch.testing.assert_close(whole, split, atol=1e-9, rtol=0)
    assert whole.dtype == torch.float64


@every_norm
def test_a_class_is_reached(norm) -> None:
    case = linear_case(3, (1, 8, 8), norm)
    target = case.target(1.02, "gradient", towards=1 - case.y)
    x_adv = fab(target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert (case.defense(x_adv).argmax(1) == 1 - case.y).all()
    unreachable = case.target(1.02, "gradient", towards=torch.full((3,), 2))
    x_adv = fab(unreachable, case.x, case.y, steps=5)
    assert_feasible(unreachable, case.x, x_adv)


def test_every_pass_is_counted() -> None:
    def counts(factor: float, **settings: object) -> tuple[list[int], list[int]]:
        case = linear_case(2, (1, 8, 8), "l2")
        target = case.target(factor, "gradient")
        fab(target, case.x, case.y, **settings)  # type: ignore[arg-type]
        return target.counts.forward.tolist(), target.counts.backward.tolist()

    # The ball is too small: one look at x, the steps, one look at the last point, the search.
    assert counts(0.5, steps=10, shortlist=0) == ([1 + 10 + 1 + 3] * 2, [30] * 2)
    assert counts(0.5, steps=10, shortlist=2) == ([1 + 10 + 1 + 3] * 2, [3 + 9 * 2] * 2)
    assert counts(0.5, steps=10, targets=1, search=0) == ([1 + 10 + 1] * 2, [10] * 2)
    assert counts(0.5, steps=10, targets=9, search=0) == ([1 + 3 * 11] * 2, [30] * 2)
    # In reach: the first step overshoots the boundary, the second evaluation sees that and ends it all.
    assert counts(1.2, steps=10, targets=2) == ([3] * 2, [2] * 2)
    assert counts(1.2, steps=10, targets=2, stop_inside=False) == ([1 + 2 * 11 + 3] * 2, [20] * 2)


def test_a_misclassified_example_costs_one_look() -> None:
    case = linear_case(3, (1, 8, 8), "linf")
    target = case.target(1.2, "gradient")
    x_adv = fab(target, case.x, 1 - case.y, stop_inside=False, targets=2)
    assert torch.equal(x_adv, case.x)
    assert target.counts.forward.tolist() == [2] * 3


@every_norm
@pytest.mark.parametrize("targets", [0, 1])
@pytest.mark.parametrize("defense", [Constant, Broken])
def test_defenses_without_gradients_or_numbers_end_in_feasible_points(defense, norm, targets) -> None:
    target = make_target(defense(INFO), 2, "gradient", norm=norm)
    x = torch.rand(2, 1, 8, 8)
    x_adv = fab(target, x, torch.zeros(2).long(), steps=4, restarts=2, targets=targets)
    assert_feasible(target, x, x_adv)


@every_norm
def test_a_randomised_defense_gets_the_whole_budget(norm) -> None:
    target = make_target(CoinFlip(INFO), 2, "gradient", norm=norm, randomized=True)
    x = torch.rand(2, 1, 8, 8)
    x_adv = fab(target, x, torch.zeros(2).long(), steps=6, rescore=3)
    assert_feasible(target, x, x_adv)
    assert target.counts.backward.tolist() == [6, 6]


def test_a_stretched_point_is_preferred_on_a_randomised_defense() -> None:
    case = linear_case(4, (1, 8, 8), "l2")

    class Noisy(BareModel):
        randomized = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + 0.02 * torch.randn_like(x))

    noisy = Noisy(case.defense, case.defense.data)
    target = make_target(noisy, 4, "gradient", norm="l2", eps=1.5 * case.radius, randomized=True)
    x_adv = fab(target, case.x, case.y, steps=20)
    assert_feasible(target, case.x, x_adv)
    assert length(x_adv - case.x, "l2").min() > 1.4 * case.radius
    assert case.fooled(x_adv).all()


@every_norm
def test_without_a_radius_a_shorter_distance_is_the_result(norm) -> None:
    defense, x, y = curved_case(16)
    distances = []
    for settings in ({"steps": 10}, {"steps": 30}, {"steps": 30, "targets": 3}):
        result = attacks.run("attacks.minimum_norm.fab:fab", defense, x, y, norm=norm, **settings)
        assert result.success.all()
        distances.append(length(result.x_adv - x, norm).mean())
    assert distances[1] < 0.99 * distances[0]
    assert distances[2] < 0.995 * distances[1]
