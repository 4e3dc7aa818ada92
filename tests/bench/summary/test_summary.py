"""From stored rows to the shown numbers, each worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_results import (
    PROVENANCE,
    Results,
    attack_record,
    defense_record,
    probe_record,
    row,
    shard_record,
    suite_record,
)

from bench.contracts.errors import InputError
from bench.storing.keys import PROTOCOL, Key
from bench.storing.records import DefenseRecord, Row
from bench.summary.metrics import wilson
from bench.summary.numbers import AttackSummary, DefenseSummary, Estimate
from bench.summary.summarise import summarise

PGD, NOISE = attack_record("pgd"), attack_record("noise", knowledge="decision")
UNBOUNDED = attack_record("unbounded", eps=1.0, counted=False)
PLAIN = defense_record("plain")
CLEAN_ROWS, PGD_ROWS, NOISE_ROWS = [1, 1, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0]
COMPLETE = {"clean": CLEAN_ROWS, "pgd": PGD_ROWS, "noise": NOISE_ROWS}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path, suite_record([PGD, NOISE]))


def summary_of(results: Results, name: str = "plain") -> DefenseSummary:
    return next(d for d in summarise(results.root, "made").defenses if d.record.name == name)


def cell(summary: DefenseSummary, name: str) -> AttackSummary:
    return next(attack for attack in summary.attacks if attack.record.name == name)


def value(attack: AttackSummary) -> float:
    assert attack.robust is not None
    return attack.robust.value


# -- deterministic defenses -------------------------------------------------------------------------------------


def test_the_worst_case_is_taken_per_example(results: Results) -> None:
    results.write_defense(PLAIN, COMPLETE)
    found = summary_of(results)
    assert (found.rank, found.complete, found.slug) == (1, True, "plain")
    assert found.standard.value == 0.75
    assert (value(cell(found, "pgd")), value(cell(found, "noise"))) == (0.5, 0.5)
    assert found.worst_case.value == 0.25  # below both attacks: each breaks another example
    assert (found.worst_case.low, found.worst_case.high) == wilson(0.25, 4)
    assert found.worst_case.n == 4
    assert found.survival == {"pgd": [0, 1, 1, 0], "noise": [1, 0, 1, 0]}
    assert found.detection is None


def test_every_example_is_put_down_to_one_attack(results: Results) -> None:
    results.write_defense(PLAIN, {**COMPLETE, "noise": [0, 0, 1, 0]})
    found = summary_of(results)
    assert found.worst_attack == "noise"
    # e1 is noise's alone; the other examples are ties, which go to the stronger attack.
    assert (cell(found, "noise").worst_for, cell(found, "pgd").worst_for) == (4, 0)


def test_an_attack_cannot_repair_an_example_that_is_wrong_without_it(results: Results) -> None:
    results.write_defense(PLAIN, {**COMPLETE, "pgd": [1, 1, 1, 1]})
    found = summary_of(results)
    assert value(cell(found, "pgd")) == 0.75
    assert found.survival["pgd"] == [1, 1, 1, 0]


def test_effort_time_and_violations_are_summed_up(results: Results) -> None:
    rows = [
        row("e0", 1, reason="outside the ball: linf 0.5 > 0.2", zero_gradient=5),
        row("e1", 1, reason="outside the ball: linf 0.9 > 0.2", zero_gradient=0),
        row("e2", 1, reason="not finite", forward=30, backward=5),
        row("e3", 0, backward=25, zero_gradient=5),
    ]
    results.write_defense(PLAIN, {**COMPLETE, "pgd": rows})
    found = cell(summary_of(results), "pgd")
    assert found.violations == {"outside the ball": 2, "not finite": 1}
    assert (found.mean_forward, found.mean_backward) == (15, 10)
    assert found.zero_gradient_share == 0.25
    assert found.seconds_per_example == 1.0  # two shards of 2 s for 4 examples
    assert found.detection_rate is None


def survived(results: Results, attack: str, **fields: Any) -> None:
    """Both shards of an attack that fooled nobody, with these fields."""
    for number in (0, 1):
        rows = [row(example, 1) for example in results.suite.ids[2 * number : 2 * number + 2]]
        results.write_shard(PLAIN, attack, number, rows=rows, **fields)


def test_the_time_of_a_worker_is_that_of_all_shards_and_of_each_preparation_once(results: Results) -> None:
    results.write_defense(PLAIN, COMPLETE)
    assert summary_of(results).worker_seconds == 6  # three cells of two shards of a second
    slow = PROVENANCE.model_copy(update={"ended": "2026-01-02T00:00:01+00:00"})
    survived(results, "pgd", provenance=slow, prepare_seconds=40.0)
    assert summary_of(results).worker_seconds == 4 + 2 * 86_401 + 40
    assert summarise(results.root, "made").worker_seconds == summary_of(results).worker_seconds


def test_what_was_prepared_for_several_defenses_is_counted_once(results: Results) -> None:
    for name in ("plain", "other"):
        results.write_defense(defense_record(name), COMPLETE)
    alone = summarise(results.root, "made").worker_seconds
    for name, own in (("plain", 7.5), ("other", 8.25)):
        for attack, seconds in (("pgd", 40.125), ("noise", own)):
            for number in (0, 1):
                rows = [row(example, 1) for example in results.suite.ids[2 * number : 2 * number + 2]]
                results.write_shard(defense_record(name), attack, number, rows=rows, prepare_seconds=seconds)
    assert summarise(results.root, "made").worker_seconds == alone + 40.125 + 7.5 + 8.25


def test_all_code_versions_are_named_the_first_one_first(results: Results) -> None:
    results.write_defense(PLAIN, COMPLETE)
    assert summary_of(results).commits == []
    for attack, day, commit, dirty in (("noise", 3, "b" * 40, True), ("pgd", 2, "a" * 40, False)):
        update = {"git_commit": commit, "git_dirty": dirty, "started": f"2026-01-0{day}T00:00:00+00:00"}
        origin = PROVENANCE.model_copy(update={**update, "ended": "2026-01-04T00:00:00+00:00"})
        survived(results, attack, provenance=origin)
    assert summary_of(results).commits == ["a" * 40, "b" * 40 + "+"]


# -- randomised defenses ----------------------------------------------------------------------------------------


def drawn(select: list[int], report: list[int]) -> list[Row]:
    """One row per example, with so many draws survived on either stream."""
    return [
        row(f"e{i}", 0, select_robust=s, select_correct=s, report_robust=r, report_correct=r)
        for i, (s, r) in enumerate(zip(select, report, strict=True))
    ]


def test_a_randomised_defense_is_scored_on_draws_its_worst_attack_was_not_chosen_on(tmp_path: Path) -> None:
    results = Results(tmp_path, suite_record([PGD, NOISE], n=2, draws_select=4, draws_report=10))
    random = defense_record("random", probe_record(randomized=True))

    cells = {
        "clean": drawn([4, 4], [10, 9]),
        "pgd": drawn([0, 4], [6, 5]),
        "noise": drawn([4, 0], [1, 4]),  # on e0 the reporting draws flatter noise: it was not chosen there
    }
    results.write_defense(random, cells)
    found = summary_of(results, "random")
    assert found.standard.value == pytest.approx(0.95)
    assert found.worst_case.value == pytest.approx((0.6 + 0.4) / 2)
    assert value(cell(found, "pgd")) == pytest.approx((0.6 + 0.5) / 2)
    assert value(cell(found, "noise")) == pytest.approx((0.1 + 0.4) / 2)
    assert (cell(found, "pgd").worst_for, cell(found, "noise").worst_for) == (1, 1)
    assert found.survival["noise"] == pytest.approx([0.1, 0.4])


def test_the_worst_case_does_not_exceed_the_strongest_attack_where_few_draws_choose_badly(tmp_path: Path) -> None:
    results = Results(tmp_path, suite_record([PGD, NOISE], n=40, draws_select=4, draws_report=10))
    random = np.random.default_rng(0)
    pgd, noise = (random.binomial(4, share, 40).tolist() for share in (0.4, 0.5))

    cells = {"clean": drawn([4] * 40, [10] * 40), "pgd": drawn(pgd, [3] * 40), "noise": drawn(noise, [5] * 40)}
    results.write_defense(defense_record("random", probe_record(randomized=True)), cells)
    found = summary_of(results, "random")
    assert cell(found, "noise").worst_for > 5  # by luck on the selection draws, since it is weaker for all
    assert found.worst_case.value == pytest.approx(0.3)


def test_luck_on_the_reporting_draws_chooses_nothing(tmp_path: Path) -> None:
    """Each attack is worse for half of the examples; that pgd alone left less when they were scored is luck."""
    results = Results(tmp_path, suite_record([PGD, NOISE], n=40, draws_select=4, draws_report=10))
    halves = [0] * 20 + [4] * 20
    cells = {
        "clean": drawn([4] * 40, [10] * 40),
        "pgd": drawn(halves, [1] * 40),
        "noise": drawn(halves[::-1], [3] * 40),
    }
    results.write_defense(defense_record("random", probe_record(randomized=True)), cells)
    found = summary_of(results, "random")
    assert found.worst_case.value == pytest.approx((0.1 + 0.3) / 2)
    assert found.judging_error == pytest.approx(math.sqrt(20 * (0.1 * 0.9 + 0.3 * 0.7) / 9) / 40)


# -- what is missing --------------------------------------------------------------------------------------------


def test_an_attack_without_shards_is_missing_and_the_result_incomplete(results: Results) -> None:
    results.write_defense(PLAIN, {"clean": CLEAN_ROWS, "pgd": PGD_ROWS})
    found = summary_of(results)
    assert not found.complete
    assert cell(found, "noise").status == "missing"
    assert cell(found, "noise").robust is None
    assert found.worst_case.value == 0.5
    assert [flag.id for flag in found.flags] == ["incomplete"]
    assert "noise (missing)" in found.flags[0].text


def test_a_partial_attack_counts_where_it_has_run(results: Results) -> None:
    results.write_defense(PLAIN, {"clean": CLEAN_ROWS, "pgd": [1, 1, 1, 0], "noise": [0, 0]})
    found = summary_of(results)
    assert cell(found, "noise").status == "partial"
    assert cell(found, "noise").robust == Estimate(0.0, *wilson(0.0, 2), 2)
    assert found.worst_case.value == 0.25
    assert not found.complete


def test_a_failed_shard_is_shown_with_the_last_line_of_its_error(results: Results) -> None:
    results.write_defense(PLAIN, {"clean": CLEAN_ROWS, "pgd": PGD_ROWS})
    for number in range(2):
        results.write_shard(
            PLAIN, "noise", number, status="failed", error="Traceback (most recent call last)\nValueError: no luck\n"
        )
    found = summary_of(results)
    assert cell(found, "noise").status == "failed"
    assert cell(found, "noise").errors == ["ValueError: no luck"] * 2
    assert not found.complete


def test_an_attack_that_does_not_apply_leaves_the_result_complete(results: Results) -> None:
    results.write_defense(PLAIN, {"clean": CLEAN_ROWS, "pgd": PGD_ROWS})
    for number in range(2):
        results.write_shard(PLAIN, "noise", number, status="not-applicable", error="noise has no l1 version")
    found = summary_of(results)
    assert cell(found, "noise").status == "not-applicable"
    assert cell(found, "noise").robust is None
    assert found.complete
    assert found.flags == []


OTHERS = {
    "protocol": {"protocol": PROTOCOL + 1},
    "suite": {"suite": {"norm": "linf", "eps": 0.2, "seed": 1}},
    "data": {"data": {"version": 1, "split": "test", "examples": "others"}},
    "defense": {"defense": {**PLAIN.key.model_dump(), "weights": "others"}},
    "attack": {"attack": {**NOISE.key(detector=False).model_dump(), "params": {"draws": 2}}},
    "judging": {"judging": {"draws_select": 2, "draws_report": 2, "threshold": None}},
}


def another(results: Results, attack: str, number: int, component: str) -> Key:
    """The key of a shard with another value of one component."""
    key = shard_record(results.suite, PLAIN, attack, number).key.model_dump()
    return Key.model_validate({**key, **OTHERS[component]})


@pytest.mark.parametrize("component", OTHERS)
def test_shards_of_another_setting_are_not_mixed_in(results: Results, component: str) -> None:
    results.write_defense(PLAIN, {**COMPLETE, "noise": [0, 0, 0, 0]})
    assert summary_of(results).worst_case.value == 0
    for number in range(2):
        rows = [row(f"e{2 * number + i}", 0) for i in range(2)]
        results.write_shard(PLAIN, "noise", number, rows=rows, key=another(results, "noise", number, component))
    found = summary_of(results)
    assert cell(found, "noise").status == "missing"
    assert found.worst_case.value == 0.5


@pytest.mark.parametrize("machine", [{"torch": "9.9"}, {"device": "cuda"}])
def test_results_of_another_machine_are_shown(results: Results, machine: dict[str, str]) -> None:
    results.write_defense(PLAIN, COMPLETE)
    before = summary_of(results)
    for number in range(2):
        record = results.store.shard(PLAIN.name, "noise", number)
        assert record is not None
        results.store.write_shard(record.model_copy(update={"key": record.key.model_copy(update=machine)}), None)
    assert summary_of(results).worst_case == before.worst_case and before.complete


def test_shards_may_be_of_any_size_and_a_failure_made_good_elsewhere_is_forgotten(results: Results) -> None:
    results.write_defense(PLAIN, {**COMPLETE, "noise": []})
    results.write_shard(PLAIN, "noise", 0, status="failed", error="boom")
    assert cell(summary_of(results), "noise").errors == ["boom"]
    whole = shard_record(results.suite.model_copy(update={"shard_size": 4}), PLAIN, "noise", 0)
    rows = [row(example, 1) for example in results.suite.ids]
    results.store.write_shard(whole.model_copy(update={"shard": 2, "rows": rows}), None)
    found = cell(summary_of(results), "noise")
    assert (found.status, found.errors) == ("complete", [])


def test_clean_shards_of_another_setting_leave_nothing_to_show(results: Results) -> None:
    results.write_defense(PLAIN, {"pgd": PGD_ROWS})
    for number in range(2):
        key = another(results, "clean", number, "defense")
        results.write_shard(PLAIN, "clean", number, rows=[row(f"e{2 * number + i}", 1) for i in range(2)], key=key)
    found = summarise(results.root, "made")
    assert found.defenses == []
    assert found.warnings == ["plain: no clean results of the current suite; run bench evaluate again"]


def test_only_measured_examples_count(results: Results) -> None:
    results.write_defense(PLAIN, {"clean": [1, 0], "pgd": [0, 0, 1, 1], "noise": [1, 0]})
    found = summary_of(results)
    assert (found.standard.n, found.standard.value) == (2, 0.5)
    assert (found.worst_case.n, found.worst_case.value) == (2, 0.0)
    assert not found.complete


def test_sanity_checks_outside_the_threat_model_do_not_count(tmp_path: Path) -> None:
    results = Results(tmp_path, suite_record([PGD, UNBOUNDED]))
    results.write_defense(PLAIN, {"clean": CLEAN_ROWS, "pgd": PGD_ROWS, "unbounded": [0, 0, 0, 0]})
    found = summary_of(results)
    assert value(cell(found, "unbounded")) == 0.0
    assert found.worst_case.value == 0.5
    assert found.worst_attack == "pgd"
    assert "unbounded" not in found.survival
    assert cell(found, "unbounded").worst_for == 0


# -- ranks ------------------------------------------------------------------------------------------------------


def _with_worst_case(results: Results, name: str, pgd: list[int], complete: bool = True) -> DefenseRecord:
    record = defense_record(name)
    cells = {"clean": [1, 1, 1, 0], "pgd": pgd}
    results.write_defense(record, {**cells, "noise": pgd} if complete else cells)
    return record


def test_equal_results_share_a_rank_and_incomplete_ones_come_last(results: Results) -> None:
    _with_worst_case(results, "weak", [0, 0, 0, 0])
    _with_worst_case(results, "tied-b", [1, 0, 0, 0])
    _with_worst_case(results, "tied-a", [0, 1, 0, 0])
    _with_worst_case(results, "unfinished", [1, 1, 1, 0], complete=False)
    _with_worst_case(results, "strong", [1, 1, 0, 0])
    found = summarise(results.root, "made").defenses
    assert [(d.rank, d.record.name) for d in found] == [
        (1, "strong"),
        (2, "tied-a"),
        (2, "tied-b"),
        (4, "weak"),
        (None, "unfinished"),
    ]


def test_standard_accuracy_decides_between_equals(results: Results) -> None:
    results.write_defense(defense_record("a"), {"clean": [1, 1, 0, 0], "pgd": [1, 0, 0, 0], "noise": [1, 0, 0, 0]})
    results.write_defense(defense_record("b"), {"clean": [1, 1, 1, 0], "pgd": [0, 0, 1, 0], "noise": [1, 1, 1, 0]})
    found = summarise(results.root, "made").defenses
    assert [(d.rank, d.record.name) for d in found] == [(1, "b"), (2, "a")]


# -- detectors --------------------------------------------------------------------------------------------------

RIGHT_ACCEPTED = {"select_correct": 1, "select_robust": 1, "report_correct": 1, "report_robust": 1, "prediction": 1}
RIGHT_REJECTED = {**RIGHT_ACCEPTED, "report_rejected": 1}
WRONG_ACCEPTED = {"select_correct": 0, "select_robust": 0, "report_correct": 0, "report_robust": 0, "prediction": 0}
CAUGHT = {**WRONG_ACCEPTED, "select_robust": 1, "report_robust": 1, "report_rejected": 1, "report_caught": 1}
CLEAN_REJECTED = {**RIGHT_REJECTED, "select_robust": 0, "report_robust": 0}


def rows_of(*kinds: dict[str, int]) -> list[Row]:
    return [row(f"e{i}", 0, **kind) for i, kind in enumerate(kinds)]


def test_detection_is_measured_at_the_one_threshold(results: Results) -> None:
    record = defense_record("guarded", probe_record(threshold=0.5))
    cells = {
        "clean": rows_of(RIGHT_ACCEPTED, CLEAN_REJECTED, RIGHT_ACCEPTED, WRONG_ACCEPTED),
        "pgd": rows_of(CAUGHT, WRONG_ACCEPTED, RIGHT_ACCEPTED, CAUGHT),
        "noise": rows_of(RIGHT_REJECTED, RIGHT_ACCEPTED, WRONG_ACCEPTED, WRONG_ACCEPTED),
    }
    results.write_defense(record, cells)
    found = summary_of(results, "guarded")
    detection = found.detection
    assert detection is not None
    assert (detection.threshold, detection.target_false_positive_rate) == (0.5, 0.05)
    assert found.standard.value == 0.75  # the classifier alone
    assert detection.false_positive_rate.value == 0.25  # e1 of four
    # Positives are misclassified x_adv of images that are right when clean: e0, e1 of pgd. Noise belongs to no tier.
    assert detection.true_positive_rate == Estimate(0.5, *wilson(0.5, 2), 2)
    assert detection.accuracy == pytest.approx((1 / 2 + 0.75) / 2)
    assert detection.clean_accepted.value == 0.5
    assert detection.noise_rejected == Estimate(0.25, *wilson(0.25, 4), 4)
    assert detection.robust_with_rejection.value == 0.25  # e0: right, caught, right but rejected
    assert detection.robust_without_rejection.value == 0.0
    assert found.worst_case == detection.robust_with_rejection
    assert cell(found, "pgd").detection_rate == pytest.approx(2 / 3)
    assert cell(found, "noise").detection_rate == 0.0


def test_without_misclassified_inputs_there_is_no_true_positive_rate(results: Results) -> None:
    right = rows_of(*[RIGHT_ACCEPTED] * 4)
    record = defense_record("guarded", probe_record(threshold=0.5))
    results.write_defense(record, {"clean": right, "pgd": right, "noise": right})
    detection = summary_of(results, "guarded").detection
    assert detection is not None
    assert (detection.true_positive_rate, detection.accuracy) == (None, None)
    assert detection.false_positive_rate.value == 0.0


# -- files that are wrong ---------------------------------------------------------------------------------------


def test_a_suite_without_results_says_what_to_run(tmp_path: Path) -> None:
    command = "bench evaluate --defense ours --suite made --results "
    with pytest.raises(InputError, match=f"no results of suite 'made' in .*; run: {command}"):
        summarise(tmp_path, "made")


def test_a_defense_that_cannot_be_read_is_a_warning(results: Results) -> None:
    results.write_defense(PLAIN, COMPLETE)
    path = results.store.defense_folder("broken") / "defense.json"
    path.parent.mkdir()
    path.write_text('{"schema_version": 99}')
    found = summarise(results.root, "made")
    assert [d.record.name for d in found.defenses] == ["plain"]
    assert len(found.unreadable) == 1 and "schema version 99 is newer" in found.unreadable[0]
    assert found.warnings == []


@pytest.mark.parametrize("attack", ["clean", "noise"])
def test_a_shard_that_cannot_be_read_is_named_and_its_examples_are_missing(results: Results, attack: str) -> None:
    results.write_defense(PLAIN, COMPLETE)
    results.write_defense(defense_record("other"), COMPLETE)
    path = results.store.shard_path("plain", attack, 1)
    path.write_text(path.read_text()[:-40])
    found = summarise(results.root, "made")
    assert [(d.record.name, d.rank, d.complete) for d in found.defenses] == [("other", 1, True), ("plain", None, False)]
    assert len(found.unreadable) == 1 and str(path) in found.unreadable[0]
    assert found.warnings == []
    assert found.defenses[1].worst_case.n == (2 if attack == "clean" else 4)


def test_without_a_readable_clean_shard_a_defense_is_left_out_and_the_rest_shown(results: Results) -> None:
    results.write_defense(PLAIN, COMPLETE)
    results.write_defense(defense_record("other"), COMPLETE)
    for number in (0, 1):
        results.store.shard_path("plain", "clean", number).write_text("")
    found = summarise(results.root, "made")
    assert [d.record.name for d in found.defenses] == ["other"]
    assert len(found.unreadable) == 2 and found.warnings == []


@pytest.mark.parametrize("status", ["failed", "timeout", "out-of-memory", None])
def test_an_attack_that_failed_does_not_raise_a_defense_above_those_that_it_broke(
    results: Results, status: str | None
) -> None:
    results.write_defense(defense_record("broken"), {"clean": [1] * 4, "pgd": [0] * 4, "noise": [1] * 4})
    lucky = defense_record("lucky")
    results.write_defense(lucky, {"clean": [1] * 4, "noise": [1] * 4})
    for number in (0, 1) if status else ():
        results.write_shard(lucky, "pgd", number, status=status, error="Traceback\nRuntimeError: shapes")
    first, last = summarise(results.root, "made").defenses
    assert (first.record.name, first.rank) == ("broken", 1)
    assert (last.record.name, last.rank, last.complete, last.worst_case.value) == ("lucky", None, False, 1.0)
    assert last.flags[0].id == "incomplete"
    assert "pgd (missing)" in last.flags[0].text if status is None else "RuntimeError: shapes" in last.flags[0].text


def test_the_worst_attack_is_one_that_has_run_on_all_examples_where_there_is_one(results: Results) -> None:
    results.write_defense(PLAIN, {"clean": CLEAN_ROWS, "pgd": [0, 1, 1, 0], "noise": [0, 0]})
    assert summary_of(results).worst_attack == "pgd"
    results.write_defense(defense_record("young"), {"clean": CLEAN_ROWS, "noise": [0, 0]})
    assert summary_of(results, "young").worst_attack == "noise"


def test_no_shown_number_is_nan(results: Results) -> None:
    results.write_defense(PLAIN, {"clean": [1, 0], "pgd": [0, 0]})
    found = summary_of(results)
    numbers = [found.standard.value, found.worst_case.value, *found.survival["pgd"]]
    numbers += [x for a in found.attacks for x in (a.mean_forward, a.seconds_per_example, a.zero_gradient_share)]
    assert not any(math.isnan(number) for number in numbers)


def test_the_record_helper_stores_what_the_harness_stores(results: Results) -> None:
    assert shard_record(results.suite, PLAIN, "pgd", 0).key.attack == PGD.key(detector=False)


def test_the_shown_time_runs_from_the_first_shard_to_the_last(results: Results) -> None:
    results.write_defense(PLAIN, {"clean": CLEAN_ROWS, "pgd": PGD_ROWS})
    later = PROVENANCE.model_copy(update={"started": "2026-01-02T00:00:00+00:00", "ended": "2026-01-02T00:05:00+00:00"})
    rows = [row(example, 1) for example in results.suite.ids[: results.suite.shard_size]]
    results.write_shard(PLAIN, "noise", 0, rows=rows, provenance=later)
    shown = summary_of(results).record.provenance
    assert (shown.started, shown.ended) == (PROVENANCE.started, later.ended)
