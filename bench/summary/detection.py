"""What a detector is worth against attackers who do not know it, know a copy of it, or know it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.contracts.threat import Lp
from bench.contracts.words import Tier
from bench.storing.records import AttackRecord, Row
from bench.summary.metrics import Array, wilson
from bench.summary.numbers import DetectionSummary, Estimate, Flag, HalfRadius, TierSummary, estimate
from bench.summary.ranking import Scores
from bench.summary.results import Cell, DefenseResults, worst_of

TIERS: tuple[Tier, ...] = ("oblivious", "transfer", "adaptive")
#: The attack that draws random points of the ball: no tier's, but what a detector of mere noise rejects.
NOISE = "noise"
#: Within this share of eps an input must not be rejected: the stratified robust accuracy (Chen et al. 2023).
STRATUM = 0.25


def tier_of(attack: AttackRecord) -> Tier | None:
    """The tier in whose numbers an attack is. One that sees nothing of the defense, on another model, is a transfer.

    Who seeks a rejection is in none: what it finds is there to be caught.
    """
    if attack.function == NOISE or attack.seeks == "rejection":
        return None
    return "transfer" if attack.knowledge == "transfer" else attack.tier


def detection_of(results: DefenseResults, names: list[str]) -> DetectionSummary | None:
    """The detector's numbers from the rows of the counted attacks; None without a detector."""
    probe = results.record.probe
    if probe.threshold is None:
        return None
    clean = results.clean
    false_positives = estimate(clean["report_rejected"][results.measured])
    # What was given half the radius is there for another comparison, not for what a tier is about.
    full = [name for name in names if results.attacks[name].eps > results.suite.eps / 2]
    tiers = {tier: [name for name in full if tier_of(results.attacks[name]) == tier] for tier in TIERS}
    seekers = [name for name in names if results.attacks[name].seeks == "rejection"]
    noise = [name for name in names if results.attacks[name].function == NOISE]
    rejected = [results.cells[name]["report_rejected"][results.measured] for name in noise]
    of_noise = np.concatenate(rejected)[~np.isnan(np.concatenate(rejected))] if noise else np.zeros(0)
    return DetectionSummary(
        threshold=probe.threshold,
        target_false_positive_rate=results.suite.false_positive_rate,
        false_positive_rate=false_positives,
        clean_accepted=estimate(clean["report_robust"][results.measured]),
        noise_rejected=estimate(of_noise) if len(of_noise) else None,
        tiers={tier: _tier(results, tier, own, seekers, false_positives.value) for tier, own in tiers.items() if own},
        robust_with_rejection=estimate(results.worst(names)[0]),
        robust_without_rejection=estimate(results.worst(names, "correct")[0]),
        stratified=estimate(_stratified(results, names)),
        near_rejected=_near_rejected(results, seekers),
        clean_scores=[_score(row) for row in clean.rows.values()],
        noise_scores=[_score(row) for name in noise for row in results.cells[name].rows.values()],
    )


def _score(row: Row) -> float:
    """A score that is no number rejects nothing, as if it were the smallest."""
    score = row.detector_score
    return -math.inf if score is None or math.isnan(score) else score


def _tier(
    results: DefenseResults, tier: Tier, names: list[str], seekers: list[str], false_positive_rate: float
) -> TierSummary:
    """The numbers of a tier's attacks; to know that a near input is rejected takes the detector (``seekers``)."""
    near = seekers if tier == "adaptive" else []
    scores, caught = _positives(results, names)
    weight = float(scores.weight.sum())
    n = len(scores.positive)
    rate = caught / weight if weight else None
    area, ends = scores.area(), scores.area_interval(results.suite.seed)

    def share(value: float | None) -> Estimate | None:
        return None if value is None else Estimate(value, *wilson(value, n), n)

    return TierSummary(
        tier=tier,
        attacks=names,
        true_positive_rate=share(rate),
        accuracy=None if rate is None else (rate + 1 - false_positive_rate) / 2,
        caught_at_5=share(scores.caught_at(0.05)),
        caught_at_1=share(scores.caught_at(0.01)),
        auroc=None if area is None or ends is None else Estimate(area, *ends, n),
        robust=estimate(results.worst(names)[0]),
        stratified=estimate(_stratified(results, names + near)),
        scores=scores,
    )


def _positives(results: DefenseResults, names: list[str]) -> tuple[Scores, float]:
    """The scores of a tier's successes, one of each image that is right when clean, and how many are rejected.

    Of several, an image's is the one that the attacker would send: accepted in most draws of the selection stream,
    then of the lowest score. So no weak attack beside a strong one makes a detector look better.
    """
    rows = list(results.clean.rows.items())
    found: list[tuple[float, int, float, float]] = []
    for place, (i, clean) in enumerate(rows):
        if clean.prediction != clean.label:
            continue
        options = [option for name in names if (option := _success(results.cells[name], i))]
        if options:
            _, score, weight, caught = min(options)
            found.append((score, place, weight, caught))
    return Scores(
        clean=np.array([_score(row) for _, row in rows], dtype=np.float64),
        positive=np.array([score for score, *_ in found], dtype=np.float64),
        image=np.array([place for _, place, *_ in found], dtype=np.int64),
        weight=np.array([weight for *_, weight, _ in found], dtype=np.float64),
    ), sum(caught for *_, caught in found)


def _success(cell: Cell, i: int) -> tuple[float, float, float, float] | None:
    """(minus the share accepted on the selection draws, score, share of draws fooled, share fooled and rejected)."""
    row = cell.rows.get(i)
    fooled = 0.0 if row is None else 1 - float(cell["report_correct"][i])
    if row is None or fooled <= 0:
        return None
    rejected = float(cell["report_robust"][i] - cell["report_correct"][i])
    return float(cell["select_robust"][i]) - 1, _score(row), fooled, rejected


def _stratified(results: DefenseResults, names: list[str]) -> Array:
    """Survival of each image under the worst attack where a rejection within ``STRATUM`` of eps is an error."""
    cells = [results.cells[name] for name in names]
    report = [_strict(results, cell, "report_robust") for cell in cells] + [results.clean["report_robust"]]
    select = [_strict(results, cell, "select_robust") for cell in cells] + [results.clean["select_robust"]]
    on_select, on_report = (np.stack(rows)[:, results.measured] for rows in (select, report))
    return worst_of(on_select, on_report, results.draws_select)[0]


def _near_rejected(results: DefenseResults, seekers: list[str]) -> Estimate | None:
    """How many of the inputs that are right and accepted when clean have a rejected one within ``STRATUM`` of eps.

    Found by the best of the attacks that look for it.
    """
    right = results.measured & (results.clean["report_robust"] > 0.5)
    shares = []
    for cell in (results.cells[name] for name in seekers):
        rejected = cell["report_rejected"]
        shares.append(np.where(_near(results, cell), rejected, 0.0)[right & ~np.isnan(rejected)])
    best = max((share for share in shares if len(share)), key=lambda share: float(share.mean()), default=None)
    return None if best is None else estimate(best)


def _near(results: DefenseResults, cell: Cell) -> NDArray[np.bool_]:
    """Whether each of a cell's points lies within ``STRATUM`` of eps."""
    radius = STRATUM * results.suite.eps
    near: NDArray[np.bool_] = cell.distance <= radius + Lp(results.suite.norm, radius).tolerance  # type: ignore[arg-type]
    return near


def _strict(results: DefenseResults, cell: Cell, column: str) -> Array:
    """A column of survival in which rejections of near inputs, counted on the reporting draws, are errors."""
    near = _near(results, cell)
    accepted = cell["report_robust"] - cell["report_rejected"]  # right and accepted: robust is right, or caught
    return np.where(near, accepted, cell[column])


@dataclass(frozen=True)
class Classifier:
    """A classifier at half the suite's radius: the survival of each example, ``(N,)`` with NaN where it was not run."""

    name: str
    survived: Array
    measured: bool  # else estimated

    @classmethod
    def of(cls, name: str, results: DefenseResults, values: Array, measured: bool) -> Classifier:
        """From survival of the measured examples of some results."""
        survived = np.full(len(results.suite.ids), np.nan)
        survived[results.measured] = values
        return cls(name, survived, measured)

    def on_first(self, n: int) -> HalfRadius | None:
        """Its accuracy on those of the first ``n`` of the suite's examples that it was run on; None where on none."""
        known = self.survived[:n][~np.isnan(self.survived[:n])]
        return HalfRadius(self.name, float(known.mean()), self.measured) if len(known) else None


def at_half(results: DefenseResults) -> Classifier:
    """What a classifier has at eps/2: measured where a counted attack was given no more, else half way from 0 to eps.

    Points of attacks that were given eps lie mostly farther away, so that they say next to nothing of that ball.
    """
    names, half = results.names(), results.suite.eps / 2
    if any(results.attacks[name].eps <= half and tier_of(results.attacks[name]) for name in names):
        return Classifier.of(results.record.name, results, results.worst(names, radius=half)[0], measured=True)
    ends = [results.worst(some)[0] for some in ([], names)]
    return Classifier.of(results.record.name, results, np.mean(ends, axis=0), measured=False)


def own_at_half(results: DefenseResults) -> Classifier | None:
    """What the classifier behind a detector has at eps/2, where attacks made for it alone were given no more."""
    half = results.suite.eps / 2
    names = [name for name in results.names(tier="oblivious") if results.attacks[name].eps <= half]
    if not names:
        return None
    values = results.worst(names, "correct", radius=half)[0]
    return Classifier.of(f"the classifier behind {results.record.name}", results, values, measured=True)


def implied_flag(detection: DetectionSummary) -> list[Flag]:
    """A warning where the result implies a classifier that is better than any here (Tramèr 2022)."""
    best, implied = detection.best_at_half, detection.implied.value
    if best is None or implied <= best.accuracy:
        return []
    how = "" if best.measured else ", half way from its standard to its worst-case accuracy,"
    text = (
        f"Robust accuracy with rejection of {100 * implied:.1f} % implies a classifier without a detector, if a slow "
        f"one, that is as accurate at half the radius. The best here, {best.defense}, has{how} "
        f"{100 * best.accuracy:.1f} % there. An attack that is too weak explains the difference better."
    )
    return [Flag("implies-too-much", "implies too much", text)]
