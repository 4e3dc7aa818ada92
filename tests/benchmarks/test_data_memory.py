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
    capsys: pytest.CaptureFixture[str],
) -> None:
    if benchmark.disabled:
        pytest.skip("measured by make bench")
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs /proc/PID/smaps_rollup")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    starts = []
    for _ in range(2):
        start = time.perf_counter()
        cached("synthetic", 1, _make)
        starts.append(time.perf_counter() - start)
    memory = {}
    for workers in (1, WORKERS):
        jobs = [Job(str(i), hold, (tmp_path, i, workers)) for i in range(workers)]
        with LocalEngine(workers) as engine:
            assert {outcome.status for outcome in engine.run(jobs)} == {"ok"}
            memory[workers] = proportional_set_size(family(os.getpid())[1:])
    benchmark.pedantic(cached, args=("synthetic", 1, _make), rounds=3)
    ratio = memory[WORKERS] / memory[1]
    benchmark.extra_info.update(ratio=round(ratio, 3), first=round(starts[0], 3), second=round(starts[1], 3))
    with capsys.disabled():
        print(f"\n{memory[1]:.0f} MiB with one worker, {memory[WORKERS]:.0f} with {WORKERS}: {ratio:.2f} times as much")
        print(f"start {starts[0]:.2f} s, then {starts[1]:.2f} s")
    assert ratio <= MEMORY_GOAL
    assert starts[1] <= START_GOAL
