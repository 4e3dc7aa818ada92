"""An attack that a suite runs on its first examples alone: what is run, what is complete, what each number says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bench import STEP, Bench, cells
from stand_ins import plugin, run_bench
from written_results import Results, attack_record, defense_record, suite_record

from bench.summary.numbers import AttackSummary, DefenseSummary
from bench.summary.summarise import summarise
from bench.upkeep.compact import compact
from leaderboard import build

SLOW = {"attack": plugin("slow"), "seconds": 0.0}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench").configure({"step": STEP, "slow": {**SLOW, "examples": 6}})


def test_only_the_first_examples_are_attacked_and_the_cell_is_complete(bench: Bench) -> None:
    assert bench.evaluate().code == 0
    assert sorted((s.start, s.stop) for s in bench.cell("slow")) == [(0, 4), (4, 6)]
    assert bench.status("slow") == "complete"
    (defense,) = bench.summary.defenses
    assert defense.complete and not [flag for flag in defense.flags if flag.id == "incomplete"]
    assert (defense.worst_case.n, cell(defense, "slow").robust.n) == (12, 6)  # type: ignore[union-attr]


def test_more_examples_run_what_is_missing_and_fewer_run_nothing(bench: Bench) -> None:
    bench.evaluate()
    assert bench.evaluate().ran == []
    bench.configure({"step": STEP, "slow": {**SLOW, "examples": 9}})
    assert cells(bench.evaluate()) == ["slow"]
    assert sorted((s.start, s.stop) for s in bench.cell("slow")) == [(0, 4), (4, 6), (6, 8), (8, 9)]
    bench.configure({"step": STEP, "slow": {**SLOW, "examples": 5}})
    assert bench.evaluate().ran == []
    assert cell(bench.summary.defenses[0], "slow").robust.n == 5  # type: ignore[union-attr]
    bench.configure({"step": STEP, "slow": SLOW})
    assert cells(bench.evaluate()) == ["slow"]


def test_plan_status_and_verify_know_of_it(bench: Bench) -> None:
    planned = bench.evaluate(more=("--dry-run",)).out
    assert "× slow   2 of 2 shards to run (its first 6 examples)" in planned
    bench.evaluate()
    assert "× slow   complete (its first 6 examples)" in bench.evaluate(more=("--dry-run",)).out
    where = ("--results", bench.results, "--suite", "tiny", "--device", "cpu")
    stored = run_bench("status", *where, "--config", bench.folder / "bench.yaml").out
    assert "1 complete and current" in stored and "would run nothing" in stored
    verified = run_bench("verify", *where)
    assert verified.code == 0 and "slow: 0 of 6 rows differ" in verified.out


def test_the_table_says_on_how_many_examples(bench: Bench) -> None:
    out = bench.evaluate().out
    assert "slow (first 6 examples)" in out and "step (first" not in out
    reported = run_bench("report", "--results", bench.results, "--format", "json").out
    n = {row["what"]: row["n"] for row in json.loads(reported)["results"]}
    assert (n["worst_case_robust_accuracy"], n["step"], n["slow"]) == (12, 12, 6)


def test_results_on_fewer_examples_are_compacted(bench: Bench) -> None:
    bench.evaluate()
    (done,) = compact(bench.results, "tiny")
    assert done.note == "" and done.after < done.before


@pytest.mark.parametrize(
    ("examples", "fragment"),
    [
        (0, "suites.tiny.attacks.slow.examples: 0"),
        (13, "attacks.slow.examples: 13 must be at most the suite's own, 12"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(bench: Bench, examples: int, fragment: str) -> None:
    ended = bench.configure({"step": STEP, "slow": {**SLOW, "examples": examples}}).evaluate()
    assert ended.code == 2 and fragment in ended.err
    assert not bench.results.exists()


# -- numbers, by hand -------------------------------------------------------------------------------------------

PLAIN = defense_record("plain")


def cell(defense: DefenseSummary, name: str) -> AttackSummary:
    return next(attack for attack in defense.attacks if attack.record.name == name)


def summary(root: Path, attacks: list[Any], rows: dict[str, Any]) -> DefenseSummary:
    results = Results(root, suite_record(attacks))
    results.write_defense(PLAIN, rows)
    return summarise(root, "made").defenses[0]


def test_the_worst_case_is_of_all_examples_and_a_costly_attack_counts_where_it_ran(tmp_path: Path) -> None:
    attacks = [attack_record("pgd"), attack_record("square", knowledge="score", examples=2)]
    found = summary(tmp_path, attacks, {"clean": [1, 1, 1, 1], "pgd": [1, 0, 1, 1], "square": [0, 1]})
    assert (found.worst_case.value, found.worst_case.n) == (0.5, 4)  # e0 by square, e1 by pgd
    assert found.complete
    assert (cell(found, "square").worst_for, cell(found, "square").robust.value) == (1, 0.5)  # type: ignore[union-attr]
    # 75 % of four and 50 % of two do not compare: the worst attack is one that saw everything.
    assert found.worst_attack == "pgd"
    build(tmp_path, tmp_path / "site")
    index = (tmp_path / "site/index.html").read_text()
    assert "on the first examples alone, where they lower the worst case: square (2)" in index
    assert "first 2</span>" in index
    assert "the first 2 of 4" in (tmp_path / "site/made/attacks/square.html").read_text()
    assert "2 of 4 examples" in (tmp_path / "site/made/defenses/plain.html").read_text()


def test_rows_beyond_the_first_examples_do_not_count(tmp_path: Path) -> None:
    attacks = [attack_record("pgd"), attack_record("square", knowledge="score", examples=1)]
    found = summary(tmp_path, attacks, {"clean": [1] * 4, "pgd": [1, 0, 1, 1], "square": [0, 0, 0, 0]})
    assert found.worst_case.value == 0.5
    assert cell(found, "square").robust.n == 1  # type: ignore[union-attr]


def test_flags_compare_attacks_on_the_examples_that_both_saw(tmp_path: Path) -> None:
    costly = attack_record("costly", examples=2)
    rows = {"clean": [1] * 4, "costly": [0, 0], "square": [1, 1, 0, 0]}
    found = summary(tmp_path, [costly, attack_record("square", knowledge="score")], rows)
    assert not [flag for flag in found.flags if flag.id == "black-box-wins"]  # it wins where the other never ran
    rows = {"clean": [1] * 4, "pgd": [1] * 4, "square": [0, 1]}
    attacks = [attack_record("pgd"), attack_record("square", knowledge="score", examples=2)]
    (flag,) = [flag for flag in summary(tmp_path / "b", attacks, rows).flags if flag.id == "black-box-wins"]
    assert "by 50.0 points" in flag.text and "on the 2 examples that both saw" in flag.text
    assert np.isclose(0.75, summarise(tmp_path / "b", "made").defenses[0].worst_case.value)
