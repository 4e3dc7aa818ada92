"""`bench status`: what is stored, what of it is current, what is stale and why, and what a run would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.contracts.defense import DefenseSpec
from bench.contracts.errors import InputError
from bench.data.load import kept_in, load_data
from bench.isolation.opening import decide, open_defense
from bench.isolation.remote import RemoteDefense
from bench.plugins.registry import DEFENSES
from bench.running.cell import defense_key
from bench.running.costs import UNKNOWN, Costs, Expected
from bench.running.describe import attack_record, suite_record
from bench.running.plan import counted
from bench.running.progress import clock
from bench.storing import provenance
from bench.storing.current import cell_state
from bench.storing.headers import Headers
from bench.storing.reading import read_record
from bench.storing.records import CLEAN, AttackRecord, DefenseRecord
from bench.storing.store import Store
from bench.storing.submitted import submitted_spec
from bench.suites.attacks import resolve_attacks
from bench.suites.config import Suite, variants_of


@dataclass(frozen=True)
class CellStatus:
    """One attack against one defense.

    Attributes:
        settled: stored shards that need not be run again; stale: number of each other one and why.
        examples: not covered by a settled shard; shards: that a run would make of them.
        expected: how long these would take one worker.
    """

    attack: str
    settled: int
    stale: dict[int, list[str]]
    examples: int
    shards: int
    expected: Expected


@dataclass(frozen=True)
class DefenseStatus:
    """One stored defense; ``problem`` says why it could not be compared with what it would be now."""

    name: str
    cells: list[CellStatus] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # stored cells of attacks that the suite does not have (any more)
    problem: str = ""

    @property
    def current(self) -> bool:
        """Whether nothing of it is left to be run."""
        return not self.problem and not any(cell.examples for cell in self.cells)

    def reasons(self) -> dict[str, list[str]]:
        """Why shards are stale, each reason with the attacks that it concerns (and how many of their shards)."""
        found: dict[str, Counter[str]] = {}
        for cell in self.cells:
            for why in cell.stale.values():
                found.setdefault("; ".join(why), Counter())[cell.attack] += 1
        return {why: [f"{attack} ({n})" for attack, n in attacks.items()] for why, attacks in found.items()}


@dataclass(frozen=True)
class SuiteStatus:
    """A suite's stored results; ``problem`` says why they could not be compared with anything."""

    name: str
    examples: int = 0
    defenses: list[DefenseStatus] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # defenses of the suite of which nothing is stored
    problem: str = ""

    @property
    def cells(self) -> list[CellStatus]:
        return [cell for defense in self.defenses for cell in defense.cells]

    @property
    def shards(self) -> int:
        """How many shards a run of the stored defenses would make."""
        return sum(cell.shards for cell in self.cells)

    @property
    def seconds(self) -> float | None:
        """What these would take one worker, as far as earlier runs tell; None where nothing does."""
        known = [cell.expected.seconds for cell in self.cells if cell.shards and cell.expected.seconds]
        return sum(known) if known else None

    @property
    def unknown_shards(self) -> int:
        """How many of them no earlier run tells the time of."""
        return sum(cell.shards for cell in self.cells if not cell.expected.seconds)


def suite_status(
    suite: Suite,
    results: Path,
    *,
    device: str = "cpu",
    root: Path | None = None,
    checkpoints: Path | None = None,
    isolation: str = "none",
) -> SuiteStatus:
    """Compare what is stored of a suite with what would be made now; nothing is written, run or probed.

    Args:
        suite: from the configuration.
        results: the results folder; device: on which a run would be; root: where downloaded data sets are kept.
        checkpoints: folder of the defenses' checkpoints.
        isolation: at which defenses are built, see :func:`bench.isolation.opening.decide`.
    """
    try:
        data = load_data(suite.data, root)
        record = suite_record(suite, data)
    except InputError as error:
        return SuiteStatus(suite.name, problem=str(error))
    store = Store(results, suite.name)
    costs, headers = Costs(store), Headers(store, record)
    attacks = [attack_record(entry) for entry in resolve_attacks(suite, problems=[])]
    found = []
    for path in store.defenses():
        try:
            stored = read_record(path, DefenseRecord)
            spec = submitted_spec(store, stored) or DefenseSpec(stored.reference, stored.params, checkpoints)
            apart = decide(spec, isolation, [results, *kept_in(suite.data, root)])
            loaded = open_defense(spec, data.info, "cpu", suite.training(data), isolation=apart)
            key = defense_key(spec, loaded)
            if isinstance(loaded.defense, RemoteDefense):
                loaded.defense.close()
        except InputError as error:
            found.append(DefenseStatus(path.parent.name, problem=str(error)))
            continue
        now = stored.model_copy(update=key.model_dump())
        found.append(_defense_status(headers, suite, now, attacks, device, costs))
    expected = [spec.name for spec in variants_of(suite)] or DEFENSES.names()
    absent = [name for name in expected if name not in {defense.name for defense in found}]
    return SuiteStatus(suite.name, len(record.ids), found, absent)


def _defense_status(
    headers: Headers,
    suite: Suite,
    defense: DefenseRecord,
    attacks: list[AttackRecord],
    device: str,
    costs: Costs,
) -> DefenseStatus:
    cells, store, record = [], headers.store, headers.suite
    per_1000 = None if defense.timing is None else defense.timing.seconds_per_1000
    machine = {"torch": provenance.torch_release(), "device": device}
    for attack in (None, *(attack for attack in attacks if attack.applies_to(defense.probe.has_detector))):
        name = CLEAN if attack is None else attack.name
        state = cell_state(headers, defense, attack, **machine)
        pieces = state.missing(record.examples_run(attack, defense.reference), suite.shard_size)
        missing = sum(piece.stop - piece.start for piece in pieces)
        # Stored times are read only where there is something to run.
        expected = costs.shard(defense.name, name, missing, per_1000) if pieces else UNKNOWN
        cells.append(CellStatus(name, len(state.settled), state.stale, missing, len(pieces), expected))
    known = {cell.attack for cell in cells}
    folders = (path for path in store.defense_folder(defense.name).iterdir() if path.is_dir())
    # Names that no attack can have: what was submitted, found or certified (bench.storing).
    unknown = sorted(path.name for path in folders if path.name not in known and not path.name.startswith("@"))
    return DefenseStatus(defense.name, cells, unknown)


def as_document(status: SuiteStatus) -> dict[str, Any]:
    """The status as an object for JSON: as :class:`SuiteStatus`, with what follows from its cells."""
    defenses = [
        {"name": one.name, "current": one.current, "problem": one.problem, "reasons": one.reasons(),
         "not_in_the_suite": one.unknown, "cells": [_cell_document(cell) for cell in one.cells]}
        for one in status.defenses
    ]  # fmt: skip
    return {"name": status.name, "examples": status.examples, "problem": status.problem, "defenses": defenses,
            "absent": status.absent, "shards_to_run": status.shards, "expected_seconds": status.seconds}  # fmt: skip


def _cell_document(cell: CellStatus) -> dict[str, Any]:
    return {"attack": cell.attack, "current_shards": cell.settled, "stale_shards": len(cell.stale),
            "missing_examples": cell.examples, "shards_to_run": cell.shards,
            "expected_seconds": cell.expected.seconds or None}  # fmt: skip


def describe(status: SuiteStatus, why: bool = False) -> Iterator[str]:
    """The status as lines of text.

    Args:
        why: name each reason for which shards are stale, with the cells that it concerns.
    """
    if status.problem:
        yield f"{status.name}: cannot be compared: {status.problem}"
        return
    settled = sum(cell.settled for cell in status.cells)
    stale = sum(len(cell.stale) for cell in status.cells)
    current = sum(defense.current for defense in status.defenses)
    yield (
        f"{status.name}: {counted(len(status.defenses), 'defense')} stored on {status.examples} examples, {current} "
        f"complete and current; {counted(settled, 'shard')} current, {stale} stale"
    )
    for defense in status.defenses:
        yield from _describe_defense(defense, why)
    if status.absent and status.defenses:
        rest = f": {', '.join(status.absent)}" if why else ""
        yield f"  nothing is stored of {counted(len(status.absent), 'other defense')}{rest}"
    yield f"  bench evaluate on these defenses would run {_run(status)}"


def _describe_defense(defense: DefenseStatus, why: bool) -> Iterator[str]:
    if defense.problem:
        yield f"  {defense.name}: cannot be compared: {defense.problem}"
    elif not defense.current:
        stale = sum(len(cell.stale) for cell in defense.cells)
        missing = [cell.attack for cell in defense.cells if cell.examples and not cell.stale]
        parts = [f"{counted(stale, 'shard')} stale"] * bool(stale) + [f"not run: {', '.join(missing)}"] * bool(missing)
        yield f"  {defense.name}: {'; '.join(parts)}"
    for reason, cells in defense.reasons().items() if why else ():
        yield f"    {reason}: {', '.join(cells)}"
    if defense.unknown:
        yield f"  {defense.name}: stored, but not in the suite: {', '.join(defense.unknown)}"


def _run(status: SuiteStatus) -> str:
    if not status.shards:
        return "nothing"
    seconds = status.seconds
    if seconds is None:
        return f"{counted(status.shards, 'shard')}; no earlier run tells how long that takes"
    rest = f", and {status.unknown_shards} more of unknown length" if status.unknown_shards else ""
    return f"{counted(status.shards, 'shard')}: about {clock(seconds)} of one worker's time{rest}"
