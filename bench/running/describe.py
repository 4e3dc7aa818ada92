"""The records of a suite and its attacks as they would be written now."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.data.splits import Data, example_digests
from bench.plugins.resolve import attack_version
from bench.running.cell import select_examples
from bench.storing import provenance
from bench.storing.records import AttackRecord, StudyRecord, SuiteRecord, VariantRecord
from bench.suites.attacks import ResolvedAttack, resolve_attacks
from bench.suites.config import Suite, variants_of


def attack_record(entry: ResolvedAttack) -> AttackRecord:
    """The record of an attack with its budget."""
    return AttackRecord(
        name=entry.name,
        version=attack_version(entry.spec),
        randomised_version=entry.spec.randomised_version,
        function=entry.spec.name,
        knowledge=entry.knowledge,
        params=entry.params,
        eps=entry.eps,
        counted=entry.counted,
        examples=entry.examples,
        tier=entry.tier,
        seeks=entry.spec.seeks,
        adapts=entry.spec.adapts,
        summary=entry.spec.summary,
        paper=entry.spec.paper,
        url=entry.spec.url,
    )


def missing_record(suite: Suite, name: str) -> AttackRecord:
    """The record of an attack that cannot be imported: it stays in the suite, so that results show it as missing."""
    entry = suite.attacks[name]
    return AttackRecord(
        name=name,
        version="",
        function=provenance.shorten(entry.attack) if entry.attack else name,
        knowledge=entry.knowledge or "gradient",
        params=entry.params,
        eps=entry.eps or suite.threat_model.eps,
        counted=(entry.eps or 0.0) <= suite.threat_model.eps,
        examples=entry.examples,
        tier=entry.tier,
        summary="Its plugin could not be imported.",
    )


def study_record(suite: Suite) -> StudyRecord | None:
    """The record of the suite's study, if it is one."""
    if suite.study is None:
        return None
    variants = [
        VariantRecord(label=variant.label, defense=spec.name, published=variant.published)
        for variant, spec in zip(suite.study.variants, variants_of(suite), strict=True)
    ]
    return StudyRecord(**suite.study.model_dump(exclude={"variants"}), variants=variants)


def suite_record(suite: Suite, data: Data) -> SuiteRecord:
    """The record of the suite with its examples and all its attacks."""
    examples = select_examples(suite, data)
    fixed: dict[str, Any] = {
        "data": provenance.publishable(suite.data),
        "split": suite.split,
        "towards": suite.towards,
        "norm": suite.threat_model.norm,
        "eps": suite.threat_model.eps,
        "seed": suite.seed,
        "protocol": suite.protocol,
        "shard_size": suite.shard_size,
        "draws_select": suite.draws.select,
        "draws_report": suite.draws.report,
        "false_positive_rate": suite.false_positive_rate,
    }
    resolved = {entry.name: entry for entry in resolve_attacks(suite, problems=[])}
    attacks = [
        attack_record(resolved[name]) if name in resolved else missing_record(suite, name) for name in suite.attacks
    ]
    return SuiteRecord(
        name=suite.name,
        description=suite.description,
        **asdict(data.info.input),
        class_names=data.class_names,
        ids=examples.ids,
        digests=example_digests(examples),
        data_version=data.version,
        reference=suite.reference,
        attacks=attacks,
        study=study_record(suite),
        radii=suite.threat_model.radii,
        examples_of=suite.examples_of,
        **fixed,
    )
