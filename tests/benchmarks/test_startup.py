"""What it takes until something happens: a command that has nothing to do, a worker's first job.

``make bench`` measures, in turn with starting Python and importing PyTorch; ``make test`` leaves this out.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.figures import Figure, Note
from pytest_benchmark.fixture import BenchmarkFixture
from small_bench import STEP, Bench

from bench.engines.graph import Job
from bench.engines.local import LocalEngine

ROUNDS = 5
TABLE = "Memory and start-up"


def _in_turn(**timed: Callable[[], object]) -> dict[str, float]:
    """The shortest seconds of each, measured in turn so that all meet the same machine."""
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: min(seconds) for name, seconds in taken.items()}


def _python(code: str, *arguments: str) -> Callable[[], object]:
    def run() -> None:
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)

    return run


@pytest.mark.benchmark(group="start-up")
def test_commands_start_quickly(benchmark: BenchmarkFixture, tmp_path: Path, measured: Note) -> None:
    if benchmark.disabled:
        pytest.skip("measured by make bench")
    small = Bench(tmp_path / "work").configure({"step": STEP})
    assert small.evaluate().code == 0
    main = "from bench.cli.main import main; main()"
    found: dict[str, float] = {}

    def run() -> None:
        found.update(
            _in_turn(
                python=_python("pass"), torch=_python("import torch"), list=_python(main, "list"),
                nothing=_python(main, *small.arguments("Means")),
            )
        )  # fmt: skip

    benchmark.pedantic(run, rounds=1)
    sample = f"shortest of {ROUNDS}, in turn"
    values = f"{found['list']:.2f} s beside {found['torch']:.2f} s"
    of = "time over that of `python -c 'import torch'`"
    measured(Figure(TABLE, "`bench list`, which needs no PyTorch", found["list"] / found["torch"], of, sample, values,
                    goal=1.0))  # fmt: skip
    values = f"{found['nothing']:.2f} s beside {found['torch']:.2f} s; Python alone {found['python']:.2f} s"
    what = "`bench evaluate` with nothing left to run"
    measured(Figure(TABLE, what, found["nothing"] / found["torch"], of, sample, values))


@pytest.mark.benchmark(group="start-up")
def test_further_workers_start_at_once(benchmark: BenchmarkFixture, measured: Note) -> None:
    if benchmark.disabled:
        pytest.skip("measured by make bench")
    with LocalEngine(1) as engine:  # which starts the server that workers are forked from
        assert [outcome.status for outcome in engine.run([Job("first", time.sleep, (0,))])] == ["ok"]

    def first_job() -> None:
        with LocalEngine(1) as engine:
            assert [outcome.status for outcome in engine.run([Job("job", time.sleep, (0,))])] == ["ok"]

    found: dict[str, float] = {}
    benchmark.pedantic(lambda: found.update(_in_turn(torch=_python("import torch"), worker=first_job)), rounds=1)
    of, sample = "time over that of `python -c 'import torch'`", f"shortest of {ROUNDS}, in turn"
    values = f"{1000 * found['worker']:.0f} ms from start to the end of a first job that does nothing"
    what = "a further worker, forked from the server"
    measured(Figure(TABLE, what, found["worker"] / found["torch"], of, sample, values))
