"""`bench evaluate`: open the defenses, plan what is missing of all of them, run it, and store what comes of it."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from bench.contracts.defense import Defense, DefenseSpec, freeze, ready
from bench.contracts.errors import InputError, NewerSchemaError
from bench.contracts.inputs import check_inputs, check_labels
from bench.contracts.reporting import Report, listening
from bench.data.load import kept_in, load_data
from bench.engines.engine import Engine
from bench.engines.graph import Job, Outcome
from bench.isolation.opening import Isolation, decide, open_defense
from bench.judging.probe import probe
from bench.plugins.resolve import LoadedDefense, build_defense
from bench.running.cell import Setting, defense_key, empty_record, free_memory, opens, select_examples
from bench.running.describe import suite_record
from bench.running.plan import Cell, Opened, Plan, make_plan
from bench.running.progress import Display, Tracker
from bench.running.timing import roughly_per_1000, seconds_to_measure
from bench.storing import provenance
from bench.storing.current import Piece
from bench.storing.headers import Headers
from bench.storing.lock import writing
from bench.storing.patience import Patience
from bench.storing.records import ClaimRecord, DefenseRecord, Probe
from bench.storing.store import Store, check_writable, write_atomically
from bench.suites.attacks import resolve_attacks
from bench.suites.config import Suite
from bench.suites.fitting import check_fit

T = TypeVar("T")
#: Where a probe could not look, but attacks did.
ATTACKED_PLACE = "inputs that attacks found"
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
    isolation: str = "none"  # what was asked for, see bench.isolation.opening.decide
    finish: bool = True  # choose examples to show, and measure time, once the shards are done


def _unless_broken(read: Callable[[], T | None]) -> T | None:
    """A stored record, or None where it cannot be read: it is then made again. A newer version's is not replaced."""
    try:
        return read()
    except NewerSchemaError:
        raise
    except InputError:
        return None


def _with_hidden_randomness(found: Probe) -> Probe:
    """What a probe found, and that the defense is randomised at adversarial inputs of the attacks."""
    places = found.random_at or []
    return found.model_copy(update={"randomized": True, "random_at": [*places, *({ATTACKED_PLACE} - set(places))]})


def _last_line(outcome: Outcome) -> str:
    return outcome.error.strip().splitlines()[-1]


def _run_here(jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Run jobs that wait for nothing in this process."""
    for job in jobs:
        try:
            yield Outcome(job, "ok", job.function(*job.args), "", 0.0)
        except Exception:  # whatever a defense raises
            yield Outcome(job, "failed", None, traceback.format_exc(), 0.0)


class Evaluation:
    """One run of ``bench evaluate``.

    Everything the user gave is checked in the constructor, and the plan is made, before anything is written.
    """

    def __init__(self, request: Request, engine: Engine, display: Display) -> None:
        self.request, self.engine, self.display = request, engine, display
        check_writable(request.results)
        self.warnings: list[str] = []
        attacks = resolve_attacks(request.suite, request.attacks or None, self.warnings)
        self.data = load_data(request.suite.data, request.data_root)
        self.notes = check_fit(request.suite, self.data)
        self.device = torch.device(request.device)
        self._reference: Defense | None = None
        if request.finish:  # fails now rather than after the attacks
            reference = build_defense(DefenseSpec(request.suite.reference), self.data.info)
            self._reference = freeze(reference).to(self.device)
        self.store = Store(request.results, request.suite.name)
        self._write = Patience(request.results)
        for split in (select_examples(request.suite, self.data), self.data.validation):
            for x, _ in split.batches(_CHECKED):
                check_inputs(x, self.data.info.input, f"inputs of {request.suite.data}")
            check_labels(split.y, self.data.info.num_classes, f"labels of {request.suite.data}")
        self.suite = suite_record(request.suite, self.data)
        self._headers = Headers(self.store, self.suite)
        self.threat = request.suite.threat_for(self.data.info)
        _unless_broken(self.store.suite)
        self.skipped: list[str] = []
        self._records: dict[str, DefenseRecord] = {}
        self._attacks, self._opened = attacks, self._open_all()
        self.plan = self._plan()

    def _plan(self) -> Plan:
        what = self.store, self.suite, self.data, self._opened, self._attacks
        return make_plan(*what, self.request.finish, self._headers)

    @property
    def records(self) -> list[DefenseRecord]:
        """Every defense that was opened, as it was found to be."""
        return [one.record for one in self._opened]

    # -- checking -------------------------------------------------------------------------------------------

    def _load(self, spec: DefenseSpec, isolation: Isolation) -> LoadedDefense:
        training = self.request.suite.training(self.data)
        loaded = open_defense(spec, self.data.info, self.device, training, isolation=isolation)
        ready(loaded.defense)
        return loaded

    def _open_all(self) -> list[Opened]:
        """Every defense asked for; of several, those that cannot be evaluated are noted and skipped."""
        opened: dict[str, Opened] = {}
        for spec in self.request.defenses:
            if spec.name in opened:
                if opened[spec.name].setting.spec != spec:
                    self.skipped.append(f"{spec.name}: another defense of that name is evaluated")
                continue
            try:
                opened[spec.name] = self._open(spec)
            except InputError as error:
                if len(self.request.defenses) == 1:
                    raise
                self.skipped.append(f"{spec.name}: {error}")
        if not opened:
            raise InputError(self.skipped[0])
        return list(opened.values())

    def _open(self, spec: DefenseSpec) -> Opened:
        clock = provenance.start(self.request.command)
        suite = self.request.suite
        hidden = self.request.results, *kept_in(suite.data, self.request.data_root)
        isolation = decide(spec, self.request.isolation, hidden)
        loaded = self._load(spec, isolation)
        defense = loaded.defense
        found = probe(
            defense,
            self.data,
            self.threat,
            rate=suite.false_positive_rate,
            seed=suite.seed,
            batch_size=suite.batch_size,
            attacked=select_examples(suite, self.data),
        )
        free_memory()
        key = defense_key(spec, loaded)
        card = defense.card
        before = _unless_broken(partial(self.store.defense, spec.name))
        if before and before.key == key and before.afterwards and before.afterwards.random:
            found = _with_hidden_randomness(found)
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
            num_parameters=loaded.num_parameters,
            checkpoint_sha256=loaded.sha256,
            training=loaded.training,
            probe=found,
            timing=before.timing if before and before.key == key else None,
            afterwards=before.afterwards if before and before.key == key else None,
            provenance=provenance.finish(clock, self.device),
        )
        setting = Setting(
            suite=suite,
            spec=spec,
            device=self.request.device,
            data_root=self.request.data_root,
            defense=key,
            randomized=found.randomized,
            threshold=found.threshold,
            command=self.request.command,
            isolation=isolation,
        )
        if before and before.timing:
            return Opened(setting, record, before.timing.seconds_per_1000)
        per_1000 = roughly_per_1000(defense, self.data.samples, self.device)
        if self._reference is None:
            return Opened(setting, record, per_1000)
        reference = roughly_per_1000(self._reference, self.data.samples, self.device)
        return Opened(setting, record, per_1000, seconds_to_measure(per_1000, reference))

    def _confirm(self) -> None:
        """Let workers build again what they would attack: nothing is stored of a model that differs there.

        Weights from a checkpoint need no such check.
        """
        waiting = {cell.opened.name: cell.opened.setting for cell in self.plan.cells if cell.pieces}
        unsure = {one.name for one in self._opened if one.record.checkpoint_sha256 is None} & waiting.keys()
        jobs = [Job(f"open {name}", opens, (waiting[name],), loads=name) for name in sorted(unsure)]
        refused = {}
        for outcome in self.engine.run(jobs) if jobs else ():
            if outcome.status != "ok":
                reason = re.sub(r"^[\w.]*Error: |^[\w.]*DiffersHere: ", "", _last_line(outcome))
                refused[outcome.job.loads] = (
                    f"{reason}; load the weights from a file, or fix the seed they are drawn from"
                )
        if not refused:
            return
        self._opened = [one for one in self._opened if one.name not in refused]
        if not self._opened:
            raise InputError(next(iter(refused.values())))
        self.skipped += refused.values()
        self.plan = self._plan()

    # -- running --------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Run everything that is missing. Returns one line for everything that is not complete afterwards.

        Raises:
            InputError: before anything is written, when workers refuse the only defense, or when another process writes
                these results, or they cannot be written.
        """
        self._confirm()
        with writing(self.store.folder, self.request.command):
            self._look_again()
            self._headers.write()
            failures = self._run()
            failures = self._run() if self._judge_over_draws() else failures
            self._note_headers()
            return failures

    def _look_again(self) -> None:
        """Plan again now that nobody else writes: what another run has stored since is not run twice."""
        opened = []
        for one in self._opened:
            stored = _unless_broken(partial(self.store.defense, one.name))
            if stored and stored.key == one.record.key:
                found = {"timing": stored.timing, "afterwards": stored.afterwards}
                one = replace(one, record=one.record.model_copy(update=found))
            opened.append(one)
        self._opened = opened
        self.plan = self._plan()

    def _note_headers(self) -> None:
        """Look at what this run has stored, so that the next one need not."""
        for cell in self.plan.cells:
            if cell.pieces:
                for _ in self._headers.read(cell.opened.name, cell.name):
                    pass
        self._headers.write()

    def _judge_over_draws(self) -> bool:
        """Plan again for defenses that turned out to be randomised at what attacks found: one draw was luck."""
        opened = []
        for one in self._opened:
            record = self._records.get(one.name, one.record)
            if record.afterwards and record.afterwards.random and not one.setting.randomized:
                record = record.model_copy(update={"probe": _with_hidden_randomness(record.probe)})
                one = replace(one, setting=replace(one.setting, randomized=True), record=record)
            opened.append(one)
        if opened == self._opened:
            return False
        self._opened = opened
        self.plan = self._plan()
        return True

    def _run(self) -> list[str]:
        plan, records = self.plan, self._records
        self._write(partial(self.store.write_suite, self.suite))
        for cell in plan.cells:
            records[cell.opened.name] = cell.opened.record
            for number in cell.leftover:
                self._write(partial(self.store.remove_shard, cell.opened.name, cell.name, number))
        for record in records.values():
            self._write(partial(self.store.write_defense, record))
        failures: dict[str, str] = {}
        with contextlib.closing(self._outcomes(records)) as outcomes:
            for outcome in outcomes:
                name = outcome.job.name
                if outcome.status == "ok":
                    self._keep(outcome, records)
                    continue
                reason = f"{outcome.status}: {_last_line(outcome)}"
                if name in plan.shards:
                    cell, piece = plan.shards[name]
                    self._record_failure(cell, piece, outcome)
                    failures[cell.title] = reason
                elif name not in plan.preparations:  # the shards that wait for one say why it failed
                    failures[name] = reason
        return self.skipped + [f"{name}: {reason}" for name, reason in failures.items()]

    def _keep(self, outcome: Outcome, records: dict[str, DefenseRecord]) -> None:
        """Store what a job has brought. Nobody but this process writes results."""
        plan, name = self.plan, outcome.job.name
        if name in plan.shards:
            self._write(partial(self.store.write_packed, outcome.value))
        elif name in plan.preparations:
            path = plan.preparations[name][0].prepared
            assert path is not None
            self._write(partial(write_atomically, path, outcome.value))
        else:
            defense = (plan.galleries | plan.timings)[name].name
            made = {"timing": outcome.value}
            if name in plan.galleries:
                entries, images, afterwards = outcome.value
                made = {"gallery": entries} if afterwards is None else {"gallery": entries, "afterwards": afterwards}
                if images is not None:
                    self._write(partial(self.store.write_gallery, defense, images))
            records[defense] = records[defense].model_copy(update=made)
            self._write(partial(self.store.write_defense, records[defense]))

    def _outcomes(self, defenses: Collection[str]) -> Generator[Outcome, None, None]:
        """Run all jobs and show how far they are."""
        tracker = Tracker(self.plan.jobs, self.engine.workers)
        title = next(iter(defenses)) if len(defenses) == 1 else f"{len(defenses)} defenses"

        def heard(report: Report) -> None:
            tracker.report(report.job, report.fraction, report.text)
            self.display.show(tracker, title)

        with self.display.running(title, tracker.total), listening(heard):
            self.display.show(tracker, title)
            # Where nothing is left but galleries, starting workers would take longer than making them.
            small = len(self.plan.galleries) == len(self.plan.jobs)
            for outcome in _run_here(self.plan.jobs) if small else self.engine.run(self.plan.jobs):
                tracker.finish(outcome.job.name, outcome.seconds, outcome.status != "ok")
                self.display.show(tracker, title)
                yield outcome

    def _record_failure(self, cell: Cell, piece: Piece, outcome: Outcome) -> None:
        key = cell.whole.model_copy(update={"data": self.suite.data_key(piece.start, piece.stop)})
        record = empty_record(cell.opened.setting, piece, key, status=outcome.status, error=outcome.error)
        self._write(partial(self.store.write_shard, record, None))
