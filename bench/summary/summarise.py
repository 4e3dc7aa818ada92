"""From stored rows to the numbers that are shown. Nothing here is stored: a new metric needs no new run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.contracts.errors import InputError
from bench.storing.records import CLEAN, AttackRecord, DefenseRecord, Provenance, ShardRecord, SuiteRecord
from bench.storing.row import Row
from bench.storing.store import Store, read_record, shard_count, slug
from bench.summary.flags import Flag, find_flags
from bench.summary.metrics import Array, wilson, worst_case

#: Statuses in which a cell has nothing left to run.
SETTLED = ("complete", "not-applicable")


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] of ``n`` examples with its 95 % Wilson interval (sampling of the images only)."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class AttackSummary:
    """One cell: what one attack left of one defense.

    ``status`` is ``complete``, ``partial`` (some shards missing or failed), ``failed``, ``not-applicable`` or
    ``missing``. ``robust`` is the accuracy that is left under this attack, None without any finished shard.
    """

    record: AttackRecord
    status: str
    robust: Estimate | None
    mean_forward: float
    mean_backward: float
    seconds_per_example: float
    prepare_seconds: float
    worst_for: int  # examples for which this attack is the worst of all
    zero_gradient_share: float  # of all gradients it took
    violations: dict[str, int]  # reason -> examples the judge refused
    errors: list[str]  # last line of each failed shard's traceback
    notes: list[str]
    detection_rate: float | None  # share of misclassified adversarial inputs that are rejected


@dataclass(frozen=True)
class DetectionSummary:
    """The detector at its one fixed threshold."""

    threshold: float
    target_false_positive_rate: float
    false_positive_rate: Estimate  # on the clean test examples
    true_positive_rate: Estimate | None  # on misclassified adversarial inputs, pooled over counted attacks
    accuracy: float | None  # balanced: (TPR + TNR) / 2
    robust_with_rejection: Estimate  # clean accepted and right, adversarial right or rejected
    robust_without_rejection: Estimate  # the classifier alone


@dataclass(frozen=True)
class DefenseSummary:
    """One line of the leaderboard, and the page behind it."""

    record: DefenseRecord
    slug: str  # folder and file name
    rank: int
    complete: bool
    standard: Estimate  # no attack, no detector
    worst_case: Estimate  # per example over all counted attacks (rejection counts as survival)
    worst_attack: str  # the single attack that left the least
    attacks: list[AttackSummary]
    detection: DetectionSummary | None
    flags: list[Flag]
    commits: list[str]  # code versions that its shards come from; "+" marks uncommitted changes
    worker_seconds: float  # one worker's wall time: attacks, judging, preparations
    survival: dict[str, list[float]] = field(repr=False)  # attack -> per-example share of draws survived


@dataclass(frozen=True)
class SuiteSummary:
    """All defenses of a suite, best worst-case robust accuracy first."""

    record: SuiteRecord
    defenses: list[DefenseSummary]
    warnings: list[str]  # files that could not be read, defenses without clean results

    @property
    def worker_seconds(self) -> float:
        """What the whole matrix would have taken a single worker."""
        return sum(defense.worker_seconds for defense in self.defenses)


def estimate(values: Array) -> Estimate:
    """Mean of per-example shares with its Wilson interval."""
    value = float(values.mean()) if len(values) else 0.0
    return Estimate(value, *wilson(value, len(values)), len(values))


class Cell:
    """The shards of one attack against one defense, as arrays over the suite's examples (NaN: not measured)."""

    def __init__(self, suite: SuiteRecord, shards: list[ShardRecord], expected: int) -> None:
        self.shards, self.expected = shards, expected
        position = {example: i for i, example in enumerate(suite.ids)}
        self.rows: dict[int, Row] = {}
        columns = ("select_robust", "report_robust", "select_correct", "report_correct", "report_rejected")
        self._values = {name: np.full(len(suite.ids), np.nan) for name in columns}
        for shard in shards:
            draws = {"select": shard.draws_select, "report": shard.draws_report}
            for row in shard.rows:
                i = position[row.id]
                self.rows[i] = row
                for name in columns:
                    self._values[name][i] = getattr(row, name) / draws[name.partition("_")[0]]

    def __getitem__(self, column: str) -> Array:
        return self._values[column]

    @property
    def prepare_seconds(self) -> float:
        return max((shard.prepare_seconds for shard in self.shards), default=0.0)

    @property
    def status(self) -> str:
        good = sum(shard.status == "ok" for shard in self.shards)
        if good == self.expected:
            return "complete"
        if any(shard.status == "not-applicable" for shard in self.shards):
            return "not-applicable"
        if good:
            return "partial"
        return "failed" if self.shards else "missing"


def read_cell(store: Store, suite: SuiteRecord, defense: DefenseRecord, attack: AttackRecord | None) -> Cell:
    """The stored shards of a cell that belong to this suite, this defense and these parameters."""
    name = CLEAN if attack is None else attack.name
    expected = shard_count(len(suite.ids), suite.shard_size)
    shards = []
    for number in range(expected):
        shard = store.shard(defense.name, name, number)
        if shard is None or shard.suite_key != suite.key or shard.defense_key != defense.key:
            continue
        if attack is None or shard.attack_key == attack.key:
            shards.append(shard)
    return Cell(suite, shards, expected)


class DefenseResults:
    """All cells of one defense, and the arrays every number is computed from."""

    def __init__(self, store: Store, suite: SuiteRecord, record: DefenseRecord) -> None:
        self.suite, self.record = suite, record
        self.clean = read_cell(store, suite, record, None)
        self.attacks = {attack.name: attack for attack in suite.attacks}
        self.cells = {name: read_cell(store, suite, record, attack) for name, attack in self.attacks.items()}
        self.measured = ~np.isnan(self.clean["report_robust"])

    def under(self, name: str, kind: str = "robust") -> Array:
        """Survival of each example under one attack: the worse of x_adv and the clean input, which is in the ball.

        ``kind``: ``robust`` (rejection counts as survival) or ``correct`` (the classifier alone).
        """
        return self.worst([name], kind)[0]

    def worst(self, names: list[str], kind: str = "robust") -> tuple[Array, list[str]]:
        """Survival of each measured example under the worst of the named attacks and the clean input.

        Among attacks that are equally bad for an example, the one that is worse over all examples is named. On a
        randomised defense the choice errs where attacks are about equally bad; where it thus leaves more than the
        strongest attack alone, the survival is that of the latter.
        """
        cells = [*(self.cells[name] for name in names), self.clean]
        report = np.stack([cell[f"report_{kind}"] for cell in cells])[:, self.measured]
        select = np.stack([cell[f"select_{kind}"] for cell in cells])[:, self.measured]
        means = [np.nanmean(row) if not np.isnan(row).all() else np.inf for row in select[:-1]]
        order = [*(int(i) for i in np.argsort(means, kind="stable")), len(names)]
        values, chosen = worst_case(select, report, order)
        alone, _ = worst_case(select, report, [order[0], len(names)])
        labels = [*names, CLEAN]
        return min(values, alone, key=np.mean), [labels[i] for i in chosen]

    def provenance(self) -> Provenance:
        """That of the defense's record, with the time from the first stored shard's start to the last one's end."""
        runs = [shard.provenance for shard in self._shards()]
        span = {"started": min(run.started for run in runs), "ended": max(run.ended for run in runs)}
        return self.record.provenance.model_copy(update=span)

    def _shards(self) -> list[ShardRecord]:
        return [shard for cell in (self.clean, *self.cells.values()) for shard in cell.shards]

    def commits(self) -> list[str]:
        """Each code version that shards come from, in the order of time; ``+`` marks uncommitted changes."""
        runs = sorted((shard.provenance for shard in self._shards()), key=lambda run: run.started)
        return list(dict.fromkeys(run.git_commit + "+" * bool(run.git_dirty) for run in runs if run.git_commit))

    def worker_seconds(self) -> float:
        """Wall time of one worker: every shard from start to end, and every attack's preparation once."""
        running = sum(_seconds_between(s.provenance.started, s.provenance.ended) for s in self._shards())
        return running + sum(cell.prepare_seconds for cell in self.cells.values())

    def reached(self, name: str) -> NDArray[np.bool_]:
        """Which of the measured examples an attack has finished with."""
        return ~np.isnan(self.cells[name]["report_robust"])[self.measured]

    def names(self, *, counted: bool = True, knowledge: tuple[str, ...] | None = None) -> list[str]:
        """Attacks with at least one finished shard, by whether they count and by what they may know."""
        return [
            name
            for name, attack in self.attacks.items()
            if attack.counted == counted
            and self.cells[name].rows
            and (knowledge is None or attack.knowledge in knowledge)
        ]


def _seconds_between(started: str, ended: str) -> float:
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()


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
        errors=[s.error.strip().splitlines()[-1] for s in cell.shards if s.status != "ok" and s.error.strip()],
        notes=sorted({note for shard in cell.shards for note in shard.notes}),
        detection_rate=sum(row.report_caught for row in wrong) / missed if has_detector and missed else None,
    )


def _draws(cell: Cell) -> int:
    return next((shard.draws_report for shard in cell.shards if shard.status == "ok"), 1)


def _detection(results: DefenseResults, names: list[str]) -> DetectionSummary | None:
    probe = results.record.probe
    if probe.threshold is None:
        return None
    rejected = results.clean["report_rejected"][results.measured]
    missed = caught = 0
    for name in names:
        cell = results.cells[name]
        for i, row in cell.rows.items():
            clean = results.clean.rows.get(i)
            if clean is not None and clean.prediction == row.label:  # positives: of images that were right when clean
                missed += _draws(cell) - row.report_correct
                caught += row.report_caught
    rate = caught / missed if missed else None
    false_positives = estimate(rejected)
    return DetectionSummary(
        threshold=probe.threshold,
        target_false_positive_rate=results.suite.false_positive_rate,
        false_positive_rate=false_positives,
        true_positive_rate=None if rate is None else Estimate(rate, *wilson(rate, missed), missed),
        accuracy=None if rate is None else (rate + 1 - false_positives.value) / 2,
        robust_with_rejection=estimate(results.worst(names)[0]),
        robust_without_rejection=estimate(results.worst(names, "correct")[0]),
    )


def summarise_defense(store: Store, suite: SuiteRecord, record: DefenseRecord) -> DefenseSummary | None:
    """Everything shown about one defense; None when it has no clean results. Its rank is still 0."""
    results = DefenseResults(store, suite, record)
    if not results.measured.any():
        return None
    names = results.names()
    values, chosen = results.worst(names)
    times_worst = Counter(chosen)
    attacks = [_attack_summary(results, name, times_worst[name]) for name in results.attacks]
    left = {attack.record.name: attack.robust.value for attack in attacks if attack.robust and attack.record.counted}
    complete = results.clean.status == "complete" and all(
        attack.status in SETTLED for attack in attacks
    )
    return DefenseSummary(
        record=record.model_copy(update={"provenance": results.provenance()}),
        slug=slug(record.name),
        rank=0,
        complete=complete,
        standard=estimate(results.clean["report_correct"][results.measured]),
        worst_case=estimate(values),
        worst_attack=min(left, key=lambda name: left[name]) if left else CLEAN,
        attacks=attacks,
        detection=_detection(results, names),
        flags=find_flags(results, attacks, complete),
        commits=results.commits(),
        worker_seconds=results.worker_seconds(),
        survival={name: results.under(name).tolist() for name in names},
    )


def summarise(results: Path, suite: str) -> SuiteSummary:
    """Read everything stored for a suite and compute its summary.

    Complete results come first, by worst-case robust accuracy, then standard accuracy; equal values of both
    share a rank. Incomplete results follow: an attack that has not run cannot have lowered them.

    Raises:
        InputError: when the suite has no results or its record cannot be read.
    """
    store = Store(results, suite)
    record = store.suite()
    if record is None:
        raise InputError(f"no results of suite {suite!r} in {results}; run: bench evaluate --suite {suite}")
    found: list[DefenseSummary] = []
    warnings: list[str] = []
    for path in store.defenses():
        try:
            summary = summarise_defense(store, record, read_record(path, DefenseRecord))
        except InputError as error:
            warnings.append(str(error))
            continue
        if summary is None:
            warnings.append(f"{path.parent.name}: no clean results of the current suite; run bench evaluate again")
        else:
            found.append(summary)
    found.sort(key=lambda s: (not s.complete, -s.worst_case.value, -s.standard.value, s.record.name))
    ranked: list[DefenseSummary] = []
    for position, item in enumerate(found, 1):
        before = ranked[-1] if ranked else None
        tied = before is not None and _standing(before) == _standing(item)
        ranked.append(replace(item, rank=before.rank if tied and before else position))
    return SuiteSummary(record, ranked, warnings)


def _standing(summary: DefenseSummary) -> tuple[bool, float, float]:
    return summary.complete, summary.worst_case.value, summary.standard.value
