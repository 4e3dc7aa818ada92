"""The search for rejections near x, on detectors whose largest score in a ball is known."""

from __future__ import annotations

import pytest
import torch
from lab import assert_feasible, length, make_target
from torch import Tensor, nn

from attacks.gradient.rejection import rejection
from bench.contracts.defense import BareModel, Defense, freeze
from bench.contracts.errors import NotApplicable
from bench.contracts.inputs import DataInfo, InputSpec

EPS, WITHIN = 0.2, 0.25
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


class Guarded(BareModel):
    """Two classes of no interest, and a linear score."""

    def __init__(self, shape: tuple[int, ...], *, cut: bool = False, randomized: bool = False) -> None:
        model = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
        model(torch.zeros(1, *shape))
        super().__init__(model, DataInfo("two", InputSpec(shape), 2))
        size = torch.Size(shape).numel()
        self.direction = torch.randn(size, generator=torch.Generator().manual_seed(1)) / size
        self.cut, self.randomized = cut, randomized

    def detect(self, x: Tensor) -> Tensor:
        scores = (x.detach() if self.cut else x).flatten(1) @ self.direction
        return scores + 1e-3 * self.direction.abs().sum() * torch.randn(len(x)) if self.randomized else scores


def case(shape: tuple[int, ...], norm: str, n: int, **kind: bool) -> tuple[Defense, Tensor, float, Tensor]:
    """A detector, inputs, a threshold that every other of them can exceed near by, and which these are."""
    defense = freeze(Guarded(shape, **kind))
    x = 0.5 + 0.05 * (2 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(2)) - 1)
    order = {"linf": 1, "l2": 2}[norm]
    gain = float(WITHIN * EPS * defense.direction.norm(p=order))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        scores = x.flatten(1) @ defense.direction  # type: ignore[operator]
        # Moved along the direction, in all of the values alike, to 0.9 or 1.1 of the gain below the threshold.
        wanted = -gain * torch.where(torch.arange(n) % 2 == 0, 0.9, 1.1)
        unit = defense.direction / defense.direction.square().sum()  # type: ignore[union-attr, operator]
        x += ((wanted - scores)[:, None] * unit).view_as(x)
    assert x.min() > WITHIN * EPS and x.max() < 1 - WITHIN * EPS, "the box must not interfere"
    return defense, x, 0.0, torch.arange(n) % 2 == 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 3, 8])
def test_what_can_be_rejected_near_by_is(n: int, shape: tuple[int, ...], norm: str) -> None:
    defense, x, threshold, reachable = case(shape, norm, n)
    target = make_target(defense, n, "gradient", norm=norm, eps=EPS, threshold=threshold)
    x_adv = rejection(target, x, torch.zeros(n, dtype=torch.int64))
    assert_feasible(target, x, x_adv)
    assert (length((x_adv - x).double(), norm) <= WITHIN * EPS + 1e-6).all()
    assert (defense.detect(x_adv) > threshold).equal(reachable)  # type: ignore[misc]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_example_leaves_the_batch_once_it_is_rejected(shape: tuple[int, ...]) -> None:
    defense, x, threshold, _ = case(shape, "linf", 4)
    x[0] = x[0] + defense.direction.view(shape).sign() * 0.3  # type: ignore[union-attr, operator]
    seen: list[int] = []
    detect = defense.detect
    defense.detect = lambda rows: (seen.append(len(rows)), detect(rows))[1]  # type: ignore
    target = make_target(defense, 4, "gradient", eps=EPS, threshold=threshold)
    x_adv = rejection(target, x, torch.zeros(4, dtype=torch.int64), steps=10)
    assert x_adv[0].equal(x[0]) and target.counts.forward[0] == 1  # rejected as it is
    assert target.counts.forward[2] < target.counts.forward[1] == target.counts.forward[3]
    assert seen[0] == 4 and seen[-1] == 2
    assert sum(seen) == target.counts.forward.sum()


def test_a_score_that_is_cut_from_the_graph_is_differenced() -> None:
    defense, x, threshold, reachable = case((1, 8, 8), "linf", 6, cut=True)
    target = make_target(defense, 6, "gradient", eps=EPS, threshold=threshold)
    x_adv = rejection(target, x, torch.zeros(6, dtype=torch.int64))
    assert (defense.detect(x_adv) > threshold).equal(reachable)  # type: ignore[misc]


def test_a_random_score_is_climbed_on_its_mean() -> None:
    defense, x, threshold, reachable = case((1, 8, 8), "linf", 6, randomized=True)
    target = make_target(defense, 6, "gradient", eps=EPS, threshold=threshold, randomized=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x_adv = rejection(target, x, torch.zeros(6, dtype=torch.int64))
        rates = torch.stack([defense.detect(x_adv) > threshold for _ in range(50)]).double().mean(0)  # type: ignore[misc]
    assert (rates > 0.9).equal(reachable) and (rates < 0.1).equal(~reachable)


def test_without_a_detector_there_is_nothing_to_seek() -> None:
    defense, x, _, _ = case((1, 8, 8), "linf", 2)
    with pytest.raises(NotApplicable, match="no detector"):
        rejection(make_target(defense, 2, "gradient", eps=EPS), x, torch.zeros(2, dtype=torch.int64))
