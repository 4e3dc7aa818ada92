"""The page of budgets: what its sentence says of curves, what its plot holds, and that it is current."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from bench.reference.budgets import PAGE, Point, lead, plot, write
from bench.summary.numbers import estimate

ROOT = Path(__file__).parents[3]


def _point(name: str, passes: float, left: int) -> Point:
    return Point(name, passes, estimate((np.arange(100) < left).astype(np.float64)))


def test_ours_is_compared_with_what_costs_at_least_as_much() -> None:
    found = {
        "adaptive": [_point("adaptive-100", 100, 40), _point("adaptive-1000", 1000, 20)],
        "cascade": [_point("cascade-10", 12, 50)],
        "a3": [_point("a3-10", 11, 10), _point("a3-100", 150, 40), _point("a3-1000", 900, 30)],
    }
    said = lead(found)
    assert said.startswith("2 points of other attacks take at least as many passes as our cheapest. Beside 1 of them ")
    assert said.endswith("gap the other way is 10.0 points, to `a3-1000`.")
    assert lead({**found, "a3": [_point("a3-100", 150, 40)]}).endswith("leaves no more, for no more passes.")
    assert lead({"a3": found["a3"]}) == "No point of another attack takes as many passes as one of ours."


def test_a_plot_has_a_line_for_each_attack_and_cheaper_points_stand_left() -> None:
    found = {"adaptive": [_point("adaptive-10", 10, 90), _point("adaptive-100", 100, 10)], "a<3": [_point("a", 30, 5)]}
    svg = ET.fromstring(plot("what is & left", found))
    lines = [line.get("points", "").split() for line in svg.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(line) for line in lines] == [2, 1]
    (x1, y1), (x2, y2) = (map(float, place.split(",")) for place in lines[0])
    assert x1 < x2 and y1 < y2  # right: dearer; down: less left


def test_the_page_is_what_the_results_say(tmp_path: Path) -> None:
    if not (ROOT / "results" / "budgets").is_dir():
        pytest.skip("no results of the suite budgets are published")
    write(tmp_path, ROOT / "results")
    for file in tmp_path.iterdir():
        assert file.read_text() == (ROOT / "docs" / file.name).read_text(), "write it again: make docs"
    assert (tmp_path / PAGE).exists()
