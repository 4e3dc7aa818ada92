"""From stored rows to the numbers that are shown. Nothing here is stored: a new metric needs no new run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.contracts.errors import InputError
from bench.storing.names import slug
from bench.storing.reading import read_record
from bench.storing.records import CLEAN, AskedAgain, DefenseRecord, ShardRecord, SuiteRecord
from bench.storing.store import open_suite, stored_suites
from bench.summary.certified import contradictions, stored_radii, stored_smoothed
from bench.summary.detection import Classifier, at_half, detection_of, implied_flag, own_at_half
from bench.summary.flags import find_flags
from bench.summary.history import history_of
from bench.summary.metrics import judging_error
from bench.summary.numbers import (
    SETTLED,
    AttackSummary,
    CurvePoint,
    DefenseSummary,
    SuiteSummary,
    estimate,
)
from bench.summary.results import Cell, DefenseResults, FoundCell


def _attack_summary(results: DefenseResults, name: str, worst_for: int) -> AttackSummary:
    cell = results.cells[name]
    rows = list(cell.rows.values())
    backward = sum(row.backward for row in rows)
    wrong = [row for row in rows if row.report_correct < _draws(cell)]
    missed = sum(_draws(cell) - row.report_correct for row in wrong)
    has_detector = results.record.probe.has_detector
    seconds = sum(shard.seconds for shard in cell.shards if shard.status == "ok")
    return AttackSummary(
        record=results.attacks[name],
        status=cell.status,
        robust=estimate(results.under(name)[results.reached(name)]) if rows else None,
        mean_forward=sum(row.forward for row in rows) / len(rows) if rows else 0.0,
        mean_backward=backward / len(rows) if rows else 0.0,
        seconds_per_example=seconds / len(rows) if rows else 0.0,
        prepare_seconds=cell.prepare_seconds,
        worst_for=worst_for,
        zero_gradient_share=sum(row.zero_gradient for row in rows) / backward if backward else 0.0,
        violations=dict(Counter(row.reason.partition(":")[0] for row in rows if row.reason != "ok")),
        errors=[reason for shard in cell.shards if (reason := _reason(shard))],
        notes=sorted({note for shard in cell.shards for note in shard.notes}),
        detection_rate=sum(row.report_caught for row in wrong) / missed if has_detector and missed else None,
    )


def _worst_attack(attacks: list[AttackSummary]) -> str:
    """The counted attack that left the least, of those that saw most examples: shares of others do not compare."""
    left = {attack.record.name: attack.robust for attack in attacks if attack.robust and attack.record.counted}
    return min(left, key=lambda name: (-left[name].n, left[name].value), default=CLEAN)


def _reason(shard: ShardRecord) -> str:
    """Why a shard has no rows, in a line: the last one of its traceback, and whether time or memory ran out."""
    lines = shard.error.strip().splitlines()
    kind = [shard.status] if shard.status in ("timeout", "out-of-memory") else []
    return "" if shard.status == "ok" else ": ".join(kind + lines[-1:])


def _draws(cell: Cell) -> int:
    if isinstance(cell, FoundCell):
        return cell.draws
    return next((shard.draws_report for shard in cell.shards if shard.status == "ok"), 1)


def _asked_again(results: DefenseResults) -> AskedAgain | None:
    counts = [shard.asked_again for shard in results.finished() if shard.asked_again is not None]
    if not counts:
        return None
    return AskedAgain(rows=sum(one.rows for one in counts), differing=sum(one.differing for one in counts))


def _curve(results: DefenseResults, names: list[str]) -> list[CurvePoint]:
    """Worst-case robust accuracy at the suite's radii, at 0 (the clean input alone) and at eps (the worst case)."""
    suite = results.suite
    if not suite.radii:
        return []
    radii = sorted({0.0, *suite.radii, suite.eps})
    at = {radius: results.worst(names if radius else [], radius=radius)[0] for radius in radii}
    return [CurvePoint(radius, estimate(values)) for radius, values in at.items()]


def summarise_defense(results: DefenseResults) -> DefenseSummary:
    """Everything shown about one defense but its rank. Some of its clean inputs have been judged."""
    record = results.record
    names = results.names()
    values, chosen = results.worst(names)
    times_worst = Counter(chosen)
    attacks = [_attack_summary(results, name, times_worst[name]) for name in results.attacks]
    complete = results.clean.status == "complete" and all(attack.status in SETTLED for attack in attacks)
    return DefenseSummary(
        record=record.model_copy(update={"provenance": results.provenance()}),
        slug=slug(record.name),
        rank=None,
        complete=complete,
        standard=estimate(results.clean["report_correct"][results.measured]),
        worst_case=estimate(values),
        worst_attack=_worst_attack(attacks),
        attacks=attacks,
        detection=detection_of(results, names),
        flags=find_flags(results, attacks, complete),
        commits=results.commits(),
        worker_seconds=results.worker_seconds(),
        curve=_curve(results, names),
        history=history_of(results),
        levels=results.levels(),
        asked_again=_asked_again(results),
        certified=stored_radii(results, results.unreadable),
        smoothed=stored_smoothed(results, results.unreadable),
        judging_error=judging_error(values, results.suite.draws_report) if record.probe.randomized else None,
        survival={name: results.under(name).tolist() for name in names},
    )


def summarise_all(results: Path, names: Sequence[str] = ()) -> tuple[list[SuiteSummary], list[str]]:
    """The summaries of these suites, or of all that are stored, and a line for each whose record cannot be read.

    Raises:
        InputError: when there are no results, or none of a suite asked for; when no suite can be read.
    """
    summaries: list[SuiteSummary] = []
    unreadable: list[str] = []
    for name in stored_suites(results, names):
        try:
            summaries.append(summarise(results, name))
        except InputError as error:
            unreadable.append(str(error))
    if not summaries:
        raise InputError(unreadable[0])
    return summaries, unreadable


def summarise(results: Path, suite: str) -> SuiteSummary:
    """Read everything stored for a suite and compute its summary.

    Complete results come first, by worst-case robust accuracy, then standard accuracy; equal values of both
    share a rank. Incomplete results follow without one: an attack that has not run cannot have lowered them.

    A file that cannot be read is named in the summary, and what is left is shown: a defense without that shard's
    examples (it is then incomplete), a suite without that defense.

    Raises:
        InputError: when the suite has no results or its record cannot be read.
    """
    store, record = open_suite(results, suite)
    found: list[DefenseSummary] = []
    classifiers: list[Classifier] = []
    warnings: list[str] = []
    unreadable: list[str] = []
    for path in store.defenses():
        try:
            stored = DefenseResults(store, record, read_record(path, DefenseRecord))
        except InputError as error:
            unreadable.append(str(error))
            continue
        if stored.measured.any():
            found.append(summarise_defense(stored))
            wrong = contradictions(found[-1].certified, record.norm)
            warnings += [f"{stored.record.name}: {line}" for line in wrong]
            if found[-1].detection is not None:
                classifiers += [own for own in (own_at_half(stored),) if own]
            elif found[-1].complete:
                classifiers.append(at_half(stored))
        elif not stored.unreadable:
            warnings.append(f"{path.parent.name}: no clean results of the current suite; run bench evaluate again")
        unreadable += stored.unreadable
    found = [_beside(record, summary, classifiers) for summary in found]
    found.sort(key=lambda s: (not s.complete, -s.worst_case.value, -s.standard.value, s.record.name))
    ranked: list[DefenseSummary] = []
    for position, item in enumerate(found, 1):
        before = ranked[-1] if ranked else None
        tied = before is not None and _standing(before) == _standing(item)
        rank = before.rank if tied and before else position
        ranked.append(replace(item, rank=rank if item.complete else None))
    return SuiteSummary(record, ranked, warnings, unreadable)


def _beside(suite: SuiteRecord, summary: DefenseSummary, classifiers: list[Classifier]) -> DefenseSummary:
    """A defense with a detector beside the classifier without one, or taken alone, that is the most robust at eps/2.

    All on the examples that the defense is run on.
    """
    if summary.detection is None:
        return summary
    n = suite.examples_run(reference=summary.record.reference)
    beside = [found for one in classifiers if (found := one.on_first(n))]
    best = max(beside, key=lambda one: one.accuracy, default=None)
    detection = replace(summary.detection, best_at_half=best)
    return replace(summary, detection=detection, flags=implied_flag(detection) + summary.flags)


def _standing(summary: DefenseSummary) -> tuple[bool, float, float]:
    return summary.complete, summary.worst_case.value, summary.standard.value
