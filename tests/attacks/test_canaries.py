"""The suite may not rank a defense that only hides gradients above the bare classifier."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from canaries import canaries
from lab import DIGITS, digits, digits_classifier, make_target
from torch import Tensor

from attacks.decision.hopskipjump import hopskipjump
from attacks.gradient.pgd import pgd
from attacks.score.genattack import genattack
from bench.contracts.defense import BareModel, Defense, freeze

SUITE = {
    "exact": (partial(pgd, steps=20), "gradient"),
    "identity": (partial(pgd, steps=20, estimator="identity"), "gradient"),
    "eot": (partial(pgd, steps=20, estimator={"eot": {"samples": 8, "of": "bpda"}}), "gradient"),
    "finite-difference": (partial(pgd, steps=20, estimator={"finite_difference": {"samples": 64}}), "score"),
    "genattack": (partial(genattack, generations=100), "score"),
    "hopskipjump": (partial(hopskipjump, queries=1000), "decision"),
}
#: At 0.2 nothing is left of the classifier; at 0.1 more than half, so that a canary has somewhere to rise from.
LARGE, SMALL = 0.2, 0.1
EXAMPLES, DRAWS = 60, 40


def _defense(name: str) -> Defense:
    if name == "none":
        return BareModel(digits_classifier(), DIGITS)
    return canaries(digits_classifier(), DIGITS)[name]


@cache
def _robust(name: str, eps: float) -> dict[str, Tensor]:
    """For each attack the chance of each example to be classified rightly, over fresh draws."""
    defense = freeze(_defense(name))
    assert isinstance(defense, Defense)
    x, y = (part[:EXAMPLES] for part in digits()[2:])
    left = {}
    for attack, (function, knowledge) in SUITE.items():
        torch.manual_seed(1)
        target = make_target(defense, EXAMPLES, knowledge, eps=eps, randomized=defense.randomized)
        x_adv = function(target, x, y)
        draws = DRAWS if defense.randomized else 1
        left[attack] = torch.stack([(defense(x_adv).argmax(1) == y).float() for _ in range(draws)]).mean(0)
    return left


def _worst(name: str, eps: float) -> float:
    return torch.stack(list(_robust(name, eps).values())).amin(0).mean().item()


def test_the_classifier_is_worth_attacking() -> None:
    x, y = digits()[2:]
    assert (digits_classifier()(x).argmax(1) == y).float().mean() >= 0.93
    assert 0.2 < _worst("none", SMALL) < 0.7
    assert _worst("none", LARGE) <= 0.02


@pytest.mark.parametrize("eps", [SMALL, LARGE])
@pytest.mark.parametrize("name", ["cut", "scaled", "quantised", "noisy"])
def test_a_canary_scores_no_better_than_the_bare_classifier(name, eps) -> None:
    assert _worst(name, eps) <= _worst("none", eps) + 0.05


@pytest.mark.parametrize("eps", [SMALL, LARGE])
@pytest.mark.parametrize("name", ["cut", "scaled", "noisy"])
def test_a_canary_that_changes_nothing_scores_no_worse_either(name, eps) -> None:
    """Rounding to 3 bits is left out: a step of 1/7 turns a small change into a large one, which is a real loss."""
    assert _worst(name, eps) >= _worst("none", eps) - 0.05


@pytest.mark.parametrize("name", ["cut", "quantised"])
def test_plain_gradients_alone_would_have_been_fooled(name) -> None:
    assert _robust(name, LARGE)["exact"].mean() > 0.9


@pytest.mark.parametrize("eps", [SMALL, LARGE])
def test_the_margin_is_not_fooled_by_large_logits_but_the_cross_entropy_is(eps) -> None:
    x, y = (part[:EXAMPLES] for part in digits()[2:])
    defense = freeze(_defense("scaled"))
    assert isinstance(defense, Defense)
    left = {}
    for loss in ("margin", "ce"):
        target = make_target(defense, EXAMPLES, "gradient", eps=eps)
        x_adv = pgd(target, x, y, steps=20, loss=loss, random_start=False)
        left[loss] = (defense(x_adv).argmax(1) == y).float().mean()
    assert left["ce"] > left["margin"] + 0.25
