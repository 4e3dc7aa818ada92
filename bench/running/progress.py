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

#: Seconds between two updates of a live bar.
_LIVE_EVERY = 0.5
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
    unknown, the mean over the kinds that were measured. A job that runs has that much less left as it has run, or as it
    says; one that takes longer than expected, or says that it will, changes what is expected of its kind, and so the
    estimate moves while no job ends. The time left is the sum of these over the workers, though not less than the
    longest chain of jobs that wait for each other; jobs that run alone are added.
    """

    def __init__(self, jobs: Sequence[Job], workers: int, unit: str = "jobs") -> None:
        self._jobs = {job.name: job for job in jobs}
        self._workers = max(1, workers)
        self._start = time.monotonic()
        self._unit = unit
        self._running: dict[str, _Running] = {}
        self._note = ""
        self._lock = threading.RLock()  # a display reads while jobs report
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

    def report(self, job: str, fraction: float, text: str = "") -> None:
        """A running job has said how far it is; the first time, that it has started."""
        if not job:  # of an engine that runs one job at a time, in this process
            self._note = text
        if job not in self._jobs:
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
    def seconds_left(self) -> float | None:
        """Expected seconds to the end; None before anything is known."""
        with self._lock:
            return self._seconds_left()

    def _seconds_left(self) -> float | None:
        each = self._seconds_each()
        if each is None:
            return None
        work = {name: each[name] * kind.left for name, kind in self._kinds.items()}
        for job, running in self._running.items():
            kind = self._jobs[job].kind
            done = running.fraction * each[kind]
            work[kind] -= min(each[kind], done if running.whole is not None else max(done, running.elapsed))
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
        means = means or [one.whole for one in self._running.values() if one.whole is not None]
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
        for job, running in self._running.items():
            # What it will take by its own account, which beats a guess; at least what it has taken.
            kind, elapsed = self._kinds[self._jobs[job].kind], running.elapsed
            if running.whole is not None:
                each[self._jobs[job].kind] = running.whole
            elif not kind.done:
                each[self._jobs[job].kind] = max(each[self._jobs[job].kind], elapsed)
        return each

    def _chain(self, name: str, work: Mapping[str, float], chains: dict[str, float]) -> float:
        """Seconds of the longest chain that starts with a job of this kind, without those that run alone."""
        if name not in chains:
            kind = self._kinds[name]
            chains[name] = 0.0  # ends a circle of kinds, of which there is none among jobs
            own = work[name] / kind.left if kind.left and not kind.alone else 0.0
            chains[name] = own + max((self._chain(other, work, chains) for other in kind.behind), default=0.0)
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
        left = self.seconds_left
        eta = "–" if left is None else clock(left)
        failed = f", {self.failed} failed" if self.failed else ""
        now = f"; now {self.now or self._note}" if self.now or self._note else ""
        done = f"{self.done}/{self.total} {self._unit}{failed}"
        return f"{done}, {rate:.1f}/min, {clock(elapsed)} elapsed, ETA {eta}{now}"


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
