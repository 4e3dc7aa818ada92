"""On a linear model the smallest perturbation is known, so no attack can be silently weak, or too good."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lab import assert_feasible, length, linear_case

from attacks.decision.hopskipjump import hopskipjump
from attacks.gradient.pgd import pgd
from attacks.score.genattack import genattack
from attacks.score.noise import noise

SHAPES = [(1, 8, 8), (3, 5, 7)]
NORMS = ["linf", "l2"]
every_batch = pytest.mark.parametrize("n", [1, 3, 8])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_norm = pytest.mark.parametrize("norm", NORMS)

GRADIENT = {
    "margin": partial(pgd, steps=40),
    "ce": partial(pgd, steps=40, loss="ce"),
    "dlr": partial(pgd, steps=60, loss="dlr", restarts=2),
    "momentum": partial(pgd, steps=40, momentum=0.75),
    "targets": partial(pgd, steps=30, targets=3),
    "linear-schedule": partial(pgd, steps=40, schedule="linear", random_start=False),
    "identity": partial(pgd, steps=40, estimator="identity"),
    "bpda-undeclared": partial(pgd, steps=40, estimator="bpda"),
    "classifier": partial(pgd, steps=40, estimator="classifier"),
    "eot": partial(pgd, steps=40, estimator={"eot": {"samples": 4, "of": "exact"}}),
    "reparameterized": partial(pgd, steps=40, estimator="reparameterized"),
    "finite-difference": partial(pgd, steps=40, estimator={"finite_difference": {"samples": 105}}),
}
EVERY = {
    **{name: (attack, "gradient") for name, attack in GRADIENT.items()},
    "hopskipjump": (partial(hopskipjump, queries=1500), "decision"),
    "genattack": (partial(genattack, generations=100), "score"),
    "noise": (partial(noise, draws=20), "decision"),
}


@every_batch
@every_shape
@every_norm
@pytest.mark.parametrize("name", GRADIENT)
def test_gradient_attacks_succeed_just_beyond_the_minimal_radius(name, n, shape, norm) -> None:
    case = linear_case(n, shape, norm)
    target = case.target(1.02, "gradient")
    x_adv = GRADIENT[name](target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()


@every_batch
@every_norm
def test_one_run_per_class_finds_the_nearest_of_several(n, norm) -> None:
    case = linear_case(n, (3, 5, 7), norm, rivals=4)
    x_adv = pgd(case.target(1.02, "gradient"), case.x, case.y, steps=40, targets=3)
    assert case.fooled(x_adv).all()


@every_batch
@every_shape
@every_norm
def test_hopskipjump_comes_near_the_minimal_distance(n, shape, norm) -> None:
    case = linear_case(n, shape, norm)
    target = case.target(4.0, "decision")
    x_adv = hopskipjump(target, case.x, case.y, queries=3000, stop_inside=False)
    distance = length(x_adv - case.x, norm)
    assert case.fooled(x_adv).all()
    assert distance.min() > 0.99 * case.radius
    assert distance.max() < 1.2 * case.radius


@every_batch
@every_shape
@every_norm
def test_hopskipjump_succeeds_inside_the_ball(n, shape, norm) -> None:
    case = linear_case(n, shape, norm)
    target = case.target(1.25, "decision")
    x_adv = hopskipjump(target, case.x, case.y, queries=3000)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()


@every_batch
@every_shape
@pytest.mark.parametrize("adaptive", [True, False])
def test_genattack_succeeds_at_a_quarter_beyond(n, shape, adaptive) -> None:
    case = linear_case(n, shape, "linf")
    target = case.target(1.25, "score")
    x_adv = genattack(target, case.x, case.y, generations=300, adaptive=adaptive)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()


@every_norm
@pytest.mark.parametrize("name", EVERY)
def test_nothing_succeeds_below_the_minimal_radius(name, norm) -> None:
    attack, knowledge = EVERY[name]
    if norm not in attack.func.attack.norms:
        pytest.skip(f"{name} has no {norm} form")
    case = linear_case(3, (3, 5, 7), norm)
    target = case.target(0.98, knowledge)
    x_adv = attack(target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert not case.fooled(x_adv).any()


@pytest.mark.parametrize("name", ["margin", "identity", "finite-difference", "hopskipjump", "genattack", "noise"])
def test_a_double_precision_model_works(name) -> None:
    attack, knowledge = EVERY[name]
    case = linear_case(3, (1, 8, 8), "linf", dtype=torch.float64)
    target = case.target(1.5, knowledge)
    x_adv = attack(target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    if name != "noise":
        assert case.fooled(x_adv).all()


@pytest.mark.parametrize("name", EVERY)
def test_the_same_seed_gives_the_same_result(name) -> None:
    attack, knowledge = EVERY[name]
    case = linear_case(3, (1, 8, 8), "linf")
    first, again = (attack(case.target(0.9, knowledge, seed=1), case.x, case.y) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["hopskipjump", "genattack", "noise"])
def test_randomness_comes_from_the_generator_of_the_target(name) -> None:
    attack, knowledge = EVERY[name]
    case = linear_case(3, (1, 8, 8), "linf")
    state = torch.get_rng_state()
    first, other = (attack(case.target(0.9, knowledge, seed=seed), case.x, case.y) for seed in (1, 2))
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", EVERY)
def test_the_micro_batch_size_changes_nothing(name) -> None:
    attack, knowledge = EVERY[name]
    # Double precision: an attack may amplify the rounding of single precision, in which batches do differ.
    case = linear_case(3, (1, 8, 8), "linf", dtype=torch.float64)
    whole = attack(case.target(1.3, knowledge), case.x, case.y)
    split = attack(case.target(1.3, knowledge, batch_size=2), case.x, case.y)
    torch.testing.assert_close(whole, split, atol=1e-6, rtol=0)
