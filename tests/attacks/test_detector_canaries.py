"""A detector that anyone would invent adds nothing to an undefended classifier, by an attack with default settings."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from detector_canaries import CANARIES, guarded
from lab import assert_feasible, digits, make_target
from torch import Tensor

from attacks.adaptive.autoattack import autoattack
from attacks.adaptive.cascade import cascade
from attacks.gradient.apgd import apgd
from attacks.gradient.pgd import pgd

EPS, EXAMPLES = 0.2, 40


def left(name: str, attack=cascade, *, told: bool = True, n: int = EXAMPLES) -> float:
    """Robust accuracy with rejection under an attack; ``told``: whether it is shown the detector."""
    defense, threshold = guarded(name)
    x, y = (part[:n] for part in digits()[2:])
    target = make_target(
        defense, n, "gradient", eps=EPS, randomized=defense.randomized, threshold=threshold if told else None
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x_adv = attack(target, x, y)
        assert_feasible(target, x, x_adv)
        draws = [survived(defense, threshold, x_adv, y) for _ in range(200 if defense.randomized else 1)]
    return torch.stack(draws).mean().item()


def survived(defense, threshold: float, x: Tensor, y: Tensor) -> Tensor:
    return ((defense(x).argmax(1) == y) | (defense.detect(x) > threshold)).float()


@pytest.mark.parametrize("name", [name for name in CANARIES if name != "random score"])
def test_it_falls_to_the_cascade_as_it_is(name: str) -> None:
    assert left(name) <= 0.05


@pytest.mark.parametrize("name", ["median distance", "grid distance", "disagreement"])
def test_it_falls_to_autoattack(name: str) -> None:
    assert left(name, partial(autoattack, steps=40, queries=200), n=20) <= 0.05


def test_a_random_score_rejects_by_luck_alone() -> None:
    """It rejects what it rejects of clean inputs, whatever it is shown: 5 %, up to the errors of sampling."""
    score = left("random score", n=20)
    assert score <= 0.05 + 3 * (0.05 * 0.95 / 700) ** 0.5 + 3 * (0.05 * 0.95 / 4000) ** 0.5


@pytest.mark.parametrize("name", ["low confidence", "median distance", "disagreement"])
@pytest.mark.parametrize("attack", [partial(pgd, steps=40), partial(apgd, steps=40, loss="dlr")])
def test_it_falls_to_any_gradient_attack(name: str, attack) -> None:
    assert left(name, attack) <= 0.1


@pytest.mark.parametrize("name", ["nearest neighbours", "grid distance", "cut score"])
def test_an_attack_that_is_not_told_would_have_overrated_it(name: str) -> None:
    assert left(name, partial(pgd, steps=40), told=False) >= 0.3
