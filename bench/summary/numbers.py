"""The numbers that are shown, as records: of an attack, a defense and a suite."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.contracts.isolation import Level, weakest
from bench.contracts.words import Tier
from bench.storing.records import AskedAgain, AttackRecord, DefenseRecord, SuiteRecord
from bench.summary.metrics import Array, wilson
from bench.summary.ranking import Scores

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
class TierSummary:
    """A detector against the attacks that are shown as much of it: nothing, a copy, or all that they ask for.

    The positives are the tier's successful adversarial inputs of images that are right when clean, one of each image:
    the one that the attacker would send. All rates are of these; None where there are none.
    """

    tier: Tier
    attacks: list[str]
    true_positive_rate: Estimate | None  # at the fixed threshold
    accuracy: float | None  # balanced: (TPR + TNR) / 2
    caught_at_5: Estimate | None  # at the threshold of 5 % false positives on the clean test examples
    caught_at_1: Estimate | None  # of 1 %
    auroc: Estimate | None  # against the clean test examples; the interval is a bootstrap over images
    robust: Estimate  # clean accepted and right, this tier's inputs right or rejected
    stratified: Estimate  # the same where rejecting an input within eps/4 is an error
    scores: Scores = field(repr=False)


@dataclass(frozen=True)
class HalfRadius:
    """The worst-case robust accuracy of a classifier at half the suite's radius, measured or estimated."""

    defense: str
    accuracy: float
    measured: bool


@dataclass(frozen=True)
class DetectionSummary:
    """The detector at its one fixed threshold. Numbers of all tiers together are upper bounds, as the headline is."""

    threshold: float
    target_false_positive_rate: float
    false_positive_rate: Estimate  # on the clean test examples
    clean_accepted: Estimate  # clean test examples that are right and accepted
    noise_rejected: Estimate | None  # of random points of the ball; None where the suite draws none
    tiers: dict[Tier, TierSummary]  # those with a finished shard
    robust_with_rejection: Estimate  # clean accepted and right, adversarial right or rejected
    robust_without_rejection: Estimate  # the classifier alone
    stratified: Estimate  # with rejection, where rejecting an input within eps/4 is an error
    near_rejected: Estimate | None  # of clean right and accepted inputs; None where no attack looks for rejections
    clean_scores: list[float] = field(repr=False)
    noise_scores: list[float] = field(repr=False)
    best_at_half: HalfRadius | None = None  # the classifier without a detector that is the most robust there

    @property
    def implied(self) -> Estimate:
        """The accuracy at eps/2 of a classifier that the result implies: the robust accuracy with rejection."""
        return self.robust_with_rejection

    @property
    def accuracy(self) -> float | None:
        """Detection accuracy against attacks that know the detector; no weaker attack is pooled with these."""
        return self.tiers["adaptive"].accuracy if "adaptive" in self.tiers else None

    @property
    def true_positive_rate(self) -> Estimate | None:
        """Of attacks that know the detector."""
        return self.tiers["adaptive"].true_positive_rate if "adaptive" in self.tiers else None


@dataclass(frozen=True)
class CurvePoint:
    """The worst case in a ball of another radius: over the clean input and the stored points that lie inside it."""

    radius: float
    robust: Estimate


@dataclass(frozen=True)
class HistoryPoint:
    """The worst case once a submission was accepted; without ``by``, what the suite's own attacks left."""

    date: str  # ISO 8601
    by: str
    note: str
    robust: Estimate
    examples: int  # that it lowered


@dataclass(frozen=True)
class CertifiedRadius:
    """What is known of a defense at one radius.

    Attributes:
        certified: share of the examples that are proven to be robust: no attack leaves less.
        unbroken: share that is not broken: no attack tried leaves more.
        n: examples that were looked at.
        contradicted: examples that are proven and yet broken by a stored attack: a bug in one of the two.
    """

    eps: float
    certified: float
    unbroken: float
    n: int
    contradicted: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether the two meet."""
        return self.certified == self.unbroken

    @property
    def text(self) -> str:
        """In per cent: ``12.4 to 55.1``, or ``55.1 (exact)``."""
        if self.exact:
            return f"{100 * self.certified:.1f} (exact)"
        return f"{100 * self.certified:.1f} to {100 * self.unbroken:.1f}"


@dataclass(frozen=True)
class SmoothedAccuracy:
    """What randomised smoothing with one noise proves of the smoothed classifier; radii are in l2.

    Attributes:
        sigma: of the noise, in the units of the box.
        alpha: probability, for each example, that its radius is too large.
        n: examples that were looked at.
        abstained: share whose class is not certain enough for any radius.
        certified: by radius, the share that is given the right class everywhere within it; at 0, at its centre.
    """

    sigma: float
    draws: int
    alpha: float
    n: int
    abstained: float
    certified: dict[float, float]

    @property
    def text(self) -> str:
        """In per cent, by radius: ``l2 0: 91.0, l2 0.125: 80.5``."""
        return ", ".join(f"l2 {radius:.4g}: {100 * share:.1f}" for radius, share in self.certified.items())


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
    judging_error: float | None  # standard error that the judge's draws add to the worst case; None: deterministic
    survival: dict[str, list[float]] = field(repr=False)  # attack -> per-example share of draws survived
    history: list[HistoryPoint] = field(default_factory=list)  # oldest first; empty where nothing was submitted
    levels: dict[Level, int] = field(default_factory=dict)  # finished shards by level of isolation, weakest first
    asked_again: AskedAgain | None = None  # over all shards; None: it was not isolated
    certified: list[CertifiedRadius] = field(default_factory=list)  # the smallest radius first
    smoothed: list[SmoothedAccuracy] = field(default_factory=list)  # the smallest noise first

    @property
    def isolation(self) -> Level | None:
        """The weakest level at which it answered; None where nothing is known of its shards."""
        return weakest(self.levels) if self.levels else None


@dataclass(frozen=True)
class SuiteSummary:
    """All defenses of a suite, best worst-case robust accuracy first."""

    record: SuiteRecord
    defenses: list[DefenseSummary]
    warnings: list[str]  # defenses without clean results
    unreadable: list[str] = field(default_factory=list)  # files that could not be read, each with the reason

    @property
    def worker_seconds(self) -> float:
        """What the whole matrix would have taken a single worker.

        What was prepared once for several defenses, such as surrogates, is counted once: no two preparations of an
        attack take the very same time.
        """
        prepared = [
            (attack.record.name, attack.prepare_seconds) for defense in self.defenses for attack in defense.attacks
        ]
        again = sum(seconds for _, seconds in prepared) - sum(seconds for _, seconds in set(prepared))
        return sum(defense.worker_seconds for defense in self.defenses) - again
