"""What the harness adds to a job: jobs that sleep in place of computing, in worker processes on this machine.

``make bench`` runs 10,000 jobs on 64 workers and some on 1, 2 and 4; ``make test`` a few.
"""

from __future__ import annotations

import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.engines.graph import Graph, Job, Outcome
from bench.engines.local import LocalEngine

#: Milliseconds per job that the scheduler may take.
GOAL = 10.0


def _jobs(count: int, seconds: float) -> list[Job]:
    """Jobs of ten defenses."""
    return [Job(f"job {n}", time.sleep, (seconds,), cost=seconds, loads=f"defense {n % 10}") for n in range(count)]


@pytest.mark.benchmark(group="throughput")
def test_the_next_job_is_found_quickly(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    count, workers = (100 if benchmark.disabled else 10_000), 64

    def schedule() -> int:
        graph, ended = Graph(_jobs(count, 0.1), workers), 0
        running: list[Job] = []
        while graph.left:
            while len(running) < workers and (job := graph.take(f"defense {len(running) % 10}")) is not None:
                running.append(job)
            ended += len(graph.end(Outcome(running.pop(0), "ok", None, "", 0.1)))
        return ended

    start = time.perf_counter()
    assert benchmark.pedantic(schedule, rounds=1) == count
    each = 1000 * (time.perf_counter() - start) / count
    if not benchmark.disabled:
        benchmark.extra_info.update(milliseconds_per_job=round(each, 3))
        with capsys.disabled():
            print(f"\n{count} jobs on {workers} workers: {each:.3f} ms each to schedule (goal: {GOAL:.0f} ms)")


@pytest.mark.benchmark(group="throughput")
@pytest.mark.parametrize("workers", [1, 2, 4, 64])
def test_workers_are_kept_busy(
    workers: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    if benchmark.disabled:
        workers = min(workers, 2)
    count, seconds = (4 * workers, 0.01) if benchmark.disabled else (10_000 if workers == 64 else 50 * workers, 0.2)
    with LocalEngine(workers) as engine:
        list(engine.run(_jobs(workers, 0.5)))  # all have started
        start = time.perf_counter()
        outcomes = benchmark.pedantic(lambda: list(engine.run(_jobs(count, seconds))), rounds=1)
        took = time.perf_counter() - start
    assert len(outcomes) == count and all(outcome.status == "ok" for outcome in outcomes)
    if not benchmark.disabled:
        ideal = count * seconds / workers
        benchmark.extra_info.update(ratio=round(took / ideal, 3), workers=workers, jobs=count)
        with capsys.disabled():
            each = 1000 * (took - ideal) / count
            print(f"\n{count} jobs of {seconds} s on {workers}: {took / ideal:.3f} × ideal, {each:.2f} ms a job")
