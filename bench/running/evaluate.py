"""`bench evaluate`: plan the shards of every cell, run what is missing, measure time, pick the gallery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from bench.contracts.defense import DefenseSpec, count_parameters, freeze
from bench.contracts.errors import InputError, NewerSchemaError
from bench.contracts.inputs import check_inputs, check_labels
from bench.data.load import load_data
from bench.data.splits import data_digest
from bench.judging.probe import probe, ready
from bench.plugins.resolve import LoadedDefense, build_defense, load_defense
from bench.running.cell import (
    Setting,
    defense_key,
    empty_record,
    open_context,
    prepare,
    run_shard,
    select_examples,
)
from bench.running.describe import attack_record, suite_record
from bench.running.engine import Engine
from bench.running.gallery import make_gallery
from bench.running.graph import Job, Outcome
from bench.running.progress import Display, Tracker
from bench.running.timing import measure
from bench.storing import provenance
from bench.storing.current import Piece, cell_state
from bench.storing.digest import digest
from bench.storing.keys import Key
from bench.storing.records import (
    CLEAN,
    ClaimRecord,
    DefenseRecord,
)
from bench.storing.store import Store, check_writable
from bench.suites.attacks import ResolvedAttack, resolve_attacks
from bench.suites.config import Suite

T = TypeVar("T")
#: Inputs whose box is checked at a time.
_CHECKED = 1024


@dataclass(frozen=True)
class Request:
    """What ``bench evaluate`` was asked for."""

    suite: Suite
    defenses: Sequence[DefenseSpec]
    attacks: Sequence[str]  # empty: all
    results: Path
    device: str
    data_root: Path | None
    command: str


@dataclass(frozen=True)
class Cell:
    """What has to be run of one attack, and where its preparation is kept."""

    attack: ResolvedAttack | None
    pieces: list[tuple[Piece, Key]]
    leftover: list[int]  # stored shards that no piece replaces and that no longer count
    prepared: Path | None

    @property
    def name(self) -> str:
        return CLEAN if self.attack is None else self.attack.name


def _unless_broken(read: Callable[[], T | None]) -> T | None:
    """A stored record, or None where it cannot be read: it is then made again. A newer version's is not replaced."""
    try:
        return read()
    except NewerSchemaError:
        raise
    except InputError:
        return None


class Evaluation:
    """One run of ``bench evaluate``.

    Everything the user gave is checked in the constructor, before anything is written.
    """

    def __init__(self, request: Request, engine: Engine, display: Display) -> None:
        self.request, self.engine, self.display = request, engine, display
        check_writable(request.results)
        self.warnings: list[str] = []
        self.attacks = resolve_attacks(request.suite, request.attacks or None, self.warnings)
        self.data = load_data(request.suite.data, request.data_root)
        self.store = Store(request.results, request.suite.name)
        for split in (select_examples(request.suite, self.data), self.data.validation):
            for x, _ in split.batches(_CHECKED):
                check_inputs(x, self.data.info.input, f"inputs of {request.suite.data}")
            check_labels(split.y, self.data.info.num_classes, f"labels of {request.suite.data}")
        self.suite = suite_record(request.suite, self.data)
        self.device = torch.device(request.device)
        self.threat = request.suite.threat_for(self.data.info)
        _unless_broken(self.store.suite)
        self.skipped: list[str] = []
        self.opened = self._open_all()
        self.cells = [self.plan(setting, record) for setting, record in self.opened]

    # -- checking and recording -----------------------------------------------------------------------------

    def _load(self, spec: DefenseSpec) -> LoadedDefense:
        loaded = load_defense(spec, self.data.info, self.device, self.request.suite.training(self.data))
        ready(loaded.defense)
        return loaded

    def _open_all(self) -> list[tuple[Setting, DefenseRecord]]:
        """Every defense asked for; of several, those that cannot be evaluated are noted and skipped."""
        opened = []
        for spec in self.request.defenses:
            try:
                opened.append(self._open(spec))
            except InputError as error:
                if len(self.request.defenses) == 1:
                    raise
                self.skipped.append(f"{spec.name}: {error}")
        if not opened:
            raise InputError(self.skipped[0])
        return opened

    def _open(self, spec: DefenseSpec) -> tuple[Setting, DefenseRecord]:
        clock = provenance.start(self.request.command)
        suite, loaded = self.request.suite, self._load(spec)
        defense = loaded.defense
        found = probe(
            defense,
            self.data,
            self.threat,
            rate=suite.false_positive_rate,
            seed=suite.seed,
            batch_size=suite.batch_size,
        )
        key = defense_key(spec, loaded)
        card = defense.card
        before = _unless_broken(partial(self.store.defense, spec.name))
        record = DefenseRecord(
            **key.model_dump(),
            reference=provenance.shorten(spec.reference),
            title=card.title,
            summary=card.summary,
            paper=card.paper,
            url=card.url,
            family=card.family,
            tags=list(card.tags),
            claims=[ClaimRecord(**vars(claim)) for claim in card.claims],
            breaks=[ClaimRecord(**vars(claim)) for claim in card.breaks],
            num_parameters=count_parameters(defense),
            checkpoint_sha256=loaded.sha256,
            training=loaded.training,
            probe=found,
            timing=before.timing if before and before.key == key else None,
            provenance=provenance.finish(clock, self.device),
        )
        setting = Setting(
            suite=suite,
            spec=spec,
            device=self.request.device,
            results=self.request.results,
            data_root=self.request.data_root,
            defense=key,
            randomized=found.randomized,
            threshold=found.threshold,
            command=self.request.command,
        )
        return setting, record

    # -- planning -------------------------------------------------------------------------------------------

    def plan(self, setting: Setting, record: DefenseRecord) -> list[Cell]:
        """All cells of a defense; in each, what is not stored as it would be made now."""
        return [self._cell(setting, record, attack) for attack in (None, *self.attacks)]

    def _cell(self, setting: Setting, record: DefenseRecord, attack: ResolvedAttack | None) -> Cell:
        machine = {"torch": provenance.torch_release(), "device": self.device.type}
        about = None if attack is None else attack_record(attack)
        state = cell_state(self.store, self.suite, record, about, **machine)
        key = self.suite.cell_key(record, about, **machine)
        pieces = state.missing(len(self.suite.ids), self.request.suite.shard_size)
        replaced = {piece.number for piece in pieces}
        return Cell(
            attack,
            [(piece, key(piece.start, piece.stop)) for piece in pieces],
            [number for number in state.stale if number not in replaced],
            self._prepared(setting, attack, machine),
        )

    def _prepared(self, setting: Setting, attack: ResolvedAttack | None, machine: dict[str, str]) -> Path | None:
        """Where the attack's preparation is kept, if it needs one."""
        if attack is None or attack.spec.prepare is None or not attack.spec.prepares(**attack.params):
            return None
        of_data = attack.spec.prepare_scope == "data"
        made_for = data_digest(self.data.train) if of_data else setting.defense.model_dump(mode="json")
        about = attack_record(attack).key.model_dump(mode="json"), attack.norm, self.suite.seed, machine
        return self.store.artefact_path(digest("prepared", *about, made_for))

    # -- running --------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Run everything that is missing. Returns one line for every cell that is not complete afterwards."""
        self.store.write_suite(self.suite)
        failures = list(self.skipped)
        for (setting, record), cells in zip(self.opened, self.cells, strict=True):
            self.store.write_defense(record)
            failures += self._run_defense(setting, record, cells)
        return failures

    def _run_defense(self, setting: Setting, record: DefenseRecord, cells: list[Cell]) -> list[str]:
        name = setting.spec.name
        for cell in cells:
            for number in cell.leftover:
                self.store.remove_shard(name, cell.name, number)
        unprepared = self._prepare(setting, cells)
        # First shards first: the ETA is made of measured times.
        work = [(piece, key, cell) for cell in cells if cell.name not in unprepared for piece, key in cell.pieces]
        jobs: list[Job] = []
        owner: dict[str, tuple[Cell, Piece, Key]] = {}
        for piece, key, cell in sorted(work, key=lambda item: item[0].start):
            job = f"{cell.name}/{piece.number}"
            owner[job] = (cell, piece, key)
            args = (setting, cell.name, piece, key, cell.prepared)
            jobs.append(Job(job, run_shard, args, self.request.suite.shard_timeout_s))
        tracker = Tracker({job: cell.name for job, (cell, _, _) in owner.items()}, self.engine.workers)
        failures: dict[str, str] = dict(unprepared)
        with self.display.running(name, tracker.total):
            for outcome in self.engine.run(jobs):
                cell, piece, key = owner[outcome.job.name]
                tracker.finish(outcome.job.name, outcome.seconds, outcome.status != "ok")
                self.display.show(tracker, name)
                if outcome.status != "ok":
                    failures[cell.name] = self._record_failure(setting, cell, piece, key, outcome)
        self._finish(setting, record)
        return [f"{name} × {cell}: {reason}" for cell, reason in failures.items()]

    def _prepare(self, setting: Setting, cells: list[Cell]) -> dict[str, str]:
        """Run missing preparations; returns cell name -> reason for those that failed."""
        needed: dict[Path, list[Cell]] = {}
        for cell in cells:
            if cell.pieces and cell.prepared is not None and not cell.prepared.exists():
                needed.setdefault(cell.prepared, []).append(cell)
        jobs = [
            Job(f"prepare {group[0].name}", prepare, (setting, group[0].name, path))
            for path, group in needed.items()
        ]
        groups = {job.name: group for job, group in zip(jobs, needed.values(), strict=True)}
        tracker = Tracker({job.name: job.name for job in jobs}, self.engine.workers, "preparations")
        failed: dict[str, str] = {}
        with self.display.running(f"{setting.spec.name}: preparing attacks", len(jobs)):
            for outcome in self.engine.run(jobs):
                tracker.finish(outcome.job.name, outcome.seconds, outcome.status != "ok")
                self.display.show(tracker, f"{setting.spec.name}: preparing attacks")
                if outcome.status == "ok":
                    continue
                for cell in groups[outcome.job.name]:
                    for piece, key in cell.pieces:
                        failed[cell.name] = self._record_failure(setting, cell, piece, key, outcome)
        return failed

    def _record_failure(self, setting: Setting, cell: Cell, piece: Piece, key: Key, outcome: Outcome) -> str:
        record = empty_record(setting, piece, key, status=outcome.status, error=outcome.error)
        self.store.write_shard(record, None)
        return f"{outcome.status}: {outcome.error.strip().splitlines()[-1]}"

    def _finish(self, setting: Setting, record: DefenseRecord) -> None:
        """Measure time (alone on the machine, after the shards) and pick the gallery."""
        context = open_context(setting)
        timing = record.timing
        if timing is None:
            # Untrained: how long a network takes does not depend on its weights.
            reference = build_defense(DefenseSpec(self.request.suite.reference), self.data.info)
            timing = measure(
                context.defense,
                freeze(reference).to(self.device),
                context.examples.take(256).x.to(self.device),
                training_seconds=record.training.get("seconds"),
            )
        entries, images = make_gallery(self.store, self.suite, record, context)
        if images:
            self.store.write_tensors(self.store.defense_folder(record.name) / "gallery.safetensors", images)
        self.store.write_defense(record.model_copy(update={"timing": timing, "gallery": entries}))
