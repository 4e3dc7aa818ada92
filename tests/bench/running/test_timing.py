"""Inference time: medians of alternating passes, in seconds per 1000 examples. Nothing here measures real time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from stand_ins import TINY
from torch import Tensor

from bench.contracts.defense import Defense
from bench.running import timing
from bench.running.timing import measure, seconds_to_measure


class Clocked(Defense):
    """Moves a clock by so many seconds per image."""

    def __init__(self, name: str, seconds: Iterator[float] | float, clock: list[float], log: list[str]) -> None:
        super().__init__(TINY)
        self.name, self.seconds, self.clock, self.log = name, seconds, clock, log

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(f"{self.name} {len(x)}")
        self.clock[0] += len(x) * (self.seconds if isinstance(self.seconds, float) else next(self.seconds))
        assert not torch.is_grad_enabled()
        return x.flatten(1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


X = torch.zeros(10, 1, 2, 2)


def test_seconds_per_1000_and_the_ratio(clock: list[float]) -> None:
    log: list[str] = []
    ours, reference = Clocked("ours", 0.06, clock, log), Clocked("reference", 0.02, clock, log)
    found = measure(ours, reference, X, batch_size=4, repeats=3)
    assert found.seconds_per_1000 == pytest.approx(60)
    assert found.reference_seconds_per_1000 == pytest.approx(20)
    assert found.ratio == pytest.approx(3)
    assert (found.batch_size, found.repeats, found.device) == (4, 3, "cpu")


def test_both_are_measured_alternately_in_the_same_batches(clock: list[float]) -> None:
    log: list[str] = []
    ours, reference = Clocked("ours", 0.06, clock, log), Clocked("reference", 0.02, clock, log)
    measure(ours, reference, X, batch_size=4, repeats=2)
    one_pass = [[f"{name} {size}" for size in (4, 4, 2)] for name in ("reference", "ours")]
    warm_up = one_pass[0] + one_pass[1] + one_pass[0]
    assert log == warm_up + 2 * (one_pass[0] + one_pass[1])


def test_the_median_ignores_one_slow_pass(clock: list[float]) -> None:
    slow = iter([1.0, 0.05, 9.0, 0.05])  # the warm-up, then three passes
    ours, reference = Clocked("ours", slow, clock, []), Clocked("reference", 0.02, clock, [])
    found = measure(ours, reference, X, batch_size=16, repeats=3)
    assert found.seconds_per_1000 == pytest.approx(50)


def test_a_fast_network_is_timed_on_more_images(clock: list[float]) -> None:
    log: list[str] = []
    ours, reference = Clocked("ours", 0.002, clock, log), Clocked("reference", 0.001, clock, log)
    found = measure(ours, reference, X, batch_size=1000, repeats=1, at_least=0.1)
    assert log[-1] == "ours 100"  # ten times as many, so that one pass of the reference takes 0.1 s
    assert found.seconds_per_1000 == pytest.approx(2)


def test_a_detector_is_part_of_the_answer(clock: list[float]) -> None:
    class Detecting(Clocked):
        def detect(self, x: Tensor) -> Tensor:  # type: ignore[override]
            self.clock[0] += 0.04 * len(x)
            return torch.zeros(len(x))

    log: list[str] = []
    ours, reference = Detecting("ours", 0.06, clock, log), Clocked("reference", 0.02, clock, log)
    assert measure(ours, reference, X, repeats=1).seconds_per_1000 == pytest.approx(100)


def test_how_long_measuring_takes_is_known_from_rough_times(clock: list[float]) -> None:
    """The slower the defense beside the reference, the longer: it goes through as many examples."""
    for slow, fast in ((0.004, 0.0001), (0.002, 0.001), (0.0001, 0.0000001)):
        ours, reference = Clocked("ours", slow, clock, []), Clocked("reference", fast, clock, [])
        clock[0] = 0.0
        measure(ours, reference, torch.zeros(256, 1, 2, 2))
        warm_up = 256 * (slow + 2 * fast)
        assert seconds_to_measure(1000 * slow, 1000 * fast) == pytest.approx(clock[0] - warm_up, rel=0.1)
