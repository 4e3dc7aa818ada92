"""What the harness adds to a job: jobs that sleep in place of computing, in worker processes on this machine.

``make bench`` runs 10,000 jobs on 64 workers and some on 1, 2 and 4, with each engine; ``make test`` a few.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from typing import Any

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


def _engine(name: str, workers: int) -> AbstractContextManager[Any]:
    """An engine with so many workers, whatever this machine has: those that sleep need no CPU of their own."""
    if name == "local":
        return LocalEngine(workers)
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from bench.engines.ray_engine import RayEngine

    return RayEngine(workers=workers)


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def _start_all(engine: Any, workers: int) -> None:
    """Return when every worker has done a job: how long they take to start is measured elsewhere."""
    seen: set[int] = set()
    jobs = [Job(f"start {n}", pid_after, (0.2,)) for n in range(workers)]
    deadline = time.monotonic() + 600
    while len(seen) < workers:
        assert time.monotonic() < deadline, f"{len(seen)} of {workers} workers have started"
        seen |= {outcome.value for outcome in engine.run(jobs)}


@pytest.mark.benchmark(group="throughput")
@pytest.mark.parametrize("workers", [1, 2, 4, 64])
@pytest.mark.parametrize("name", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_workers_are_kept_busy(
    name: str, workers: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    if benchmark.disabled and workers != 2:
        pytest.skip("measured by make bench")
    count, seconds = (8, 0.01) if benchmark.disabled else (10_000 if workers == 64 else 50 * workers, 0.2)
    with _engine(name, workers) as engine:
        _start_all(engine, workers)
        start, used = time.perf_counter(), time.process_time()
        outcomes = benchmark.pedantic(lambda: list(engine.run(_jobs(count, seconds))), rounds=1)
        took, used = time.perf_counter() - start, time.process_time() - used
    assert len(outcomes) == count and all(outcome.status == "ok" for outcome in outcomes)
    if not benchmark.disabled:
        ideal = count * seconds / workers
        wait, own = 1000 * (took * workers / count - seconds), 1000 * used / count
        benchmark.extra_info.update(
            engine=name, workers=workers, jobs=count, ratio=round(took / ideal, 3),
            milliseconds_between_jobs=round(wait, 2), milliseconds_of_processor_per_job=round(own, 2),
        )  # fmt: skip
        with capsys.disabled():
            print(
                f"\n{name}: {count} jobs of {seconds} s on {workers}: {took / ideal:.3f} × ideal, a worker waits "
                f"{wait:.2f} ms for its next job, for which the command computes {own:.2f} ms (goal: {GOAL:.0f} ms)"
            )
