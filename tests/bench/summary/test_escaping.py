"""Whatever a plugin is called, no format takes it for a part of itself."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hostile import CONTROLS, NAMES
from rich.console import Console
from written_results import Results, attack_record, defense_record, suite_record

from bench.engines.graph import Job
from bench.running.progress import Display, Tracker
from bench.summary.escaping import csv_field, markdown, table_cell
from bench.summary.numbers import SuiteSummary
from bench.summary.report import render, render_all
from bench.summary.summarise import summarise


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> SuiteSummary:
    """A defense of every name, with a card to match; one is unfinished, which a sentence says."""
    root = tmp_path_factory.mktemp("results")
    results = Results(root, suite_record([attack_record("pgd")], n=2))
    for label, name in NAMES.items():
        record = defense_record(name, title=name, summary=name, family=name, tags=[name], url=f"javascript:{name}")
        cells = {"clean": [1, 1]} if label == "break" else {"clean": [1, 1], "pgd": [0, 1]}
        results.write_defense(record, cells)
    assert {path.parent.parent for path in root.rglob("defense.json")} == {root / "made"}
    found = summarise(root, "made")
    assert sorted(defense.record.name for defense in found.defenses) == sorted(NAMES.values())
    return found


@pytest.mark.parametrize("form", ["table", "markdown", "csv"])
def test_no_character_steers_the_terminal(summary: SuiteSummary, form: str) -> None:
    text = render(summary, form)
    assert not [code for code in CONTROLS if code in text]


def test_every_row_of_the_table_is_one_line(summary: SuiteSummary) -> None:
    text = render(summary, "table")
    overview = text.split("\n\n")[-2].splitlines()
    assert len(overview) == 2 + len(NAMES)
    assert max(map(len, overview)) < 250
    assert any("n" * 40 in line and "…" in line for line in overview)


def test_a_name_is_no_markdown(summary: SuiteSummary) -> None:
    text = render(summary, "markdown")
    table = [line for line in text.splitlines() if line.startswith("|")]
    for block in (table[: 2 + len(NAMES)], table[2 + len(NAMES) :]):
        columns = {line.replace("\\|", "").count("|") for line in block}
        assert len(columns) == 1, columns
    assert "<script" not in text and "<img" not in text and "](" not in text.replace("\\](", "")


def test_csv_holds_no_formula_and_whole_names(summary: SuiteSummary) -> None:
    rows = list(csv.DictReader(io.StringIO(render(summary, "csv"))))
    names = {row["defense"] for row in rows}
    assert len(names) == len(NAMES)
    assert "n" * 300 in names
    assert not [cell for row in rows for cell in row.values() if cell.lstrip()[:1] in tuple("=+@")]


def test_json_keeps_names_as_they_are(summary: SuiteSummary) -> None:
    text = render_all([summary], "json")
    assert {row["defense"] for row in json.loads(text)["results"]} == set(NAMES.values())
    assert not [code for code in CONTROLS if code in text]


def test_numbers_stay_numbers() -> None:
    assert csv_field(-1.5) == -1.5
    assert csv_field(None) is None
    assert csv_field("-1+cmd|' /C calc'!A0").startswith("'-")
    assert csv_field(" \t=1+1").lstrip().startswith("'")
    assert table_cell("46.2\N{NO-BREAK SPACE}%") == "46.2\N{NO-BREAK SPACE}%"
    assert markdown("46.2 [41.6, 50.8]") == "46.2 [41.6, 50.8]"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_progress_shows_any_name(name: str) -> None:
    """On a terminal too, where rich would take square brackets for styles."""
    for terminal in (True, False):
        out = io.StringIO()
        display = Display(Console(file=out, force_terminal=terminal, width=400, color_system=None), every=0.0)
        job = Job(name, print, ())
        tracker = Tracker([job], 1)
        with display.running(name, 1):
            display.show(tracker, name)
        if terminal:
            continue  # rich itself moves the cursor there
        assert out.getvalue().count("\n") == 1
        assert not [code for code in CONTROLS if code in out.getvalue()]


def test_square_brackets_are_shown_on_the_live_bar() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, width=400, color_system=None), every=0.0)
    with display.running("[red]a", 1):
        display.show(Tracker([Job("one", print, ())], 1), "[red]a")
    assert "[red]a" in out.getvalue()


def test_results_lie_in_their_folder(tmp_path: Path) -> None:
    results = Results(tmp_path / "in" / "results", suite_record([attack_record("pgd")], n=2))
    for name in NAMES.values():
        results.write_defense(defense_record(name), {"clean": [1, 1], "pgd": [0, 1]})
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["results"]
    assert len(list((tmp_path / "in" / "results" / "made").glob("*/defense.json"))) == len(NAMES)
