"""Live display of a run: cells done, rate, and an ETA made of measured times."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Tracker:
    """Counts shards and predicts the time left.

    A shard not yet run is expected to take the mean of the finished shards of its own attack, and failing that
    the mean over all attacks with a finished shard.
    """

    def __init__(self, jobs: dict[str, str], workers: int, unit: str = "shards") -> None:
        self._attack_of = dict(jobs)
        self._left = set(jobs)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._workers = max(1, workers)
        self._start = time.monotonic()
        self.total = len(jobs)
        self._unit = unit
        self.failed = 0

    @property
    def done(self) -> int:
        return self.total - len(self._left)

    def finish(self, job: str, seconds: float, failed: bool) -> None:
        self._left.discard(job)
        self._seconds[self._attack_of[job]].append(seconds)
        self.failed += failed

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds to the end; None before anything is known."""
        means = {name: sum(v) / len(v) for name, v in self._seconds.items() if v}
        if not means:
            return None
        typical = sum(means.values()) / len(means)
        return sum(means.get(self._attack_of[job], typical) for job in self._left) / self._workers

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

    def show(self, tracker: Tracker, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=tracker.done, line=tracker.line(), description=what)
        elif time.monotonic() - self._last >= self._every or tracker.done == tracker.total:
            self._last = time.monotonic()
            self.console.print(f"{what}: {tracker.line()}", highlight=False, soft_wrap=True)
