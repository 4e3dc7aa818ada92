"""A detector's numbers by tier, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from written_results import Results, attack_record, defense_record, probe_record, row, suite_record

from bench.storing.records import AttackRecord, Row
from bench.summary.columns import COLUMNS, TIER_COLUMNS
from bench.summary.metrics import wilson
from bench.summary.numbers import DefenseSummary, DetectionSummary, Estimate
from bench.summary.summarise import summarise

ADAPTIVE, WEAK = attack_record("pgd"), attack_record("weak")
OBLIVIOUS = attack_record("blind", tier="oblivious")
COPY, TRANSFER = attack_record("copy", tier="transfer"), attack_record("transfer", knowledge="transfer")
NOISE = attack_record("noise", knowledge="decision")
THRESHOLD = 0.5


def judged(example: str, right: bool, score: float, **fields: Any) -> Row:
    """The row of an attack on a deterministic defense."""
    rejected = score > THRESHOLD
    caught, survived = rejected and not right, right or rejected
    counts = {"select_correct": right, "report_correct": right, "select_robust": survived, "report_robust": survived}
    counts |= {"report_rejected": rejected, "report_caught": caught}
    return row(example, int(right), **{**counts, "detector_score": score, **fields})


def clean(example: str, right: bool, score: float) -> Row:
    accepted = right and score <= THRESHOLD
    return judged(example, right, score, select_robust=accepted, report_robust=accepted, linf=0.0)


CLEAN = [clean("e0", True, 0.1), clean("e1", True, 0.2), clean("e2", True, 0.7), clean("e3", False, 0.3)]


def summarised(tmp_path: Path, attacks: list[AttackRecord], cells: dict[str, list[Row]], **more: Any) -> DefenseSummary:
    results = Results(tmp_path, suite_record(attacks, **more))
    results.write_defense(defense_record("guarded", probe_record(threshold=THRESHOLD)), {"clean": CLEAN, **cells})
    return next(d for d in summarise(tmp_path, "made").defenses if d.record.name == "guarded")


def detection(tmp_path: Path, attacks: list[AttackRecord], cells: dict[str, list[Row]]) -> DetectionSummary:
    found = summarised(tmp_path, attacks, cells).detection
    assert found is not None
    return found


def rows(*outcomes: tuple[bool, float]) -> list[Row]:
    return [judged(f"e{i}", *outcome) for i, outcome in enumerate(outcomes)]


SEEN = rows((False, 0.9), (False, 0.8), (False, 0.95), (False, 0.9))  # every success is rejected
UNSEEN = rows((False, 0.05), (False, 0.15), (False, 0.6), (False, 0.0))  # all but e2 are accepted


def test_attacks_that_do_not_know_the_detector_are_not_pooled_with_those_that_do(tmp_path: Path) -> None:
    attacks = [ADAPTIVE, OBLIVIOUS, COPY, TRANSFER, NOISE]
    cells = {"pgd": UNSEEN, "blind": SEEN, "copy": SEEN, "transfer": SEEN, "noise": SEEN}
    found = detection(tmp_path, attacks, cells)
    assert {name: tier.attacks for name, tier in found.tiers.items()} == {
        "oblivious": ["blind"],
        "transfer": ["copy", "transfer"],
        "adaptive": ["pgd"],
    }
    rates = {name: tier.true_positive_rate for name, tier in found.tiers.items()}
    assert rates["oblivious"] == rates["transfer"] == Estimate(1.0, *wilson(1.0, 3), 3)
    # e0, e1, e2 are right when clean; of their inputs that of e2 is rejected.
    assert rates["adaptive"] == found.true_positive_rate == Estimate(1 / 3, *wilson(1 / 3, 3), 3)
    assert found.accuracy == pytest.approx((1 / 3 + 3 / 4) / 2)
    assert found.noise_rejected is not None and found.noise_rejected.value == 1.0
    assert found.clean_accepted.value == 0.5  # e0 and e1


def test_every_tier_can_lower_the_headline_and_none_can_raise_it(tmp_path: Path) -> None:
    strong = summarised(tmp_path / "a", [ADAPTIVE], {"pgd": UNSEEN})
    beside = summarised(tmp_path / "b", [ADAPTIVE, OBLIVIOUS], {"pgd": UNSEEN, "blind": SEEN})
    assert strong.worst_case == beside.worst_case == Estimate(0.0, *wilson(0.0, 4), 4)
    assert beside.worst_attack == "pgd"
    # An oblivious input that the detector accepts is an adversarial input all the same: the adaptive attack was weak.
    weak = summarised(tmp_path / "c", [ADAPTIVE, OBLIVIOUS], {"pgd": SEEN, "blind": UNSEEN})
    assert weak.worst_case.value == 0.0
    assert weak.detection is not None and weak.detection.tiers["adaptive"].robust.value == 0.5
    assert "oblivious-wins" in {flag.id for flag in weak.flags}
    assert "oblivious-wins" not in {flag.id for flag in beside.flags}


def test_a_weak_attack_of_the_same_tier_hides_nothing(tmp_path: Path) -> None:
    alone = detection(tmp_path / "a", [ADAPTIVE], {"pgd": UNSEEN}).tiers["adaptive"]
    pooled = detection(tmp_path / "b", [ADAPTIVE, WEAK], {"pgd": UNSEEN, "weak": SEEN}).tiers["adaptive"]
    assert (alone.true_positive_rate, alone.auroc) == (pooled.true_positive_rate, pooled.auroc)


def test_ranks_and_rates_of_a_tier(tmp_path: Path) -> None:
    tier = detection(tmp_path, [ADAPTIVE], {"pgd": UNSEEN}).tiers["adaptive"]
    # Clean 0.1, 0.2, 0.3, 0.7 against 0.05, 0.15, 0.6: 0 + 1 + 3 of 12 pairs.
    assert tier.auroc is not None and tier.auroc.value == pytest.approx(4 / 12)
    assert 0 <= tier.auroc.low <= 4 / 12 <= tier.auroc.high <= 1
    assert tier.caught_at_5 is not None and tier.caught_at_5.value == 0.0  # the threshold is 0.7, the largest score
    assert tier.robust.value == 0.0


def test_rejecting_a_near_input_is_an_error_of_the_stratified_version(tmp_path: Path) -> None:
    near = [
        judged("e0", True, 0.9, linf=0.05),  # right, rejected, at eps / 4: an error
        judged("e1", False, 0.9, linf=0.0501),  # beyond it: detected
        judged("e2", True, 0.1, linf=0.01),
        judged("e3", True, 0.1, linf=0.2),
    ]
    found = detection(tmp_path, [ADAPTIVE], {"pgd": near})
    assert found.robust_with_rejection.value == 0.5  # e0 and e1; clean, e2 is rejected and e3 wrong
    assert found.stratified.value == found.tiers["adaptive"].stratified.value == 0.25


def test_of_a_randomised_defense_the_draws_count_as_shares(tmp_path: Path) -> None:
    results = Results(tmp_path, suite_record([ADAPTIVE], n=2, draws_select=4, draws_report=10))
    probe = probe_record(threshold=THRESHOLD, randomized=True)
    full = {"select_correct": 4, "select_robust": 4, "report_correct": 10, "report_robust": 10, "detector_score": 0.2}
    fooled = {"select_correct": 0, "select_robust": 1, "report_correct": 2, "report_robust": 6, "report_rejected": 5}
    attacked = [
        row("e0", 0, **fooled, report_caught=4, detector_score=0.4),  # 8 draws fooled, 4 of these rejected
        row("e1", 0, **{**full, "report_correct": 8, "report_robust": 8}),  # 2 draws fooled, none rejected
    ]
    results.write_defense(
        defense_record("guarded", probe), {"clean": [row(f"e{i}", 10, **full) for i in range(2)], "pgd": attacked}
    )
    (found,) = summarise(tmp_path, "made").defenses
    assert found.detection is not None and found.detection.true_positive_rate is not None
    assert found.detection.true_positive_rate.value == pytest.approx(4 / 10)


def test_a_result_that_implies_a_better_classifier_than_any_is_flagged(tmp_path: Path) -> None:
    small = attack_record("small", eps=0.1)
    right = rows(*[(True, 0.1)] * 4)
    for name, attacks, held, measured, flagged in (
        ("estimated", [ADAPTIVE], 1, False, False),  # (1 + 0.25) / 2 = 62.5 % at eps / 2, and 50 % are implied
        ("weak", [ADAPTIVE], 0, False, False),  # 50 %, and 50 % are implied: no more
        ("measured", [ADAPTIVE, small], 1, True, True),  # the attack at eps / 2 leaves 25 %
    ):
        folder = tmp_path / name
        results = Results(folder, suite_record(attacks))
        cells: dict[str, Any] = {a.name: [int(i < held) for i in range(4)] for a in attacks}
        results.write_defense(defense_record("plain"), {"clean": [1] * 4, **cells})
        own = {a.name: right for a in attacks}
        results.write_defense(defense_record("guarded", probe_record(threshold=THRESHOLD)), {"clean": CLEAN, **own})
        found = next(d for d in summarise(folder, "made").defenses if d.record.name == "guarded")
        assert found.detection is not None and found.detection.best_at_half is not None
        assert found.detection.implied.value == 0.5
        assert found.detection.best_at_half.measured is measured
        assert ("implies-too-much" in {flag.id for flag in found.flags}) is flagged


def test_files_have_every_number_of_every_tier(tmp_path: Path) -> None:
    found = summarised(tmp_path, [ADAPTIVE, OBLIVIOUS], {"pgd": UNSEEN, "blind": SEEN})
    fields = {name: value for column in COLUMNS for name, value in column.fields(found).items()}
    assert fields["oblivious_true_positive_rate"] == 1.0
    assert fields["adaptive_auroc"] == pytest.approx(4 / 12)
    for column in TIER_COLUMNS:
        assert fields[f"adaptive_{column.id}"] is not None
        assert fields[f"transfer_{column.id}"] is None  # no such attack ran


NEAR = attack_record("near-rejection", seeks="rejection")
STILL = rows((True, 0.1), (True, 0.2), (True, 0.7), (False, 0.3))  # an attack that moves nothing
#: Of two inputs that are right and accepted when clean, one is rejected near by; the other points are of no account.
NEARLY = [
    judged("e0", True, 0.9, linf=0.05),
    judged("e1", False, 0.8, linf=0.06),  # beyond eps / 4
    judged("e2", True, 0.9, linf=0.05),  # rejected when clean
    judged("e3", False, 0.9, linf=0.0),  # wrong when clean
]


def test_an_attack_that_seeks_rejections_is_in_the_stratified_version_alone(tmp_path: Path) -> None:
    without = detection(tmp_path / "without", [ADAPTIVE], {"pgd": UNSEEN[:1] + STILL[1:]})
    found = detection(tmp_path / "with", [ADAPTIVE, NEAR], {"pgd": UNSEEN[:1] + STILL[1:], "near-rejection": NEARLY})
    assert without.near_rejected is None
    assert found.near_rejected is not None
    assert (found.near_rejected.value, found.near_rejected.n) == (0.5, 2)
    assert (without.stratified.value, found.stratified.value) == (0.25, 0.25)
    assert found.robust_with_rejection == without.robust_with_rejection
    for name in ("true_positive_rate", "auroc", "robust", "attacks"):
        assert getattr(found.tiers["adaptive"], name) == getattr(without.tiers["adaptive"], name)
    alone = detection(tmp_path / "alone", [ADAPTIVE, NEAR], {"pgd": SEEN[:1] + STILL[1:], "near-rejection": NEARLY})
    assert alone.robust_with_rejection.value == 0.5
    assert alone.stratified.value == alone.tiers["adaptive"].stratified.value == 0.25  # e0 is rejected near by


def test_an_attack_that_seeks_rejections_is_not_missing_where_there_is_no_detector(tmp_path: Path) -> None:
    results = Results(tmp_path, suite_record([ADAPTIVE, NEAR]))
    results.write_defense(defense_record("bare"), {"clean": rows(*[(True, 0.0)] * 4), "pgd": rows(*[(True, 0.0)] * 4)})
    (bare,) = summarise(tmp_path, "made").defenses
    assert bare.complete


def test_the_classifier_behind_a_detector_is_measured_at_half_the_radius(tmp_path: Path) -> None:
    """Of its four images one is wrong, one falls at eps/2: 50 % stand there, which the detector's 75 % exceed."""
    half = attack_record("half", tier="oblivious", eps=0.1)
    fallen = [judged("e0", False, 0.9, linf=0.1), *rows((True, 0.1), (True, 0.1), (True, 0.1))[1:]]
    cells = {"pgd": STILL, "half": fallen}
    summary = summarised(tmp_path, [ADAPTIVE, half], cells)
    assert summary.detection is not None and summary.detection.best_at_half is not None
    best = summary.detection.best_at_half
    assert (best.defense, best.accuracy, best.measured) == ("the classifier behind guarded", 0.5, True)
    assert "oblivious" not in summary.detection.tiers  # whose points have the whole radius
