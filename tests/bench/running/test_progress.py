"""Progress: what is done, and an estimate of the rest made of measured times."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from bench.running import progress
from bench.running.progress import Display, Tracker, clock

JOBS = {"pgd/0": "pgd", "pgd/1": "pgd", "pgd/2": "pgd", "noise/0": "noise", "noise/1": "noise"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (36061, "10:01:01")],
)
def test_times_are_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_before_anything_is_known_there_is_no_estimate() -> None:
    tracker = Tracker(JOBS, 1)
    assert tracker.seconds_left is None
    assert (tracker.done, tracker.total, tracker.failed) == (0, 5, 0)
    assert "0/5 shards" in tracker.line() and "ETA –" in tracker.line()


def test_every_attack_is_expected_to_take_what_its_own_shards_took() -> None:
    tracker = Tracker(JOBS, 1)
    tracker.finish("pgd/0", 10.0, failed=False)
    assert tracker.seconds_left == 10 + 10 + 10 + 10  # noise unknown: as long as what is known
    tracker.finish("noise/0", 2.0, failed=False)
    assert tracker.seconds_left == 10 + 10 + 2
    tracker.finish("pgd/1", 20.0, failed=False)
    assert tracker.seconds_left == 15 + 2
    tracker.finish("pgd/2", 15.0, failed=False)
    tracker.finish("noise/1", 2.0, failed=False)
    assert tracker.seconds_left == 0
    assert tracker.done == 5


def test_workers_share_the_rest() -> None:
    tracker = Tracker(JOBS, 4)
    tracker.finish("pgd/0", 8.0, failed=False)
    assert tracker.seconds_left == 8.0


def test_failures_are_counted_and_shown() -> None:
    tracker = Tracker(JOBS, 1)
    assert "failed" not in tracker.line()
    tracker.finish("pgd/0", 1.0, failed=True)
    tracker.finish("pgd/1", 1.0, failed=False)
    assert tracker.failed == 1
    assert "2/5 shards, 1 failed" in tracker.line()


def test_the_line_names_rate_time_and_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tracker = Tracker(JOBS, 1)
    tracker.finish("pgd/0", 30.0, failed=False)
    tracker.finish("noise/0", 30.0, failed=False)
    now[0] += 60
    assert tracker.line() == "2/5 shards, 2.0/min, 1:00 elapsed, ETA 1:30"


def test_without_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    display = Display(Console(file=out, width=40), every=10.0)
    tracker = Tracker(JOBS, 1)
    with display.running("ours", tracker.total):
        for job in JOBS:
            now[0] += 4
            tracker.finish(job, 4.0, failed=False)
            display.show(tracker, "ours")
    lines = out.getvalue().splitlines()
    assert [line.partition(" shards")[0] for line in lines] == ["ours: 1/5", "ours: 4/5", "ours: 5/5"]


def test_on_a_terminal_there_is_a_live_bar_that_leaves_nothing_behind() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    display = Display(console)
    tracker = Tracker(JOBS, 1)
    with display.running("ours", tracker.total):
        tracker.finish("pgd/0", 4.0, failed=False)
        display.show(tracker, "ours")
    assert "1/5 shards" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
