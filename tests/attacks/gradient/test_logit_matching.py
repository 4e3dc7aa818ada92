"""Logit matching evades what looks at the logits alone."""

from __future__ import annotations

import pytest
import torch
from lab import Linear, assert_feasible, make_target
from torch import Tensor

from attacks.gradient.logit_matching import _models, logit_matching
from attacks.gradient.pgd import pgd
from bench.contracts.defense import BareModel, Defense, freeze
from bench.contracts.inputs import DataInfo, InputSpec

N, THRESHOLD = 12, 0.05


class Typical(BareModel):
    """A linear classifier of four classes, and a detector: the distance to the nearest logits of a clean image."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        values = torch.Size(shape).numel()
        weight = torch.randn(4, values, generator=torch.Generator().manual_seed(1)) / values**0.5
        super().__init__(Linear(weight, torch.zeros(4)), DataInfo("four", InputSpec(shape), 4))
        self.known = torch.zeros(0, 4)

    def detect(self, x: Tensor) -> Tensor:
        return torch.cdist(self(x), self.known).amin(1)


def case(shape: tuple[int, ...]) -> tuple[Defense, Tensor, Tensor]:
    defense = Typical(shape)
    x = 0.5 + 0.2 * (torch.rand(N, *shape, generator=torch.Generator().manual_seed(2)) - 0.5)
    defense.known = defense(x).detach()
    return freeze(defense), x, defense(x).argmax(1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_it_is_accepted_where_a_margin_is_rejected(shape: tuple[int, ...], noise: float) -> None:
    defense, x, y = case(shape)
    assert len(y.unique()) > 1
    target = make_target(defense, N, "gradient", eps=0.2, threshold=THRESHOLD)
    x_adv = logit_matching(target, x, y, steps=60, noise=noise, samples=8)
    assert_feasible(target, x, x_adv)
    assert ((defense(x_adv).argmax(1) != y) & (defense.detect(x_adv) <= THRESHOLD)).all()
    blind = pgd(target.without_detector(), x, y, steps=60)
    assert (defense(blind).argmax(1) != y).all() and (defense.detect(blind) > THRESHOLD).float().mean() > 0.5


def test_it_matches_the_nearest_clean_image_of_every_other_class() -> None:
    defense, x, y = case((1, 8, 8))
    target = make_target(defense, N, "gradient", threshold=THRESHOLD)
    logits = defense(x)
    (model,) = _models(target, x, y, 1, 1)
    for own, label, chosen in zip(logits, y, model, strict=True):
        others = logits[y != label]
        torch.testing.assert_close(chosen, others[(others - own).norm(dim=1).argmin()])


def test_an_image_alone_takes_its_own_logits_exchanged() -> None:
    defense, x, y = case((1, 8, 8))
    target = make_target(defense, 1, "gradient", threshold=THRESHOLD)
    logits = defense(x[:1])[0]
    (model,) = _models(target, x[:1], y[:1], 1, 1)
    first, second = logits.topk(2).indices.tolist()
    assert model[0, second] == logits[first] and model[0, first] == logits[second]


def test_a_class_to_reach_is_reached() -> None:
    defense, x, y = case((1, 8, 8))
    towards = (y + 1) % 4
    target = make_target(defense, N, "gradient", eps=0.3, towards=towards)
    assert (defense(logit_matching(target, x, y, steps=60, noise=0.0)).argmax(1) == towards).float().mean() > 0.8
