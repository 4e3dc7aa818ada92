"""What a defense told an attack is asked again once the attack is over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.contracts.defense import Defense, ready
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import Generators, generator
from bench.judging.witness import BATCHES, Witness

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


class Linear(Defense):
    """A linear model; ``how`` says what else it does."""

    trainable = False
    lying = False

    def __init__(self, shape: tuple[int, ...], how: str = "") -> None:
        super().__init__(DataInfo("made", InputSpec(shape), 3))
        self.how, self.own = how, torch.Generator().manual_seed(0)
        self.randomized = how in ("global", "own")
        layer = nn.Linear(torch.Size(shape).numel(), 3)
        layer.weight.data = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
        self.classifier = nn.Sequential(nn.Flatten(), layer)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        if self.how == "global":
            logits = logits + torch.randn_like(logits)
        if self.how == "own":
            logits = logits + torch.randn(logits.shape, generator=self.own)
        if self.how == "infinite":
            logits = logits + torch.tensor([torch.inf, 0, torch.nan])
        return -logits if self.lying else logits


def attacked(defense: Linear, batches: int = 9) -> Witness:
    """What stands by while a batch that shrinks is asked about, with gradients and without."""
    witness = Witness(defense, generator("test"))
    with witness:
        x = torch.rand(8, *defense.data.shape)
        for k in range(batches):
            part = x[: 8 - k % 7].clone().requires_grad_(k % 2 == 0)
            defense(part)
            part.detach().zero_()  # an attack goes on in place
    return witness


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", ["", "global", "infinite"])
def test_an_honest_defense_says_the_same_again(shape: tuple[int, ...], how: str) -> None:
    defense = ready(Linear(shape, how))
    found = attacked(defense).compare(defense)
    assert found is not None and found.differing == 0 and found.rows > BATCHES


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", ["", "global"])
def test_one_that_was_pretending_does_not(shape: tuple[int, ...], how: str) -> None:
    defense = ready(Linear(shape, how))
    defense.lying = True
    witness = attacked(defense)
    defense.lying = False
    found = witness.compare(defense)
    assert found is not None and found.differing == found.rows


def test_one_with_a_generator_of_its_own_cannot_be_compared() -> None:
    defense = ready(Linear((1, 8, 8), "own"))
    assert attacked(defense).compare(defense) is None


def test_without_questions_there_is_nothing_to_compare() -> None:
    defense = ready(Linear((1, 8, 8)))
    assert attacked(defense, batches=0).compare(defense) is None


def test_a_few_batches_are_kept_and_each_question_is_as_likely_to_be_among_them() -> None:
    defense = ready(Linear((1, 8, 8)))
    kept = torch.zeros(20)
    for run in range(150):
        witness = Witness(defense, generator("runs", run))
        with witness:
            for k in range(20):
                defense(torch.full((1, 1, 8, 8), k / 20))
        which = [round(20 * float(x[0, 0, 0, 0])) for _, x, _ in witness._kept]
        assert len(set(which)) == BATCHES
        kept[which] += 1
    assert kept.min() >= 10 and kept.max() <= 55  # 30 of 150 each, and a standard deviation of 5


def test_nothing_is_heard_afterwards_and_no_generator_has_moved() -> None:
    defense = ready(Linear((1, 8, 8), "global"))
    witness = attacked(defense)
    before = torch.get_rng_state()
    witness.compare(defense)
    assert torch.equal(torch.get_rng_state(), before)
    assert not defense._forward_hooks and not defense._forward_pre_hooks


def test_the_global_generators_go_on_from_where_they_stood() -> None:
    import random

    import numpy as np

    def drawn() -> list[Any]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    state = Generators.now()
    first = drawn()
    assert drawn() != first
    state.set()
    assert drawn() == first
