"""What the harness adds to a job: jobs that sleep in place of computing, in worker processes on this machine.

``make bench`` runs 10,000 jobs on 64 workers and some on 1, 2 and 4, with each engine; ``make test`` a few.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from harness.figures import Figure, Note
from harness.sleeping import pid_after
from pytest_benchmark.fixture import BenchmarkFixture

from bench.engines.graph import Graph, Job, Outcome
from bench.engines.local import LocalEngine

#: Milliseconds per job that the scheduler may take.
GOAL = 10.0
TABLE = "Jobs that sleep in place of computing"


def _jobs(count: int, seconds: float) -> list[Job]:
    """Jobs of ten defenses."""
    return [Job(f"job {n}", time.sleep, (seconds,), cost=seconds, loads=f"defense {n % 10}") for n in range(count)]


@pytest.mark.benchmark(group="throughput")
def test_the_next_job_is_found_quickly(benchmark: BenchmarkFixture, measured: Note) -> None:
    count, workers, seconds = (100 if benchmark.disabled else 10_000), 64, 0.1

    def schedule() -> int:
        graph, ended = Graph(_jobs(count, seconds), workers), 0
        running: list[Job] = []
        while graph.left:
            while len(running) < workers and (job := graph.take(f"defense {len(running) % 10}")) is not None:
                running.append(job)
            ended += len(graph.end(Outcome(running.pop(0), "ok", None, "", seconds)))
        return ended

    took = _fastest(benchmark, schedule, count, rounds=5)
    if not benchmark.disabled:
        each = 1000 * took / count
        measured(
            Figure(
                TABLE, "the graph: which job is next", took * workers / (count * seconds),
                "time of the graph over that of the jobs",
                f"{count:,} jobs of {seconds} s for {workers} workers, shortest of 5 runs",
                f"{each:.2f} ms a job (goal {GOAL:g})", met=each <= GOAL,
            )
        )  # fmt: skip


def _fastest(benchmark: BenchmarkFixture, run: Callable[[], int], count: int, rounds: int) -> float:
    """Seconds of the shortest of several runs, each of which ends so many jobs."""
    seconds = []

    def timed() -> None:
        start = time.perf_counter()
        assert run() == count
        seconds.append(time.perf_counter() - start)

    benchmark.pedantic(timed, rounds=1 if benchmark.disabled else rounds)
    return min(seconds)


def _engine(name: str, workers: int) -> AbstractContextManager[Any]:
    """An engine with so many workers, whatever this machine has: those that sleep need no CPU of their own."""
    if name == "local":
        return LocalEngine(workers)
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from bench.engines.ray_engine import RayEngine

    return RayEngine(workers=workers)


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
def test_workers_are_kept_busy(name: str, workers: int, benchmark: BenchmarkFixture, measured: Note) -> None:
    if benchmark.disabled and workers != 2:
        pytest.skip("measured by make bench")
    count, seconds = (8, 0.01) if benchmark.disabled else (10_000 if workers == 64 else 50 * workers, 0.2)
    rounds, computed = (1 if workers == 64 else 3), list[float]()
    with _engine(name, workers) as engine:
        _start_all(engine, workers)

        def run() -> int:
            used = time.process_time()
            outcomes = list(engine.run(_jobs(count, seconds)))
            computed.append(time.process_time() - used)
            return len([outcome for outcome in outcomes if outcome.status == "ok"])

        took = _fastest(benchmark, run, count, rounds)
    if benchmark.disabled:
        return
    wait, own = 1000 * (took * workers / count - seconds), 1000 * min(computed) / count
    runs = f"shortest of {rounds} runs" if rounds > 1 else "one run"
    measured(
        Figure(
            TABLE, f"{name} engine, {workers} workers" if workers > 1 else f"{name} engine, 1 worker",
            took * workers / (count * seconds), "time over the ideal",
            f"{count:,} jobs that sleep {seconds} s, {runs}",
            f"a worker waits {wait:.1f} ms for its next job; the command computes {own:.2f} ms a job (goal {GOAL:g})",
            met=own <= GOAL,
        )
    )  # fmt: skip
