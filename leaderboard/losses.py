"""The page of the study of losses: its plots as places of an inline SVG, its maps as small PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from bench.studies.losses.claims import NAMES, balanced, claims, mean, overall, spread
from bench.studies.losses.record import BLURRED, SETTINGS, SURE, TRANSFERRED, Descent, Losses
from leaderboard.gallery import Picture, to_pixels

#: A source's colour, the same in all figures.
COLOURS = {"ce": "s0", "ce_sign": "s1", "logit": "s2", "m_logit": "s3"}
#: Size of a plot inside its axes.
WIDTH, HEIGHT = 300, 170
#: What a box plot shows: whiskers, box, median.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAPS = {
    "target": "confidence in the inner class",
    "ce": "length of the gradient: CE",
    "ce_sign": "CE-sign",
    "logit": "logit",
    "zero": "white: the gradient of CE is exactly zero",
}


@dataclass(frozen=True)
class Tick:
    """A number on the upward axis, and how far up it stands, in pixels from the top."""

    text: str
    y: float


@dataclass(frozen=True)
class Line:
    """A curve; ``dashed`` is that of the class to leave."""

    name: str
    colour: str
    dashed: bool
    points: str


@dataclass(frozen=True)
class Part:
    """A part of the iterations: its name, and where it begins and has its middle, in pixels from the left."""

    name: str
    x: float
    middle: float


@dataclass(frozen=True)
class Plot:
    """Curves on one axis over the iterations from 0 to ``last``; ``parts`` of these are told apart."""

    title: str
    lines: list[Line]
    ticks: list[Tick]
    last: int
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True)
class Box:
    """A box plot: its five quantiles as heights, and as numbers."""

    name: str
    colour: str
    heights: list[float]
    values: list[float]


@dataclass(frozen=True)
class Boxes:
    """Box plots on one axis."""

    title: str
    boxes: list[Box]
    ticks: list[Tick]


@dataclass(frozen=True)
class Figure:
    """Curves and box plots of one setting: figures 2 and 3 of the paper."""

    setting: str
    plots: list[Plot]
    boxes: list[Boxes]


@dataclass(frozen=True)
class Axis:
    """From values to heights; logarithmic where all of it is positive and that was asked for."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def over(cls, values: Sequence[float], logarithmic: bool = False) -> Axis:
        """An axis that holds all of ``values``."""
        if logarithmic:
            positive = [value for value in values if value > 0] or [1.0]
            ends = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
            return cls(float(ends[0]), float(max(ends[1], ends[0] + 1)), True)
        low, high = min([0.0, *values]), max([*values, 0.0])
        return cls(low, high if high > low else low + 1.0)

    def height(self, value: float) -> float:
        """Pixels from the top; what lies below a logarithmic axis stands at its foot."""
        if self.logarithmic:
            value = math.log10(value) if value > 0 else self.low
        share = (value - self.low) / (self.high - self.low)
        return round(HEIGHT * (1 - min(max(share, 0.0), 1.0)), 1)

    def ticks(self) -> list[Tick]:
        """Five numbers at most."""
        if self.logarithmic:
            every = max(1, math.ceil((self.high - self.low) / 5))
            powers = range(int(self.low), int(self.high) + 1, every)
            return [
                Tick(f"{10.0**power:.0e}" if abs(power) > 3 else f"{10.0**power:g}", self.height(10.0**power))
                for power in powers
            ]
        values = np.linspace(self.low, self.high, 5)
        return [Tick(f"{value:.3g}", self.height(float(value))) for value in values]


def figures(record: Losses) -> list[Figure]:
    """Softmax, logits and least perturbation, a figure for each setting."""
    found = []
    for setting in SETTINGS:
        mine = [each for each in record.descents if each.setting == setting]
        plots = [
            _plot("softmax output", mine, "softmax_initial", "softmax_target"),
            _plot("logit", mine, "logit_initial", "logit_target"),
        ]
        found.append(
            Figure(
                setting,
                plots,
                [_boxes("least l2 perturbation", mine, "l2"), _boxes("least linf perturbation", mine, "linf")],
            )
        )
    return found


def path_plot(record: Losses) -> Plot:
    """The path of CE-sign at an equal multiplier, with the regions that its mean passes: figure 1."""
    mine = record.descent("ce_sign", SETTINGS[0])
    plot, last = _plot("softmax output", [mine], "softmax_initial", "softmax_target"), max(mine.steps[-1], 1)

    def first(past: Sequence[bool]) -> int | None:
        return next((k for k, reached in zip(mine.steps, past, strict=True) if reached), None)

    begins = {
        "S1": 0,
        "S2": first([value <= SURE for value in mine.softmax_initial]),
        "S3": first([value > SURE for value in mine.softmax_target]),
    }
    starts = {name: round(WIDTH * k / last, 1) for name, k in begins.items() if k is not None}
    ends = [*list(starts.values())[1:], float(WIDTH)]
    return replace(
        plot, parts=[Part(name, x, (x + end) / 2) for (name, x), end in zip(starts.items(), ends, strict=True)]
    )


def gradient_plot(record: Losses) -> Plot:
    """The length of P by iteration at an equal multiplier: figure 4."""
    mine = [each for each in record.descents if each.setting == SETTINGS[0]]
    return _plot("length of P (logarithmic)", mine, "", "gradient", logarithmic=True)


def _plot(title: str, descents: list[Descent], dashed: str, solid: str, logarithmic: bool = False) -> Plot:
    names = [name for name in (dashed, solid) if name]
    axis = Axis.over([value for each in descents for name in names for value in getattr(each, name)], logarithmic)
    last = max(each.steps[-1] for each in descents)
    lines = []
    for each in descents:
        for name in names:
            places = zip(each.steps, getattr(each, name), strict=True)
            points = " ".join(f"{round(WIDTH * k / max(last, 1), 1)},{axis.height(value)}" for k, value in places)
            lines.append(Line(NAMES[each.source], COLOURS[each.source], name == dashed, points))
    return Plot(title, lines, axis.ticks(), last)


def _boxes(title: str, descents: list[Descent], name: str) -> Boxes:
    found = {each.source: [value for value in getattr(each, name) if value is not None] for each in descents}
    quantiles = {s: np.quantile(values, QUANTILES).tolist() for s, values in found.items() if values}
    axis = Axis.over([values[-1] for values in quantiles.values()])
    boxes = [
        Box(NAMES[source], COLOURS[source], [axis.height(value) for value in values], values)
        for source, values in quantiles.items()
    ]
    return Boxes(title, boxes, axis.ticks())


def write_maps(record: Losses, root: Path, folder: str) -> list[Picture]:
    """Write the maps of the circles below ``root/folder``, the second coordinate upwards; white: the largest value."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    pictures = []
    for key in MAPS:
        values = np.asarray(getattr(record.circles, key), dtype=np.float32)[::-1]
        pixels = to_pixels((values / max(float(values.max(initial=0.0)), 1e-30))[None])
        path = f"{folder}/circles-{key}.png"
        Image.fromarray(pixels).save(root / path, optimize=True)
        pictures.append(Picture(key, path, pixels.shape[1], pixels.shape[0]))
    return pictures


__all__ = [
    "BLURRED", "COLOURS", "HEIGHT", "MAPS", "NAMES", "QUANTILES", "TRANSFERRED", "WIDTH", "balanced", "claims",
    "figures", "gradient_plot", "mean", "overall", "path_plot", "spread", "write_maps",
]  # fmt: skip
