"""All jobs in the process itself, one after the other."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence

from bench.engines.graph import Graph, Job, Outcome


class SerialEngine:
    """All jobs in the process itself: for what is held in its memory, and to step through a shard in a debugger."""

    workers = 1

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        graph = Graph(jobs, self.workers)
        while (job := graph.take()) is not None:
            start = time.monotonic()
            try:
                outcome = Outcome(job, "ok", job.function(*job.args), "", time.monotonic() - start)
            except Exception:  # whatever a defense or an attack raises
                outcome = Outcome(job, "failed", None, traceback.format_exc(), time.monotonic() - start)
            yield from graph.end(outcome)
