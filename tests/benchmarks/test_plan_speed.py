"""How long it takes to plan an evaluation that is as large as a field, and how much memory.

``make bench`` measures 100 defenses × 20 attacks × 100 shards of which nothing is stored, and 5 × 20 × 100 that are all
stored; ``make test`` plans a small one.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from written_results import attack_record, defense_record, row, shard_record, suite_record, timing_record

from attacks.gradient.pgd import pgd
from bench.contracts.attack import AttackSpec
from bench.contracts.defense import DefenseSpec
from bench.data.splits import Data
from bench.engines.graph import Graph
from bench.running.cell import Setting
from bench.running.describe import attack_record as described
from bench.running.plan import Opened, Plan, make_plan
from bench.running.progress import Tracker
from bench.storing import provenance
from bench.storing.records import SuiteRecord
from bench.storing.store import Store
from bench.suites.attacks import ResolvedAttack
from bench.suites.config import Suite

#: Seconds and mebibytes to stay under on a laptop.
GOALS = (5.0, 1024)


def _entries(attacks: int) -> list[ResolvedAttack]:
    spec = cast(AttackSpec, pgd.attack)  # type: ignore[attr-defined]
    params = spec.check({}, "pgd")
    return [
        ResolvedAttack(f"pgd-{i}", spec, {**params, "steps": 10 + i}, "linf", 0.2, "gradient", True)
        for i in range(attacks)
    ]


def _case(
    folder: Path, defenses: int, attacks: int, shards: int
) -> tuple[Store, SuiteRecord, list[Opened], list[ResolvedAttack]]:
    entries = _entries(attacks)
    suite = suite_record([described(entry) for entry in entries], n=100 * shards, shard_size=100)
    settings: dict[str, Any] = {"data": "digits", "threat_model": {"norm": "linf", "eps": 0.2}, "seed": 0}
    config = Suite(**settings, attacks={entry.name: {"attack": "pgd"} for entry in entries})
    config._name = suite.name
    opened = []
    for i in range(defenses):
        record = defense_record(f"defense-{i}", timing=timing_record())
        setting = Setting(
            config, DefenseSpec(record.name), "cpu", None, record.key, False, None, "bench evaluate"
        )
        opened.append(Opened(setting, record, 2.0))
    return Store(folder, suite.name), suite, opened, entries


def _plan(case: tuple[Store, SuiteRecord, list[Opened], list[ResolvedAttack]]) -> Plan:
    store, suite, opened, entries = case
    return make_plan(store, suite, cast(Data, SimpleNamespace()), opened, entries)


@pytest.mark.benchmark(group="plan")
@pytest.mark.parametrize("stored", [False, True], ids=["nothing stored", "everything stored"])
def test_a_large_evaluation_is_planned_quickly(
    stored: bool, benchmark: BenchmarkFixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    brief = benchmark.disabled
    defenses, attacks, shards = (3, 2, 4) if brief else (5 if stored else 100, 20, 100)
    case = _case(tmp_path, defenses, attacks, shards)
    store, suite, opened, _ = case
    machine = {"torch": provenance.torch_release(), "device": "cpu"}
    if stored:
        rows = [[row(name, 1) for name in suite.ids[100 * n : 100 * (n + 1)]] for n in range(shards)]
        for one in opened:
            for attack in (None, *suite.attacks):
                key = suite.cell_key(one.record, attack, **machine)
                for number in range(shards):
                    name = "clean" if attack is None else attack.name
                    shard = shard_record(suite, one.record, name, number)
                    shard = shard.model_copy(update={"key": key(shard.start, shard.stop), "rows": rows[number]})
                    store.write_shard(shard, None)
    plan = benchmark.pedantic(_plan, args=(case,), rounds=1)
    assert len(plan.shards) == (0 if stored else defenses * (attacks + 1) * shards)
    assert len(plan.galleries) == defenses and not plan.timings
    start = time.perf_counter()
    graph, tracker = Graph(plan.jobs, 64), Tracker(plan.jobs, 64)
    taken = [graph.take("") for _ in range(64)]
    assert all(taken[: min(64, len(plan.jobs) if stored else len(plan.shards))])
    tracker.line()
    started = time.perf_counter() - start
    if brief:
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    took = benchmark.stats.stats.total
    benchmark.extra_info.update(jobs=len(plan.jobs), graph_seconds=round(started, 2), peak_mib=round(peak))
    with capsys.disabled():
        print(
            f"\n{len(plan.jobs)} jobs planned in {took:.1f} s, graph and ETA in {started:.1f} s, peak {peak:.0f} MiB "
            f"(goals: {GOALS[0]:.0f} s, {GOALS[1]} MiB)"
        )


def test_attack_records_are_those_of_the_harness() -> None:
    """The synthetic suite has the attacks that the plan asks about."""
    assert attack_record("pgd-0").name == described(_entries(1)[0]).name
