"""The ETA in replays of the published runs: within a factor of 1.5, or said to be unsure.

Times are those that the rows of ``results/digits`` were recorded with; no clock is looked at. What is asked for is what
the replays give, rounded down.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from replay import Replay, replay

from bench.engines.graph import Job
from bench.running import progress
from bench.running.costs import UNKNOWN, Expected, seconds_of
from bench.running.expectation import Estimate
from bench.storing.joined import JOINED
from bench.storing.reading import read_record
from bench.storing.records import DefenseRecord
from bench.storing.store import Store

RESULTS = Path(__file__).parents[3] / "results"
#: At which parts of a run the estimate is looked at, and the factor that it may be wrong by.
MOMENTS, FACTOR = (1 / 3, 1 / 2, 2 / 3), 1.5
#: Seconds of what is not recorded.
GALLERY, TIMING = 0.4, 2.0


@dataclass(frozen=True)
class Recorded:
    """A defense's inference time, and by attack the seconds of each shard and of the preparation."""

    per_1000: float
    shards: dict[str, list[float]]
    prepared: dict[str, float]


@functools.cache
def recorded() -> dict[str, Recorded]:
    store, found = Store(RESULTS, "digits"), {}
    for path in store.defenses():
        defense = read_record(path, DefenseRecord)
        assert defense.timing is not None
        attacks = sorted(folder.name for folder in path.parent.iterdir() if (folder / JOINED).exists())
        files = {attack: store.shards(defense.name, attack).values() for attack in attacks}
        cells = {attack: [file.read(rows=False) for file in files[attack]] for attack in attacks}
        seconds = {attack: [max(0.02, seconds_of(shard)) for shard in cell] for attack, cell in cells.items()}
        prepared = {attack: max(shard.prepare_seconds for shard in cell) for attack, cell in cells.items()}
        found[defense.name] = Recorded(
            defense.timing.seconds_per_1000, seconds, {attack: took for attack, took in prepared.items() if took > 1}
        )
    return found


#: What a shard of an attack on a defense is expected to take.
Costs = Callable[[str, str], Expected]


def nothing(_: str, __: str) -> Expected:
    return UNKNOWN


def elsewhere(defense: str, attack: str) -> Expected:
    """In proportion to inference, as :mod:`bench.running.costs` expects it of other defenses."""
    others = [
        statistics.fmean(other.shards[attack]) / other.per_1000
        for name, other in recorded().items()
        if name != defense and attack in other.shards
    ]
    return Expected(statistics.median(others) * recorded()[defense].per_1000, "other defenses") if others else UNKNOWN


@dataclass(frozen=True)
class Run:
    """Jobs of one defense, as a plan makes them, and what each took."""

    jobs: list[Job]
    took: dict[str, float]


def one_run(defense: str, shards: int, done: frozenset[str] = frozenset(), costs: Costs = nothing) -> Run:
    """A defense against all attacks.

    Args:
        shards: at most so many of each attack.
        done: names of jobs that an earlier run has ended.
        costs: what is expected of a shard of an attack.
    """
    about, run = recorded()[defense], Run([], {})

    def add(name: str, took: float, expected: Expected, kind: str, after: tuple[str, ...] = (), **fields: bool) -> None:
        if name not in done:
            after = tuple(other for other in after if other not in done)
            run.jobs.append(
                Job(name, print, (), None, after, expected.seconds, expected.sure, kind, defense, **fields)
            )
            run.took[name] = took

    for attack, took in about.prepared.items():
        add(f"prepare {attack}", took, UNKNOWN, f"prepare {attack}")
    for number in range(shards):
        for attack, seconds in about.shards.items():
            if number < len(seconds):
                waits = (f"prepare {attack}",) if attack in about.prepared else ()
                add(f"{attack}/{number}", seconds[number], costs(defense, attack), attack, waits)
    behind = tuple(name for name in run.took if "/" in name)
    add("gallery", GALLERY, Expected(0.2, "the same cell"), "gallery", behind)
    add("timing", TIMING, Expected(2.0, "the same cell"), "timing", alone=True)
    return run


def resumed(defense: str, shards: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> Run:
    """What is left of a run that was stopped in the middle; costs are those of what it had stored."""
    whole = one_run(defense, shards)
    stopped = played(whole, workers, monkeypatch)
    done = frozenset(name for name, at in stopped.ended.items() if at <= stopped.seconds / 2)

    def costs(_: str, attack: str) -> Expected:
        known = [whole.took[f"{attack}/{n}"] for n in range(shards) if f"{attack}/{n}" in done]
        return Expected(statistics.fmean(known), "the same cell") if known else UNKNOWN

    return one_run(defense, shards, done, costs)


def played(run: Run, workers: int, monkeypatch: pytest.MonkeyPatch, moments: tuple[float, ...] = ()) -> Replay:
    return replay(run.jobs, run.took, workers, lambda clock: monkeypatch.setattr(progress, "time", clock), moments)


@dataclass
class Verdict:
    """Of estimates: how many of one number were right, of those of two enclosed the time, and showed nothing."""

    right: int = 0
    wrong: int = 0
    enclosed: int = 0
    missed: int = 0
    silent: int = 0

    def add(self, shown: Estimate | None, left: float) -> None:
        numbers = () if shown is None else shown.shown
        if not numbers:
            self.silent += 1
        elif len(numbers) == 1:
            good = 1 / FACTOR <= numbers[0] / left <= FACTOR
            self.right, self.wrong = self.right + good, self.wrong + (not good)
        else:
            good = numbers[0] <= left <= numbers[1]
            self.enclosed, self.missed = self.enclosed + good, self.missed + (not good)


def judged(kind: str, shards: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> Verdict:
    verdict = Verdict()
    for defense in recorded():
        if kind == "resumed":
            run = resumed(defense, shards, workers, monkeypatch)
        else:
            run = one_run(defense, shards, costs=elsewhere if kind == "others stored" else nothing)
        seconds = played(run, workers, monkeypatch).seconds
        moments = tuple(part * seconds for part in MOMENTS)
        for shown, at in zip(played(run, workers, monkeypatch, moments).seen, moments, strict=True):
            verdict.add(shown, seconds - at)
    return verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shards", "one"),
    [
        ("nothing stored", 2, 0.0),  # as in the demo, whose attacks have two shards: mostly a range
        ("nothing stored", 6, 0.9),
        ("others stored", 2, 0.3),
        ("others stored", 6, 0.9),
        ("resumed", 2, 0.6),
        ("resumed", 6, 0.9),
    ],
)
def test_from_a_third_of_the_way_on_the_estimate_is_right_or_says_that_it_is_unsure(
    kind: str, shards: int, one: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = judged(kind, shards, 2, monkeypatch)
    looks = len(MOMENTS) * len(recorded())
    print(f"\n{kind}, {shards} shards: {found}")
    assert found.silent == 0 and found.right + found.wrong >= one * looks
    assert found.right >= 0.85 * (found.right + found.wrong)
    assert found.enclosed >= 0.8 * (found.enclosed + found.missed)
