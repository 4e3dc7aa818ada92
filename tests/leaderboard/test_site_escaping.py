"""A page shows what a plugin calls itself, and runs none of it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import CONTROLS, NAMES
from html_page import Page
from synthetic_site import ATTACKS, FLAGS, defense, suite

from bench.contracts.errors import one_line
from leaderboard import render


@pytest.fixture(scope="module")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Defenses, attacks, classes, examples, flags and cards of every hostile name."""
    attacks = [
        record.model_copy(update={"name": name, "summary": name, "paper": name, "url": f"javascript:{name}"})
        for record, name in zip(ATTACKS, NAMES.values(), strict=False)
    ]
    defenses = [
        defense(
            name,
            place,
            170,
            90 - place,
            [160, 95, 94, 97, 99, 110, 121, 150, 0],
            attacks=attacks,
            title=name,
            summary=name,
            family=name,
            tags=[name],
            paper=name,
            url=f"javascript:{name}",
        )
        for place, name in enumerate(NAMES.values(), 1)
    ]
    defenses = [
        replace(each, flags=[replace(FLAGS["zero-gradient"], id=name, title=name, text=name)])
        for each, name in zip(defenses, NAMES.values(), strict=True)
    ]
    made = suite("../<b>&suite", defenses, attacks)
    words = {"class_names": list(NAMES.values())[:10], "description": NAMES["script"]}
    record = made.record.model_copy(update=words)
    root = tmp_path_factory.mktemp("hostile")
    return render([replace(made, record=record)], root / "results", root / "deep" / "site", [NAMES["escape"]]).parent


def test_every_file_lies_in_the_site(hostile_site: Path) -> None:
    root = hostile_site.parent.parent
    assert [path.name for path in root.iterdir()] == ["deep"]
    assert [path.name for path in (root / "deep").iterdir()] == ["site"]
    assert len(list(hostile_site.glob("*/defenses/*.html"))) == len(NAMES)
    assert max(len(path.name) for path in hostile_site.rglob("*")) < 120


def test_no_page_has_an_element_of_a_name(hostile_site: Path) -> None:
    pages = [Page(path) for path in hostile_site.rglob("*.html")]
    assert len(pages) > 2 * 9
    for page in pages:
        assert len(page.elements("script")) == 2  # the page's own
        assert not [image for image in page.elements("img") if "onerror" in image]
        assert not [link for link in page.links if ":" in link.split("/")[0]]
        assert "49" not in page.text.split()
        text = page.path.read_text(encoding="utf-8")
        assert not [code for code in CONTROLS if code in text]


def test_names_are_shown(hostile_site: Path) -> None:
    text = Page(hostile_site / "index.html").text
    for name in NAMES.values():
        assert " ".join(one_line(name).split()) in text


def test_every_link_leads_to_a_page(hostile_site: Path) -> None:
    for path in hostile_site.rglob("*.html"):
        for link in Page(path).links:
            target = link.partition("#")[0]
            assert not target or (path.parent / target).resolve().is_file(), f"{path}: {link}"


def test_downloads_hold_no_formula(hostile_site: Path) -> None:
    for path in hostile_site.rglob("*.csv"):
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines()):
            assert not [cell for cell in row if cell.lstrip()[:1] in tuple("=+@")], path
        assert not [code for code in CONTROLS if code in path.read_text(encoding="utf-8")]
