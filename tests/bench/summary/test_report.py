"""Results as text, in every format, against numbers known in advance."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from written_results import Results, attack_record, defense_record, probe_record, row, suite_record, timing_record

from bench.summary.columns import percent
from bench.summary.metrics import wilson
from bench.summary.numbers import Estimate, SuiteSummary
from bench.summary.report import FORMATS, headline, long_rows, matrix, overview, render, render_all
from bench.summary.summarise import summarise

ATTACKS = [
    attack_record("pgd", params={"steps": 40, "estimator": {"eot": {"of": "identity"}}}),
    attack_record("noise", knowledge="decision"),
    attack_record("unbounded", eps=1.0, counted=False),
]


@pytest.fixture
def summary(tmp_path: Path) -> SuiteSummary:
    """Three defenses: complete, with a detector, and unfinished."""
    results = Results(tmp_path, suite_record(ATTACKS, eps=8 / 255, seed=7))
    results.write_defense(
        defense_record("plain", timing=timing_record(3.0, 2.0)),
        {"clean": [1, 1, 1, 0], "pgd": [0, 1, 1, 0], "noise": [1, 0, 1, 0], "unbounded": [0, 0, 0, 0]},
    )
    caught = row("e0", 1, report_correct=0, select_correct=0, report_rejected=1, report_caught=1)
    right = [row(f"e{i}", 1) for i in range(4)]
    results.write_defense(
        defense_record("guarded", probe_record(threshold=0.5)),
        {"clean": right, "pgd": [caught, *right[1:]], "noise": right, "unbounded": [0, 0, 0, 0]},
    )
    unfinished = defense_record("unfinished", probe_record(randomized=True))
    results.write_defense(unfinished, {"clean": [1, 1, 1, 1], "pgd": [0, 1]})
    results.write_shard(unfinished, "noise", 0, status="timeout", error="stopped after 5 s")
    return summarise(tmp_path, "made")


def test_a_share_is_printed_in_per_cent_with_its_interval() -> None:
    assert percent(Estimate(0.4617, 0.416, 0.5084, 450)) == "46.2 [41.6, 50.8]"
    assert percent(None) == "–"


def test_the_headline_says_what_the_numbers_are_about(summary: SuiteSummary) -> None:
    line = headline(summary)
    for part in ("made", "digits", "4 examples", "linf", "eps 8/255", "seed 7", "upper bound"):
        assert part in line


def test_the_overview_has_one_line_per_defense(summary: SuiteSummary) -> None:
    rows = {entry["defense"]: entry for entry in overview(summary)}
    low, high = wilson(0.25, 4)
    assert list(rows) == ["guarded", "plain", "unfinished"]
    assert rows["plain"] == {
        "rank": "2",
        "defense": "plain",
        "standard": percent(Estimate(0.75, *wilson(0.75, 4), 4)),
        "worst-case robust": f"25.0 [{100 * low:.1f}, {100 * high:.1f}]",
        "worst attack": "pgd",
        "detection": "–",
        "inference": "1.5×",
        "flags": "black box beats white box",
        "isolation": "none",
    }
    assert rows["guarded"]["detection"] == "100.0"
    # 75 % at eps imply as much at eps/2; plain is estimated there at half of 75 % and 25 %.
    assert (rows["guarded"]["inference"], rows["guarded"]["flags"]) == ("–", "implies too much")
    assert rows["unfinished"]["rank"] == "–"  # a number that can only fall is not ranked
    assert rows["unfinished"]["flags"] == "incomplete, randomised"


def test_the_matrix_shows_every_cell_and_why_one_is_empty(summary: SuiteSummary) -> None:
    rows = {entry["attack"]: entry for entry in matrix(summary)}
    assert list(rows) == ["pgd", "noise", "unbounded (eps 1, not counted)"]
    assert (rows["pgd"]["plain"], rows["noise"]["plain"]) == ("50.0", "50.0")
    assert rows["unbounded (eps 1, not counted)"]["plain"] == "0.0"
    assert rows["pgd"]["unfinished"].endswith(" (partial)")
    assert rows["noise"]["unfinished"] == "– (failed)"
    assert rows["unbounded (eps 1, not counted)"]["unfinished"] == "– (missing)"


def test_what_there_is_less_of_is_in_the_columns_of_the_matrix(summary: SuiteSummary) -> None:
    upright = {cells["attack"]: cells for cells in matrix(summary)}
    many = [replace(d, record=d.record.model_copy(update={"name": f"{d.record.name} {i}"}))
            for d in summary.defenses for i in (1, 2)]  # fmt: skip
    rows = {cells["defense"]: cells for cells in matrix(replace(summary, defenses=many))}
    assert list(rows) == [d.record.name for d in many]
    for attack, cells in upright.items():
        assert rows["plain 2"][attack] == cells["plain"]


def test_the_long_form_has_one_unrounded_number_per_line(summary: SuiteSummary) -> None:
    rows = {(entry["defense"], entry["what"]): entry for entry in long_rows(summary)}
    assert len(rows) == 3 * (2 + 3)
    worst = rows["plain", "worst_case_robust_accuracy"]
    assert (worst["accuracy"], worst["n"], worst["status"]) == (0.25, 4, "complete")
    assert (worst["low"], worst["high"]) == wilson(0.25, 4)
    assert (worst["norm"], worst["eps"], worst["seed"]) == ("linf", 8 / 255, 7)
    assert rows["plain", "unbounded"]["eps"] == 1.0
    assert json.loads(rows["plain", "pgd"]["budget"]) == ATTACKS[0].params
    assert (rows["plain", "pgd"]["mean_forward"], rows["plain", "pgd"]["mean_backward"]) == (10, 5)
    assert rows["unfinished", "worst_case_robust_accuracy"]["status"] == "partial"
    assert (rows["unfinished", "noise"]["accuracy"], rows["unfinished", "noise"]["status"]) == (None, "failed")


def test_json_and_csv_agree(summary: SuiteSummary) -> None:
    raw = json.loads(render(summary, "json"))
    assert [suite["name"] for suite in raw["suites"]] == ["made"]
    table = list(csv.DictReader(io.StringIO(render(summary, "csv"))))
    assert len(table) == len(raw["results"])
    for line, entry in zip(table, raw["results"], strict=True):
        assert (line["defense"], line["what"], line["status"]) == (entry["defense"], entry["what"], entry["status"])
        assert (float(line["accuracy"]) if line["accuracy"] else None) == entry["accuracy"]


def test_several_suites_are_one_document(summary: SuiteSummary) -> None:
    other = replace(summary, record=summary.record.model_copy(update={"name": "other"}), unreadable=["x: is cut off"])
    raw = json.loads(render_all([summary, other], "json"))
    assert [suite["name"] for suite in raw["suites"]] == ["made", "other"]
    assert raw["warnings"] == ["x: is cut off"]
    table = list(csv.DictReader(io.StringIO(render_all([summary, other], "csv"))))
    assert len(raw["results"]) == len(table) == 2 * len(long_rows(summary))
    for rows in (raw["results"], table):
        assert [row["suite"] for row in rows] == ["made"] * len(long_rows(summary)) + ["other"] * (len(rows) // 2)
        assert all({"rank", "flags", "worst_attack", "complete"} <= row.keys() for row in rows)
    assert "x: is cut off" in render_all([summary, other], "table")


def test_an_incomplete_result_says_so_before_any_number_and_has_no_rank(summary: SuiteSummary) -> None:
    for form in ("table", "markdown"):
        text = render(summary, form)
        reason = "noise (failed: timeout: stopped after 5 s); unbounded (missing)"
        said = f"incomplete: unfinished, whose worst case can only fall, so it has no rank: pgd (partial); {reason}"
        assert 0 < text.index(said) < text.index("worst-case robust")
    for entry in long_rows(summary):
        unfinished = entry["defense"] == "unfinished"
        assert (entry["rank"] is None, not entry["complete"], "incomplete" in entry["flags"]) == (unfinished,) * 3


def test_json_has_no_nan(summary: SuiteSummary) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(render(summary, "json"), parse_constant=refuse)


def test_markdown_is_made_of_tables(summary: SuiteSummary) -> None:
    text = render(summary, "markdown")
    lines = text.splitlines()
    assert sum(line.startswith("|") and set(line) <= set("|-:") for line in lines) == 2
    assert any(line.startswith("| 2") and "plain" in line for line in lines)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_names_every_defense_and_attack(summary: SuiteSummary, form: str) -> None:
    text = render(summary, form)
    for name in ("plain", "guarded", "unfinished", "pgd", "noise", "unbounded"):
        assert name in text


def test_warnings_stand_below_the_tables(summary: SuiteSummary, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "strange"
    folder.mkdir()
    (folder / "defense.json").write_text("{")
    text = render(summarise(tmp_path, "made"), "table")
    assert text.splitlines()[-1].startswith("warning: ") and "strange" in text.splitlines()[-1]
