"""`bench verify`: judge stored adversarial inputs again, from nothing but the results and the defense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.data import Data, load_data
from bench.defense import Defense, DefenseSpec
from bench.digest import digest, state_digest
from bench.errors import InputError
from bench.judge import Draws, judge
from bench.plugins import load_defense
from bench.probe import ready
from bench.records import CLEAN, DefenseRecord, Row, ShardRecord, SuiteRecord
from bench.store import Store, read_record
from bench.target import Counts
from bench.threat import ThreatModel

#: The columns of a row that the judge decides.
JUDGED = ("prediction", "select_robust", "report_robust", "report_correct", "report_rejected", "reason")


@dataclass(frozen=True)
class Verdict:
    """One cell judged again: rows compared, rows that came out differently, and what kept it from being judged."""

    defense: str
    attack: str
    rows: int
    different: int
    problem: str = ""


def verify(results: Path, suite_name: str, names: tuple[str, ...], device: str, root: Path | None) -> Iterator[Verdict]:
    """Judge every stored shard of a suite again, on the same random streams.

    Args:
        names: only these defenses; all stored ones when empty.

    Raises:
        InputError: when the suite has no results, or its examples are not those of the data set found here.
    """
    store = Store(results, suite_name)
    suite = store.suite()
    if suite is None:
        raise InputError(f"no results of suite {suite_name!r} in {results}")
    data = load_data(suite.data, root)
    for path in store.defenses():
        record = read_record(path, DefenseRecord)
        if names and record.name not in names:
            continue
        try:
            loaded = load_defense(DefenseSpec(record.reference, record.params), data.info, torch.device(device))
            ready(loaded.defense)
        except InputError as error:
            yield Verdict(record.name, "–", 0, 0, str(error))
            continue
        same = digest(loaded.code, record.params, state_digest(loaded.defense)) == record.key
        note = "" if same else "code or weights of the defense have changed since"
        for attack in (CLEAN, *(entry.name for entry in suite.attacks)):
            verdict = _cell(store, suite, record, attack, loaded.defense, data, device)
            if verdict.rows or verdict.problem:
                yield replace(verdict, problem=verdict.problem or note)


def _cell(
    store: Store, suite: SuiteRecord, record: DefenseRecord, attack: str, defense: Defense, data: Data, device: str
) -> Verdict:
    split = getattr(data, suite.split)
    position = {example: i for i, example in enumerate(split.ids)}
    rows = different = 0
    for number in range(-(-len(suite.ids) // suite.shard_size)):
        shard = store.shard(record.name, attack, number)
        if shard is None or shard.status != "ok":
            continue
        try:
            where = [position[row.id] for row in shard.rows]
            x, y = split.x[where].to(device), split.y[where].to(device)
            x_adv = x if attack == CLEAN else store.x_adv(shard).to(device)
        except (KeyError, InputError) as error:
            return Verdict(record.name, attack, rows, different, f"shard {number}: {error}")
        again = _judge(suite, record, shard, defense, x, y, x_adv)
        rows += len(again)
        for old, new in zip(shard.rows, again, strict=True):
            different += any(getattr(old, column) != getattr(new, column) for column in JUDGED)
    return Verdict(record.name, attack, rows, different)


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
        ThreatModel(suite.norm, eps),  # type: ignore[arg-type]
        draws=Draws(shard.draws_select, shard.draws_report),
        threshold=record.probe.threshold,
        batch_size=shard.batch_size,
        stream=(suite.seed, record.name, shard.attack, shard.shard),
        clean=shard.attack == CLEAN,
    )
