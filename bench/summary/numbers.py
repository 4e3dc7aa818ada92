"""The numbers that are shown, as records: of an attack, a defense and a suite."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.storing.records import AttackRecord, DefenseRecord, SuiteRecord
from bench.summary.metrics import Array, wilson

#: Statuses in which a cell has nothing left to run.
SETTLED = ("complete", "not-applicable")


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] of ``n`` examples with its 95 % Wilson interval (sampling of the images only)."""

    value: float
    low: float
    high: float
    n: int


def estimate(values: Array) -> Estimate:
    """Mean of per-example shares with its Wilson interval."""
    value = float(values.mean()) if len(values) else 0.0
    return Estimate(value, *wilson(value, len(values)), len(values))


@dataclass(frozen=True)
class Flag:
    """A warning beside a result. ``kind`` is ``info`` or ``warning``."""

    id: str
    title: str
    text: str
    kind: str = "warning"


@dataclass(frozen=True)
class AttackSummary:
    """One cell: what one attack left of one defense.

    ``status`` is ``complete``, ``partial`` (some shards missing or failed), ``failed``, ``not-applicable`` or
    ``missing``. ``robust`` is the accuracy that is left under this attack, None without any finished shard.
    """

    record: AttackRecord
    status: str
    robust: Estimate | None
    mean_forward: float
    mean_backward: float
    seconds_per_example: float
    prepare_seconds: float
    worst_for: int  # examples for which this attack is the worst of all
    zero_gradient_share: float  # of all gradients it took
    violations: dict[str, int]  # reason -> examples the judge refused
    errors: list[str]  # last line of each failed shard's traceback
    notes: list[str]
    detection_rate: float | None  # share of misclassified adversarial inputs that are rejected

    @property
    def lacks(self) -> str:
        """What it lacks, with the reason where there is one: ``square (failed: RuntimeError: …)``; else nothing."""
        if self.status in SETTLED:
            return ""
        return f"{self.record.name} ({': '.join([self.status, *self.errors[:1]])})"


@dataclass(frozen=True)
class DetectionSummary:
    """The detector at its one fixed threshold."""

    threshold: float
    target_false_positive_rate: float
    false_positive_rate: Estimate  # on the clean test examples
    true_positive_rate: Estimate | None  # on misclassified adversarial inputs, pooled over counted attacks
    accuracy: float | None  # balanced: (TPR + TNR) / 2
    robust_with_rejection: Estimate  # clean accepted and right, adversarial right or rejected
    robust_without_rejection: Estimate  # the classifier alone


@dataclass(frozen=True)
class CurvePoint:
    """The worst case in a ball of another radius: over the clean input and the stored points that lie inside it."""

    radius: float
    robust: Estimate


@dataclass(frozen=True)
class DefenseSummary:
    """One line of the leaderboard, and the page behind it."""

    record: DefenseRecord
    slug: str  # folder and file name
    rank: int | None  # None of an incomplete result: it can only fall
    complete: bool
    standard: Estimate  # no attack, no detector
    worst_case: Estimate  # per example over all counted attacks (rejection counts as survival)
    worst_attack: str  # the single attack that left the least
    attacks: list[AttackSummary]
    detection: DetectionSummary | None
    flags: list[Flag]
    commits: list[str]  # code versions that its shards come from; "+" marks uncommitted changes
    worker_seconds: float  # one worker's wall time: attacks, judging, preparations
    curve: list[CurvePoint]  # from radius 0 to eps; empty where the suite lists no radii
    survival: dict[str, list[float]] = field(repr=False)  # attack -> per-example share of draws survived


@dataclass(frozen=True)
class SuiteSummary:
    """All defenses of a suite, best worst-case robust accuracy first."""

    record: SuiteRecord
    defenses: list[DefenseSummary]
    warnings: list[str]  # defenses without clean results
    unreadable: list[str] = field(default_factory=list)  # files that could not be read, each with the reason

    @property
    def worker_seconds(self) -> float:
        """What the whole matrix would have taken a single worker."""
        return sum(defense.worker_seconds for defense in self.defenses)
