"""What isolation costs: gradient steps on a defense in a model server, over the same steps on it in this process.

``make bench`` measures; ``make test`` only checks that both ways give the same points.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from harness.figures import Figure, Note
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.isolation import LEVELS, Level
from bench.isolation.opening import Isolation, build_apart, objection
from bench.isolation.places import places
from bench.isolation.remote import RemoteDefense

NONE = DefenseSpec("none")


@dataclass(frozen=True)
class Case:
    """The network of ``none`` for these inputs, of random weights: how long it takes does not depend on them.

    Attributes:
        batch: images; goal: the ratio to stay under; rounds: of which the fastest counts; steps: in one round.
    """

    info: DataInfo
    batch: int
    goal: float
    rounds: int
    steps: int


CASES = {
    "digits": Case(DataInfo("digits", InputSpec((1, 8, 8), levels=17), 10), 75, 1.5, rounds=60, steps=4),
    "cifar10": Case(DataInfo("cifar10", InputSpec((3, 32, 32), levels=256), 10), 128, 1.15, rounds=60, steps=1),
}


def _climb(defense: Defense, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Steps along the sign of the gradient of another class's logit against that of ``y``, as an attack takes them."""
    for _ in range(steps):
        at = x.clone().requires_grad_()
        out = defense(at)
        (grad,) = torch.autograd.grad((out.roll(1, 1) - out).gather(1, y[:, None]).sum(), at)
        x = x + 0.01 * grad.sign()
    return x


def _fastest(rounds: int, *functions: Callable[[], object]) -> list[float]:
    """Seconds that each takes at best, in turn, so that all meet the same machine."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


@pytest.mark.benchmark(group="isolation")
@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("name", CASES)
def test_an_isolated_defense_is_attacked_at_little_more_cost(
    name: str, level: Level, benchmark: BenchmarkFixture, measured: Note
) -> None:
    if why := objection(level, places(NONE, ())):
        pytest.skip(f"{level}: {why}")
    case, brief = CASES[name], benchmark.disabled
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.rand(4 if brief else case.batch, *case.info.shape)
        here = build_apart(NONE, case.info, "cpu", None, Isolation())
    there = build_apart(NONE, case.info, "cpu", dict(here.state_dict()), Isolation(level))
    assert isinstance(there, RemoteDefense)
    try:
        y = here(x).argmax(1)
        points = [_climb(defense, x, y, case.steps) for defense in (here, there)]
        assert torch.equal(*points) and not torch.equal(points[0], x)
        work = [lambda defense=defense: _climb(defense, x, y, case.steps) for defense in (here, there)]
        found: list[list[float]] = []
        benchmark.pedantic(lambda: found.append(_fastest(1 if brief else case.rounds, *work)), rounds=1)  # type: ignore[misc]
    finally:
        there.close()
    if brief:
        return
    bare, isolated = found[-1]
    ratio = isolated / bare
    measured(
        Figure(
            "Isolation", f"`{level}`, {name}", ratio, "time of a gradient step over that in the judge's process",
            f"batch {case.batch}; shortest of {case.rounds} rounds of {case.steps} in turn",
            f"{1000 * isolated / case.steps:.1f} ms a step", goal=case.goal,
        )
    )  # fmt: skip
