"""ARC on random pairs of linear classifiers, of which it is known from which radius on one point fools both."""

from __future__ import annotations

import math

import pytest
import torch
from lab import DIGITS, assert_feasible, digits, digits_classifier, make_target
from torch import Tensor

from attacks.gradient.arc import arc
from attacks.gradient.pgd import pgd
from bench.contracts.defense import BareModel, Defense, freeze
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded

#: Value at which each of the two falls, and how many values in 4 they share with opposite signs.
BAR, SIZES = 1.0, [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


class Pair(Defense):
    """One of two linear classifiers for each image in each pass, the first with logits a hundred times as large.

    In linf w₁ is 1 on a quarter of the values and on half of them, w₂ on the other quarter and -1 on that half: both
    fall from BAR/quarter on, each alone from a third of that on. In l2 they are unit vectors at 120 degrees: both fall
    from BAR·√(2/(1 + cos)) = 2·BAR on, each alone from BAR on.
    """

    randomized = True

    def __init__(self, shape: tuple[int, ...], norm: str) -> None:
        super().__init__(DataInfo("toy", InputSpec(shape), 2))
        size = math.prod(shape)
        mixed = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        first, second = torch.zeros(size), torch.zeros(size)
        first[mixed[: size // 4]], second[mixed[size // 4 : size // 2]] = 1.0, 1.0
        if norm == "linf":
            first[mixed[size // 2 :]], second[mixed[size // 2 :]] = 1.0, -1.0
            self.radius = BAR / (size // 4)
        else:
            first, second = first / first.norm(), second / second.norm()
            second = math.sqrt(0.75) * second - 0.5 * first
            self.radius = 2 * BAR
        self.weights = torch.stack([first, second])

    def margins(self, x: Tensor) -> Tensor:
        """``(N, 2)``: positive where the classifier is fooled."""
        return (x - 0.5).flatten(1) @ self.weights.T - BAR

    def forward(self, x: Tensor) -> Tensor:
        which = torch.randint(2, (len(x), 1))
        margin = self.margins(x).gather(1, which) * torch.where(which == 0, 100.0, 1.0)
        return torch.cat([-margin / 2, margin / 2], 1)


def _fooled(attack: object, shape: tuple[int, ...], norm: str, share: float, **settings: object) -> tuple[Pair, Tensor]:
    defense = Pair(shape, norm)
    x, y = torch.full((6, *shape), 0.5), torch.zeros(6).long()
    target = make_target(defense, 6, "gradient", norm=norm, eps=share * defense.radius, randomized=True)
    with seeded("attack"):
        x_adv = attack(target, x, y, **settings)  # type: ignore[operator]
    assert_feasible(target, x, x_adv)
    return defense, defense.margins(x_adv) > 0


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_both_fall_from_the_radius_on_at_which_one_point_fools_them(shape: tuple[int, ...], norm: str) -> None:
    _, fooled = _fooled(arc, shape, norm, 1.15)
    assert fooled.all()
    _, fooled = _fooled(arc, shape, norm, 0.95)
    assert (fooled.sum(1) == 1).all(), "one of them, where no point fools both"


def test_the_mean_gradient_fools_one_of_them_alone() -> None:
    _, fooled = _fooled(
        pgd, (1, 28, 28), "linf", 1.15, steps=50, estimator={"eot": {"samples": 16, "of": "exact"}}, rescore=50
    )
    assert (fooled.sum(1) == 1).all()


def test_passes_are_those_that_it_says() -> None:
    defense = Pair((1, 8, 8), "linf")
    target = make_target(defense, 6, "gradient", eps=1.15 * defense.radius, randomized=True)
    arc(target, torch.full((6, 1, 8, 8), 0.5), torch.zeros(6).long(), steps=3, states=5, classes=1, rescore=7)
    # Clean and final comparisons, ranking, the states at the start; then a gradient and all states for each state.
    assert (target.counts.forward == 3 * 7 + 5 + 3 * 5 * (1 + 5)).all()
    assert (target.counts.backward == 3 * 5).all()


def test_on_a_network_without_randomness_and_towards_a_class() -> None:
    defense = freeze(BareModel(digits_classifier(), DIGITS))
    _, _, x, y = digits()
    x, y = x[:40], y[:40]
    target = make_target(defense, 40, "gradient", eps=0.2)
    with seeded("attack"):
        x_adv = arc(target, x, y)
    assert_feasible(target, x, x_adv)
    assert (defense(x_adv).argmax(1) == y).float().mean() < 0.1
    towards = (y + 1) % 10
    target = make_target(defense, 40, "gradient", eps=0.3, towards=towards)
    with seeded("attack"):
        x_adv = arc(target, x, y)
    assert_feasible(target, x, x_adv)
    assert (defense(x_adv).argmax(1) == towards).float().mean() > 0.5
