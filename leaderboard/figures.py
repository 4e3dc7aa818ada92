"""What the plots of a defense and of a study draw: which points there are, and where along an axis they stand."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from bench.storing.found import FOUND
from bench.storing.records import CLEAN
from bench.summary.numbers import CurvePoint, DefenseSummary, Estimate, HistoryPoint, SuiteSummary
from leaderboard.views import cells, group_of


@dataclass(frozen=True)
class Bar:
    """One line of the survival plot; ``together`` is the accuracy under this and all attacks above it.

    ``robust`` is of the examples that the attack was run on, ``together`` of all.
    """

    name: str
    group: str
    robust: Estimate
    together: float | None


def survival_plot(defense: DefenseSummary) -> list[Bar]:
    """The counted attacks of a defense, strongest first.

    ``together`` is left out for a randomised defense: there, the minimum over attacks of shares of draws counts
    luck as strength, which the worst case on fresh draws avoids.
    """
    attacks = [cell for cell in defense.attacks if cell.record.name != FOUND]
    measured = [(c.robust, c.record) for c in attacks if c.record.counted and c.robust]
    measured.sort(key=lambda pair: pair[0].value)
    certain = all(share in (0, 1) for shares in defense.survival.values() for share in shares)
    alive: list[float] = []
    bars = []
    for robust, record in measured:
        shares = defense.survival.get(record.name)
        if shares:
            alive = [min(pair) for pair in zip(alive, shares, strict=True)] if alive else shares
        together = sum(alive) / len(alive) if certain and shares else None
        bars.append(Bar(record.name, group_of(record).id, robust, together))
    return bars


@dataclass(frozen=True)
class Step:
    """A point of the history: how far along the axis it stands, in [0, 1]; ``before`` is the number that it lowered."""

    point: HistoryPoint
    before: Estimate | None
    place: float


def history_steps(defense: DefenseSummary) -> list[Step]:
    """The worst case before any submission and after each, oldest first, evenly spaced."""
    last = max(1, len(defense.history) - 1)
    before: list[Estimate | None] = [None, *(point.robust for point in defense.history)]
    return [Step(point, before[i], i / last) for i, point in enumerate(defense.history)]


@dataclass(frozen=True)
class Mark:
    """A point of the curve by radius: how far along the axis it stands, in [0, 1], and whether its label has room."""

    point: CurvePoint
    place: float
    labelled: bool


def curve_marks(defense: DefenseSummary, room: float = 0.07) -> list[Mark]:
    """The curve of a defense, smallest radius first; labels are at least ``room`` apart, and eps has one."""
    eps = defense.curve[-1].radius if defense.curve else 1.0
    marks: list[Mark] = []
    free = math.inf
    for point in reversed(defense.curve):
        place = point.radius / eps
        labelled = free - place >= room and (place >= room or place == 0)
        free = place if labelled else free
        marks.append(Mark(point, place, labelled))
    return marks[::-1]


@dataclass(frozen=True)
class Point:
    """One variant of a study: accuracy by attack, ``clean`` among them; what has not been measured is left out."""

    label: str
    published: dict[str, float]
    defense: DefenseSummary | None
    measured: dict[str, Estimate]

    @property
    def distance(self) -> float | None:
        """How far the transform's expectation lies from the image (see ``Probe.transform_distance``)."""
        return self.defense.record.probe.transform_distance if self.defense else None


def study_points(suite: SuiteSummary) -> list[Point]:
    """The variants of a suite's study, in its order; none for a suite without."""
    if suite.record.study is None:
        return []
    found = {defense.record.name: defense for defense in suite.defenses}
    points = []
    for variant in suite.record.study.variants:
        defense = found.get(variant.defense)
        measured = {}
        if defense is not None:
            measured = {name: cell.robust for name, cell in cells(defense).items() if cell.robust}
            measured = {CLEAN: defense.standard, **measured}
        points.append(Point(variant.label, variant.published, defense, measured))
    return points


def study_series(points: list[Point]) -> list[str]:
    """What a study has measured: ``clean`` and the names of its attacks, in order."""
    return list(dict.fromkeys(name for point in points for name in point.measured))


@dataclass(frozen=True)
class Agreement:
    """Pairs of variants that a paper and the measurement put in the same order, of those that the paper tells apart."""

    name: str
    same: int
    pairs: int


def agreements(points: list[Point]) -> list[Agreement]:
    """For each published series of a study: does the paper's ordering hold?"""
    result = []
    for name in study_series(points):
        compared = [point for point in points if name in point.published and name in point.measured]
        both = [(point.published[name], point.measured[name].value) for point in compared]
        pairs = [(a, b) for a, b in itertools.combinations(both, 2) if a[0] != b[0]]
        same = sum((a[0] < b[0]) == (a[1] < b[1]) and a[1] != b[1] for a, b in pairs)
        if pairs:
            result.append(Agreement(name, same, len(pairs)))
    return result
