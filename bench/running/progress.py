"""Live display of a run: cells done, rate, and an ETA made of measured times."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from bench.running.graph import Job

#: Seconds between two updates of a live bar.
_LIVE_EVERY = 0.1


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class _Kind:
    """The jobs of one kind: how many are left, what they were expected to take, what the finished ones took."""

    known: bool
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
    corrected by how costs and measurements compare so far (another machine, or a busy one); and where its cost is
    unknown, the mean over the kinds that were measured. The time left is the sum of these over the workers, though not
    less than the longest chain of jobs that wait for each other; jobs that run alone are added.
    """

    def __init__(self, jobs: Sequence[Job], workers: int, unit: str = "jobs") -> None:
        self._jobs = {job.name: job for job in jobs}
        self._workers = max(1, workers)
        self._start = time.monotonic()
        self._unit = unit
        self._running: dict[str, float] = {}
        self._kinds: dict[str, _Kind] = {}
        self.total, self.done, self.failed = len(jobs), 0, 0
        for job in jobs:
            kind = self._kinds.setdefault(job.kind, _Kind(known=job.cost > 0, alone=job.alone))
            kind.known &= job.cost > 0
            kind.left += 1
            kind.expected_left += job.cost
        for job in jobs:
            for before in job.after:
                self._kinds[self._jobs[before].kind].behind.add(job.kind)

    def report(self, job: str, fraction: float) -> None:
        """A running job has said how far it is."""
        if job in self._jobs:
            self._running[job] = fraction

    def finish(self, job: str, seconds: float, failed: bool) -> None:
        kind, expected = self._kinds[self._jobs[job].kind], self._jobs[job].cost
        self._running.pop(job, None)
        self.done += 1
        self.failed += failed
        kind.left -= 1
        kind.expected_left -= expected
        if seconds > 0 or not failed:  # one that was never started says nothing
            kind.done += 1
            kind.expected_done += expected
            kind.took += seconds

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds to the end; None before anything is known."""
        each = self._seconds_each()
        if each is None:
            return None
        work = {name: each[name] * kind.left for name, kind in self._kinds.items()}
        for job, fraction in self._running.items():
            work[self._jobs[job].kind] -= fraction * each[self._jobs[job].kind]
        alone = sum(work[name] for name, kind in self._kinds.items() if kind.alone)
        chains: dict[str, float] = {}
        longest = max((self._chain(name, work, chains) for name in self._kinds), default=0.0)
        return alone + max((sum(work.values()) - alone) / self._workers, longest)

    def _seconds_each(self) -> dict[str, float] | None:
        """Expected seconds of a job of each kind; None where nothing at all is known."""
        measured = [kind for kind in self._kinds.values() if kind.done]
        compared = [kind for kind in measured if kind.known]
        expected = sum(kind.expected_done for kind in compared)
        drift = sum(kind.took for kind in compared) / expected if expected else 1.0
        means = [kind.took / kind.done for kind in measured]
        means = means or [kind.expected_left / kind.left for kind in self._kinds.values() if kind.known and kind.left]
        if not means and any(kind.left for kind in self._kinds.values()):
            return None
        each = {}
        for name, kind in self._kinds.items():
            if not kind.left:
                each[name] = 0.0
            elif kind.done:
                scale = kind.took / kind.expected_done if kind.known else kind.took / kind.done
                each[name] = scale * (kind.expected_left / kind.left if kind.known else 1.0)
            elif kind.known:
                each[name] = drift * kind.expected_left / kind.left
            else:
                each[name] = sum(means) / len(means)
        return each

    def _chain(self, name: str, work: Mapping[str, float], chains: dict[str, float]) -> float:
        """Seconds of the longest chain that starts with a job of this kind, without those that run alone."""
        if name not in chains:
            kind = self._kinds[name]
            chains[name] = 0.0  # ends a circle of kinds, of which there is none among jobs
            own = work[name] / kind.left if kind.left and not kind.alone else 0.0
            chains[name] = own + max((self._chain(other, work, chains) for other in kind.behind), default=0.0)
        return chains[name]

    def line(self) -> str:
        elapsed = time.monotonic() - self._start
        rate = 60 * self.done / elapsed if elapsed > 0 else 0.0
        left = self.seconds_left
        eta = "–" if left is None else clock(left)
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done}/{self.total} {self._unit}{failed}, {rate:.1f}/min, {clock(elapsed)} elapsed, ETA {eta}"


class Display:
    """Shows a :class:`Tracker`: a live bar on a terminal, otherwise a plain line now and then."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console = console
        self._every = every
        self._last = -every
        self._bar: Progress | None = None

    @contextmanager
    def running(self, title: str, total: int) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
        with Progress(*columns, console=self.console, transient=True) as self._bar:
            self._task = self._bar.add_task(title, total=total, line="")
            try:
                yield
            finally:
                self._bar = None

    def show(self, tracker: Tracker, what: str, note: str = "") -> None:
        """Show how far all jobs are, with a note on a running one; not more often than can be read."""
        live, now = self._bar is not None, time.monotonic()
        if now - self._last < (_LIVE_EVERY if live else self._every) and tracker.done < tracker.total:
            return
        self._last = now
        line = f"{tracker.line()} ({note})" if note else tracker.line()
        if self._bar is not None:
            self._bar.update(self._task, completed=tracker.done, line=line, description=what)
        else:
            self.console.print(f"{what}: {line}", highlight=False, soft_wrap=True, markup=False)
