"""Robust accuracy by radius, from stored distances that are known."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from html_page import Page
from written_results import Results, attack_record, defense_record, probe_record, row, suite_record

from bench.summary.metrics import wilson
from bench.summary.numbers import DefenseSummary
from bench.summary.report import long_rows, render
from bench.summary.summarise import summarise
from leaderboard import render as render_site

ATTACKS = [attack_record("pgd"), attack_record("ddn"), attack_record("small", eps=0.1)]
UNBOUNDED = attack_record("unbounded", eps=1.0, counted=False)
RADII = [0.05, 0.1]


def measured(tmp_path: Path, **suite: object) -> DefenseSummary:
    """Four examples: wrong when clean; fallen at 0.03 and 0.12; fallen to a full step alone; never fallen."""
    attacks = [*ATTACKS, UNBOUNDED]
    results = Results(tmp_path, suite_record(attacks, **{"radii": RADII, **suite}))
    clean = [row(f"e{i}", int(i > 0), linf=0.0) for i in range(4)]
    pgd = [row(f"e{i}", int(i == 3), linf=0.2) for i in range(4)]
    ddn = [row("e0", 0, linf=0.0), row("e1", 0, linf=0.03), row("e2", 1, linf=0.2), row("e3", 1, linf=0.2)]
    small = [row(f"e{i}", int(i > 1), linf=0.1) for i in range(4)]
    unbounded = [row(f"e{i}", 0, linf=0.04) for i in range(4)]
    cells = {"clean": clean, "pgd": pgd, "ddn": ddn, "small": small, "unbounded": unbounded}
    results.write_defense(defense_record("plain"), cells)
    return summarise(tmp_path, "made").defenses[0]


def test_a_point_counts_in_every_ball_that_holds_it(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert [point.radius for point in found.curve] == [0, 0.05, 0.1, 0.2]
    assert [point.robust.value for point in found.curve] == [0.75, 0.5, 0.5, 0.25]  # e2 falls to a step of 0.2 alone
    assert found.curve[-1].robust == found.worst_case
    assert (found.curve[1].robust.low, found.curve[1].robust.high) == wilson(0.5, 4)


def test_a_suite_without_radii_has_no_curve(tmp_path: Path) -> None:
    assert measured(tmp_path, radii=[]).curve == []


def test_what_an_attack_was_allowed_lies_in_the_ball_whatever_rounding_did(tmp_path: Path) -> None:
    results = Results(tmp_path, suite_record([attack_record("small", eps=0.1)], n=2, radii=[0.0999, 0.1]))
    attacked = [row("e0", 0, linf=0.1000019), row("e1", 1)]  # within the judge's tolerance
    results.write_defense(defense_record("plain"), {"clean": [1, 1], "small": attacked})
    curve = summarise(tmp_path, "made").defenses[0].curve
    assert [point.robust.value for point in curve] == [1.0, 1.0, 0.5, 0.5]


def test_the_radius_is_in_the_norm_of_the_suite(tmp_path: Path) -> None:
    results = Results(tmp_path, suite_record([attack_record("jsma", eps=5)], n=2, norm="l0", eps=5, radii=[1, 2]))
    attacked = [row("e0", 0, linf=1.0, l0=2), row("e1", 0, linf=1.0, l0=5)]
    results.write_defense(defense_record("plain"), {"clean": [1, 1], "jsma": attacked})
    curve = summarise(tmp_path, "made").defenses[0].curve
    assert [(point.radius, point.robust.value) for point in curve] == [(0, 1.0), (1, 1.0), (2, 0.5), (5, 0.0)]


def test_a_randomised_defense_is_scored_on_fresh_draws_at_every_radius(tmp_path: Path) -> None:
    suite = suite_record([attack_record("pgd"), attack_record("ddn")], n=2, radii=[0.1], draws_select=4, draws_report=8)
    results = Results(tmp_path, suite)

    def shares(example: str, select: int, report: int, **more: float):
        return row(example, 0, select_robust=select, report_robust=report, **more)

    results.write_defense(
        defense_record("random", probe_record(randomized=True)),
        {
            "clean": [shares("e0", 4, 8, linf=0.0), shares("e1", 4, 7, linf=0.0)],
            "pgd": [shares("e0", 1, 4), shares("e1", 0, 1)],
            "ddn": [shares("e0", 2, 6, linf=0.1), shares("e1", 2, 2, linf=0.15)],
        },
    )
    curve = summarise(tmp_path, "made").defenses[0].curve
    expected = [(8 + 7) / 16, (6 + 7) / 16, (4 + 1) / 16]
    assert [point.robust.value for point in curve] == pytest.approx(expected)


def test_an_attack_with_a_smaller_radius_counts_and_raises_no_flag(tmp_path: Path) -> None:
    results = Results(tmp_path, suite_record([attack_record("pgd"), attack_record("weak", eps=0.05)]))
    results.write_defense(defense_record("plain"), {"clean": [1] * 4, "pgd": [0] * 4, "weak": [1] * 4})
    assert summarise(tmp_path, "made").defenses[0].flags == []


def test_the_curve_is_in_csv_and_json_and_on_the_page(tmp_path: Path) -> None:
    found = measured(tmp_path)
    suite = summarise(tmp_path, "made")
    rows = [entry for entry in long_rows(suite) if entry["what"] == "at_radius"]
    assert [(entry["eps"], entry["accuracy"]) for entry in rows] == [(0, 0.75), (0.05, 0.5), (0.1, 0.5), (0.2, 0.25)]
    table = csv.DictReader(io.StringIO(render(suite, "csv")))
    assert sum(entry["what"] == "at_radius" for entry in table) == 4
    render_site([suite], tmp_path, tmp_path / "site")
    page = Page(tmp_path / "site/made/defenses/plain.html")
    assert "Robust accuracy by radius" in page.text and "clean input" in page.text and "upper bound" in page.text
    assert [a["points"].count(",") for a in page.elements("polyline")] == [4]
    downloaded = json.loads((tmp_path / "site/made/curves/plain.json").read_text(encoding="utf-8"))
    assert [entry["robust_accuracy"] for entry in downloaded] == [point.robust.value for point in found.curve]


def test_a_page_without_a_curve_has_no_section_for_it(tmp_path: Path) -> None:
    measured(tmp_path, radii=[])
    render_site([summarise(tmp_path, "made")], tmp_path, tmp_path / "site")
    page = Page(tmp_path / "site/made/defenses/plain.html")
    assert "by radius" not in page.text and not (tmp_path / "site/made/curves").exists()
