"""What attacks leave against what they cost: ``python -m bench.reference.budgets docs`` writes page and plots.

All of it is drawn from the results of the suite ``budgets``, whose attacks are named after the size of their budget:
``adaptive-1000`` is a point of the curve ``adaptive``.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.reference.markdown import table
from bench.summary.columns import percent
from bench.summary.numbers import SETTLED, DefenseSummary, Estimate
from bench.summary.summarise import summarise

ROOT = Path(__file__).parents[2]
SUITE, PAGE = "budgets", "budgets.md"
#: The curves that are this project's own.
OURS = ("adaptive", "cascade")
_COLOURS = {
    "adaptive": "#c2410c", "cascade": "#1d4ed8", "autoattack": "#15803d", "autoattack-rand": "#65a30d", "a3": "#7e22ce",
    "bpda": "#0e7490", "bpda-i": "#a16207",
}  # fmt: skip
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BELOW = 520, 300, 48, 130, 44

_INTRODUCTION = f"""\
# What attacks leave against what they cost

<!-- Written by `make docs` from `results/{SUITE}`; edits here are lost. -->

One model, the same examples, the same judge, seven attacks, each with budgets from some ten to some ten thousand passes
an example. The number in a name is about what the budget allows; the table has what was spent, less where examples fall
early. A pass is a forward pass of the whole defense. `adaptive` takes others on validation images, once for all
examples, which are not counted here. Accuracy is in per cent, with its 95 % interval for the sampling of images.

- `adaptive` and `cascade` are this project's; `adaptive` is told nothing but the number of passes.
- `autoattack` and `autoattack-rand` are AutoAttack's standard and rand series (Croce & Hein 2020), shortened or whole.
- `a3` is Liu et al. 2022, with more restarts.
- `bpda` and `bpda-i` are tuned by hand: PGD through the stand-in that a defense declares, and through the identity.
"""


@dataclass(frozen=True)
class Point:
    """One budget of one attack: its passes an example, and what it leaves."""

    name: str
    passes: float
    left: Estimate


def curves(defense: DefenseSummary) -> dict[str, list[Point]]:
    """The points of each attack of a defense, cheapest first."""
    found: dict[str, list[Point]] = {}
    for cell in defense.attacks:
        if cell.robust is not None and cell.status in SETTLED:
            point = Point(cell.record.name, cell.mean_forward, cell.robust)
            found.setdefault(cell.record.name.rpartition("-")[0], []).append(point)
    return {name: sorted(points, key=lambda point: point.passes) for name, points in found.items()}


def lead(found: dict[str, list[Point]]) -> str:
    """How often ours leaves no more than another attack's point for no more passes, and where it is furthest above."""
    ours = [point for name in OURS for point in found.get(name, [])]
    gaps: list[tuple[float, Point]] = []
    for name, points in found.items():
        for point in points if name not in OURS else []:
            cheaper = [one.left.value for one in ours if one.passes <= point.passes]
            if cheaper:
                gaps.append((min(cheaper) - point.left.value, point))
    if not gaps:
        return "No point of another attack takes as many passes as one of ours."
    worst, where = max(gaps, key=lambda pair: pair[0])
    below = sum(gap <= 0 for gap, _ in gaps)
    text = (
        f"{len(gaps)} points of other attacks take at least as many passes as our cheapest. Beside {below} of them "
        "`adaptive` or `cascade` leaves no more, for no more passes"
    )
    if worst <= 0:
        return f"{text}."
    return f"{text}; the largest gap the other way is {100 * worst:.1f} points, to `{where.name}`."


def plot(title: str, found: dict[str, list[Point]]) -> str:
    """The curves as SVG: accuracy left against passes an example, on a logarithmic axis."""
    every = [point for points in found.values() for point in points]
    decades = max(1, math.ceil(math.log10(max(point.passes for point in every)) - 0.05))
    # In steps of a twentieth, with room for the lines to be told apart.
    floor = math.floor(20 * min(point.left.value for point in every)) / 20
    ceiling = max(floor + 0.05, math.ceil(20 * max(point.left.value for point in every)) / 20)

    def across(passes: float) -> float:
        return round(_LEFT + _WIDTH * math.log10(max(passes, 1)) / decades, 1)

    def up(share: float) -> float:
        return round(10 + _HEIGHT * (ceiling - share) / (ceiling - floor), 1)

    size = f"0 0 {_LEFT + _WIDTH + _RIGHT} {_HEIGHT + _BELOW + 10}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img" font-family="sans-serif" font-size="11" '
        f'fill="#333" stroke="none"><title>{escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for fifth in range(6):
        share = floor + (ceiling - floor) * fifth / 5
        y = up(share)
        parts.append(f'<path d="M{_LEFT} {y}h{_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{100 * share:.0f} %</text>')
    for decade in range(decades + 1):
        parts.append(f'<text x="{across(10**decade)}" y="{_HEIGHT + 28}" text-anchor="middle">{10**decade:,}</text>')
    middle = _LEFT + _WIDTH / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT + 46}" text-anchor="middle">passes of the defense an example</text>')
    for row, (name, points) in enumerate(found.items()):
        colour, places = _COLOURS.get(name, "#555"), [(across(p.passes), up(p.left.value)) for p in points]
        line = " ".join(f"{x},{y}" for x, y in places)
        width = 2.5 if name in OURS else 1.2
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        for (x, y), point in zip(places, points, strict=True):
            about = f"{point.name}: {percent(point.left)} % after {point.passes:,.0f} passes"
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"><title>{escape(about)}</title></circle>')
        y = 20 + 16 * row
        parts.append(f'<text x="{_LEFT + _WIDTH + 12}" y="{y}" fill="{colour}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _part(defense: DefenseSummary, found: dict[str, list[Point]]) -> str:
    rows = [
        [f"`{point.name}`", f"{point.passes:,.0f}", percent(point.left)]
        for points in found.values()
        for point in points
    ]
    name, n = defense.record.name, defense.standard.n
    adaptive = [cell for cell in defense.attacks if cell.record.name.startswith("adaptive-")]
    said = "".join(f"- `{cell.record.name}`: {'; '.join(cell.notes)}\n" for cell in adaptive if cell.notes)
    return (
        f"## `{name}`, {n} examples\n\n![{name}]({_file(name)})\n\n{lead(found)}\n\n"
        f"{table(['Attack', 'Passes an example', 'Accuracy left'], rows)}"
        + (f"\nWhat `adaptive` found with each budget, of all its shards:\n\n{said}" if said else "")
    )


def _file(name: str) -> str:
    return f"budgets-{name}.svg"


def write(folder: Path, results: Path) -> None:
    """Write the page and a plot of each defense; others' plots go."""
    found = {d.record.name: (d, curves(d)) for d in summarise(results, SUITE).defenses}
    drawn = {name: pair for name, pair in found.items() if pair[1]}
    for old in folder.glob("budgets-*.svg"):
        old.unlink()
    for name, (_, points) in drawn.items():
        (folder / _file(name)).write_text(plot(f"What attacks leave of {name}", points) + "\n", encoding="utf-8")
    parts = [_INTRODUCTION, f"`bench evaluate --suite {SUITE} --defense NAME --results results` measures a defense."]
    parts += [_part(*pair) for pair in drawn.values()]
    (folder / PAGE).write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), ROOT / "results")
