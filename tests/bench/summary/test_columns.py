"""A column is registered once and then stands in the terminal's table, in the files and on the site."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from html_page import Page
from synthetic_site import digits_suite

from bench.storing.records import CLEAN
from bench.suites.reading import load_config
from bench.summary import columns
from bench.summary.columns import CELL_COLUMNS, COLUMNS, Column, columns_in
from bench.summary.report import AT_RADIUS, long_rows, render
from leaderboard import render as render_site

ROOT = Path(__file__).parents[3]
SUITE = digits_suite()


def column(name: str) -> Column:
    return next(one for one in COLUMNS if one.id == name)


def test_ids_are_unique_and_every_kind_can_be_written() -> None:
    assert len({one.id for one in COLUMNS}) == len(COLUMNS)
    for one in COLUMNS:
        for defense in SUITE.defenses:
            assert one.text(defense) and one.id in one.fields(defense)


def test_what_the_site_shows_is_explained_and_can_be_downloaded() -> None:
    files = columns_in("files")
    for one in columns_in("ranking"):
        assert one in files
        assert one.help or one.kind == "defense" or one.id == "family"
        assert "{" not in one.legend(SUITE)


def test_no_attack_has_the_id_of_a_number_that_stands_beside_it_in_files() -> None:
    numbers = {one.id for one in (*COLUMNS, *CELL_COLUMNS)} | {AT_RADIUS, CLEAN}
    suites = load_config(ROOT / "bench.yaml").suites
    assert suites and all(numbers.isdisjoint(suite.attacks) for suite in suites.values())


def test_exactly_one_column_is_what_the_table_is_about() -> None:
    assert [one.id for one in COLUMNS if one.main] == ["worst_case_robust_accuracy"]


def test_a_value_is_written_sorted_and_stored_by_its_kind() -> None:
    ours, squeezing, jpeg = SUITE.defenses[1:4]
    assert column("flags").text(ours) == "randomised, zero gradient"
    assert column("flags").key(ours) == 2
    assert column("flags").fields(ours) == {"flags": ["randomized", "zero-gradient"]}
    assert column("detection_accuracy").text(squeezing) == "76.0"
    assert column("detection_accuracy").fields(ours) == {"detection_accuracy": None}
    assert column("detection_accuracy").key(ours) is None
    assert column("inference_ratio").text(ours) == "14.2×"
    assert column("training_seconds").text(jpeg) == "60.5 s"
    assert column("tags").text(ours) == "randomised, test-time optimisation"
    assert (column("rank").text(jpeg), column("rank").fields(jpeg)) == ("–", {"rank": None})  # incomplete
    assert (column("rank").text(ours), column("rank").fields(ours)) == ("2", {"rank": 2})
    assert column("standard_accuracy").key(ours) == ours.standard.value
    assert column("standard_accuracy").fields(ours) == {
        "standard_accuracy": ours.standard.value,
        "standard_accuracy_low": ours.standard.low,
        "standard_accuracy_high": ours.standard.high,
        "standard_accuracy_n": ours.standard.n,
    }
    assert "5.0" in column("detection_accuracy").legend(SUITE)


def test_a_new_column_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new = Column(
        "weights",
        "Weights in thousands",
        lambda defense: f"{defense.record.num_parameters / 1000:.0f} k",
        places=("report", "ranking", "files"),
        help="Parameters of {reference} and others.",
    )
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, new))
    assert "weights in thousands" in render(SUITE, "table") and "123 k" in render(SUITE, "markdown")
    assert {row["weights"] for row in long_rows(SUITE)} == {"123 k"}
    index = Page(render_site([SUITE], tmp_path, tmp_path / "site"))
    assert "weights" in [attributes.get("data-key") for attributes in index.elements("th")]
    assert index.text.count("123 k") == len(SUITE.defenses)
    assert "Parameters of none and others." in index.text
    rows = json.loads((tmp_path / "site/digits/leaderboard.json").read_text(encoding="utf-8"))
    assert rows[0]["weights"] == "123 k"


def test_a_new_column_of_attacks_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new = Column("share", "Share of the worst", lambda cell: cell.worst_for / 200, "share", ("report", "page", "files"))
    monkeypatch.setattr(columns, "CELL_COLUMNS", (*CELL_COLUMNS, new))
    render_site([SUITE], tmp_path, tmp_path / "site")
    for path in ("digits/defenses/madry.html", "digits/attacks/pgd.html"):
        page = Page(tmp_path / "site" / path)
        assert "share" in [attributes.get("data-key") for attributes in page.elements("th")]
        assert "6.5 %" in page.text  # pgd left 95 of 200: the worst for 13
    cells = json.loads((tmp_path / "site/digits/cells.json").read_text(encoding="utf-8"))
    assert next(one for one in cells if (one["defense"], one["attack"]) == ("madry", "pgd"))["share"] == 13 / 200
    assert any(row.get("share") == 13 / 200 for row in long_rows(SUITE))


def test_what_an_attack_did_not_measure_is_not_shown_and_is_in_the_files() -> None:
    cell = SUITE.defenses[3].attacks[6]
    assert cell.robust is None
    for one in CELL_COLUMNS:
        if one.id in ("worst_for", "mean_forward", "mean_backward", "seconds_per_example", "prepare_seconds"):
            assert one.text(cell) == "–" and one.fields(cell)[one.id] is not None


def test_the_long_form_repeats_what_a_defense_has_one_of() -> None:
    rows = [row for row in long_rows(SUITE) if row["defense"] == "ours"]
    assert len(rows) == 2 + len(SUITE.defenses[1].attacks)
    for row in rows:
        assert (row["rank"], row["worst_attack"]) == (2, SUITE.defenses[1].worst_attack)
        assert row["flags"] == ["randomized", "zero-gradient"]
    assert "randomized; zero-gradient" in render(SUITE, "csv")
