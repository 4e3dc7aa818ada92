"""Adversarial inputs that lower a stored defense's worst case: judged on draws that nobody knew, and kept."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from bench.contracts.defense import Defense
from bench.contracts.isolation import Level
from bench.data.splits import Data
from bench.storing import provenance
from bench.storing.found import FOUND, FoundRecord, found_attack, found_files, write_found
from bench.storing.records import DefenseRecord, SuiteRecord
from bench.storing.store import Store
from bench.submissions.again import SEEDS
from bench.summary.results import DefenseResults
from bench.upkeep.points import BATCH, JudgedPoints, Points, judge_points


@dataclass(frozen=True)
class Lowered:
    """What some points do to a defense.

    Attributes:
        rows: judged; refused: of these outside the threat model; fooled: those in which the defense fails at all.
        lowered: examples whose worst case they lower.
        before, after: worst-case robust accuracy in [0, 1].
        record: what is to be kept, None where nothing is lowered; points: its inputs.
    """

    rows: int
    refused: int
    fooled: int
    lowered: int
    before: float
    after: float
    record: FoundRecord | None
    points: Points | None


def lowering(
    defense: Defense,
    data: Data,
    store: Store,
    suite: SuiteRecord,
    record: DefenseRecord,
    points: Points,
    *,
    by: str,
    note: str,
    device: str,
    isolation: Level,
) -> Lowered:
    """Judge points, and of those that lower an example's worst case once more, on other draws: luck does not count."""
    clock = provenance.start()
    results = DefenseResults(store, suite, record)
    before = float(results.worst(results.names())[0].mean())
    first = judge_points(defense, data, suite, record, points, _secret(), device)
    rows = first.judged.rows
    refused = sum(row.reason != "ok" for row in rows)
    fooled = sum(row.reason == "ok" and row.report_robust < first.key.judging.draws_report for row in rows)
    chosen = _lower(results, first)
    said = (len(rows), refused, fooled)
    if not chosen:
        return Lowered(*said, 0, before, before, None, None)
    fewer = Points([points.ids[i] for i in chosen], points.x_adv[chosen])
    again = judge_points(defense, data, suite, record, fewer, _secret(), device)
    made = FoundRecord(
        key=again.key,
        number=len(found_files(store, record.name)),
        by=by,
        note=note,
        accepted=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        batch_size=BATCH,
        towards=again.towards,
        isolation=isolation,
        provenance=provenance.finish(clock, device),
        rows=again.judged.rows,
    )
    results.found.append(made)
    results.attacks[FOUND] = found_attack(suite)
    results.cells[FOUND] = results.found_cell(results.found)
    after = float(results.worst(results.names())[0].mean())
    if after >= before - 1e-9:
        return Lowered(*said, 0, before, before, None, None)
    return Lowered(*said, len(chosen), before, after, made, Points(fewer.ids, again.judged.x_adv))


def keep(store: Store, found: Lowered) -> None:
    """Add what lowers a defense to its results."""
    assert found.record is not None and found.points is not None
    write_found(store, found.record, found.points.x_adv.cpu())


def _secret() -> int:
    return random.SystemRandom().randrange(SEEDS)


def _lower(results: DefenseResults, judged: JudgedPoints) -> list[int]:
    """The rows that the defense survives less than everything before, on the draws on which attacks are chosen."""
    survived = results.survived_least()
    position = {example: i for i, example in enumerate(results.suite.ids)}
    draws = judged.key.judging.draws_select
    return [
        i
        for i, row in enumerate(judged.judged.rows)
        if row.reason == "ok" and row.select_robust / draws < np.nan_to_num(survived[position[row.id]], nan=0.0)
    ]
