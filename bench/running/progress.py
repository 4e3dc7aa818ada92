"""Live display of a run: jobs done, those running, and an ETA made of measured times."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from bench.contracts.errors import one_line
from bench.engines.graph import Job
from bench.running.expectation import ELSEWHERE, MEASURED, REPORTED, SAME_CELL, UNKNOWN, Estimate, Guess, Left, estimate

#: Seconds between two updates of a live bar.
_LIVE_EVERY = 0.5
#: What costs that rest on other defenses weigh beside measured times, as a share of all that is to be run.
_PRIOR = 0.1
#: Running jobs that are named.
_SHOWN = 2


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class _Running:
    """A job that has said that it has started."""

    since: float
    fraction: float
    text: str
    first: float  # the fraction at ``counted``, when it was last below what it had been: a new stage
    counted: float

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.since

    @property
    def said(self) -> str:
        """What it has said of itself: `` (epoch 3/30, 8 %)``."""
        share = f"{100 * self.fraction:.0f} %" if self.fraction else ""
        parts = ", ".join(part for part in (self.text, share) if part)
        return f" ({parts})" if parts else ""

    @property
    def whole(self) -> float | None:
        """Seconds that it will take in all, by its own account; None where that does not say."""
        done = self.fraction - self.first
        return (time.monotonic() - self.counted) / done if done > 0 else None


@dataclass
class _Kind:
    """The jobs of one kind: how many are left, what they were expected to take, what the finished ones took."""

    known: bool
    sure: bool
    alone: bool
    behind: set[str] = field(default_factory=set)
    left: int = 0
    expected_left: float = 0.0
    done: int = 0
    expected_done: float = 0.0
    took: float = 0.0


class Tracker:
    """Counts jobs and predicts the time left.

    A job not yet run is expected to take what the finished ones of its kind took; before one has finished, its cost,
    corrected by how costs and measurements compare so far (another machine, a busy one, another kind of defense); and
    where its cost is unknown, the mean over the kinds that were measured. A job that runs is expected to take what
    those take that have not ended by then, or what it says itself; that changes what is expected of its kind, and so
    the estimate moves while no job ends. The time left is that of dealing these out to the workers, though not less
    than the longest chain of jobs that wait for each other; jobs that run alone are added. Where it is unsure, the
    line shows a range, or none (:mod:`bench.running.expectation`).
    """

    def __init__(self, jobs: Sequence[Job], workers: int, unit: str = "jobs") -> None:
        self._jobs = {job.name: job for job in jobs}
        self._workers = max(1, workers)
        self._start = time.monotonic()
        self._unit = unit
        self._running: dict[str, _Running] = {}
        self._ended: set[str] = set()
        self._note = ""
        self._lock = threading.RLock()  # a display reads while jobs report
        self._kinds: dict[str, _Kind] = {}
        self.total, self.done, self.failed = len(jobs), 0, 0
        for job in jobs:
            kind = self._kinds.setdefault(job.kind, _Kind(job.cost > 0, job.sure, job.alone))
            kind.known &= job.cost > 0
            kind.sure &= job.sure
            kind.left += 1
            kind.expected_left += job.cost
        for job in jobs:
            for before in job.after:
                self._kinds[self._jobs[before].kind].behind.add(job.kind)

    def report(self, job: str, fraction: float, text: str = "") -> None:
        """A running job has said how far it is; the first time, that it has started."""
        if not job:  # of an engine that runs one job at a time, in this process
            self._note = text
        if job not in self._jobs or job in self._ended:  # a report may come after the end, from another machine
            return
        with self._lock:
            now, running = time.monotonic(), self._running.get(job)
            if running is None:
                self._running[job] = _Running(now, fraction, text, fraction, now)
                return
            if fraction < running.fraction:
                running.first, running.counted = fraction, now
            running.fraction, running.text = fraction, text

    def finish(self, job: str, seconds: float, failed: bool) -> None:
        """A job has ended."""
        kind, expected = self._kinds[self._jobs[job].kind], self._jobs[job].cost
        with self._lock:
            self._running.pop(job, None)
            self._ended.add(job)
            self._note = ""
            self.done += 1
            self.failed += failed
            kind.left -= 1
            kind.expected_left -= expected
            if seconds > 0 or not failed:  # one that was never started says nothing
                kind.done += 1
                kind.expected_done += expected
                kind.took += seconds

    @property
    def estimate(self) -> Estimate | None:
        """Expected seconds to the end; None before anything is known."""
        with self._lock:
            return self._estimate()

    def eta(self) -> str:
        """The estimate in words: ``1:30``, ``0:50–4:10`` where it is unsure, ``–`` where it says nothing."""
        found = self.estimate
        return "–".join(clock(seconds) for seconds in found.shown) or "–" if found is not None else "–"

    def _estimate(self) -> Estimate | None:
        guesses = self._guesses()
        if guesses is None:
            return None
        running: dict[str, list[float]] = {name: [] for name in self._kinds}
        for job, one in self._running.items():
            kind = self._jobs[job].kind
            whole = guesses[kind].mean if one.whole is None else one.whole
            done = one.fraction * whole
            running[kind].append(max(0.0, whole - (max(done, one.elapsed) if one.whole is None else done)))
        left = {
            name: Left(guesses[name], running[name], kind.left - len(running[name]), kind.alone)
            for name, kind in self._kinds.items()
            if kind.left
        }
        chains: dict[str, float] = {}
        longest = max((self._chain(name, left, chains) for name in left), default=0.0)
        return estimate(left.values(), self._workers, longest)

    def _guesses(self) -> dict[str, Guess] | None:
        """What a job of each kind that is left is expected to take; None where nothing at all is known."""
        measured = [kind for kind in self._kinds.values() if kind.done]
        means = [kind.took / kind.done for kind in measured]
        means = means or [kind.expected_left / kind.left for kind in self._kinds.values() if kind.known and kind.left]
        means = means or [one.whole for one in self._running.values() if one.whole is not None]
        if not means and any(kind.left for kind in self._kinds.values()):
            return None
        drift = self._drift()
        guesses = {}
        for name, kind in self._kinds.items():
            if not kind.left:
                continue
            if kind.done and kind.known:
                each = kind.took / kind.expected_done * kind.expected_left / kind.left
                guesses[name] = Guess(each, MEASURED)
            elif kind.done:
                guesses[name] = Guess(kind.took / kind.done, MEASURED)
            elif kind.known:
                each = drift * kind.expected_left / kind.left
                guesses[name] = Guess(each, SAME_CELL if kind.sure else ELSEWHERE)
            else:
                guesses[name] = Guess(sum(means) / len(means), UNKNOWN)
        for job, one in self._running.items():
            of, whole = self._jobs[job].kind, one.whole
            guesses[of] = guesses[of].beyond(one.elapsed) if whole is None else Guess(whole, REPORTED)
        return guesses

    def _drift(self) -> float:
        """What jobs take, over what they were expected to; before much has been measured, not far from 1."""
        compared = [kind for kind in self._kinds.values() if kind.known]
        prior = _PRIOR * sum(kind.expected_left + kind.expected_done for kind in compared if not kind.sure)
        measured = sum(kind.expected_done for kind in compared)
        took = sum(kind.took for kind in compared if kind.done)
        return (took + prior) / (measured + prior) if measured > 0 else 1.0

    def _chain(self, name: str, left: Mapping[str, Left], chains: dict[str, float]) -> float:
        """Seconds of the longest chain that starts with a job of this kind, without those that run alone."""
        if name not in chains:
            chains[name] = 0.0  # ends a circle of kinds, of which there is none among jobs
            one = left.get(name)
            own = 0.0 if one is None or one.alone else max([one.guess.mean] * bool(one.waiting) + one.running)
            behind = (self._chain(other, left, chains) for other in self._kinds[name].behind)
            chains[name] = own + max(behind, default=0.0)
        return chains[name]

    @property
    def now(self) -> str:
        """The jobs that run, longest first: ``ours × bpda/0 0:12, ours × eot/0 0:07``."""
        with self._lock:
            running = sorted(self._running.items(), key=lambda item: item[1].since)
        shown = [f"{job} {clock(one.elapsed)}{one.said}" for job, one in running[:_SHOWN]]
        return ", ".join(shown) + (f", +{len(running) - _SHOWN}" if len(running) > _SHOWN else "")

    def line(self) -> str:
        elapsed = time.monotonic() - self._start
        rate = 60 * self.done / elapsed if elapsed > 0 else 0.0
        failed = f", {self.failed} failed" if self.failed else ""
        now = f"; now {self.now or self._note}" if self.now or self._note else ""
        done = f"{self.done}/{self.total} {self._unit}{failed}"
        return f"{done}, {rate:.1f}/min, {clock(elapsed)} elapsed, ETA {self.eta()}{now}"


class Display:
    """Shows a :class:`Tracker`: a live bar on a terminal, otherwise a plain line now and then.

    Both move on their own, also while nothing is reported.

    Args:
        every: seconds between two plain lines.
        quiet: shows nothing.
    """

    def __init__(self, console: Console, every: float = 10.0, quiet: bool = False) -> None:
        self.console = console
        self._every, self._quiet = every, quiet
        self._last = -every
        self._bar: Progress | None = None
        self._shown: tuple[Tracker, str] | None = None
        self._lock = threading.RLock()

    @contextmanager
    def running(self, title: str, total: int) -> Iterator[None]:
        ended = threading.Event()
        clockwork = threading.Thread(target=self._tick, args=(ended,), daemon=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[line]}", markup=False),
        )
        live = self.console.is_terminal and not self._quiet
        with Progress(*columns, console=self.console, transient=True) if live else nullcontext() as self._bar:
            if self._bar is not None:
                self._task = self._bar.add_task(title, total=total, line="")
            clockwork.start()
            try:
                yield
            finally:
                ended.set()
                clockwork.join()
                self._bar = None

    def _tick(self, ended: threading.Event) -> None:
        while not ended.wait(_LIVE_EVERY):
            with self._lock:
                if self._shown is not None:
                    self.show(*self._shown)

    def note(self, line: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self.console.print(one_line(line), highlight=False, soft_wrap=True, markup=False)

    def show(self, tracker: Tracker, what: str) -> None:
        """Show how far all jobs are; not more often than can be read."""
        with self._lock:
            live, now = self._bar is not None, time.monotonic()
            ended = tracker.done == tracker.total and self._shown is not None
            self._shown = None if tracker.done == tracker.total else (tracker, what)
            if self._quiet or (now - self._last < (_LIVE_EVERY if live else self._every) and not ended):
                return
            self._last = now
            line, what = one_line(tracker.line()), one_line(what)
            if self._bar is not None:
                self._bar.update(self._task, completed=tracker.done, line=line, description=what)
            else:
                self.console.print(f"{what}: {line}", highlight=False, soft_wrap=True, markup=False)
