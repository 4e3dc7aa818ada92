"""The ladder as an inline SVG: accuracy against evaluations of g per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bench.summary.numbers import Estimate

_WIDTH, _HEIGHT, _LEFT, _BELOW = 560, 300, 48, 44


def ladder(points: Sequence[tuple[str, int, float, Estimate]], lines: Sequence[tuple[str, float]]) -> str:
    """The plot, or nothing where there are no points.

    Args:
        points: name, rung, evaluations per image, and accuracy left, of each attack.
        lines: accuracies to be drawn across, with their names.
    """
    if not points:
        return ""
    decades = max(1, math.ceil(math.log10(max(passes for _, _, passes, _ in points) + 1)))

    def across(passes: float) -> float:
        return round(_LEFT + _WIDTH * math.log10(max(passes, 1)) / decades, 1)

    def up(share: float) -> float:
        return round(10 + _HEIGHT * (1 - share), 1)

    size = f"0 0 {_LEFT + _WIDTH + 110} {_HEIGHT + _BELOW + 10}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img" font-family="sans-serif" font-size="11" '
        f'fill="currentColor" stroke="none"><title>Accuracy left by each attack of the ladder, against evaluations of '
        f"g per image</title>"
    ]
    for tenth in range(0, 11, 2):
        y = up(tenth / 10)
        parts.append(f'<path d="M{_LEFT} {y}h{_WIDTH}" stroke="currentColor" stroke-opacity="0.15"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{10 * tenth} %</text>')
    for decade in range(decades + 1):
        x = across(10**decade)
        parts.append(f'<text x="{x}" y="{_HEIGHT + 28}" text-anchor="middle">{10**decade:,}</text>')
    middle = _LEFT + _WIDTH / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT + 46}" text-anchor="middle">evaluations of g per image</text>')
    for name, share in lines:
        y = up(share)
        parts.append(f'<path d="M{_LEFT} {y}h{_WIDTH}" stroke="currentColor" stroke-dasharray="4 4"/>')
        parts.append(f'<text x="{_LEFT + _WIDTH + 6}" y="{y + 4}">{escape(name)}</text>')
    for name, rung, passes, left in points:
        x, y = across(passes), up(left.value)
        about = f"{name}: {100 * left.value:.1f} % [{100 * left.low:.1f}, {100 * left.high:.1f}] of {left.n} images"
        parts.append(
            f'<g><title>{escape(about)}</title><path d="M{x} {up(left.low)}V{up(left.high)}" stroke="currentColor" '
            f'stroke-opacity="0.35"/><circle cx="{x}" cy="{y}" r="4"/>'
            f'<text x="{x + 6}" y="{y - 5}">O{rung}</text></g>'
        )
    return "".join([*parts, "</svg>"])
