"""What data of CIFAR-10's size cost: the memory of one worker and of four, the first start and the second.

``make bench`` measures; ``make test`` leaves this out. Memory is the proportional set size (a page that k processes
share counts 1/k in each) of the workers and of the server that they are forked from.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from harness.figures import Figure, Note
from processes import family, proportional_set_size
from pytest_benchmark.fixture import BenchmarkFixture

from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.cache import cached
from bench.data.splits import Data, Split
from bench.engines.graph import Job
from bench.engines.local import LocalEngine

WORKERS = 4
#: Memory of four workers over that of one, and seconds of a start that finds the decoded data.
MEMORY_GOAL, START_GOAL = 1.3, 3.0
TABLE = "Memory and start-up"
_held: list[Data] = []


def _make() -> Data:
    """60,000 random images of 3×32×32."""
    generator = torch.Generator().manual_seed(0)

    def split(name: str, n: int) -> Split:
        pixels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.arange(n) % 10, [f"{name}/{i:05d}" for i in range(n)])

    info = DataInfo("synthetic", InputSpec((3, 32, 32)), 10)
    names = [str(i) for i in range(10)]
    return Data(info, names, split("train", 45_000), split("validation", 5_000), split("test", 10_000))


def hold(here: Path, number: int, workers: int) -> None:
    """Load the data in a worker, read all of them once, keep them, and wait until every worker has done so."""
    data = cached("synthetic", 1, _make)
    for split in (data.train, data.validation, data.test):
        for x, _ in split.batches(512):
            assert x.dtype == torch.float32
    _held.append(data)
    (here / f"{workers}-{number}").touch()
    while len(list(here.glob(f"{workers}-*"))) < workers:  # a worker that is done early would take the next job
        time.sleep(0.02)


@pytest.mark.benchmark(group="data")
def test_workers_share_the_data(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: Note,
) -> None:
    if benchmark.disabled:
        pytest.skip("measured by make bench")
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs /proc/PID/smaps_rollup")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    starts = []

    def start() -> None:
        begin = time.perf_counter()
        cached("synthetic", 1, _make)
        starts.append(time.perf_counter() - begin)

    start()
    benchmark.pedantic(start, rounds=3)
    memory = {}
    for workers in (1, WORKERS):
        jobs = [Job(str(i), hold, (tmp_path, i, workers)) for i in range(workers)]
        with LocalEngine(workers) as engine:
            assert {outcome.status for outcome in engine.run(jobs)} == {"ok"}
            memory[workers] = proportional_set_size(family(os.getpid())[1:])
    ratio, sample = memory[WORKERS] / memory[1], "60,000 images of 3×32×32, all read once by every worker"
    each = (memory[WORKERS] - memory[1]) / (WORKERS - 1)
    values = f"{memory[1]:,.0f} MiB with one, {memory[WORKERS]:,.0f} with {WORKERS}: {each:,.0f} for each further one"
    of = "proportional set size of four workers over one, the server they are forked from included"
    measured(Figure(TABLE, "memory of workers", ratio, of, sample, values, goal=MEMORY_GOAL))
    first, later = starts[0], min(starts[1:])
    measured(
        Figure(
            TABLE, "opening data that were decoded before", later / first, "time over that of the first time",
            "the same images; shortest of 3", f"{first:.2f} s, then {later:.2f} s (goal {START_GOAL:g})",
            met=later <= START_GOAL,
        )
    )  # fmt: skip
