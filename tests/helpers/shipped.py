"""Shipped digits checkpoints under attack."""

from __future__ import annotations

from typing import Any

import torch

from attacks.gradient.pgd import pgd
from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.seeding import generator, seeded
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.plugins.resolve import load_defense

DATA = load_data("digits")
THREAT = Lp("linf", 0.2)


def load(name: str, **params: Any) -> Defense:
    """A defense with its shipped weights, in evaluation mode."""
    return load_defense(DefenseSpec(name, params), DATA.info).defense.eval()


def accuracy(defense: Defense, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of right answers in one pass."""
    with torch.no_grad(), seeded("score"):
        return (defense(x).argmax(1) == y).double().mean().item()


def under_attack(defense: Defense, estimator: Any, steps: int) -> float:
    """Accuracy on 50 test digits that PGD with a gradient estimator leaves."""
    some = DATA.test.take(50)
    target = Target(
        defense, THREAT, len(some), knowledge="gradient", generator=generator(0), randomized=defense.randomized
    )
    with seeded("attack"):
        x_adv = pgd(target, some.x, some.y, steps=steps, estimator=estimator)
    return accuracy(defense, x_adv, some.y)
