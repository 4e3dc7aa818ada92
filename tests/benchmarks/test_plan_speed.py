"""How long it takes to plan an evaluation that is as large as a field, and how much memory.

``make bench`` measures 100 defenses × 20 attacks × 100 shards, with nothing stored and with everything; ``make test``
plans a small one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.figures import Figure, Note
from harness.large_plan import Case, entries
from pytest_benchmark.fixture import BenchmarkFixture
from written_results import attack_record

from bench.running.describe import attack_record as described
from bench.storing import headers
from bench.storing.headers import Headers
from bench.storing.reading import ShardFile

#: Seconds and mebibytes to stay under.
SECONDS, MEBIBYTES = 5.0, 1024
SIZE = 100, 20, 100
TABLE = "The plan of 100 defenses × 20 attacks × 100 shards"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Some gigabytes are stored there, which nobody wants to keep."""
    yield tmp_path / "results"
    shutil.rmtree(tmp_path / "results", ignore_errors=True)


def plan_elsewhere(folder: Path, what: str, size: tuple[int, int, int] = SIZE) -> dict[str, Any]:
    """Measured in a process of its own, whose memory is that of nothing else."""
    search = [*sys.path, os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "harness.large_plan", str(folder), what, *map(str, size)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _fastest(folder: Path, what: str, size: tuple[int, int, int] = SIZE, runs: int = 3) -> dict[str, Any]:
    return min((plan_elsewhere(folder, what, size) for _ in range(runs)), key=lambda found: found["seconds"])


def _values(found: dict[str, Any]) -> tuple[str, bool]:
    seconds, peak = found["seconds"], found["peak_mib"]
    words = f"{seconds:.1f} s (goal {SECONDS:g}), memory {peak:,.0f} MiB at most (goal {MEBIBYTES:,}), of which "
    return words + f"{found['before_mib']:,.0f} before it", seconds <= SECONDS and peak <= MEBIBYTES


@pytest.mark.benchmark(group="plan")
def test_planning_is_in_proportion_to_what_is_planned(
    benchmark: BenchmarkFixture, folder: Path, measured: Note
) -> None:
    if benchmark.disabled:
        plan = benchmark.pedantic(Case.of(folder, 3, 2, 4).plan)
        assert len(plan.shards) == 3 * 3 * 4 and len(plan.galleries) == 3 and not plan.timings
        return
    found: dict[str, Any] = {}

    def run() -> None:
        found["tenth"], found["whole"] = _fastest(folder, "nothing", (10, *SIZE[1:])), _fastest(folder, "nothing")

    benchmark.pedantic(run, rounds=1)
    values, met = _values(found["whole"])
    ratio = found["whole"]["seconds"] / found["tenth"]["seconds"]
    sample = f"{found['whole']['jobs']:,} jobs, shortest of 3 processes"
    of = "time over that of a tenth of the defenses"
    measured(Figure(TABLE, "nothing stored", ratio, of, sample, values, met=met))


@pytest.mark.benchmark(group="plan")
def test_what_is_stored_is_not_read_again(
    benchmark: BenchmarkFixture, folder: Path, measured: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    if benchmark.disabled:
        monkeypatch.setattr(headers, "_TICK", 0)
        case = Case.of(folder, 3, 2, 4)
        assert case.store_everything() == 3 * 3 * 4
        looked = Headers(case.store, case.suite)
        plans = [benchmark.pedantic(case.plan, args=(looked,))]
        looked.write()
        monkeypatch.setattr(ShardFile, "read", None)  # nothing is read
        plans.append(case.plan())
        assert [(len(plan.shards), len(plan.galleries)) for plan in plans] == [(0, 3)] * 2
        return
    found: dict[str, Any] = {}

    def run() -> None:
        found["stored"] = plan_elsewhere(folder, "store")["shards"]
        found["first"], found["again"] = plan_elsewhere(folder, "first"), _fastest(folder, "again")

    benchmark.pedantic(run, rounds=1)
    first, again = found["first"], found["again"]
    values, met = _values(again)
    sample = f"{found['stored']:,} shards with adversarial inputs, in the system's cache; shortest of 3 processes"
    of = "time over that of a plan that reads every shard"
    ratio = again["seconds"] / first["seconds"]
    measured(Figure(TABLE, "everything stored, and noted by a run before", ratio, of, sample, values, met=met))
    words = f"{first['seconds']:.1f} s and {first['noting_seconds']:.1f} s to note what was read, "
    words += f"memory {first['peak_mib']:,.0f} MiB at most (goal {MEBIBYTES:,})"
    sample, met = f"{found['stored']:,} shards, one process", first["peak_mib"] <= MEBIBYTES
    measured(Figure(TABLE, "everything stored, the first time", 1 / ratio, "time over that when it is noted", sample,
                    words, met=met))  # fmt: skip


def test_attack_records_are_those_of_the_harness() -> None:
    """The synthetic suite has the attacks that the plan asks about."""
    assert attack_record("pgd-0").name == described(entries(1)[0]).name
