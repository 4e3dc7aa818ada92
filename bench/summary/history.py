"""How a defense's worst case fell: what the suite's attacks left of it, and what was left after each submission."""

from __future__ import annotations

from bench.storing.found import FOUND
from bench.summary.numbers import HistoryPoint, estimate
from bench.summary.results import DefenseResults


def history_of(results: DefenseResults) -> list[HistoryPoint]:
    """The worst case before any submission and after each, oldest first; empty where nothing was ever submitted."""
    if not results.found:
        return []
    names = results.names()
    own = [name for name in names if name != FOUND]
    points = [HistoryPoint(results.provenance().ended, "", "", estimate(results.worst(own)[0]), 0)]
    whole = results.cells[FOUND]
    for count, record in enumerate(results.found, 1):
        results.cells[FOUND] = results.found_cell(results.found[:count])
        left = estimate(results.worst([*own, FOUND])[0])
        points.append(HistoryPoint(record.accepted, record.by, record.note, left, len(record.rows)))
    results.cells[FOUND] = whole
    return points
