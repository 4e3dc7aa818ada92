"""The attacks of a suite, ready to run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.contracts.attack import AttackSpec
from bench.contracts.errors import InputError, PluginError, did_you_mean
from bench.contracts.words import KNOWLEDGE, Knowledge, Norm, Tier
from bench.plugins.resolve import get_attack
from bench.suites.config import Suite


@dataclass(frozen=True)
class ResolvedAttack:
    """An entry of a suite, ready to run.

    Attributes:
        name: in the suite and in the results.
        spec: the registered attack behind it.
        params: every parameter, defaults included.
        norm: the suite's; eps: the suite's, or the entry's own.
        knowledge: the attack's, or the entry's own, which is less.
        counted: False for a sanity check outside the threat model, with a radius larger than the suite's.
        examples: of the suite, from the first on, that it is run on; None for all.
        tier: what it is shown of a detector.
    """

    name: str
    spec: AttackSpec
    params: dict[str, Any]
    norm: Norm
    eps: float
    knowledge: Knowledge
    counted: bool
    examples: int | None = None
    tier: Tier = "adaptive"


def resolve_attacks(
    suite: Suite, names: Iterable[str] | None = None, problems: list[str] | None = None
) -> list[ResolvedAttack]:
    """The attacks of a suite, in the order in which it lists them.

    An attack that lacks the suite's norm is listed all the same: that it does not apply is a result.

    Args:
        suite: from :meth:`Config.suite`.
        names: only these entries; None for all.
        problems: where one line is put for each attack whose plugin cannot be imported, which is then skipped;
            None to raise instead.

    Raises:
        InputError: for an unknown entry or attack, or a parameter (with its path) that is unknown or invalid.
    """
    chosen = list(suite.attacks) if names is None else list(dict.fromkeys(names))
    for name in chosen:
        if name not in suite.attacks:
            raise InputError(f"suite {suite.name} has no attack {name!r}{did_you_mean(name, suite.attacks)}")
    resolved = []
    for name in (name for name in suite.attacks if name in chosen):
        try:
            resolved.append(_resolve(suite, name))
        except PluginError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return resolved


def _resolve(suite: Suite, name: str) -> ResolvedAttack:
    entry = suite.attacks[name]
    where = f"suites.{suite.name}.attacks.{name}"
    try:
        spec = get_attack(entry.attack or name)
    except PluginError:
        raise
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    eps = suite.threat_model.eps if entry.eps is None else entry.eps
    knowledge = entry.knowledge or spec.knowledge
    if KNOWLEDGE.index(knowledge) > KNOWLEDGE.index(spec.knowledge):
        raise InputError(f"{where}.knowledge: {knowledge!r} is more than {spec.name} has ({spec.knowledge})")
    params = spec.check(entry.params, where)
    if entry.tier == "transfer" and spec.prepare is not None and spec.prepares(**params):
        raise InputError(f"{where}.tier: transfer needs an attack without a preparation, {spec.name} has one")
    counted = eps <= suite.threat_model.eps
    norm = suite.threat_model.norm
    return ResolvedAttack(name, spec, params, norm, eps, knowledge, counted, entry.examples, entry.tier)
