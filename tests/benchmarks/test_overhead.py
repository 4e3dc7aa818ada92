"""What the harness costs: PGD through the target against a bare loop of the same passes.

``make bench`` measures; ``make test`` only checks, on two images, that both do the same passes.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from attacks.pgd import pgd
from bench.defense import DataInfo, Defense, freeze
from bench.seeding import generator
from bench.target import Target
from bench.threat import ThreatModel
from defenses.nets import ResNet18

#: The goal: PGD-40 takes at most this many times as long as its passes alone.
GOAL = 1.05
#: So small a ball that no example is fooled and leaves the batch.
THREAT = ThreatModel("linf", 1e-6)


@dataclass(frozen=True)
class Size:
    batch: int
    steps: int
    rounds: int


def _size(enabled: bool, device: torch.device) -> Size:
    if not enabled:
        return Size(batch=2, steps=2, rounds=1)
    # On one CPU core forty steps of 64 images take minutes, and the overhead per step is the same.
    return Size(batch=64, steps=40, rounds=7) if device.type == "cuda" else Size(batch=64, steps=4, rounds=5)


def _bare(defense: Defense, x: Tensor, y: Tensor, steps: int) -> None:
    """The passes of PGD and nothing else: ``steps`` forward and backward, and a last forward."""
    for _ in range(steps):
        x = x.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(defense(x), y, reduction="sum"), x)
    with torch.no_grad():
        defense(x)


def _now(device: torch.device) -> float:
    """Seconds: of this process's own work on a CPU, where others compete for the cores; else of a clock."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@pytest.mark.benchmark(group="overhead")
def test_pgd_costs_little_more_than_its_passes(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = _size(not benchmark.disabled, device)
    defense = Defense(DataInfo("random", (3, 32, 32), 10))
    defense.classifier = ResNet18(3, 10)
    freeze(defense.to(device))
    x = torch.rand(size.batch, 3, 32, 32).to(device)
    with torch.no_grad():
        y = defense(x).argmax(1)
    targets: list[Target] = []
    alone: list[float] = []
    through_harness: list[float] = []

    def before_each_round() -> None:
        """The bare loop, alternating with the attack so that both meet the same machine."""
        start = _now(device)
        _bare(defense, x, y, size.steps)
        alone.append(_now(device) - start)

    def attack() -> None:
        start = _now(device)
        target = Target(defense, THREAT, size.batch, knowledge="gradient", generator=generator("overhead"))
        pgd(target, x, y, steps=size.steps)
        through_harness.append(_now(device) - start)
        targets.append(target)

    benchmark.pedantic(attack, setup=before_each_round, rounds=size.rounds, warmup_rounds=1)
    for target in targets:  # nobody left early: both did the same passes
        assert set(target.counts.forward.tolist()) == {size.steps + 1}
        assert set(target.counts.backward.tolist()) == {size.steps}
    if benchmark.disabled:
        return
    pairs = list(zip(through_harness, alone, strict=True))[-size.rounds :]  # without the warm-up
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    benchmark.extra_info.update(ratio=round(ratio, 4), steps=size.steps, batch=size.batch, device=device.type)
    with capsys.disabled():
        what = f"PGD-{size.steps}, ResNet-18, batch {size.batch}, {device.type}"
        print(f"\n{what}: {ratio:.3f} times as long as its passes alone (goal: at most {GOAL})")
