"""Jobs that wait for each other, and which of them to start next. An engine asks this and does nothing but run them."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from bench.engines.supply import Supply

Status = Literal["ok", "failed", "timeout", "out-of-memory"]


@dataclass(frozen=True, slots=True)
class Job:
    """A picklable unit of work: ``function(*args)`` in a worker.

    Attributes:
        name: unique among the jobs of one run.
        timeout: in seconds; None waits for ever.
        after: names of the jobs that have to end well before this one starts.
        cost: expected seconds; 0 where nothing is known.
        sure: whether the cost is more than a guess: the first job of a kind of which it is one is run early.
        kind: jobs of one kind take about as long: what is measured of one is expected of the others.
        loads: what a worker loads first and may keep, such as the name of a defense; "" for nothing.
        anyway: starts when all of ``after`` have ended, however they ended.
        alone: starts when no other job is left, and nothing runs beside it: a measurement of time.
        supplies: what it takes from the driver's machine.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    timeout: float | None = None
    after: tuple[str, ...] = ()
    cost: float = 0.0
    sure: bool = True
    kind: str = ""
    loads: str = ""
    anyway: bool = False
    alone: bool = False
    supplies: tuple[Supply[Any], ...] = ()


#: How often a job may bring its worker down before that is how it ended, and how often it may be lost with a machine.
FATAL, LOST = 2, 5


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its return value, or the reason it has none."""

    job: Job
    status: Status
    value: Any
    error: str
    seconds: float


class _Entry(NamedTuple):
    """A job that can start, in the order in which they do."""

    later: bool
    chain: float
    order: int
    name: str


class Graph:
    """The jobs of one run: :meth:`take` one, run it, hand its outcome to :meth:`end`; until :attr:`left` is False.

    The longest chain of expected seconds is started first, so that no long job is left over when all others are done.
    Of each kind whose costs are a guess one job comes first, so that it soon rests on a measurement. A worker is given
    jobs of what it has loaded: it leaves these only for a chain that is longer than
    each worker's share of all remaining work, which would otherwise be waited for at the end, or when none is left;
    it then loads what has most work left for each worker that is on it. A job of unknown cost is taken to be as long
    as the longest known one, so it starts early and the expected time soon rests on measurements. Equals start in the
    order given.

    Args:
        jobs: every name in an ``after`` must be among them.
        workers: how many jobs run at a time; may be set again while they run.

    Raises:
        ValueError: when two jobs have one name, a job waits for one that does not exist, or some wait in a circle.
    """

    def __init__(self, jobs: Sequence[Job], workers: int = 1) -> None:
        self._jobs = {job.name: job for job in jobs}
        if len(self._jobs) < len(jobs):
            twice = Counter(job.name for job in jobs).most_common(1)[0][0]
            raise ValueError(f"job {twice!r}: there are two of that name")
        self._order = {name: position for position, name in enumerate(self._jobs)}
        self.workers = workers
        self._behind: dict[str, list[str]] = defaultdict(list)
        self._waits: dict[str, int] = {}
        for job in jobs:
            self._waits[job.name] = len(job.after)
            for name in job.after:
                if name not in self._jobs:
                    raise ValueError(f"job {job.name!r}: waits for {name!r}, which does not exist")
                self._behind[name].append(job.name)
        known = [job.cost for job in jobs if job.cost > 0]
        self._unknown = max(known, default=1.0)
        self._chain = self._chains()
        self._ready: dict[str, list[_Entry]] = defaultdict(list)  # by what they load
        self._tried: set[str] = set()  # kinds of which a job has come first
        self._alone: list[str] = []
        self._work: dict[str, float] = defaultdict(float)  # expected seconds not yet started, by what they load
        for job in jobs:
            if not job.alone:
                self._work[job.loads] += self._cost(job)
        self._running: dict[str, Job] = {}
        self._deaths: Counter[tuple[str, bool]] = Counter()
        self._last = ""
        self._ended: set[str] = set()
        for name, waits in self._waits.items():
            if waits == 0:
                self._put(name)

    @property
    def left(self) -> bool:
        """Whether a job has not ended."""
        return len(self._ended) < len(self._jobs)

    def take(self, loaded: str | None = None) -> Job | None:
        """The job to start now; None while there is none, until another one ends.

        Args:
            loaded: what the worker that asks has loaded; None where all jobs run in one place.
        """
        if any(job.alone for job in self._running.values()):
            return None
        job = self._next(self._last if loaded is None else loaded)
        if job is None and self._alone and not self._running and not any(self._ready.values()):
            job = self._jobs[self._alone.pop(0)]
        elif job is not None:
            heapq.heappop(self._ready[job.loads])
            self._work[job.loads] -= self._cost(job)
        if job is not None:
            self._running[job.name] = job
            self._last = job.loads or self._last
        return job

    def end(self, outcome: Outcome) -> list[Outcome]:
        """Note how a job ended. Returns that outcome, and those of the jobs that now cannot be run."""
        del self._running[outcome.job.name]
        outcomes = [outcome]
        reason = f"waited for {outcome.job.name} ({outcome.status}):\n{outcome.error}"
        for ended in outcomes:  # which grows
            self._ended.add(ended.job.name)
            for name in self._behind[ended.job.name]:
                self._waits[name] -= 1
                job = self._jobs[name]
                if ended.status != "ok" and not job.anyway and name not in self._ended:
                    self._ended.add(name)
                    self._work[job.loads] -= 0.0 if job.alone else self._cost(job)
                    outcomes.append(Outcome(job, "failed", None, reason, 0.0))
                elif self._waits[name] == 0 and name not in self._ended:
                    self._put(name)
        return outcomes

    def lost(self, outcome: Outcome, with_machine: bool = False) -> list[Outcome]:
        """Note that a job's worker died, as ``outcome`` says.

        The job is run again, since its worker may have been the victim of another process. One that was on its worker
        when it died for the second time is taken to be the cause: that is its outcome, as in :meth:`end`. A machine
        that is lost with all its workers is hardly a job's fault, and held against it only when it happens often.
        """
        job = outcome.job
        self._deaths[job.name, with_machine] += 1
        if (times := self._deaths[job.name, with_machine]) >= (LOST if with_machine else FATAL):
            return self.end(replace(outcome, error=f"{outcome.error}, {times} times"))
        self.give_back(job)
        return []

    def give_back(self, job: Job) -> None:
        """A job that was taken has not been run: it is to be taken again."""
        del self._running[job.name]
        if not job.alone:
            self._work[job.loads] += self._cost(job)
        self._put(job.name)

    # -- which is next ------------------------------------------------------------------------------------------

    def _next(self, loaded: str) -> Job | None:
        first = [heap[0] for heap in self._ready.values() if heap]
        if not first:
            return None
        longest = min(first, key=lambda entry: entry[1:])
        if -longest.chain > sum(self._work.values()) / max(1, self.workers):
            return self._jobs[longest.name]
        kept = [heap[0] for what in {loaded, ""} if (heap := self._ready.get(what))]
        if kept:
            return self._jobs[min(kept).name]
        on = Counter(job.loads for job in self._running.values())
        most = max(first, key=lambda entry: self._share(entry, on))
        return self._jobs[most.name]

    def _share(self, entry: _Entry, on: Counter[str]) -> tuple[float, int]:
        what = self._jobs[entry.name].loads
        return self._work[what] / (1 + on[what]), -entry.order

    def _put(self, name: str) -> None:
        job = self._jobs[name]
        if job.alone:
            self._alone.append(name)
        else:
            later = job.sure or job.kind in self._tried
            self._tried.add(job.kind)
            heapq.heappush(self._ready[job.loads], _Entry(later, -self._chain[name], self._order[name], name))

    def _cost(self, job: Job) -> float:
        return job.cost if job.cost > 0 else self._unknown

    def _chains(self) -> dict[str, float]:
        """Expected seconds from the start of each job to the end of the longest chain behind it."""
        chain: dict[str, float] = {}
        unsettled = {name: len(self._behind[name]) for name in self._jobs}
        settled = [name for name, behind in unsettled.items() if behind == 0]
        for name in settled:  # which grows: from the last jobs to the first
            job = self._jobs[name]
            chain[name] = self._cost(job) + max((chain[other] for other in self._behind[name]), default=0.0)
            for before in job.after:
                unsettled[before] -= 1
                if unsettled[before] == 0:
                    settled.append(before)
        if len(chain) < len(self._jobs):
            circle = next(name for name in self._jobs if name not in chain)
            raise ValueError(f"job {circle!r}: waits for itself")
        return chain
