"""Small sets of results, written through the store, whose numbers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.storing.images import Images
from bench.storing.records import (
    AttackRecord,
    DefenseRecord,
    Probe,
    Provenance,
    Row,
    ShardRecord,
    SuiteRecord,
    Timing,
)
from bench.storing.store import Store

PROVENANCE = Provenance(
    command="bench evaluate",
    started="2026-01-01T00:00:00+00:00",
    ended="2026-01-01T00:00:01+00:00",
    git_commit=None,
    git_dirty=None,
    versions={},
    hardware={},
)


def attack_record(name: str, **fields: Any) -> AttackRecord:
    values = {
        "name": name,
        "function": name,
        "knowledge": "gradient",
        "params": {},
        "eps": 0.2,
        "version": 1,
        "counted": True,
    }
    return AttackRecord(**{**values, **fields})


def suite_record(attacks: Sequence[AttackRecord], n: int = 4, **fields: Any) -> SuiteRecord:
    values: dict[str, Any] = {
        "name": "made",
        "data": "digits",
        "split": "test",
        "shape": (1, 2, 2),
        "class_names": list("abcdefghij"),
        "data_version": 1,
        "ids": [f"e{i}" for i in range(n)],
        "digests": [f"digest of e{i}" for i in range(n)],
        "norm": "linf",
        "eps": 0.2,
        "seed": 0,
        "shard_size": 2,
        "draws_select": 1,
        "draws_report": 1,
        "false_positive_rate": 0.05,
        "reference": "none",
        "attacks": list(attacks),
    }
    return SuiteRecord(**{**values, **fields})


def probe_record(**fields: Any) -> Probe:
    values: dict[str, Any] = {
        "randomized": False,
        "declared_randomized": fields.get("randomized", False),
        "outputs_are_probabilities": False,
        "gradient": "ok",
        "zero_gradient_share": 0.0,
        "batch_dependent": False,
        "approximations": [],
        "transforms": False,
        "has_detector": fields.get("threshold") is not None,
        "threshold": None,
        "validation_examples": 100,
    }
    return Probe(**{**values, **fields})


def defense_record(name: str = "plain", probe: Probe | None = None, **fields: Any) -> DefenseRecord:
    values: dict[str, Any] = {
        "version": 1,
        "weights": f"weights of {name}",
        "name": name,
        "reference": "none",
        "num_parameters": 10,
        "probe": probe or probe_record(),
        "provenance": PROVENANCE,
    }
    return DefenseRecord(**{**values, **fields})


def timing_record(seconds: float = 2.0, reference: float = 1.0) -> Timing:
    return Timing(
        seconds_per_1000=seconds,
        reference_seconds_per_1000=reference,
        batch_size=8,
        repeats=5,
        device="cpu",
    )


def row(example: str, robust: int, **fields: Any) -> Row:
    """A row in which ``robust`` draws survive on both streams and are right, unless ``fields`` say otherwise."""
    values: dict[str, Any] = {
        "id": example,
        "label": 1,
        "prediction": 1 if robust else 0,
        "select_correct": robust,
        "select_robust": robust,
        "report_robust": robust,
        "report_correct": robust,
        "report_rejected": 0,
        "report_caught": 0,
        "detector_score": None,
        "linf": 0.2,
        "l2": 0.3,
        "l1": 0.4,
        "l0": 2,
        "forward": 10,
        "backward": 5,
        "zero_gradient": 0,
        "nonfinite_gradient": 0,
        "reason": "ok",
    }
    return Row(**{**values, **fields})


def shard_record(suite: SuiteRecord, defense: DefenseRecord, attack: str, number: int, **fields: Any) -> ShardRecord:
    entry = {record.name: record for record in suite.attacks}.get(attack)
    start = number * suite.shard_size
    stop = min(start + suite.shard_size, len(suite.ids))
    values: dict[str, Any] = {
        "key": suite.cell_key(defense, entry, torch="2.15", device="cpu")(start, stop),
        "shard": number,
        "start": start,
        "stop": stop,
        "status": "ok",
        "batch_size": 64,
        "seconds": 2.0,
        "provenance": PROVENANCE,
        "rows": [],
    }
    return ShardRecord(**{**values, **fields})


@dataclass(frozen=True)
class Results:
    """A results folder that holds one suite."""

    root: Path
    suite: SuiteRecord

    @property
    def store(self) -> Store:
        return Store(self.root, self.suite.name)

    def write_suite(self) -> None:
        self.store.write_suite(self.suite)

    def write_defense(self, defense: DefenseRecord, cells: dict[str, Sequence[int | Row]]) -> None:
        """Store a defense with the rows of its cells, one entry per example of the suite in order.

        A cell may be shorter than the suite: its last shards are then missing. Numbers stand for :func:`row`.
        """
        self.write_suite()
        self.store.write_defense(defense)
        for attack, entries in cells.items():
            rows = [
                entry if isinstance(entry, Row) else row(example, entry)
                for example, entry in zip(self.suite.ids, entries, strict=False)
            ]
            for start in range(0, len(rows), self.suite.shard_size):
                part = rows[start : start + self.suite.shard_size]
                self.write_shard(defense, attack, start // self.suite.shard_size, rows=part)

    def write_shard(
        self, defense: DefenseRecord, attack: str, number: int, x_adv: Tensor | None = None, **fields: Any
    ) -> None:
        images = None if x_adv is None else Images({"x_adv": x_adv})
        self.store.write_shard(shard_record(self.suite, defense, attack, number, **fields), images)
