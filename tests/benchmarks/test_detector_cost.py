"""What a detector adds to the cost of the cascade: passes and time over those of the cascade on the classifier alone.

The detector is a network of the classifier's size, so that passes of either weigh the same. Both searches are given
the same images, some of which leave sooner behind no detector. Passes are exact, and are checked by ``make test`` too,
on fewer images; time is measured by ``make bench`` alone, on an adversarially trained network of 8×8 digits, where the
attack's own arithmetic weighs as much as it ever does.
"""

from __future__ import annotations

import time
from functools import cache
from typing import cast

import pytest
import torch
from harness.figures import Figure, Note
from pytest_benchmark.fixture import BenchmarkFixture
from shipped import DATA, THREAT, load
from torch import Tensor

from attacks.adaptive.cascade import cascade
from bench.contracts.defense import Defense, freeze
from bench.contracts.detector import WithDetector
from bench.contracts.seeding import generator
from bench.contracts.target import Target

#: Times what the cascade costs without a detector.
GOAL = 2.5
ROUNDS = 3


@cache
def _subject() -> tuple[Defense, float]:
    """`madry` behind the detector of `adversarial-retraining`, and the threshold that 5 % of clean digits exceed."""
    with_detector = load("adversarial-retraining")
    assert isinstance(with_detector, WithDetector)
    classifier = load("madry")
    detector = with_detector.detector
    sizes = [sum(weights.numel() for weights in part.parameters()) for part in (detector, classifier)]
    assert 0.9 <= sizes[0] / sizes[1] <= 1.1
    guarded = cast(Defense, freeze(WithDetector(detector, classifier)))
    with torch.no_grad():
        scores = detector.detect(DATA.validation.x)
    return guarded, float(scores.sort(descending=True).values[len(scores) // 20])


def _run(threshold: float | None, x: Tensor, y: Tensor) -> tuple[int, float]:
    """Passes of all networks, and seconds of this process."""
    target = Target(
        _subject()[0], THREAT, len(x), knowledge="gradient", generator=generator(0), threshold=threshold
    )
    start = time.process_time()
    cascade(target, x, y)
    return int((target.counts.forward + target.counts.backward).sum()), time.process_time() - start


@pytest.mark.benchmark(group="detectors")
def test_a_detector_of_the_classifiers_size_costs_little_more_than_twice_as_much(
    benchmark: BenchmarkFixture, measured: Note
) -> None:
    some = DATA.test.take(50 if benchmark.disabled else 150)
    threshold = _subject()[1]
    plain: list[tuple[int, float]] = []
    aware: list[tuple[int, float]] = []

    def both() -> None:
        plain.append(_run(None, some.x, some.y))
        aware.append(_run(threshold, some.x, some.y))

    benchmark.pedantic(both, rounds=1 if benchmark.disabled else ROUNDS)
    passes = aware[0][0] / plain[0][0]
    assert 1.5 <= passes <= GOAL
    if benchmark.disabled:
        return
    seconds = min(took for _, took in aware) / min(took for _, took in plain)
    measured(
        Figure(
            "What a detector adds", "`cascade()` on `madry` behind the detector of `adversarial-retraining`", seconds,
            "processor time over that on `madry` alone", f"batch {len(some)} of digits; shortest of {ROUNDS} in turn",
            f"{passes:.2f} × the passes of all networks (goal {GOAL:g})", GOAL, met=passes <= GOAL,
        )
    )  # fmt: skip
