"""What the templates show that is not already a field of a summary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.storing.found import FOUND
from bench.storing.records import AttackRecord, ClaimRecord, DefenseRecord
from bench.studies.input_gradients.record import MaskedPGD
from bench.summary.columns import Column, columns_in
from bench.summary.metrics import wilson
from bench.summary.numbers import AttackSummary, DefenseSummary, Estimate, Flag, SuiteSummary


@dataclass(frozen=True)
class Group:
    """A kind of attack, as the columns of the matrix are grouped."""

    id: str
    title: str
    text: str


GROUPS = (
    Group(
        "plain",
        "Plain autograd",
        "white-box gradients by automatic differentiation of the defense as it is; an ensemble such as AutoAttack goes "
        "on without gradients, and may so leave less than these do",
    ),
    Group(
        "adapted",
        "Adapted gradients",
        "white-box gradients that get round what the defense hides, for example BPDA, EOT or reparameterization",
    ),
    Group("blind", "Detector not shown", "made for the classifier alone, or on a copy of classifier and detector"),
    Group("score", "Scores", "sees logits only"),
    Group("decision", "Labels", "sees predicted labels only"),
    Group("unknown", "Submitted", "adversarial inputs that were submitted as such; what their makers saw is not known"),
    Group("transfer", "No access", "sees nothing of the defense"),
    Group("sanity", "Not counted", "sanity checks outside the threat model; no part of the worst case"),
)


#: What an attack of a targeted suite has to reach.
GOALS = {
    "least-likely": "the smallest logit of the clean input",
    "random": "drawn for each example, the same for every defense",
    "next": "the label plus one",
}

_GROUP = {group.id: group for group in GROUPS}


def published(record: DefenseRecord) -> list[tuple[str, ClaimRecord]]:
    """The published numbers of a defense: what its own paper claims, then what others left of it."""
    claimed = [("claimed", claim) for claim in record.claims]
    return claimed + [("broken", claim) for claim in record.breaks]


def masked_accuracy(entry: MaskedPGD) -> Estimate:
    """Accuracy under masked PGD with its 95 % interval, over examples."""
    return Estimate(entry.accuracy, *wilson(entry.accuracy, entry.n), entry.n)


def group_of(attack: AttackRecord) -> Group:
    """The group an attack belongs to."""
    if not attack.counted:
        return _GROUP["sanity"]
    if attack.tier != "adaptive":
        return _GROUP["blind"]
    if attack.knowledge != "gradient":
        return _GROUP[attack.knowledge]
    return _GROUP["plain" if attack.plain else "adapted"]


def attacks_of(suite: SuiteSummary) -> list[tuple[Group, list[AttackRecord]]]:
    """The suite's attacks, and those that only a defense's results know, by group; groups without any are left out."""
    found = {attack.name: attack for attack in suite.record.attacks}
    for defense in suite.defenses:
        for cell in defense.attacks:
            found.setdefault(cell.record.name, cell.record)
    members = [(group, [a for a in found.values() if group_of(a) == group]) for group in GROUPS]
    return [(group, attacks) for group, attacks in members if attacks]


def on_fewer(suite: SuiteSummary) -> list[AttackRecord]:
    """The attacks that the suite runs on its first examples alone."""
    return [a for a in suite.record.attacks if suite.record.examples_run(a) < len(suite.record.ids)]


def first_of(suite: SuiteSummary, defense: DefenseSummary) -> int | None:
    """On how many of the suite's first examples a defense is run alone; None: on all."""
    n = suite.record.examples_run(reference=defense.record.reference)
    return n if n < len(suite.record.ids) else None


def defenses_on_fewer(suite: SuiteSummary) -> list[DefenseSummary]:
    """The defenses that the suite runs on its first examples alone."""
    return [defense for defense in suite.defenses if first_of(suite, defense) is not None]


def study_examples(suite: SuiteSummary) -> int:
    """On how many of the suite's examples the variants of its study are run."""
    return suite.record.examples_run(reference=suite.record.study.defense if suite.record.study else "")


def cells(defense: DefenseSummary) -> dict[str, AttackSummary]:
    """The cells of a defense by the name of the attack."""
    return {cell.record.name: cell for cell in defense.attacks}


def elsewhere(suite: SuiteSummary, others: Sequence[SuiteSummary]) -> dict[str, list[DefenseSummary]]:
    """Defenses that have a result in another suite and none in this one, by the first suite that has one.

    Studies compare variants of one defense: their defenses are missing nowhere, and nothing is missing in them.
    """
    if suite.record.study is not None:
        return {}
    known = {defense.record.name for defense in suite.defenses}
    found: dict[str, list[DefenseSummary]] = {}
    for other in others:
        if other.record.study is None:
            new = [defense for defense in other.defenses if defense.record.name not in known]
            known.update(defense.record.name for defense in new)
            if new:
                found[other.record.name] = new
    return found


def ranking_columns(suite: SuiteSummary) -> list[Column[DefenseSummary]]:
    """The columns of the ranking; what is said of detectors alone is left out where there are none."""
    detectors = any(defense.detection for defense in suite.defenses)
    return [column for column in columns_in("ranking") if detectors or column.id != "detection_accuracy"]


def unfinished(defense: DefenseSummary) -> list[str]:
    """What is missing of a defense's evaluation: ``pgd (failed: RuntimeError: …)``."""
    return [cell.lacks for cell in defense.attacks if cell.lacks]


def weakest_of(defense: DefenseSummary, group: str) -> AttackSummary | None:
    """The cell of a group that left the least accuracy, or None when the group has no result."""
    measured = [(c.robust, c) for c in defense.attacks if c.robust is not None and group_of(c.record).id == group]
    # Of those that saw most examples: shares of others do not compare.
    return min(measured, key=lambda pair: (-pair[0].n, pair[0].value), default=(None, None))[1]


def autograd_gap(defense: DefenseSummary) -> float | None:
    """By how much plain autograd alone would overstate the defense: its lowest accuracy minus the worst case."""
    cell = weakest_of(defense, "plain")
    return cell.robust.value - defense.worst_case.value if cell and cell.robust else None


@dataclass(frozen=True)
class RaisedFlag:
    """A flag, and what it says of each defense that carries it."""

    flag: Flag
    defenses: list[tuple[DefenseSummary, str]]

    @property
    def texts(self) -> list[str]:
        """Each wording once."""
        return list(dict.fromkeys(text for _, text in self.defenses))


def flags_of(suite: SuiteSummary) -> list[RaisedFlag]:
    """Every flag raised in a suite, most frequent first."""
    raised: dict[str, RaisedFlag] = {}
    for defense in suite.defenses:
        for flag in defense.flags:
            raised.setdefault(flag.id, RaisedFlag(flag, [])).defenses.append((defense, flag.text))
    return sorted(raised.values(), key=lambda entry: -len(entry.defenses))


def tied_ranks(suite: SuiteSummary) -> set[int]:
    """Ranks that more than one defense holds."""
    return {rank for rank, times in Counter(defense.rank for defense in suite.defenses).items() if rank and times > 1}


def incomplete(suite: SuiteSummary) -> list[DefenseSummary]:
    """The defenses whose result is incomplete."""
    return [defense for defense in suite.defenses if not defense.complete]


@dataclass(frozen=True)
class Result:
    """One line of an attack's page."""

    defense: DefenseSummary
    cell: AttackSummary | None


def results_of(suite: SuiteSummary, attack: str) -> list[Result]:
    """What an attack left of each defense, most first; defenses without a number last."""

    def key(result: Result) -> float:
        return -result.cell.robust.value if result.cell and result.cell.robust else math.inf

    found = (Result(defense, cells(defense).get(attack)) for defense in suite.defenses)
    # Of what was submitted nothing is missing.
    return sorted((result for result in found if result.cell or attack != FOUND), key=key)


def pairs_of(suite: SuiteSummary, attack: AttackRecord) -> int:
    """How many pairs of a defense and an example an attack is run on."""
    seen = [result.defense for result in results_of(suite, attack.name) if result.cell]
    return sum(suite.record.examples_run(attack, defense.record.reference) for defense in seen)


def commits(suite: SuiteSummary) -> list[str]:
    """The code versions the results come from, shortened, each once; ``+`` marks uncommitted changes."""
    full = dict.fromkeys(commit for defense in suite.defenses for commit in defense.commits)
    return [commit[:10] + "+" * commit.endswith("+") for commit in full]
