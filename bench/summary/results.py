"""The stored rows of a defense as arrays over the suite's examples, and survival under one attack or the worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from bench.contracts.isolation import LEVELS, Level
from bench.contracts.threat import Lp
from bench.contracts.words import Tier
from bench.storing.current import current_shards
from bench.storing.found import FOUND, FoundRecord, current_found, found_attack
from bench.storing.records import CLEAN, AttackRecord, DefenseRecord, Provenance, Row, ShardRecord, SuiteRecord
from bench.storing.store import Store
from bench.storing.submitted import acceptance
from bench.summary.metrics import Array, by_strength, strongest_is_worse, worst_case


class Cell:
    """The shards of one attack against one defense, as arrays over the suite's examples (NaN: not measured).

    Args:
        expected: how many of the examples, from the first on, the attack is run on; rows of others do not count.
        applies: False for an attack of a tier that needs a detector, on a defense without one.
    """

    def __init__(
        self, suite: SuiteRecord, shards: Sequence[ShardRecord | FoundRecord], expected: int, applies: bool = True
    ) -> None:
        self.shards = [shard for shard in shards if isinstance(shard, ShardRecord)]
        self.expected, self.applies = expected, applies
        position = {example: i for i, example in enumerate(suite.ids[:expected])}
        self.rows: dict[int, Row] = {}
        columns = ("select_robust", "report_robust", "select_correct", "report_correct", "report_rejected")
        self._values = {name: np.full(len(suite.ids), np.nan) for name in columns}
        self.distance = np.full(len(suite.ids), np.nan)  # of the judged input from x, in the suite's norm
        for shard in shards:
            draws = {"select": shard.draws_select, "report": shard.draws_report}
            for row in shard.rows:
                i = position.get(row.id)
                if i is None:
                    continue
                self.rows[i] = row
                self.distance[i] = getattr(row, suite.norm)
                for name in columns:
                    self._values[name][i] = getattr(row, name) / draws[name.partition("_")[0]]

    def __getitem__(self, column: str) -> Array:
        return self._values[column]

    @property
    def prepare_seconds(self) -> float:
        return max((shard.prepare_seconds for shard in self.shards), default=0.0)

    @property
    def status(self) -> str:
        if len(self.rows) == self.expected:
            return "complete"
        if not self.applies or any(shard.status == "not-applicable" for shard in self.shards):
            return "not-applicable"
        if self.rows:
            return "partial"
        return "failed" if self.shards else "missing"


class FoundCell(Cell):
    """Adversarial inputs that were submitted, as one attack: there are as many of them as there are.

    Args:
        found: in the order of acceptance; of an example that several lower, the last counts, which is the lowest.
        expected: how many of the examples, from the first on, the defense is run on; rows of others do not count.
    """

    def __init__(self, suite: SuiteRecord, found: Sequence[FoundRecord], expected: int) -> None:
        super().__init__(suite, found, expected)
        self.draws = found[-1].draws_report

    @property
    def status(self) -> str:
        return "complete"


class DefenseResults:
    """All cells of one defense, and the arrays every number is computed from."""

    def __init__(self, store: Store, suite: SuiteRecord, record: DefenseRecord) -> None:
        self.store, self.suite, self.record = store, suite, record
        self.unreadable: list[str] = []  # a line for each shard's file whose examples are missing for that reason

        def read(attack: AttackRecord | None) -> Cell:
            expected = suite.examples_run(attack, record.reference)
            if attack is not None and not attack.applies_to(record.probe.has_detector):
                return Cell(suite, [], expected, applies=False)
            shards = current_shards(store, suite, record, attack, self.unreadable)
            return Cell(suite, [shard for shard in shards if shard.start < expected], expected)

        self.clean = read(None)
        self.attacks = {attack.name: attack for attack in suite.attacks}
        self.cells = {name: read(attack) for name, attack in self.attacks.items()}
        #: Adversarial inputs that were submitted, in the order of acceptance; one more attack among the cells.
        self.found = list(current_found(store, suite, record, self.unreadable))
        if self.found:
            self.attacks[FOUND] = found_attack(suite)
            self.cells[FOUND] = self.found_cell(self.found)
        self.measured = ~np.isnan(self.clean["report_robust"])

    def found_cell(self, found: Sequence[FoundRecord]) -> FoundCell:
        """These submitted inputs as one attack on the examples that the defense is run on."""
        return FoundCell(self.suite, found, self.clean.expected)

    def under(self, name: str, kind: str = "robust") -> Array:
        """Survival of each example under one attack: the worse of x_adv and the clean input, which is in the ball.

        ``kind``: ``robust`` (rejection counts as survival) or ``correct`` (the classifier alone).
        """
        return self.worst([name], kind)[0]

    def worst(self, names: list[str], kind: str = "robust", radius: float | None = None) -> tuple[Array, list[str]]:
        """Survival of each measured example under the worst of the named attacks and the clean input.

        An attack counts for the examples that it was run on; over all examples it leaves what the clean input does
        elsewhere. Among attacks that are equally bad for an example, the one that is worse over all is named. On a
        randomised defense the choice errs where attacks are about equally bad; where the selection draws say that it
        thus leaves more than the strongest attack alone, the survival is that of the latter.

        ``radius``: of a smaller ball; an attack's point that lies outside it is replaced by the clean input.
        """
        report = self._shares(names, f"report_{kind}", radius)
        select = self._shares(names, f"select_{kind}", radius)
        values, chosen = worst_of(select, report, self.draws_select)
        labels = [*names, CLEAN]
        return values, [labels[i] for i in chosen]

    def survived_least(self) -> Array:
        """Of every example of the suite, the smallest share of selection draws survived; NaN where not measured."""
        columns = [self.cells[name]["select_robust"] for name in self.names()]
        return np.asarray(np.fmin.reduce([*columns, self.clean["select_robust"]]))

    @property
    def draws_select(self) -> int:
        """Draws of each input on which the worst attack is chosen."""
        return self.suite.draws_select if self.record.probe.randomized else 1

    def _shares(self, names: list[str], column: str, radius: float | None) -> Array:
        """``(attacks + 1, measured)``: a column of each attack's cell and, last, of the clean input's."""
        clean = self.clean[column]
        shares = [self.cells[name][column] for name in names]
        if radius is not None:
            beyond = [self._beyond(name, radius) for name in names]
            shares = [np.where(far, clean, values) for far, values in zip(beyond, shares, strict=True)]
        return np.stack([*shares, clean])[:, self.measured]

    def _beyond(self, name: str, radius: float) -> NDArray[np.bool_]:
        """Which of an attack's points lie outside the ball of this radius. What it was never allowed does not."""
        if self.attacks[name].eps <= radius:
            return np.zeros(len(self.suite.ids), dtype=np.bool_)
        tolerance = Lp(self.suite.norm, radius).tolerance  # type: ignore[arg-type]
        return self.cells[name].distance > radius + tolerance

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

    def levels(self) -> dict[Level, int]:
        """How many of its finished shards were made at each level of isolation, the weakest level first."""
        made = Counter(shard.isolation for shard in self.finished())
        made.update(record.isolation for record in self.found)
        return {level: made[level] for level in LEVELS if made[level]}

    def accepted_at(self) -> list[Level]:
        """The level at which a submitted defense was judged when it was accepted; nothing of any other."""
        found = acceptance(self.store, self.record.name)
        return [level for level in LEVELS if found is not None and level == found.isolation]

    def finished(self) -> list[ShardRecord]:
        """Its shards that have rows."""
        return [shard for shard in self._shards() if shard.status == "ok"]

    def reached(self, name: str) -> NDArray[np.bool_]:
        """Which of the measured examples an attack has finished with."""
        return ~np.isnan(self.cells[name]["report_robust"])[self.measured]

    def names(
        self, *, counted: bool = True, knowledge: tuple[str, ...] | None = None, tier: Tier | None = None
    ) -> list[str]:
        """Attacks with at least one finished shard, by whether they count and what they know."""
        return [
            name
            for name, attack in self.attacks.items()
            if attack.counted == counted
            and self.cells[name].rows
            and (knowledge is None or attack.knowledge in knowledge)
            and tier in (None, attack.tier)
        ]


def worst_of(select: Array, report: Array, draws: int) -> tuple[Array, NDArray[np.int64]]:
    """Survival under the worst of the attacks and, in the last row, the clean input: see :meth:`DefenseResults.worst`.

    Args:
        select, report: ``(attacks + 1, N)`` shares of draws survived on the two streams.
        draws: of the selection stream.
    """
    order = by_strength(select)
    values, chosen = worst_case(select, report, order)
    if draws > 1 and strongest_is_worse(select, draws):
        values, _ = worst_case(select, report, [order[0], order[-1]])
    return values, chosen


def _seconds_between(started: str, ended: str) -> float:
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
