"""What was submitted is shown: the new number, by whom, the old number, the date; and what was claimed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import NAMES
from html_page import Page
from synthetic_site import ORIGIN, cell, defense, estimate, suite

from bench.storing.found import FOUND, found_attack
from bench.storing.records import AskedAgain
from bench.storing.store import Store, to_json, write_atomically
from bench.storing.submitted import AcceptanceRecord, submission_folder
from bench.summary.numbers import HistoryPoint
from leaderboard import render


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("submissions")
    plain = defense("plain", 2, 150, 60, [140, 65, 64, 66, 68, 79, 81, 120, 0])
    made = suite("digits", [plain])
    history = [
        HistoryPoint("2026-03-01T12:00:00+00:00", "", "", estimate(92), 0),
        HistoryPoint("2026-04-02T12:00:00+00:00", "A. Author", "a paper", estimate(90), 2),
        HistoryPoint("2026-05-03T12:00:00+00:00", NAMES["script"], NAMES["break"], estimate(85), 5),
    ]
    broken = defense("broken", 1, 171, 85, [168, 95, 94, 97, 99, 110, 121, 150, 0])
    found = cell(found_attack(made.record), 0, robust=estimate(0, 7))
    broken = replace(broken, history=history, attacks=[*broken.attacks, found])
    broken = replace(broken, levels={"landlock": 3, "bubblewrap": 8}, asked_again=AskedAgain(rows=352, differing=2))
    accepted = AcceptanceRecord(
        by=NAMES["attribute"],
        submitted="2026-02-01T00:00:00+00:00",
        accepted="2026-02-02T00:00:00+00:00",
        reference="code/mine.py:Mine",
        standard=0.9,
        worst_case=0.7,
        judged=1800,
        again={"pgd": [3, 2, 200]},
        provenance=ORIGIN,
    )
    home = submission_folder(Store(root / "results", "digits"), "broken")
    write_atomically(home / "acceptance.json", to_json(accepted).encode())
    return render([replace(made, defenses=[broken, plain])], root / "results", root / "site").parent


def test_the_front_page_says_who_lowered_what(site: Path) -> None:
    page = Page(site / "index.html")
    assert "broken: worst case 46.0 % → 45.0 %, by A. Author, 2026-04-02" in page.text
    assert "worst case 45.0 % → 42.5 %, by <script>alert(1)</script>, 2026-05-03" in page.text
    assert len(page.elements("script")) == 2


def test_the_page_of_a_defense_draws_its_past(site: Path) -> None:
    page = Page(site / "digits" / "defenses" / "broken.html")
    assert "The worst case was 46.0 % under the suite's own attacks" in page.text
    assert "A. Author 2026-04-02 2 46.0 % [" in page.text and "a paper" in page.text
    lines = [line["points"] for line in page.elements("polyline") if line.get("class") == "series s0"]
    assert len(lines) == 1 and len(lines[0].split()) == 5  # two steps down between three levels
    rows = json.loads((site / "digits" / "history" / "broken.json").read_text())
    assert [row["worst_case_robust_accuracy"] for row in rows] == [0.46, 0.45, 0.425]
    other = Page(site / "digits" / "defenses" / "plain.html")
    assert "Submitted attacks" not in other.text and "Submission" not in other.text


def test_the_page_says_what_was_claimed_and_found(site: Path) -> None:
    text = Page(site / "digits" / "defenses" / "broken.html").text
    assert 'Submitted by "><img src=x onerror=alert(1)>' in text
    assert "Claimed standard accuracy 90.0 %, worst case 70.0 %; measured here 85.5 %, 42.5 %" in text
    assert "1800 rows" in text and "3 of 200 examples fell that had stood, 2 the other way round" in text


def test_the_level_of_isolation_stands_in_the_table_and_on_the_page(site: Path) -> None:
    index = Page(site / "index.html").text
    assert "Isolation" in index and "namespaces of its own" in index
    rows = {row["defense"]: row["isolation"] for row in json.loads((site / "digits" / "leaderboard.json").read_text())}
    assert rows == {"broken": "landlock", "plain": "none"}
    text = Page(site / "digits" / "defenses" / "broken.html").text
    assert "Isolation landlockin a process of its own, without files, sockets or a view of other processes" in text
    assert "the weakest of its shards: 3 landlock, 8 bubblewrap" in text
    assert "352 rows were asked again in another order" in text and "; 2 came out differently" in text
    text = Page(site / "digits" / "defenses" / "plain.html").text
    assert "Isolation nonein the judge's own process" in text
    assert "the weakest of its shards" not in text and "Judged again" not in text


def test_what_was_submitted_is_missing_nowhere(site: Path) -> None:
    (path,) = (site / "digits" / "attacks").glob("submitted-x_adv*.html")
    page = Page(path)
    assert FOUND in page.text and "broken" in page.text and "missing" not in page.text
