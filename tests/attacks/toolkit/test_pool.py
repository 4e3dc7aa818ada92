"""A pool of points: what it keeps, whom a race gives further draws, and which examples have most to gain."""

from __future__ import annotations

import torch
from lab import make_target
from torch import Tensor
from two_classes import INFO

from attacks.toolkit.pool import Pool
from bench.contracts.defense import Defense
from bench.contracts.seeding import seeded


class Likely(Defense):
    """Wrong with the probability of an image's mean brightness; the mean margin says nothing about it."""

    randomized = True

    def forward(self, x: Tensor) -> Tensor:
        wrong = torch.rand(len(x)) < x.flatten(1).mean(1)
        margins = torch.where(wrong, 1.0, -1.0)
        return torch.stack([-margins, margins], 1)


class Sure(Defense):
    """A margin of a thousand times the brightness less 0.7, the same in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        margins = 1000 * (x.flatten(1).mean(1) - 0.7)
        return torch.stack([-margins / 2, margins / 2], 1)


def _grey(n: int, value: float) -> Tensor:
    """Images of that brightness which differ a little, so that none is the same as another."""
    noise = torch.rand(n, *INFO.shape, generator=torch.Generator().manual_seed(round(1000 * value)))
    return value + 0.01 * (noise - noise.flatten(1).mean(1).view(-1, 1, 1, 1))


def _pool(size: int, draws: int, n: int = 50) -> Pool:
    target = make_target(Likely(INFO), n, "gradient", eps=1.0, randomized=True)
    pool = Pool(target, _grey(n, 0.1), torch.zeros(n).long(), size, draws)
    for value in (0.4, 0.401, 0.402, 0.403, 0.6):
        pool.offer(_grey(n, value), pool.everyone)
    return pool


def test_a_race_finds_the_best_of_points_that_few_draws_do_not_tell_apart() -> None:
    with seeded("race"):
        pool = _pool(6, 10)
        before = (pool.best.flatten(1).mean(1) > 0.5).double().mean()
        lucky = pool.fallen.mean()
        for draws in (40, 160, 320):
            pool.race(draws, among=6)
    after = (pool.best.flatten(1).mean(1) > 0.5).double().mean()
    assert before < 0.85
    assert after > 0.95
    assert lucky > 0.64, "what looked best on 10 draws was partly luck"
    assert abs(float(pool.fallen.mean()) - 0.6) < 0.05


def test_a_race_asks_little_about_points_that_are_clearly_behind() -> None:
    with seeded("race"):
        pool = _pool(6, 40)
        pool.race(320, among=6)
    dark = pool.points.flatten(2).mean(2) < 0.2
    assert (pool.seen[dark] == 40).all()
    assert (pool.seen[pool.leading, pool.everyone] >= 40).all()
    assert float(pool.seen[~dark].mean()) > 80
    asked = pool.seen.sum(0)
    assert (pool.target.counts.forward == asked.long()).all(), "every draw is counted once, and kept"


def test_no_more_than_so_many_take_part() -> None:
    with seeded("race"):
        pool = _pool(6, 10)
        pool.race(80, among=2)
    assert ((pool.seen == 80).sum(0) <= 2).all()
    assert ((pool.seen == 80).sum(0) == 2).any()


def test_only_the_best_points_are_kept_and_none_twice() -> None:
    target = make_target(Sure(INFO), 4, "gradient", eps=1.0)
    pool = Pool(target, _grey(4, 0.1), torch.zeros(4).long(), 3, 10)
    for value in (0.2, 0.5, 0.5, 0.3, 0.4):
        pool.offer(_grey(4, value), pool.everyone)
    kept = pool.points.flatten(2).mean(2).sort(0).values
    assert torch.allclose(kept, torch.tensor([[0.3], [0.4], [0.5]]).expand(3, 4), atol=1e-4)
    assert torch.allclose(pool.best.flatten(1).mean(1), torch.full((4,), 0.5), atol=1e-4)


def test_those_that_stand_are_ordered_by_what_is_to_be_gained() -> None:
    target = make_target(Sure(INFO), 4, "gradient", eps=1.0)
    x = torch.cat([_grey(1, value) for value in (0.1, 0.69, 0.9, 0.5)])
    pool = Pool(target, x, torch.zeros(4).long(), 3, 10)
    assert pool.standing.tolist() == [1, 3, 0], "large margins as well are told apart; the third has fallen"
    with seeded("gain"):
        target = make_target(Likely(INFO), 4, "gradient", eps=1.0, randomized=True)
        x = torch.cat([_grey(1, value) for value in (0.02, 0.5, 1.0, 0.9)])
        x[2] = 1.0
        pool = Pool(target, x, torch.zeros(4).long(), 3, 300)
    assert pool.standing.tolist() == [1, 3, 0]
