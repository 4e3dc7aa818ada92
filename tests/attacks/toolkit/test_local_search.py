"""Random search without gradients: towards a known optimum, under noise that proposals share, by crossing points."""

from __future__ import annotations

import pytest
import torch
from lab import assert_feasible, make_target
from torch import Tensor

from attacks.toolkit.local_search import _windows, local_search
from attacks.toolkit.pool import Pool
from bench.contracts.defense import Defense
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded

EPS = 0.1


class Steps(Defense):
    """Two classes; the margin counts the values that are above or below grey as a sign pattern asks, in steps without
    gradient, less a bar; with noise that is far larger where ``noise`` is given."""

    def __init__(self, shape: tuple[int, ...], noise: float = 0.0) -> None:
        super().__init__(DataInfo("toy", InputSpec(shape), 2))
        # One sign per half, so that windows of any size can agree with it.
        self.signs = torch.ones(shape)
        self.signs[..., shape[-1] // 2 :] = -1
        self.randomized, self.noise = noise > 0, noise

    def agreement(self, x: Tensor) -> Tensor:
        """The share of values that lie as they should, ``(N,)``."""
        return ((x - 0.5).sign() == self.signs).flatten(1).float().mean(1)

    def forward(self, x: Tensor) -> Tensor:
        margins = self.agreement(x) - 1.5 + self.noise * torch.randn(len(x))
        return torch.stack([-margins / 2, margins / 2], 1)


def _pool(defense: Steps, n: int, norm: str = "linf") -> Pool:
    eps = EPS if norm == "linf" else EPS * defense.signs.numel() ** 0.5
    target = make_target(defense, n, "gradient", norm=norm, eps=eps, randomized=defense.randomized)
    x = torch.full((n, *defense.data.shape), 0.5)
    start = x - 0.05 * defense.signs  # all wrong
    pool = Pool(target, x, torch.zeros(n).long(), 3, 5)
    pool.offer(start, pool.everyone)
    return pool


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (20,)])
def test_it_climbs_where_there_is_no_gradient(shape: tuple[int, ...], norm: str) -> None:
    defense = Steps(shape)
    pool = _pool(defense, 4, norm)
    local_search(pool, pool.everyone[1:], 400, 8)
    assert_feasible(pool.target, pool.x, pool.best)
    agreement = defense.agreement(pool.best)
    assert (agreement[1:] > (0.6 if len(defense.signs.flatten()) > 1000 else 0.8)).all()
    assert agreement[0] == 0, "of no other example"
    assert pool.target.counts.forward.tolist() == [2, 403, 403, 403]


def test_noise_that_all_proposals_share_does_not_hide_what_is_better() -> None:
    defense = Steps((1, 8, 8), noise=0.5)
    with seeded("search"):
        state = torch.get_rng_state()
        pool = _pool(defense, 6)
        before = torch.get_rng_state()
        local_search(pool, pool.everyone, 400, 4)
    assert (state != before).any()
    # Of 100 steps of at most a few hundredths each, under noise of half: a few points tried on 5 draws would be luck.
    assert (defense.agreement(pool.points.flatten(0, 1)).view(3, 6).amax(0) > 0.5).all()


def test_what_two_points_have_right_is_put_together() -> None:
    defense = Steps((1, 28, 28))
    pool = _pool(defense, 4)
    for half in (slice(0, 14), slice(14, 28)):
        point = pool.x - 0.05 * defense.signs
        point[..., half, :] = (pool.x + 0.05 * defense.signs)[..., half, :]
        pool.offer(point, pool.everyone)
    assert (defense.agreement(pool.best) == 0.5).all()
    local_search(pool, pool.everyone, 150, 1)
    assert (defense.agreement(pool.best) > 0.75).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 40), (20,)])
def test_windows_have_the_side_asked_for(shape: tuple[int, ...]) -> None:
    pool = _pool(Steps(shape), 30)
    for side in (0.05, 0.5, 1.0):
        mask = _windows(pool.target, pool.x, side)
        lengths = shape if len(shape) == 1 else shape[1:]
        size = 1
        for length in lengths:
            size *= max(1, round(side * length))
        assert (mask.flatten(1).sum(1) == size).all()
        assert mask.shape == (30, *((shape[0],) if len(shape) == 1 else (1, *shape[1:])))
        if side == 0.05:
            assert len(mask.flatten(1).unique(dim=0)) > 5, "at places of their own"
