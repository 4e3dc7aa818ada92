"""A run replayed from recorded times: the same jobs in the order of the graph, by a clock that these times move."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from bench.engines.graph import Graph, Job, Outcome
from bench.running.expectation import Estimate
from bench.running.progress import Tracker


@dataclass
class Replay:
    """How a run went.

    Attributes:
        seconds: that it took.
        ended: when each job ended, by its name.
        seen: the tracker's estimates at the moments asked for.
    """

    seconds: float = 0.0
    ended: dict[str, float] = field(default_factory=dict)
    seen: list[Estimate | None] = field(default_factory=list)


def replay(
    jobs: Sequence[Job],
    took: Mapping[str, float],
    workers: int,
    set_clock: Callable[[object], None],
    moments: Sequence[float] = (),
) -> Replay:
    """Run the jobs by the clock of their recorded times.

    Args:
        took: seconds of each job.
        set_clock: given what stands for the module ``time`` in :mod:`bench.running.progress`.
        moments: when to look at the estimate, in seconds, ascending.
    """
    run, now = Replay(), 0.0
    set_clock(SimpleNamespace(monotonic=lambda: now))
    graph, tracker = Graph(jobs, workers), Tracker(jobs, workers)
    named = {job.name: job for job in jobs}
    loaded, idle, busy, ahead = [""] * workers, list(range(workers)), list[tuple[float, int, str]](), list(moments)
    while graph.left:
        while idle and (job := graph.take(loaded[idle[0]])) is not None:
            worker = idle.pop(0)
            loaded[worker] = job.loads or loaded[worker]
            tracker.report(job.name, 0.0)
            heapq.heappush(busy, (now + took[job.name], worker, job.name))
        if ahead and ahead[0] < busy[0][0]:
            now = ahead.pop(0)
            run.seen.append(tracker.estimate)
            continue
        now, worker, name = heapq.heappop(busy)
        tracker.finish(name, took[name], failed=False)
        graph.end(Outcome(named[name], "ok", None, "", took[name]))
        run.ended[name] = now
        idle.append(worker)
    run.seconds = now
    return run
