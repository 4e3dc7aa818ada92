"""``python -m harness.large_plan``: the plan of an evaluation as large as a field, in a process of its own.

Prints a line of JSON: the seconds of each plan, and the peak of the process's memory.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from written_results import defense_record, row, shard_record, suite_record, timing_record

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
from bench.storing.headers import Headers
from bench.storing.records import SuiteRecord
from bench.storing.store import Store, pack_tensors, to_json
from bench.suites.attacks import ResolvedAttack
from bench.suites.config import Suite

#: Examples of a shard.
_SIZE = 100


def entries(attacks: int) -> list[ResolvedAttack]:
    """So many attacks of a suite, which differ in their budget."""
    spec = cast(AttackSpec, pgd.attack)  # type: ignore[attr-defined]
    params = spec.check({}, "pgd")
    return [
        ResolvedAttack(f"pgd-{i}", spec, {**params, "steps": 10 + i}, "linf", 0.2, "gradient", True)
        for i in range(attacks)
    ]


@dataclass(frozen=True)
class Case:
    """Defenses × attacks × shards, below a folder."""

    store: Store
    suite: SuiteRecord
    opened: list[Opened]
    attacks: list[ResolvedAttack]

    @classmethod
    def of(cls, folder: Path, defenses: int, attacks: int, shards: int) -> Case:
        chosen = entries(attacks)
        records = [described(entry) for entry in chosen]
        suite = suite_record(records, n=_SIZE * shards, shard_size=_SIZE)
        settings: dict[str, Any] = {"data": "digits", "threat_model": {"norm": "linf", "eps": 0.2}, "seed": 0}
        config = Suite(**settings, attacks={entry.name: {"attack": "pgd"} for entry in chosen})
        config._name = suite.name
        opened = []
        for i in range(defenses):
            record = defense_record(f"defense-{i}", timing=timing_record())
            spec = DefenseSpec(record.name)
            setting = Setting(config, spec, "cpu", None, record.key, False, None, "bench evaluate")
            opened.append(Opened(setting, record, 2.0))
        return cls(Store(folder, suite.name), suite, opened, chosen)

    def plan(self, headers: Headers | None = None) -> Plan:
        """What is missing, as ``bench evaluate`` plans it."""
        data = cast(Data, SimpleNamespace())  # these attacks prepare nothing of it
        return make_plan(self.store, self.suite, data, self.opened, self.attacks, headers=headers)

    def store_everything(self) -> int:
        """Write every shard with its rows and adversarial inputs. Returns how many."""
        count = 0
        x_adv = pack_tensors({"x_adv": torch.zeros(_SIZE, 1, 2, 2)})
        rows = [_rows_text(part) for part in self._shards()]
        for one in self.opened:
            for attack in (None, *self.suite.attacks):
                name = "clean" if attack is None else attack.name
                path = self.store.shard_path(one.name, name, 0)
                path.parent.mkdir(parents=True)
                key = self.suite.cell_key(one.record, attack, torch=provenance.torch_release(), device="cpu")
                for number, text in enumerate(rows):
                    shard = shard_record(self.suite, one.record, name, number)
                    vouched = {} if attack is None else {"x_adv_sha256": hashlib.sha256(x_adv).hexdigest()}
                    shard = shard.model_copy(update={"key": key(shard.start, shard.stop), **vouched})
                    path = self.store.shard_path(one.name, name, number)
                    path.write_text(to_json(shard).replace('"rows": [\n\n ]', text))
                    if attack is not None:
                        path.with_suffix(".safetensors").write_bytes(x_adv)
                    count += 1
        return count

    def _shards(self) -> Iterator[list[str]]:
        for start in range(0, len(self.suite.ids), _SIZE):
            yield self.suite.ids[start : start + _SIZE]


def _rows_text(ids: list[str]) -> str:
    rows = [json.dumps(list(row(name, 1).model_dump().values())) for name in ids]
    return '"rows": [\n  ' + ",\n  ".join(rows) + "\n ]"


def _seconds(case: Case, headers: Headers | None = None) -> tuple[float, int]:
    """How long a plan takes with its graph, its first jobs and its expected time; how many jobs it has."""
    start = time.perf_counter()
    plan = case.plan(headers)
    graph, tracker = Graph(plan.jobs, 64), Tracker(plan.jobs, 64)
    for _ in range(64):
        graph.take("")
    tracker.line()
    return time.perf_counter() - start, len(plan.jobs)


def _peak() -> float:
    """MiB that this process has held at most. Not what ``getrusage`` says, which begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main(folder: str, what: str, defenses: int, attacks: int, shards: int) -> dict[str, Any]:
    """Measure.

    Args:
        what: ``nothing`` stored; ``store`` everything there; ``first``, ``again``: with everything stored, before and
            after its headers were noted.
    """
    case = Case.of(Path(folder), defenses, attacks, shards)
    before = _peak()
    if what == "store":
        return {"shards": case.store_everything()}
    headers = Headers(case.store, case.suite)
    seconds, jobs = _seconds(case, headers)
    found: dict[str, Any] = {"seconds": seconds, "jobs": jobs, "before_mib": before}
    found["peak_mib"] = _peak()
    if what == "first":
        start = time.perf_counter()
        headers.write()
        found["noting_seconds"] = time.perf_counter() - start
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))))
