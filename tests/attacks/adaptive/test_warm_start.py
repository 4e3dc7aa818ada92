"""Warm starts: climbs that begin at what short attacks have found, the best of each example first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lab import DIGITS, assert_feasible, digits, digits_classifier, make_target
from torch import Tensor

from attacks.adaptive.warm_start import warm_start
from attacks.gradient.apgd import Ascent
from attacks.toolkit.selection import strength
from bench.contracts.defense import Defense, freeze
from bench.contracts.inputs import DataInfo, InputSpec


class Hidden(Defense):
    """A digits network behind noise without a gradient."""

    randomized = True

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__(DIGITS)
        self.classifier, self.noise = digits_classifier(), noise

    def transform(self, x: Tensor) -> Tensor:
        return (x + self.noise * torch.randn_like(x)).detach()


def _case(n: int = 20) -> tuple[Defense, Tensor, Tensor]:
    _, _, x, y = digits()
    return freeze(Hidden()), x[:n], y[:n]


def test_it_finds_what_a_hidden_gradient_hides_and_says_along_what_it_climbed() -> None:
    defense, x, y = _case()
    target = make_target(defense, 20, "gradient", eps=0.2, randomized=True)
    found = warm_start(target, x, y, restarts=2, steps=10, samples=4)
    assert_feasible(target, x, found)
    assert (defense(found).argmax(1) == y).float().mean() < 0.15
    assert target.counts.notes & {"climbed along identity", "climbed along classifier"}


def test_climbs_start_from_the_best_points_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    defense, x, y = _case()
    starts: list[Tensor] = []
    standing = torch.arange(20)

    def run(self: Ascent, target: Any, best: Any, x: Any, start: Tensor, goal: Any, index: Tensor) -> Tensor:
        nonlocal standing
        starts.append(start)
        standing = index
        return index

    monkeypatch.setattr(Ascent, "run", run)
    target = make_target(defense, 20, "gradient", eps=0.1, randomized=True)
    found = warm_start(target, x, y, restarts=3)
    points = [*starts, found[standing], x[standing]]
    fools = [float(strength(target, at, y[standing], standing, 50).mean()) for at in points]
    assert len(starts) == 3 and len(standing) > 10
    assert fools[0] > fools[1] > fools[2] > fools[-1]
    assert fools[3] == pytest.approx(fools[0], abs=0.05)  # without a climb the best start is what is returned


def test_a_climb_gains_on_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    defense, x, y = _case(40)

    def fools() -> float:
        torch.manual_seed(0)
        target = make_target(defense, 40, "gradient", eps=0.1, randomized=True)
        found = warm_start(target, x, y, passes=10, restarts=3, steps=20, samples=8)
        return float(strength(target, found, y, torch.arange(40), 400).mean())

    climbed = fools()
    monkeypatch.setattr(Ascent, "run", lambda self, target, best, x, start, goal, index: index)
    assert climbed > fools() + 0.01


class Large(Defense):
    """A linear network behind noise, on inputs of any shape."""

    randomized = True

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        draw = torch.Generator().manual_seed(1)
        width = torch.Size(data.shape).numel()
        layer = torch.nn.Linear(width, 4)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(4, width, generator=draw) / width**0.5)
        self.classifier = torch.nn.Sequential(torch.nn.Flatten(), layer)

    def transform(self, x: Tensor) -> Tensor:
        return (x + 0.01 * torch.randn_like(x)).detach()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_at_other_sizes(shape: tuple[int, ...], norm: str) -> None:
    defense = freeze(Large(DataInfo("toy", InputSpec(shape), 4)))
    x = torch.rand(10, *shape, generator=torch.Generator().manual_seed(3))
    y = defense(x).argmax(1)
    eps = 0.16 / shape[-1] if norm == "linf" else 0.1
    target = make_target(defense, 10, "gradient", norm=norm, eps=eps, randomized=True)
    found = warm_start(target, x, y, passes=10, restarts=1, steps=10, samples=2)
    assert_feasible(target, x, found)
    assert (defense(found).argmax(1) != y).any()
