"""What is to be run: the cells of all defenses asked for, and one graph of jobs over all of them."""

from __future__ import annotations

import functools
import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from bench.data.splits import Data, data_digest
from bench.engines.graph import Job
from bench.engines.supply import Supply
from bench.running.afterwards import finish, found_by_attacks
from bench.running.cell import Setting, prepare, run_shard
from bench.running.costs import Basis, Costs, Expected
from bench.running.describe import attack_record
from bench.running.gallery import choose
from bench.running.progress import Tracker, clock
from bench.running.timing import timing_of
from bench.storing import provenance
from bench.storing.current import Piece, cell_state, shard_count
from bench.storing.digest import digest
from bench.storing.headers import Headers
from bench.storing.keys import Key
from bench.storing.records import CLEAN, AttackRecord, DefenseRecord, SuiteRecord
from bench.storing.store import Store
from bench.suites.attacks import ResolvedAttack

#: Expected seconds of a gallery: few beside the attacks, so a guess will do; of a timing where nothing is known.
_GALLERY_SECONDS, _TIMING_SECONDS = 0.2, 2.0


@dataclass(frozen=True)
class Opened:
    """A defense that was loaded and probed.

    Attributes:
        record: what will be stored of it; without a gallery, and without its timing where that is still to be made.
        per_1000: seconds of inference of 1000 examples, measured with care or once; None where unknown.
        timing_seconds: what measuring that with care will take.
    """

    setting: Setting
    record: DefenseRecord
    per_1000: float | None = None
    timing_seconds: float = _TIMING_SECONDS

    @property
    def name(self) -> str:
        return self.record.name


@dataclass(frozen=True)
class Cell:
    """One attack against one defense: what has to be run of it.

    Attributes:
        attack: None for the unattacked input.
        whole: the key of what it would be made of now, but for the examples of each shard.
        pieces: the shards to run.
        leftover: numbers of stored shards that no piece replaces and that no longer count.
        examples: how many of the suite's it is run on, from the first on.
        prepared: where the attack's preparation is kept, if it needs one.
    """

    opened: Opened
    attack: ResolvedAttack | None
    whole: Key
    pieces: Sequence[Piece]
    leftover: list[int]
    prepared: Path | None
    examples: int

    @property
    def name(self) -> str:
        return CLEAN if self.attack is None else self.attack.name

    @cached_property
    def title(self) -> str:
        return f"{self.opened.name} × {self.name}"


@dataclass
class Plan:
    """The cells and the jobs of one run of ``bench evaluate``.

    Attributes:
        jobs: preparations, shards in the order of their examples, galleries, and measurements of time.
        shards: by the name of its job, what each shard is.
        preparations: by the name of its job, the cells that wait for each preparation.
        galleries, timings: by the name of their jobs, the defenses that these finish.
        expected: of shards and preparations, by the name of their jobs.
    """

    cells: list[Cell]
    examples: int
    shard_size: int
    jobs: list[Job] = field(default_factory=list)
    shards: dict[str, tuple[Cell, Piece]] = field(default_factory=dict)
    preparations: dict[str, list[Cell]] = field(default_factory=dict)
    galleries: dict[str, Opened] = field(default_factory=dict)
    timings: dict[str, Opened] = field(default_factory=dict)
    expected: dict[str, Expected] = field(default_factory=dict)

    def describe(self, workers: int) -> Iterator[str]:
        """The plan in lines of text: every cell, every preparation, how many jobs, and the expected time."""
        work, known = Counter[str](), Counter[str]()
        for name, (cell, _) in self.shards.items():
            work[cell.title] += self.expected[name].seconds  # type: ignore[assignment]
            known[cell.title] += self.expected[name].seconds > 0
        width = max((len(cell.title) for cell in self.cells), default=0)
        for cell in self.cells:
            todo, whole = len(cell.pieces), shard_count(cell.examples, self.shard_size)
            line = f"{cell.title:<{width}}  {todo} of {max(whole, todo)} shards to run"
            if known[cell.title]:
                line += f", {clock(work[cell.title])}"
            line = line if todo else f"{cell.title:<{width}}  complete"
            yield line if cell.examples == self.examples else f"{line} (its first {cell.examples} examples)"
        for name, cells in self.preparations.items():
            took = self.expected[name].seconds
            line = f"{name}, shared by {len(cells)} cells" if len(cells) > 1 else name
            yield f"{line}, {clock(took)}" if took else line
        counts = [
            (len(self.shards), "shard"),
            (len(self.preparations), "preparation"),
            (len(self.galleries), "galler"),
            (len(self.timings), "timing"),
        ]
        yield f"{len(self.jobs)} jobs: " + ", ".join(counted(number, what) for number, what in counts)
        yield self.expectation(workers)

    def expectation(self, workers: int) -> str:
        """How long it will take, and on what that rests, in a line."""
        tracker = Tracker(self.jobs, workers)
        left = tracker.estimate
        if not self.expected:
            return "expected time: nothing is left to attack"
        if left is None or not any(one.seconds for one in self.expected.values()):
            return "expected time: unknown, since no earlier run of these attacks is stored here"
        basis: Counter[Basis] = Counter(one.basis for one in self.expected.values())
        parts = [f"{basis[what]} from earlier runs of {what}" for what in ("the same cell", "other defenses")]
        parts += [f"{basis['nothing']} unknown, taken as the mean of the others"] if basis["nothing"] else []
        by = "1 worker" if workers == 1 else f"{workers} workers"
        return f"expected time: {tracker.eta()} with {by} (shards and preparations: {', '.join(parts)})"


def counted(number: int, what: str) -> str:
    """A number with its noun: ``1 shard``, ``3 shards``."""
    if what.endswith("r"):
        return f"{number} {what}{'y' if number == 1 else 'ies'}"
    return f"{number} {what}{'' if number == 1 else 's'}"


def make_plan(
    store: Store,
    suite: SuiteRecord,
    data: Data,
    opened: Sequence[Opened],
    attacks: Sequence[ResolvedAttack],
    finish: bool = True,
    headers: Headers | None = None,
) -> Plan:
    """Compare what is stored with what would be made now, and put what is missing into one graph of jobs.

    A preparation that depends on the data alone is one job, whichever attacks and defenses wait for it. Each defense
    gets its gallery as soon as its own shards have ended. Its time is measured last, with nothing beside it.

    Args:
        finish: whether there are galleries and measurements of time.
        headers: of this store and suite; they are told what had to be read.

    Raises:
        NewerSchemaError: when a stored file is of a newer schema: it is not to be replaced.
    """
    entries = [(attack, None if attack is None else attack_record(attack)) for attack in (None, *attacks)]
    headers = headers or Headers(store, suite)
    with _no_collection():
        cells = [
            _cell(headers, data, one, attack, record)
            for one in opened
            for attack, record in entries
            if record is None or record.applies_to(one.record.probe.has_detector)
        ]
        plan = Plan(cells, len(suite.ids), suite.shard_size)
        costs = Costs(store)
        waits = _add_preparations(plan, costs)
        _add_shards(plan, suite, costs, waits)
        if finish:
            _add_finishing(plan, store, suite)
    return plan


@contextmanager
def _no_collection() -> Iterator[None]:
    """A plan is made of very many objects that all stay: to look for garbage among them would double its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cell(
    headers: Headers, data: Data, opened: Opened, attack: ResolvedAttack | None, record: AttackRecord | None
) -> Cell:
    store, suite = headers.store, headers.suite
    machine = {"torch": provenance.torch_release(), "device": opened.setting.torch_device.type}
    state = cell_state(headers, opened.record, record, **machine)
    key = suite.whole_key(opened.record, record, **machine)
    examples = suite.examples_run(record, opened.record.reference)
    pieces = state.missing(examples, suite.shard_size)
    replaced = {piece.number for piece in pieces}
    prepared = None
    if attack is not None and attack.tier == "transfer":
        of = opened.setting.defense.model_dump(mode="json")
        prepared = store.artefact_path(digest("copy", of, suite.seed, suite.false_positive_rate, machine))
    elif attack is not None and record is not None and _prepares(attack):
        made_for = data_digest(data.train) if _of_data(attack) else opened.setting.defense.model_dump(mode="json")
        about = record.key(detector=False).model_dump(mode="json"), attack.norm, suite.seed, machine
        prepared = store.artefact_path(digest("prepared", *about, made_for))
    return Cell(
        opened,
        attack,
        key,
        pieces,
        [number for number in state.stale if number not in replaced],
        prepared,
        examples,
    )


def _prepares(attack: ResolvedAttack) -> bool:
    return attack.spec.prepare is not None and attack.spec.prepares(**attack.params)


def _of_data(attack: ResolvedAttack) -> bool:
    """Whether the attack's preparation depends on the data alone."""
    return attack.spec.prepare_scope == "data"


def _add_preparations(plan: Plan, costs: Costs) -> dict[Path, str]:
    """Add the missing preparations; returns the names of their jobs by the paths that they write."""
    waiting: dict[Path, list[Cell]] = {}
    for cell in plan.cells:
        if cell.pieces and cell.prepared is not None:
            waiting.setdefault(cell.prepared, []).append(cell)
    waits = {}
    for path, cells in waiting.items():
        if path.exists():
            continue
        first, attack = cells[0], cells[0].attack
        assert attack is not None
        of_data = _of_data(attack) and attack.tier != "transfer"
        what = "a copy" if attack.tier == "transfer" else first.name
        name = f"prepare {what}" if of_data else f"prepare {what} for {first.opened.name}"
        expected = costs.preparation(first.opened.name, first.name)
        setting, loads = first.opened.setting, "" if of_data else first.opened.name
        needs = (setting.data,) if of_data else (setting.data, setting.weights)
        args = setting, first.name, path.with_suffix(".unfinished")
        how: dict[str, Any] = {"cost": expected.seconds, "sure": expected.sure, "kind": name, "loads": loads}
        plan.jobs.append(Job(name, prepare, args, **how, supplies=needs))
        plan.preparations[name], plan.expected[name] = cells, expected
        waits[path] = name
    return waits


def _add_shards(plan: Plan, suite: SuiteRecord, costs: Costs, waits: dict[Path, str]) -> None:
    """Add the shards, first shards first: where costs are unknown, every attack is soon measured."""
    data_key = functools.cache(suite.data_key)  # every cell has the same shards
    work = [(cell, piece) for cell in plan.cells for piece in cell.pieces]
    common = {id(cell): _in_common(cell, waits) for cell in plan.cells if cell.pieces}
    for cell, piece in sorted(work, key=lambda item: item[1].start):
        setting, name = cell.opened.setting, f"{cell.title}/{piece.number}"
        expected = costs.shard(cell.opened.name, cell.name, piece.stop - piece.start, cell.opened.per_1000)
        prepared, after, supplies = common[id(cell)]
        plan.jobs.append(
            Job(
                name,
                run_shard,
                (setting, cell.name, piece, cell.whole, data_key(piece.start, piece.stop), prepared),
                setting.suite.shard_timeout_s,
                after,
                expected.seconds,
                expected.sure,
                kind=cell.title,
                loads=cell.opened.name,
                supplies=supplies,
            )
        )
        plan.shards[name], plan.expected[name] = (cell, piece), expected


def _in_common(
    cell: Cell, waits: dict[Path, str]
) -> tuple[Supply[bytes] | None, tuple[str, ...], tuple[Supply[Any], ...]]:
    """What all shards of a cell share: the preparation, the job that makes it, and all that they take from here."""
    setting, prepared = cell.opened.setting, None
    if cell.prepared is not None:
        prepared = Supply(str(cell.prepared), cell.prepared.read_bytes)
    supplies: tuple[Supply[Any], ...] = (setting.data, setting.weights)
    if prepared is not None:
        supplies = (*supplies, prepared)
    return prepared, () if cell.prepared not in waits else (waits[cell.prepared],), supplies


def _add_finishing(plan: Plan, store: Store, suite: SuiteRecord) -> None:
    shards: dict[str, list[str]] = {cell.opened.name: [] for cell in plan.cells}
    for name, (cell, _) in plan.shards.items():
        shards[cell.opened.name].append(name)
    opened = {cell.opened.name: cell.opened for cell in plan.cells}
    for defense, one in opened.items():
        name = f"gallery of {defense}"
        plan.galleries[name] = one
        chosen = Supply(f"examples shown of {defense}", partial(choose, store.root, suite, one.record))
        found = None
        if shards[defense] or one.record.afterwards is None:
            found = Supply(f"inputs found for {defense}", partial(found_by_attacks, store.root, suite, one.record))
        plan.jobs.append(
            Job(
                name,
                finish,
                (one.setting, chosen, found),
                after=tuple(shards[defense]),
                cost=_GALLERY_SECONDS,
                kind="gallery",
                loads=defense,
                anyway=True,
                supplies=(one.setting.data, one.setting.weights, chosen, *([found] if found else [])),
            )
        )
    for defense, one in opened.items():
        if one.record.timing is None:
            name = f"timing of {defense}"
            plan.timings[name] = one
            needs = one.setting.data, one.setting.weights
            plan.jobs.append(
                Job(
                    name,
                    timing_of,
                    (one.setting,),
                    cost=one.timing_seconds,
                    kind="timing",
                    loads=defense,
                    alone=True,
                    supplies=needs,
                )
            )
