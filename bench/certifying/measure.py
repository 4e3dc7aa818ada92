"""`bench certify`: what can be proven of a defense, example by example, beside what attacks have broken."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.certifying.network import Layered
from bench.certifying.proving import TOLERANCE, check_precision, prove
from bench.contracts.answers import predictions
from bench.contracts.defense import Defense, DefenseSpec, ready
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.reporting import Report, listening, report
from bench.contracts.seeding import generator, seeded
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.data.splits import Data, Split
from bench.engines.engine import Engine
from bench.engines.graph import Job
from bench.plugins.resolve import LoadedDefense, get_attack, load_defense
from bench.running.cell import defense_key, select_examples
from bench.running.describe import suite_record
from bench.running.progress import Display, Tracker
from bench.storing import provenance
from bench.storing.certified import (
    Certificates,
    CertifiedRow,
    current_certificates,
    examples_key,
    write_certificates,
)
from bench.storing.keys import DefenseKey
from bench.storing.reading import read_record
from bench.storing.records import DefenseRecord, SuiteRecord
from bench.storing.store import Store
from bench.suites.config import Suite
from bench.summary.certified import beside, broken_within
from bench.summary.numbers import CertifiedRadius

#: The attack that an example is given to first, where no stored one has broken it.
ATTACK = "cascade"
#: Examples of one job.
_TOGETHER = 5
#: Examples at which a defense is compared with the network that is bounded.
_COMPARED = 50


@dataclass(frozen=True)
class Certifying:
    """A defense of a suite that is to be certified, as a worker sets it up again."""

    suite: Suite
    spec: DefenseSpec
    data_root: Path | None

    def threat(self, data: Data, eps: float) -> Lp:
        return self.suite.threat_for(data.info, eps)


@dataclass(frozen=True)
class _Opened:
    data: Data
    examples: Split
    loaded: LoadedDefense
    defense: Defense
    layered: Layered


def certify(
    store: Store,
    work: Certifying,
    radii: Sequence[float],
    seconds: float,
    engine: Engine,
    display: Display,
    command: str,
    examples: int | None = None,
) -> Iterator[tuple[Certificates, CertifiedRadius]]:
    """Certify a defense at each radius, the smallest first; what is settled is kept, what is open is tried again
    where it is given more time than before.

    Args:
        seconds: of processor time per example and radius, after the attack.
        examples: only the first so many of those that the suite runs the defense on. What is stored of others stays,
            and is part of what is yielded.

    Raises:
        NotApplicable: where the defense is not deterministic and piecewise linear, or too large.
        InputError: where the threat model is not an untargeted linf ball, or the defense cannot be loaded.
    """
    suite = work.suite
    if suite.threat_model.norm != "linf" or suite.towards is not None:
        raise InputError(f"certificates are for untargeted linf balls; suite {suite.name} is of another kind")
    opened = _opened(work)
    key = defense_key(work.spec, opened.loaded)
    with seeded(suite.seed, "certify", "precision"):
        compared = opened.examples.x[:_COMPARED]
        precision = check_precision(opened.defense, opened.layered, compared, work.threat(opened.data, max(radii)))
    now = suite_record(suite, opened.data)
    record, ids = suite_of(store, now), now.ids[: now.examples_run(reference=work.spec.reference)][:examples]
    for eps in sorted(set(radii)):
        clock = provenance.start(command)
        known = list(current_certificates(store, record, key, unreadable=[]))
        broken = _broken(store, record, key, eps)
        done = settled(ids, known, broken, eps, seconds)
        waiting = [i for i, example in enumerate(ids) if example not in done]
        # What is stored of examples that are not asked about stays, and what is tried again until it ends.
        rows = {row.id: row for one in known if one.eps == eps for row in one.rows} | done
        hopeless = {row.id for one in known if one.eps < eps for row in one.rows if _tried(row, seconds)}
        jobs = [
            Job(
                f"{work.spec.name}, eps {eps:g}, examples {some[0]} to {some[-1]}", certify_some,
                (work, eps, seconds, [(i, record.ids[i] in hopeless) for i in some]),
                kind="certify", loads=work.spec.name,
            )
            for some in (waiting[k : k + _TOGETHER] for k in range(0, len(waiting), _TOGETHER))
        ]  # fmt: skip
        written = None

        def made(rows: dict[str, CertifiedRow], eps: float, clock: provenance.Clock) -> Certificates:
            """From what is there, in the order of the examples."""
            ordered = [rows[example] for example in record.ids if example in rows]
            return Certificates(
                defense=key, data=examples_key(record, [row.id for row in ordered]), norm=record.norm, eps=eps,
                low=record.low, high=record.high, tolerance=TOLERANCE, precision=precision, attack=ATTACK,
                provenance=provenance.finish(clock), rows=ordered,
            )  # fmt: skip

        for found in run_jobs(jobs, engine, display):
            rows.update((row.id, row) for row in found)
            written = made(rows, eps, clock)
            write_certificates(store, written)
        if written is None:
            written = made(rows, eps, clock)
            same = [one for one in known if one.eps == eps and one.rows == written.rows]
            if same:
                written = same[0]
            else:
                write_certificates(store, written)
        yield written, beside(written, broken)


def settled(
    ids: Sequence[str], known: Sequence[Certificates], broken: set[str], eps: float, seconds: float
) -> dict[str, CertifiedRow]:
    """The rows that need no work, by id: proven at this radius or a larger one, broken at this one or a smaller one,
    or open after as much time."""
    rows = dict[str, CertifiedRow]()
    for one in known:
        for row in one.rows:
            if one.eps == eps and (row.status != "open" or row.limit >= seconds):
                rows[row.id] = row
            elif (one.eps > eps and row.status == "certified") or (one.eps < eps and row.status == "broken"):
                rows.setdefault(row.id, row.model_copy(update={"method": "other radius", "seconds": 0.0}))
    for example in broken:
        if example not in rows or rows[example].status == "open":  # what is proven stays, for the contradiction to show
            rows[example] = _row(example, "broken", "attack")
    return {example: rows[example] for example in ids if example in rows}


def _row(example: str, status: str, method: str, **more: float | None) -> CertifiedRow:
    values = {"bound": None, "parts": 0, "seconds": 0.0, "limit": 0.0, **more}
    return CertifiedRow(id=example, status=status, method=method, **values)  # type: ignore[arg-type]


def _tried(row: CertifiedRow, seconds: float) -> bool:
    return row.status == "open" and row.limit >= seconds


def suite_of(store: Store, now: SuiteRecord) -> SuiteRecord:
    """The suite as it is stored, whose attacks the stored rows are of, if its examples are those of now."""
    path = store.folder / "suite.json"
    if not path.exists():
        return now
    stored = read_record(path, SuiteRecord)
    same = (stored.ids, stored.digests) == (now.ids, now.digests)
    return stored if same and stored.norm == now.norm else now


def _broken(store: Store, suite: SuiteRecord, key: DefenseKey, eps: float) -> set[str]:
    """The suite's examples that stored attacks break at this radius; none where the defense has no results."""
    path = store.defense_folder(key.name) / "defense.json"
    if not path.exists():
        return set()
    stored = read_record(path, DefenseRecord)
    return broken_within(store, suite, stored, eps) if stored.key == key else set()


#: What this process has opened last.
_last: list[tuple[Certifying, _Opened]] = []


def _opened(work: Certifying) -> _Opened:
    if not _last or _last[0][0] != work:
        _last[:] = [(work, _open(work))]
    return _last[0][1]


def _open(work: Certifying) -> _Opened:
    data = load_data(work.suite.data, work.data_root)
    loaded = load_defense(work.spec, data.info, torch.device("cpu"), work.suite.training(data))
    defense = ready(loaded.defense)
    if defense.randomized or defense.detect is not None:
        what = "randomised" if defense.randomized else "guarded by a detector"
        raise NotApplicable(f"certificates are for deterministic networks; this defense is {what}")
    examples = select_examples(work.suite, data)
    return _Opened(data, examples, loaded, defense, Layered(defense, examples.x[:1]))


def certify_some(work: Certifying, eps: float, seconds: float, chosen: list[tuple[int, bool]]) -> list[CertifiedRow]:
    """The rows of some examples, in a worker.

    Args:
        chosen: positions among the suite's examples; whether nothing but the attack is tried.
    """
    opened = _opened(work)
    threat, rows = work.threat(opened.data, eps), list[CertifiedRow]()
    for number, (i, attack_only) in enumerate(chosen):
        report(number / len(chosen), "")
        example, start = opened.examples.ids[i], time.process_time()
        x, y = opened.examples.at([i]).clone(), opened.examples.y[i : i + 1]
        broken = _breaks(work, opened.defense, threat, x, y, example)
        if broken is not None:
            rows.append(_row(example, "broken", broken, seconds=round(time.process_time() - start, 2)))
        elif attack_only:
            rows.append(_row(example, "open", "other radius", limit=seconds))
        else:
            proven = prove(opened.layered, x[0], int(y), threat, seconds)
            spent = round(time.process_time() - start, 2)
            rows.append(
                _row(
                    example, "certified" if proven.certified else "open", proven.method, bound=proven.bound,
                    parts=proven.parts, seconds=spent, limit=seconds,
                )
            )  # fmt: skip
    return rows


def _breaks(work: Certifying, defense: Defense, threat: Lp, x: Tensor, y: Tensor, example: str) -> str | None:
    """What breaks an example: nothing but itself, or the attack."""
    with torch.no_grad():
        if predictions(defense(x)) != y:
            return "clean"
    stream = generator(work.suite.seed, "certify", example, threat)
    target = Target(defense, threat, 1, knowledge="gradient", generator=stream)
    with seeded(work.suite.seed, "certify", example, threat):
        x_adv = get_attack(ATTACK).function(target, x, y)
    with torch.no_grad():
        wrong = threat.violations(x, x_adv) == ["ok"] and bool(predictions(defense(x_adv)) != y)
    return "attack" if wrong else None


def run_jobs(jobs: Sequence[Job], engine: Engine, display: Display) -> Iterator[Any]:
    """What each job returns; stops with the reason of the first that fails."""
    tracker = Tracker(jobs, engine.workers, "done")

    def heard(message: Report) -> None:
        tracker.report(message.job, message.fraction, message.text)
        display.show(tracker, "certifying")

    with display.running("certifying", tracker.total), listening(heard):
        for outcome in engine.run(jobs):
            tracker.finish(outcome.job.name, outcome.seconds, outcome.status != "ok")
            display.show(tracker, "certifying")
            if outcome.status != "ok":
                raise InputError(f"{outcome.job.name}: {outcome.error.strip().splitlines()[-1]}")
            yield outcome.value
