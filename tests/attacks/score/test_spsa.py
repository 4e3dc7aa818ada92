"""SPSA and NES: estimated gradients, counts, and strength on models where the answer is known."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lab import DIGITS, Wrapped, assert_feasible, digits, digits_classifier, linear_case, make_target
from toys import INFO, Constant, NaNWhereBright

from attacks.score.spsa import _Optimiser, spsa
from attacks.toolkit.finite_differences import FiniteDifference
from attacks.toolkit.losses import Goal, margin

FORMS = {
    "spsa": partial(spsa, queries=3000, samples=64, update="adam"),
    "nes": partial(spsa, queries=3000, samples=64, directions="gaussian"),
    "default": partial(spsa, queries=3000, samples=64),
    "orthogonal": partial(spsa, queries=3000, samples=105, directions="orthogonal"),
}
#: How far beyond the minimal radius each form has to succeed: estimates along random directions are noisy.
FACTOR = {"spsa": 1.25, "nes": 1.1, "default": 1.1, "orthogonal": 1.02}
every_batch = pytest.mark.parametrize("n", [1, 3, 8])
every_shape = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)], ids=str)
every_norm = pytest.mark.parametrize("norm", ["linf", "l2"])
every_form = pytest.mark.parametrize("form", FORMS)


@every_batch
@every_shape
@every_norm
@every_form
def test_it_succeeds_beyond_the_minimal_radius(form, n, shape, norm) -> None:
    case = linear_case(n, shape, norm)
    target = case.target(FACTOR[form], "score")
    x_adv = FORMS[form](target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()


@every_norm
@every_form
def test_nothing_succeeds_below_the_minimal_radius(form, norm) -> None:
    case = linear_case(3, (3, 5, 7), norm)
    target = case.target(0.98, "score")
    x_adv = FORMS[form](target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert not case.fooled(x_adv).any()


@every_norm
def test_a_class_to_reach_is_reached_and_no_other_one_counts(norm) -> None:
    case = linear_case(4, (1, 8, 8), norm, rivals=4)
    towards = (case.y + 2) % 4
    target = case.target(4.0, "score", towards=towards)
    x_adv = spsa(target, case.x, case.y, queries=1500)
    assert_feasible(target, case.x, x_adv)
    assert (case.defense(x_adv).argmax(1) == towards).all()


@every_norm
def test_the_same_seed_gives_the_same_result_and_another_seed_another_one(norm) -> None:
    case = linear_case(3, (3, 5, 7), norm)
    state = torch.get_rng_state()
    runs = [spsa(case.target(0.9, "score", seed=seed), case.x, case.y, queries=200, restarts=2) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(state, torch.get_rng_state())


@every_norm
@pytest.mark.parametrize("update", ["sign", "adam"])
def test_the_micro_batch_size_changes_nothing(norm, update) -> None:
    case = linear_case(3, (1, 8, 8), norm, dtype=torch.float64)
    whole, split = (
        spsa(case.target(1.3, "score", batch_size=size), case.x, case.y, queries=300, update=update)
        for size in (512, 2)
    )
    assert_feasible(case.target(1.3, "score"), case.x, whole)
    torch.testing.assert_close(whole, split, atol=1e-9, rtol=0)


def test_examples_do_not_depend_on_which_others_are_finished() -> None:
    case = linear_case(4, (1, 8, 8), "linf", dtype=torch.float64)
    together = spsa(case.target(0.9, "score"), case.x, case.y, queries=300, restarts=2)
    wrong = case.y.clone()
    wrong[:3] = 1 - wrong[:3]  # these are fooled from the start, and leave at once
    target = case.target(0.9, "score")
    alone = spsa(target, case.x, wrong, queries=300, restarts=2)
    torch.testing.assert_close(alone[3], together[3])
    assert target.counts.forward[:3].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "spent"),
    [
        ({"queries": 100, "samples": 4}, 11 * 9 + 1),
        ({"queries": 99, "samples": 4}, 10 * 9 + 1),
        ({"queries": 30, "samples": 100}, 30),  # 14 directions, so that there is one step
        ({"queries": 30, "samples": 100, "directions": "orthogonal"}, 30),
        ({"queries": 200, "samples": 4, "restarts": 2}, 2 * (11 * 9 + 1)),
        ({"queries": 2048, "samples": 16}, 2 * (31 * 33 + 1)),  # one run per 16 · 64 queries
        ({"queries": 300, "samples": 100, "directions": "orthogonal"}, 2 * (2 * 64 + 1) + 1),
        ({"queries": 1}, 1),
        ({"queries": 3, "samples": 1, "restarts": 5}, 3),
    ],
)
def test_every_query_is_counted(settings, spent) -> None:
    target = make_target(Constant(INFO), 2, "score")
    spsa(target, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), **settings)
    assert target.counts.forward.tolist() == [spent] * 2


@every_norm
@pytest.mark.parametrize("update", ["sign", "adam"])
def test_outputs_that_are_not_numbers_end_in_feasible_points(norm, update) -> None:
    x, y = torch.full((2, 1, 8, 8), 0.4), torch.zeros(2).long()
    for towards in (None, torch.ones(2).long()):
        target = make_target(NaNWhereBright(INFO), 2, "score", norm=norm, eps=0.3, towards=towards)
        assert_feasible(target, x, spsa(target, x, y, queries=400, update=update))


def test_gradients_along_signs_and_gaussians_are_right_on_average() -> None:
    case = linear_case(2, (1, 8, 8), "l2", dtype=torch.float64)
    weight = case.defense.classifier.weight.detach()
    truth = torch.stack([weight[1 - label] - weight[label] for label in case.y])
    for directions in ("rademacher", "gaussian"):
        target = case.target(1.0, "score")
        estimator = FiniteDifference(4000, 0.01, directions)
        grad = estimator.gradient(target, case.x, Goal(margin, case.y), torch.arange(2)).flatten(1)
        assert target.counts.forward.tolist() == [8000, 8000]
        assert torch.cosine_similarity(grad, truth).min() > 0.98
        torch.testing.assert_close(grad.norm(dim=1), truth.norm(dim=1), rtol=0.1, atol=0)
        drawn = estimator._directions(target, case.x)
        assert drawn.shape == (4000, 64)
        assert (set(drawn.unique().tolist()) == {-1.0, 1.0}) == (directions == "rademacher")


def test_steps_of_adam() -> None:
    like = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    optimiser = _Optimiser(like, "adam", 0.9, "linf")
    first, second = torch.tensor([[[[3.0, -0.01]]]]).double(), torch.tensor([[[[1.0, 0.02]]]]).double()
    torch.testing.assert_close(optimiser.direction(first), first.sign())
    mean = (0.09 * first + 0.1 * second) / (1 - 0.9**2)
    square = (0.999 * 0.001 * first**2 + 0.001 * second**2) / (1 - 0.999**2)
    torch.testing.assert_close(optimiser.direction(second), mean / square.sqrt())


def test_one_lucky_draw_does_not_end_it() -> None:
    """On a randomised defense the returned point has to fool fresh draws, not only the one it was found on."""
    x, y = digits()[2][:12], digits()[3][:12]
    noisy = Wrapped(digits_classifier(), DIGITS, lambda x: x + 0.05 * torch.randn_like(x))
    x_adv = spsa(make_target(noisy, 12, "score", eps=0.25, randomized=True), x, y, queries=400)
    fooled = torch.stack([noisy(x_adv).argmax(1) != y for _ in range(50)]).float().mean(0)
    assert fooled.mean() > 0.87  # about 0.8 when the first lucky draw ends it
