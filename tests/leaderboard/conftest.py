"""A rendered site of synthetic summaries."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_site import defense, digits_suite, suite, write_gallery_file

from bench.summary.numbers import SuiteSummary
from leaderboard import render


@pytest.fixture
def digits() -> SuiteSummary:
    return digits_suite()


@pytest.fixture
def results(tmp_path: Path, digits: SuiteSummary) -> Path:
    """A results folder that holds nothing but the gallery of the first two defenses."""
    for item in digits.defenses[:2]:
        write_gallery_file(tmp_path / "results", "digits", item.record.name)
    return tmp_path / "results"


@pytest.fixture
def site(tmp_path: Path, digits: SuiteSummary, results: Path) -> Path:
    """The folder of a rendered site with two suites."""
    other = suite("digits-l2", [defense("madry", 1, 150, 80, [140, 85, 84, 86, 88, 99, 101, 120, 0])])
    return render([other, digits], results, tmp_path / "site").parent
