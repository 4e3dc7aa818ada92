"""A configuration, a results folder and the command between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stand_ins import Ended, plugin, run_bench, shards, write_config
from torch import Tensor

from bench.data.load import load_data
from bench.storing.records import ShardRecord
from bench.storing.store import Store
from bench.summary.numbers import SuiteSummary
from bench.summary.summarise import summarise

STEP = {"attack": plugin("one_step")}
OUTSIDE = {"attack": plugin("outside")}
FAILING = {"attack": plugin("failing")}


def points(store: Store, record: ShardRecord) -> Tensor:
    """The adversarial inputs that are stored of a shard of digits."""
    x = load_data("digits").test.take(record.stop).x
    return store.x_adv(record, x[[record.start + row for row in record.stored]])


@dataclass
class Bench:
    """A configuration and a results folder."""

    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def configure(self, attacks: dict[str, Any], **fields: Any) -> Bench:
        self.folder.mkdir(exist_ok=True)
        write_config(self.folder / "bench.yaml", attacks, **fields)
        return self

    def arguments(self, *defenses: str) -> list[str]:
        named = [part for name in defenses or ("Means",) for part in ("--defense", _reference(name))]
        where = ["--suite", "tiny", "--config", str(self.folder / "bench.yaml"), "--results", str(self.results)]
        return ["evaluate", *where, "--device", "cpu", *named]

    def evaluate(self, *defenses: str, more: tuple[str, ...] = (), workers: int | None = None) -> Ended:
        return run_bench(*self.arguments(*defenses), *more, workers=workers)

    @property
    def summary(self) -> SuiteSummary:
        return summarise(self.results, "tiny")

    @property
    def store(self) -> Store:
        return Store(self.results, "tiny")

    def cell(self, attack: str, defense: str = "stand_ins.Means") -> list[ShardRecord]:
        return [
            record for record in shards(self.results).values() if (record.attack, record.defense) == (attack, defense)
        ]

    def status(self, attack: str, defense: str = "stand_ins.Means") -> str:
        found = next(d for d in self.summary.defenses if d.record.name == defense)
        return next(a.status for a in found.attacks if a.record.name == attack)


def _reference(name: str) -> str:
    return name if ":" in name or not name[0].isupper() else plugin(name)


def cells(ended: Ended) -> list[str]:
    """The cells whose shards were run, without the numbers."""
    return sorted({job.partition("/")[0] for job in ended.ran})
