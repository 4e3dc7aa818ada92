"""EM over draws: where their gradients oppose each other, a mean over all of them is blind."""

from __future__ import annotations

import pytest
import torch
from lab import make_target
from torch import Tensor
from two_classes import INFO

from attacks.gradient.pgd import pgd
from attacks.toolkit.estimators import as_estimator
from attacks.toolkit.losses import Goal, margin
from attacks.toolkit.selective import _mean
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.contracts.seeding import seeded

SHARE, DRAWS = 0.7, 40


class Opposed(Defense):
    """In 70 % of the draws wrong about images a little brighter than grey; in the others out of reach, with a gradient
    to the dark that is so long that the mean over draws follows it."""

    randomized = True

    def forward(self, x: Tensor) -> Tensor:
        risen = (x - 0.5).flatten(1).mean(1)
        likely = torch.rand(len(x)) < SHARE
        margins = torch.where(likely, 20 * (risen - 0.05), -100 * risen - 20)
        return torch.stack([-margins / 2, margins / 2], 1)


def _gradient(estimator: object, n: int = 20) -> Tensor:
    target = make_target(Opposed(INFO), n, "gradient", randomized=True)
    x, y = torch.full((n, *INFO.shape), 0.5), torch.zeros(n).long()
    with seeded("draws"):
        at = as_estimator(estimator).evaluate(target, x, Goal(margin, y), torch.arange(n))
    assert (target.counts.backward == DRAWS).all() and at.logits.shape == (n, 2) and at.loss.shape == (n,)
    return at.grad


def test_draws_out_of_reach_lead_the_mean_over_all_draws_and_not_the_selected_one() -> None:
    selected = _gradient({"selective": {"of": "exact", "samples": DRAWS}})
    assert (selected > 0).all(), "the step that most draws fall to"
    everything = _gradient({"eot": {"of": "exact", "samples": DRAWS}})
    assert (everything < 0).all()


def test_more_draws_fall_than_by_the_mean() -> None:
    wrong = {}
    x, y = torch.full((20, *INFO.shape), 0.5), torch.zeros(20).long()
    for name in ("selective", "eot"):
        target = make_target(Opposed(INFO), 20, "gradient", eps=0.2, randomized=True)
        estimator = {name: {"of": "exact", "samples": 10}}
        with seeded("attack"):
            # One look at x, one step from it: where that goes decides.
            x_adv = pgd(target, x, y, steps=1, random_start=False, schedule="constant", estimator=estimator)
            draws = [Opposed(INFO)(x_adv).argmax(1) != y for _ in range(300)]
        wrong[name] = torch.stack(draws).float().mean().item()
    assert wrong["selective"] > 0.6 and wrong["eot"] < 0.3


def test_draws_that_cannot_be_had_together_get_no_weight() -> None:
    """Of two draws of equal chance the nearer one is taken, and the other has no part in the gradient."""

    class Two(Defense):
        randomized = True

        def forward(self, x: Tensor) -> Tensor:
            near = torch.arange(len(x)) % 2 == 0
            a, b = 20 * (x[:, 0, 0, 0] - 0.55), 20 * (0.3 - x[:, 0, 0, 0]) + 3 * x[:, 0, 7, 7]
            margins = torch.where(near, a, b)
            return torch.stack([-margins / 2, margins / 2], 1)

    target = make_target(Two(INFO), 1, "gradient", eps=0.1, randomized=True)
    estimator = as_estimator({"selective": {"of": "exact", "samples": 6}})
    first = torch.zeros(1).long()
    at = estimator.evaluate(target, torch.full((1, *INFO.shape), 0.5), Goal(margin, first), first)
    torch.testing.assert_close(at.grad[0, 0, 0, 0], torch.tensor(20.0), atol=0.2, rtol=0)
    assert at.grad[0, 0, 7, 7].abs() < 0.1


def test_weights_that_vanish_altogether_count_all_draws_alike() -> None:
    grads = torch.tensor([[[1.0]], [[3.0]]])
    assert _mean(grads, torch.zeros(2, 1)).item() == 2.0
    assert _mean(grads, torch.tensor([[0.0], [0.5]])).item() == 3.0


def test_a_deterministic_defense_is_evaluated_once() -> None:
    target = make_target(Opposed(INFO), 3, "gradient")
    as_estimator({"selective": {"of": "exact"}}).evaluate(
        target, torch.rand(3, *INFO.shape), Goal(margin, torch.zeros(3).long()), torch.arange(3)
    )
    assert target.counts.forward.tolist() == [1, 1, 1]


def test_no_draws_are_refused() -> None:
    with pytest.raises(InputError, match="samples 0 must be at least 1"):
        as_estimator({"selective": {"of": "exact", "samples": 0}})
