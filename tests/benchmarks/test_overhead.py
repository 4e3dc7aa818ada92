"""What an attack costs beyond its model calls: its time over that of the same calls replayed alone.

``make bench`` measures; ``make test`` only checks, on a few images, that the passes an attack is said to have taken
are those that the model saw.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from harness.figures import Figure, Note
from peers.measure import Counted
from peers.subjects import Unavailable, provider
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import attacks
from bench.contracts.defense import freeze
from bench.contracts.inputs import DataInfo, InputSpec
from defenses.parts.nets import NETWORKS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """One attack on one model.

    Attributes:
        attack: as ``attacks.run`` takes it; params: its budget when it is measured; brief: when it is only checked.
        model: ``resnet`` (ResNet-18 of random weights on random images, in so small a ball that nobody leaves the
            batch) or ``digits`` (the adversarially trained digits network).
        goal: the ratio to stay under.
        batch: images; rounds: repetitions, of which the median counts.
    """

    attack: str
    model: str
    goal: float
    params: Mapping[str, Any]
    brief: Mapping[str, Any]
    norm: str = "linf"
    eps: float = 0.2
    batch: int = 450
    rounds: int = 3


# On one CPU core forty steps of ResNet-18 take minutes, and the overhead per step is the same.
_RESNET_STEPS = 40 if DEVICE.type == "cuda" else 4
CASES = {
    "pgd-resnet": Case(
        "attacks.gradient.pgd:pgd", "resnet", 1.05, {"steps": _RESNET_STEPS}, {"steps": 2}, eps=1e-6, batch=64, rounds=5
    ),
    "apgd-resnet": Case(
        "attacks.gradient.apgd:apgd",
        "resnet",
        1.05,
        {"steps": _RESNET_STEPS},
        {"steps": 2},
        eps=1e-6,
        batch=64,
        rounds=5,
    ),
    "pgd-digits": Case(
        "attacks.gradient.pgd:pgd", "digits", 1.15, {"steps": 40, "restarts": 2}, {"steps": 3, "restarts": 2}
    ),
    "apgd-digits": Case("attacks.gradient.apgd:apgd", "digits", 1.15, {"steps": 100}, {"steps": 3}),
    "square-digits": Case("attacks.score.square:square", "digits", 1.05, {"queries": 200}, {"queries": 20}),
    "hopskipjump-digits": Case(
        "attacks.decision.hopskipjump:hopskipjump", "digits", 1.1, {"queries": 300}, {"queries": 60}
    ),
    "genattack-digits": Case(
        "attacks.score.genattack:genattack", "digits", 1.2, {"generations": 40}, {"generations": 3}
    ),
    "jsma-digits": Case("attacks.minimum_norm.jsma:jsma", "digits", 1.5, {}, {}, norm="l0", eps=10, batch=64),
}


@cache
def _subject(model: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    if model == "digits":
        try:
            subject = provider(None)("digits", batch)
        except Unavailable as reason:
            pytest.skip(str(reason))
        return subject.model.to(DEVICE), subject.x.to(DEVICE), subject.y.to(DEVICE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = freeze(NETWORKS["resnet18"](DataInfo("cifar10", InputSpec((3, 32, 32)), 10))).to(DEVICE)
        x = torch.rand(batch, 3, 32, 32).to(DEVICE)
    with torch.no_grad():
        return network, x, network(x).argmax(1)


def _replay(model: nn.Module, x: Tensor, calls: list[list[int]]) -> None:
    """The model calls of an attack and nothing else: for each, its rows forward and as many passes back."""
    inputs = {rows: x[torch.arange(rows, device=x.device) % len(x)] for rows in {rows for rows, _ in calls}}
    for rows, backward in calls:
        if not backward:
            with torch.no_grad():
                model(inputs[rows])
            continue
        at = inputs[rows].detach().requires_grad_()
        sums = model(at).sum(0)
        passes = round(backward / rows)
        for k in range(passes):
            torch.autograd.grad(sums[k % len(sums)], at, retain_graph=k + 1 < passes)


def _now() -> float:
    """Seconds: of this process's own work on a CPU, where others compete for the cores; else of a clock."""
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@pytest.mark.benchmark(group="overhead")
@pytest.mark.parametrize("name", CASES)
def test_an_attack_costs_little_more_than_its_passes(
    name: str, benchmark: BenchmarkFixture, measured: Note
) -> None:
    case = CASES[name]
    brief = benchmark.disabled
    model, x, y = _subject(case.model, 2 if brief else case.batch)
    settings = {"norm": case.norm, "eps": case.eps, **(case.brief if brief else case.params)}
    counted = Counted(model).eval()
    result = attacks.run(case.attack, counted, x, y, **settings)
    # Before the attack one image shows the shape of the logits; after it one pass judges what was returned.
    assert sum(rows for rows, _ in counted.calls) == result.forward.sum() + 1 + len(x)
    assert sum(backward for _, backward in counted.calls) == result.backward.sum()
    alone: list[float] = []
    attacked: list[float] = []

    def before_each_round() -> None:
        """The bare calls, alternating with the attack so that both meet the same machine."""
        start = _now()
        _replay(model, x, counted.calls)
        alone.append(_now() - start)

    def attack() -> None:
        start = _now()
        attacks.run(case.attack, model, x, y, **settings)
        attacked.append(_now() - start)

    benchmark.pedantic(attack, setup=before_each_round, rounds=1 if brief else case.rounds, warmup_rounds=1)
    if brief:
        return
    pairs = list(zip(attacked, alone, strict=True))[-case.rounds :]  # without the warm-up
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    budget = ", ".join(f"{key}={value}" for key, value in case.params.items())
    sample = f"batch {len(x)} of {case.model}, {DEVICE.type}; median of {case.rounds} pairs in turn"
    of = f"{'processor ' if DEVICE.type == 'cpu' else ''}time over that of its passes alone"
    what = f"`{case.attack.rpartition(':')[2]}({budget})`, {case.norm}"
    measured(Figure("What attacks cost beyond their passes", what, ratio, of, sample, goal=case.goal))
