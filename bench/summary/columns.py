"""The columns of the leaderboard: one entry per quantity, shared by all that show or export it.

The terminal's table, Markdown, CSV and JSON, the site's ranking table with its legend and downloads are all made from
:data:`COLUMNS`, what is shown of an attack on a defense from :data:`CELL_COLUMNS`, of a tier of attacks on a detector
from :data:`TIER_COLUMNS`, which files have among the columns of the defense. A new column is a new entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from bench.contracts.words import Tier
from bench.summary.detection import TIERS
from bench.summary.numbers import AttackSummary, DefenseSummary, Estimate, Flag, SuiteSummary, TierSummary

#: How a value is written, aligned and sorted. ``accuracy`` is an :class:`Estimate`; ``share`` a number in [0, 1];
#: ``ratio`` a factor; ``seconds`` a time; ``count`` a number of things; ``flags`` a list of :class:`Flag`; ``names`` a
#: list of words; ``defense`` and ``attack`` the name of one, which the site links; ``rank``, ``truth`` and ``text``
#: what they say.
Kind = Literal[
    "rank", "defense", "accuracy", "share", "ratio", "seconds", "count", "attack", "flags", "names", "truth", "text"
]

#: ``report``: the terminal, its CSV and JSON included; ``rows``: these two alone; ``ranking``: the site's first table;
#: ``page``: the tables of attacks on the pages of defenses and attacks; ``defense``: that of a defense alone;
#: ``files``: the site's downloads.
Place = Literal["report", "rows", "ranking", "page", "defense", "files"]

Value = Estimate | float | str | Sequence[Flag] | Sequence[str] | Mapping[str, Any] | None

#: What a column is about: a defense, one attack on it, or a tier of attacks on its detector.
Item = TypeVar("Item", DefenseSummary, AttackSummary, TierSummary)

MISSING = "–"


@dataclass(frozen=True)
class Column(Generic[Item]):
    """One quantity of a defense, of an attack on one, or of a tier of attacks on its detector.

    Attributes:
        id: in files and in the site's addresses.
        title: heading on the site.
        value: from the summary; None where there is none.
        kind: how the value is written.
        places: where it is shown.
        help: what the site's legend says of it; ``{reference}`` and ``{false_positive_rate}`` are the suite's.
        short: heading on the terminal; default: the title in lower case.
        detail: a second, smaller line on the site.
        shown: whether a table shows the value, which files have all the same.
        ascending: whether the smallest value comes first when the site sorts by it.
        main: whether it is what the table is about.
    """

    id: str
    title: str
    value: Callable[[Item], Value]
    kind: Kind = "text"
    places: tuple[Place, ...] = ("files",)
    help: str = ""
    short: str = ""
    detail: Callable[[Item], str] = lambda item: ""
    shown: Callable[[Item], bool] = lambda item: True
    ascending: bool = False
    main: bool = False

    @property
    def numeric(self) -> bool:
        """Whether the values are aligned and sorted as numbers."""
        return self.kind in ("rank", "accuracy", "share", "ratio", "seconds", "count")

    @property
    def heading(self) -> str:
        """The heading where there is little room."""
        return self.short or self.title.lower()

    def legend(self, suite: SuiteSummary) -> str:
        """What the column means in this suite."""
        rate = in_percent(suite.record.false_positive_rate)
        return self.help.format(reference=suite.record.reference, false_positive_rate=rate)

    def text(self, item: Item) -> str:
        """The value as a table on the terminal shows it; shares in per cent."""
        value = self.value(item)
        if value is None or not self.shown(item):
            return MISSING
        return _TEXT[self.kind](value) or MISSING

    def key(self, item: Item) -> float | str | None:
        """What the site sorts by."""
        value = self.value(item)
        if isinstance(value, Estimate):
            return value.value
        if self.kind == "flags" and isinstance(value, Sequence):
            return len(value)
        return value.lower() if isinstance(value, str) else self.fields(item)[self.id]

    def fields(self, item: Item) -> dict[str, Any]:
        """The value in files, unrounded: an estimate has four fields, its value under the column's own id."""
        value = self.value(item)
        if self.kind == "accuracy":
            return estimate_fields(self.id, value if isinstance(value, Estimate) else None)
        if self.kind == "flags" and isinstance(value, Sequence):
            return {self.id: [flag.id for flag in value if isinstance(flag, Flag)]}
        return {self.id: value}


def estimate_fields(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """An estimate as four fields: its value, the ends of its interval and the number of examples."""
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_n": None}
    ends = {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {name: estimate.value, **ends, f"{name}_n": estimate.n}


def percent(estimate: Estimate | None) -> str:
    """``46.2 [41.6, 50.8]`` in per cent, or ``–``."""
    if estimate is None:
        return MISSING
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def in_percent(share: float) -> str:
    """A share in [0, 1] as ``46.2 %``, with a space that does not break."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


_TEXT: Mapping[Kind, Callable[[Any], str]] = {
    "accuracy": percent,
    "share": lambda share: f"{100 * share:.1f}",
    "ratio": lambda ratio: f"{ratio:.1f}×",
    "seconds": lambda seconds: f"{seconds:.1f} s",
    "count": lambda count: f"{count:g}",
    "flags": lambda flags: ", ".join(flag.title for flag in flags),
    "names": ", ".join,
    "truth": lambda truth: "yes" if truth else "no",
    "rank": str,
    "defense": str,
    "attack": str,
    "text": str,
}


def _timing(name: str) -> Callable[[DefenseSummary], float | None]:
    return lambda defense: getattr(defense.record.timing, name) if defense.record.timing else None


def _detection(name: str) -> Callable[[DefenseSummary], Any]:
    return lambda defense: getattr(defense.detection, name) if defense.detection else None


def _full_title(defense: DefenseSummary) -> str:
    return defense.record.title if defense.record.title != defense.record.name else ""


def _accepted(defense: DefenseSummary) -> str:
    found = defense.detection
    return f"{in_percent(found.clean_accepted.value)} right and accepted" if found else ""


def _apart_from_rejection(defense: DefenseSummary) -> str:
    """How much of a detector's worst case is owed to what it rejects; nothing without a detector."""
    found = defense.detection
    if found is None:
        return ""
    alone = f"classifier alone {in_percent(found.robust_without_rejection.value)}"
    # Where no attack has looked for near inputs that are rejected, the number says nothing yet.
    return f"{alone}, stratified {in_percent(found.stratified.value)}" if found.near_rejected else alone


#: What is shown of a detector against one tier of attacks, in the order in which it is shown.
TIER_COLUMNS: tuple[Column[TierSummary], ...] = (
    Column("detection_accuracy", "Detection accuracy", lambda tier: tier.accuracy, "share"),
    Column("true_positive_rate", "Rejected at the threshold", lambda tier: tier.true_positive_rate, "accuracy"),
    Column("tpr_at_5", "Rejected at 5 % false positives", lambda tier: tier.caught_at_5, "accuracy"),
    Column("tpr_at_1", "Rejected at 1 % false positives", lambda tier: tier.caught_at_1, "accuracy"),
    Column("auroc", "AUROC", lambda tier: tier.auroc, "accuracy"),
    Column("robust_accuracy", "Robust accuracy with rejection", lambda tier: tier.robust, "accuracy"),
    Column("stratified_accuracy", "Stratified robust accuracy", lambda tier: tier.stratified, "accuracy"),
)


def _of_tier(tier: Tier, column: Column[TierSummary]) -> Column[DefenseSummary]:
    """A tier's column as one of the defense, for files; None without a detector or attacks of the tier."""

    def value(defense: DefenseSummary) -> Value:
        found = defense.detection.tiers.get(tier) if defense.detection else None
        return None if found is None else column.value(found)

    return Column(f"{tier}_{column.id}", f"{column.title}, {tier}", value, column.kind)


#: In the order in which they are shown.
COLUMNS: tuple[Column[DefenseSummary], ...] = (
    Column(
        "rank",
        "Rank",
        lambda defense: defense.rank,
        "rank",
        ("report", "ranking", "files"),
        "Order by measured worst-case robust accuracy, then standard accuracy. Incomplete results come last, without a "
        "rank: an attack that has not run cannot have lowered them. Defenses equal in both share a rank, marked “=”. "
        "One on the first examples alone is ranked by what is left of these. "
        "Where two intervals overlap widely, other examples could reverse the order.",
        ascending=True,
    ),
    Column(
        "defense",
        "Defense",
        lambda defense: defense.record.name,
        "defense",
        ("report", "ranking", "files"),
        detail=_full_title,
    ),
    Column("title", "Title", lambda defense: defense.record.title),
    Column(
        "standard_accuracy",
        "Standard accuracy",
        lambda defense: defense.standard,
        "accuracy",
        ("report", "ranking", "files"),
        "Share of unattacked examples that the classifier gets right, without attack and without detector. Below it, "
        "of a detector: the share that is right and accepted.",
        short="standard",
        detail=_accepted,
    ),
    Column(
        "worst_case_robust_accuracy",
        "Worst-case robust accuracy",
        lambda defense: defense.worst_case,
        "accuracy",
        ("report", "ranking", "files"),
        "Share of examples that survive every counted attack: per example, the worst of the attacks that ran on it "
        "decides. Rejection by a "
        "detector counts as survival of an attacked input; that of the clean input does not. Below it, of a detector: "
        "what the classifier alone leaves, and the stratified accuracy, where rejecting an input within ε/4 is an "
        "error (a detector survives a lot by rejecting whatever differs a little from its data). Brackets and bar give "
        "the 95 % interval (Wilson) for the sampling of examples; the tick is the measured value. The number is an "
        "upper bound on robustness: an attack nobody has tried may lower it.",
        short="worst-case robust",
        detail=_apart_from_rejection,
        main=True,
    ),
    Column(
        "judging_error",
        "Judge's standard error",
        lambda defense: defense.judging_error,
        "share",
        ("rows", "defense", "files"),
        "How far the worst case would move if the judge drew the defense's randomness anew, for the same examples and "
        "attacks; nothing of a deterministic defense. The interval is about the sampling of examples and comes on top.",
    ),
    Column(
        "certified_radii",
        "Certified to attacked",
        lambda defense: [f"{one.eps:g}: {one.text}" for one in defense.certified],
        "names",
        ("rows", "files"),
        "By radius: between which two numbers robust accuracy lies, in %: what is proven, and what nothing has broken. "
        "Empty where nothing was certified; see docs/certified-bounds.md.",
    ),
    Column(
        "smoothed_radii",
        "Smoothed, certified in l2",
        lambda defense: [f"sigma {one.sigma:g}: {one.text}" for one in defense.smoothed],
        "names",
        ("rows", "files"),
        "By noise: certified accuracy in %, by l2 radius, of the classifier that randomised smoothing makes of the "
        "defense. It is no bound of the defense itself. Empty where nothing was smoothed; see "
        "docs/certified-bounds.md.",
    ),
    Column(
        "worst_attack",
        "Worst attack",
        lambda defense: defense.worst_attack,
        "attack",
        ("report", "ranking", "files"),
        "The single attack that left the least, of those that ran on all examples; where several left the same, the "
        "first of them. The worst case combines all attacks, so it is usually lower still.",
    ),
    Column(
        "detection_accuracy",
        "Detection accuracy",
        _detection("accuracy"),
        "share",
        ("report", "ranking", "files"),
        "Mean of the true-positive and true-negative rate at one threshold, set on clean validation data at "
        "{false_positive_rate} false positives; against attacks that know the detector, and none that do not. “–” "
        "without a detector.",
        short="detection",
    ),
    Column("false_positive_rate", "False-positive rate", _detection("false_positive_rate"), "accuracy"),
    Column("true_positive_rate", "True-positive rate", _detection("true_positive_rate"), "accuracy"),
    Column("clean_accepted", "Clean, right and accepted", _detection("clean_accepted"), "accuracy"),
    Column("noise_rejected", "Random noise rejected", _detection("noise_rejected"), "accuracy"),
    Column("stratified_accuracy", "Stratified robust accuracy", _detection("stratified"), "accuracy"),
    Column("near_rejected", "Rejected within ε/4", _detection("near_rejected"), "accuracy"),
    Column("implied_accuracy", "Implied accuracy at ε/2", _detection("implied"), "accuracy"),
    *(_of_tier(tier, column) for tier in TIERS for column in TIER_COLUMNS),
    Column(
        "inference_ratio",
        "Inference",
        _timing("ratio"),
        "ratio",
        ("report", "ranking", "files"),
        "Time per example relative to the undefended model “{reference}”, measured alternately on the same machine.",
        ascending=True,
    ),
    Column("seconds_per_1000", "Inference of 1000 examples", _timing("seconds_per_1000"), "seconds"),
    Column(
        "training_seconds",
        "Training",
        lambda defense: defense.record.training.get("seconds"),
        "seconds",
        ("ranking", "files"),
        "Training of the weights that were evaluated: processor time, on a GPU wall time; “–” where there was none.",
        ascending=True,
    ),
    Column("worker_seconds", "Evaluation", lambda defense: defense.worker_seconds, "seconds"),
    Column(
        "flags",
        "Flags",
        lambda defense: defense.flags,
        "flags",
        ("report", "ranking", "files"),
        "Signs that a number needs care: a weak evaluation, masked gradients, randomness. See the list of flags below.",
        ascending=True,
    ),
    Column(
        "isolation",
        "Isolation",
        lambda defense: defense.isolation,
        "text",
        ("report", "ranking", "files"),
        "How far the defense was kept apart from its judge while it was attacked and judged; where shards differ, the "
        "weakest level. “none”: in the judge's own process, as the code of this project runs; “process”: in one of its "
        "own; “landlock”: that, without files, sockets or a view of other processes; “bubblewrap”: that, in namespaces "
        "of its own.",
    ),
    Column(
        "family",
        "Family, tags",
        lambda defense: defense.record.family,
        places=("ranking", "files"),
        detail=lambda defense: ", ".join(defense.record.tags),
    ),
    Column("tags", "Tags", lambda defense: defense.record.tags, "names"),
    Column("complete", "Complete", lambda defense: defense.complete, "truth", ("rows", "files")),
    Column("git_commits", "Commits", lambda defense: defense.commits, "names"),
    Column("ended", "Ended", lambda defense: defense.record.provenance.ended),
)


def _measured(cell: AttackSummary) -> bool:
    return cell.robust is not None


#: What is shown of one attack on one defense, in the order in which it is shown.
CELL_COLUMNS: tuple[Column[AttackSummary], ...] = (
    Column("function", "Function", lambda cell: cell.record.function),
    Column("knowledge", "Knowledge", lambda cell: cell.record.knowledge),
    Column("tier", "Tier", lambda cell: cell.record.tier, places=("defense", "files")),
    Column("counted", "Counted", lambda cell: cell.record.counted, "truth"),
    Column("status", "Status", lambda cell: cell.status),
    Column("robust_accuracy", "Robust accuracy", lambda cell: cell.robust, "accuracy", ("page", "files"), main=True),
    Column("worst_for", "Worst for", lambda cell: cell.worst_for, "count", ("page", "files"), shown=_measured),
    Column(
        "mean_forward",
        "Forward passes",
        lambda cell: cell.mean_forward,
        "count",
        ("report", "page", "files"),
        shown=_measured,
    ),
    Column(
        "mean_backward",
        "Backward passes",
        lambda cell: cell.mean_backward,
        "count",
        ("report", "page", "files"),
        shown=_measured,
    ),
    Column(
        "seconds_per_example",
        "Time per example",
        lambda cell: cell.seconds_per_example,
        "seconds",
        ("report", "page", "files"),
        shown=_measured,
    ),
    Column(
        "prepare_seconds",
        "Preparation",
        lambda cell: cell.prepare_seconds,
        "seconds",
        ("report", "defense", "files"),
        shown=lambda cell: _measured(cell) and cell.prepare_seconds > 0,
    ),
    Column("detection_rate", "Successes caught", lambda cell: cell.detection_rate, "share", ("defense", "files")),
    Column("zero_gradient_share", "Zero gradients", lambda cell: cell.zero_gradient_share, "share"),
    Column("violations", "Refused", lambda cell: cell.violations),
    Column("errors", "Errors", lambda cell: cell.errors, "names"),
    Column("notes", "Notes", lambda cell: cell.notes, "names"),
    Column("attack_eps", "Radius", lambda cell: cell.record.eps, "count"),
    Column("params", "Budget", lambda cell: cell.record.params),
)


def columns_in(*places: Place) -> list[Column[DefenseSummary]]:
    """The columns of defenses that are shown in any of the places, in order."""
    return [column for column in COLUMNS if set(places) & set(column.places)]


def cell_columns_in(*places: Place) -> list[Column[AttackSummary]]:
    """The columns of attacks that are shown in any of the places, in order."""
    return [column for column in CELL_COLUMNS if set(places) & set(column.places)]


def fields_of(columns: Sequence[Column[Item]], item: Item) -> dict[str, Any]:
    """All values of the columns, as files have them."""
    return {name: value for column in columns for name, value in column.fields(item).items()}
