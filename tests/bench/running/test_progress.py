"""Progress: what is done, and an estimate of the rest made of measured times."""

from __future__ import annotations

import dataclasses
import io
import re
import time
from collections.abc import Sequence

import pytest
from rich.console import Console

from bench.engines.graph import Job
from bench.running import expectation, progress
from bench.running.progress import Display, Tracker, clock


def job(name: str, cost: float = 0.0, after: Sequence[str] = (), alone: bool = False) -> Job:
    return Job(name, print, (), after=tuple(after), cost=cost, kind=name.partition("/")[0], alone=alone)


def left(tracker: Tracker) -> float | None:
    """Expected seconds to the end."""
    return None if tracker.estimate is None else tracker.estimate.seconds


JOBS = [job("pgd/0"), job("pgd/1"), job("pgd/2"), job("noise/0"), job("noise/1")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (36061, "10:01:01")],
)
def test_times_are_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_before_anything_is_known_there_is_no_estimate() -> None:
    tracker = Tracker(JOBS, 1)
    assert left(tracker) is None
    assert (tracker.done, tracker.total, tracker.failed) == (0, 5, 0)
    assert "0/5 jobs" in tracker.line() and "ETA –" in tracker.line()


def test_every_attack_is_expected_to_take_what_its_own_shards_took() -> None:
    tracker = Tracker(JOBS, 1)
    tracker.finish("pgd/0", 10.0, failed=False)
    assert left(tracker) == 10 + 10 + 10 + 10  # noise unknown: as long as what is known
    tracker.finish("noise/0", 2.0, failed=False)
    assert left(tracker) == 10 + 10 + 2
    tracker.finish("pgd/1", 20.0, failed=False)
    assert left(tracker) == 15 + 2
    tracker.finish("pgd/2", 15.0, failed=False)
    tracker.finish("noise/1", 2.0, failed=False)
    assert left(tracker) == 0
    assert tracker.done == 5


def test_workers_share_the_rest() -> None:
    tracker = Tracker(JOBS, 4)
    tracker.finish("pgd/0", 8.0, failed=False)
    assert left(tracker) == 8.0


def test_what_earlier_runs_took_is_expected_before_anything_has_finished() -> None:
    jobs = [job("pgd/0", 10), job("pgd/1", 5), job("noise/0", 1), job("new/0"), job("new/1")]
    tracker = Tracker(jobs, 1)
    assert left(tracker) == pytest.approx(10 + 5 + 1 + 2 * (7.5 + 1) / 2)  # new: the mean of the kinds known


def test_a_slower_machine_is_noticed() -> None:
    tracker = Tracker([job("pgd/0", 10), job("pgd/1", 5), job("noise/0", 1), job("noise/1", 1)], 1)
    tracker.finish("noise/0", 3.0, failed=False)
    assert left(tracker) == pytest.approx(3 * (10 + 5 + 1))
    tracker.finish("pgd/0", 20.0, failed=False)  # its own measurement counts more than that of other kinds
    assert left(tracker) == pytest.approx(2 * 5 + 3 * 1)


def test_the_time_left_is_at_least_that_of_the_longest_chain() -> None:
    jobs = [job("prepare", 30), job("transfer/0", 10, ["prepare"]), job("transfer/1", 10, ["prepare"]), job("noise", 2)]
    tracker = Tracker(jobs, 4)
    assert left(tracker) == 30 + 10
    tracker.finish("prepare", 30.0, failed=False)
    assert left(tracker) == 10
    assert left(Tracker(jobs, 1)) == 52


def test_what_runs_alone_is_not_shared_by_the_workers() -> None:
    jobs = [*(job(f"pgd/{n}", 10) for n in range(4)), job("timing/a", 3, alone=True), job("timing/b", 3, alone=True)]
    assert left(Tracker(jobs, 4)) == 10 + 6


def test_a_running_job_that_says_how_far_it_is_has_less_left() -> None:
    tracker = Tracker([job("prepare", 40), job("noise", 2)], 1)
    tracker.report("prepare", 0.75)
    assert left(tracker) == pytest.approx(10 + 2)
    tracker.report("another", 0.5)  # of no job of this run
    tracker.finish("prepare", 40.0, failed=False)
    assert left(tracker) == 2


def test_jobs_that_were_never_started_say_nothing_about_the_others() -> None:
    tracker = Tracker([job("pgd/0", 10), job("pgd/1", 10)], 1)
    tracker.finish("pgd/0", 0.0, failed=True)
    assert left(tracker) == 10


def test_failures_are_counted_and_shown() -> None:
    tracker = Tracker(JOBS, 1)
    assert "failed" not in tracker.line()
    tracker.finish("pgd/0", 1.0, failed=True)
    tracker.finish("pgd/1", 1.0, failed=False)
    assert tracker.failed == 1
    assert "2/5 jobs, 1 failed" in tracker.line()


def test_the_line_names_rate_time_and_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tracker = Tracker(JOBS, 1)
    tracker.finish("pgd/0", 30.0, failed=False)
    tracker.finish("noise/0", 30.0, failed=False)
    now[0] += 60
    assert tracker.line() == "2/5 jobs, 2.0/min, 1:00 elapsed, ETA 1:30"


def test_without_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    display = Display(Console(file=out, width=40), every=10.0)
    tracker = Tracker(JOBS, 1)
    with display.running("ours", tracker.total):
        for job in JOBS:
            now[0] += 4
            tracker.finish(job.name, 4.0, failed=False)
            display.show(tracker, "ours")
    lines = out.getvalue().splitlines()
    assert [line.partition(" jobs")[0] for line in lines] == ["ours: 1/5", "ours: 4/5", "ours: 5/5"]


def test_on_a_terminal_there_is_a_live_bar_that_leaves_nothing_behind() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    display = Display(console)
    tracker = Tracker(JOBS, 1)
    with display.running("ours", tracker.total):
        tracker.finish("pgd/0", 4.0, failed=False)
        display.show(tracker, "ours")
    assert "1/5 jobs" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


def test_the_line_names_the_jobs_that_run_and_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tracker = Tracker([*JOBS, job("prepare transfer")], 3)
    assert "now" not in tracker.line()
    tracker.report("prepare transfer", 0.1, "epoch 3/30 [sic]")
    now[0] += 5
    tracker.report("pgd/0", 0.0)
    tracker.report("noise/0", 0.0)
    assert tracker.line().endswith("; now prepare transfer 0:05 (epoch 3/30 [sic], 10 %), pgd/0 0:00, +1")
    tracker.finish("prepare transfer", 5.0, failed=False)
    assert tracker.line().endswith("; now pgd/0 0:00, noise/0 0:00")


def test_the_estimate_moves_while_no_job_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tracker = Tracker([job("pgd/0", 10), job("pgd/1", 10)], 1)
    tracker.report("pgd/0", 0.0)
    now[0] += 4
    assert left(tracker) == pytest.approx(6 + 10, rel=0.01)
    now[0] += 11  # longer than expected: so it has some more left, and the other one takes as long
    unsure = left(tracker)
    assert unsure is not None and 1 + 16 < unsure < 5 + 20
    tracker.report("pgd/0", 0.5)  # by its own account it needs 30 seconds
    assert left(tracker) == pytest.approx(15 + 30)
    tracker.finish("pgd/0", 30.0, failed=False)
    assert left(tracker) == pytest.approx(30)


def test_a_report_that_comes_after_the_end_says_nothing() -> None:
    tracker = Tracker([job("pgd/0", 10), job("pgd/1", 10)], 2)
    tracker.finish("pgd/0", 10.0, failed=False)
    tracker.report("pgd/0", 0.0)
    assert tracker.now == "" and left(tracker) == 10
    tracker.finish("pgd/1", 10.0, failed=False)
    tracker.report("pgd/1", 0.5)
    assert tracker.now == "" and left(tracker) == 0


def test_where_costs_are_unsure_a_range_is_shown_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def eta(*jobs: Job) -> str:
        return Tracker(jobs, 1).eta()

    sure, guessed = job("pgd/0", 100), dataclasses.replace(job("pgd/0", 100), sure=False)
    assert eta(sure) == "1:40"
    assert re.fullmatch(r"0:\d\d–\d:\d\d", eta(guessed))
    assert eta(guessed, job("noise/0", 3000)) == "51:40"  # so little that it does not matter
    assert eta(job("noise/0", 100), job("new/0")) != eta(job("noise/0", 100), job("pgd/0", 100))
    monkeypatch.setattr(expectation, "_VAGUE", 2.0)
    assert eta(guessed) == "–"


def test_a_job_that_starts_over_in_a_new_stage_is_measured_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tracker = Tracker([job("train")], 1)
    for at, fraction in ((0, 0.0), (90, 0.9), (100, 0.0), (101, 0.1)):
        now[0] = at
        tracker.report("train", fraction)
    assert left(tracker) == pytest.approx(9)


def test_a_display_moves_while_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LIVE_EVERY", 0.01)
    out = io.StringIO()
    display = Display(Console(file=out, width=40), every=0.02)
    with display.running("ours", 5):
        display.show(Tracker(JOBS, 1), "ours")
        deadline = time.monotonic() + 10
        while out.getvalue().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert out.getvalue().count("ours: 0/5 jobs") >= 3


def test_a_quiet_display_says_nothing() -> None:
    out = io.StringIO()
    display, tracker = Display(Console(file=out, force_terminal=True), quiet=True), Tracker(JOBS, 1)
    with display.running("ours", tracker.total):
        display.show(tracker, "ours")
    assert out.getvalue() == ""
