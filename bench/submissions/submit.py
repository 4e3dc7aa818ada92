"""`bench submit`: check, evaluate, verify, pack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.contracts.defense import DefenseSpec
from bench.contracts.errors import InputError
from bench.data.load import load_data
from bench.engines.engine import Engine
from bench.judging.check import check_defense
from bench.running.evaluate import Evaluation, Request
from bench.running.progress import Display
from bench.storing import provenance
from bench.storing.records import SuiteRecord
from bench.storing.store import open_suite
from bench.submissions.manifest import Manifest, check_author
from bench.submissions.pack import checked, new_folder, pack, portable
from bench.submissions.records import Check, Checks, ClaimedNumbers
from bench.suites.config import Suite
from bench.summary.numbers import DefenseSummary
from bench.summary.summarise import summarise
from bench.upkeep.verify import Places, verify


@dataclass(frozen=True)
class Submission:
    """What ``bench submit`` was asked for.

    Attributes:
        extra: further files that the defense's code reads.
        results: where its rows are, or are put.
        out: the bundle; by, note: who submits it, and what there is to say.
    """

    suite: Suite
    spec: DefenseSpec
    extra: tuple[Path, ...]
    results: Path
    out: Path
    by: str
    note: str
    device: str
    data_root: Path | None
    isolation: str = "none"  # what was asked for, see bench.isolation.opening.decide


def submit_defense(asked: Submission, engine: Engine, display: Display) -> tuple[Manifest, ClaimedNumbers]:
    """Write the bundle; what has been evaluated before is used.

    Raises:
        InputError: when the defense breaks the contract, an attack failed, or the rows cannot be confirmed.
    """
    check_author(asked.by, asked.note)
    packed = portable(asked.spec, asked.extra)
    with new_folder(asked.out) as staging:
        contract = list(check_defense(packed.spec, asked.suite, asked.device, asked.data_root, asked.isolation))
        broken = [f"{finding.rule} {finding.detail}" for finding in contract if finding.verdict == "fail"]
        if broken:
            raise InputError(f"{packed.spec.name}: breaks the contract: {broken[0]}")
        suite, found = _evaluated(asked, packed.spec, engine, display)
        verified = _verified(asked, packed.spec)
        findings = [(finding.verdict, finding.rule, finding.detail) for finding in contract]
        data = load_data(asked.suite.data, asked.data_root)
        store, _ = open_suite(asked.results, asked.suite.name)
        made = pack(
            staging,
            packed,
            store,
            suite,
            data,
            found,
            Checks(contract=checked(findings), verified=verified),
            by=asked.by,
            note=asked.note,
            device=asked.device,
            training=asked.suite.training(data),
        )
        numbers = ClaimedNumbers.model_validate_json((staging / "claim.json").read_bytes())
    return made, numbers


def _evaluated(
    asked: Submission, spec: DefenseSpec, engine: Engine, display: Display
) -> tuple[SuiteRecord, DefenseSummary]:
    request = Request(
        suite=asked.suite,
        defenses=[spec],
        attacks=(),
        results=asked.results,
        device=asked.device,
        data_root=asked.data_root,
        command=provenance.command_line(),
        isolation=asked.isolation,
    )
    failures = Evaluation(request, engine, display).run()
    if failures:
        raise InputError(f"{failures[0]}; a defense is submitted once every attack has a result")
    summary = summarise(asked.results, asked.suite.name)
    found = next(defense for defense in summary.defenses if defense.record.name == spec.name)
    if not found.complete:
        lacking = next(attack.lacks for attack in found.attacks if attack.lacks)
        raise InputError(f"{spec.name}: lacks {lacking}; a defense is submitted once every attack has a result")
    return summary.record, found


def _verified(asked: Submission, spec: DefenseSpec) -> list[Check]:
    where = Places(asked.suite.data, asked.data_root, spec.checkpoints, {spec.name: spec})
    verdicts = list(verify(asked.results, asked.suite.name, (spec.name,), asked.device, where, (), asked.isolation))
    for verdict in verdicts:
        if not verdict.confirmed:
            why = verdict.problem or f"{verdict.different} of {verdict.rows} rows differ when judged again"
            raise InputError(f"{spec.name} × {verdict.attack}: {why}")
    return [Check(verdict="pass", what=verdict.attack, detail=f"{verdict.rows} rows") for verdict in verdicts]
