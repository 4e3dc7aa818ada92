"""`bench verify`: judge stored adversarial inputs again, from nothing but the results and the defense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.target import Counts
from bench.contracts.threat import Lp
from bench.data.sets import Data, load_data
from bench.judging.judge import Draws, judge
from bench.judging.probe import ready
from bench.plugins.resolve import load_defense
from bench.running.cell import defense_key
from bench.storing.records import CLEAN, DefenseRecord, ShardRecord, SuiteRecord
from bench.storing.row import Row
from bench.storing.store import Store, read_record, shard_count

#: The columns of a row that the judge decides.
JUDGED = ("prediction", "select_robust", "report_robust", "report_correct", "report_rejected", "reason")


@dataclass(frozen=True)
class Places:
    """Where things are on this machine, where that is not what was recorded.

    Attributes:
        data: reference of the data set; root: where downloaded data sets are kept.
        checkpoints: folder of the defenses' checkpoints.
    """

    data: str | None = None
    root: Path | None = None
    checkpoints: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """One cell judged again.

    Attributes:
        rows: compared, those whose input is stored; different: of these, how many came out differently.
        problem: what kept it from being judged again as a whole.
        note: what may explain a difference.
    """

    defense: str
    attack: str
    rows: int
    different: int
    problem: str = ""
    note: str = ""

    @property
    def confirmed(self) -> bool:
        """Whether every stored row could be judged again and came out the same."""
        return not self.different and not self.problem


def verify(
    results: Path,
    suite_name: str,
    names: tuple[str, ...],
    device: str,
    places: Places,
) -> Iterator[Verdict]:
    """Judge every stored shard of a suite again, on the same random streams.

    Args:
        names: only these defenses; all stored ones when empty.
        places: where data and weights are on this machine.

    Raises:
        InputError: when the suite has no results, or its examples are not those of the data set found here.
    """
    store = Store(results, suite_name)
    suite = store.suite()
    if suite is None:
        raise InputError(f"no results of suite {suite_name!r} in {results}")
    data = load_data(places.data or suite.data, places.root)
    for path in store.defenses():
        record = read_record(path, DefenseRecord)
        if names and record.name not in names:
            continue
        try:
            spec = DefenseSpec(record.reference, record.params, places.checkpoints)
            loaded = load_defense(spec, data.info, torch.device(device))
            ready(loaded.defense)
        except InputError as error:
            yield Verdict(record.name, "–", 0, 0, str(error))
            continue
        same = defense_key(spec, loaded) == record.key
        note = "" if same else "code or weights of the defense have changed since"
        for attack in (CLEAN, *(entry.name for entry in suite.attacks)):
            verdict = _cell(store, suite, record, attack, loaded.defense, data, device)
            if verdict.rows or verdict.problem:
                yield replace(verdict, note=note)


def _cell(
    store: Store, suite: SuiteRecord, record: DefenseRecord, attack: str, defense: Defense, data: Data, device: str
) -> Verdict:
    split = getattr(data, suite.split)
    position = {example: i for i, example in enumerate(split.ids)}
    rows = different = 0
    for number in range(shard_count(len(suite.ids), suite.shard_size)):
        shard = store.shard(record.name, attack, number)
        if shard is None or shard.status != "ok":
            continue
        if shard.suite_key != suite.key or shard.defense_key != record.key:
            return Verdict(record.name, attack, rows, different, f"shard {number} is of another suite or defense")
        try:
            where = [position[row.id] for row in shard.rows]
            x, y = split.x[where].to(device), split.y[where].to(device)
            x_adv, kept = _stored(store, shard, x)
        except (KeyError, InputError) as error:
            return Verdict(record.name, attack, rows, different, f"shard {number}: {error}")
        if not kept:
            continue
        again = _judge(suite, record, shard, defense, x, y, x_adv)
        rows += len(kept)
        for old, new in ((shard.rows[row], again[row]) for row in kept):
            different += any(getattr(old, column) != getattr(new, column) for column in JUDGED)
    return Verdict(record.name, attack, rows, different)


def _stored(store: Store, shard: ShardRecord, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """The inputs of a shard and the rows that are to be compared: where none is stored any more it is the clean one.

    (The judge asks a randomised defense about whole batches, so that every row needs some input.)
    """
    if shard.attack == CLEAN:
        return x, list(range(len(shard.rows)))
    stored = list(shard.stored)
    x_adv = x.clone()
    if stored:
        x_adv[stored] = store.x_adv(shard).to(x.device)
    return x_adv, stored


def _judge(
    suite: SuiteRecord,
    record: DefenseRecord,
    shard: ShardRecord,
    defense: Defense,
    x: torch.Tensor,
    y: torch.Tensor,
    x_adv: torch.Tensor,
) -> list[Row]:
    eps = next((entry.eps for entry in suite.attacks if entry.name == shard.attack), suite.eps)
    none = torch.zeros(len(x), dtype=torch.int64)
    return judge(
        defense,
        x,
        y,
        [row.id for row in shard.rows],
        x_adv,
        Counts(none, none, none, none),
        Lp(suite.norm, eps, defense.data.input.low, defense.data.input.high),  # type: ignore[arg-type]
        draws=Draws(shard.draws_select, shard.draws_report),
        threshold=record.probe.threshold,
        batch_size=shard.batch_size,
        stream=(suite.seed, record.name, shard.attack, shard.shard),
        clean=shard.attack == CLEAN,
    )
