"""Waveforms and rows of values, in [-1, 1]: every attack finds there what it finds in [0, 1]."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lab import linear_case
from registered import NEED_DETECTOR, NEED_GUIDE, NEED_LEVELS
from torch import Tensor, nn

import attacks
from attacks.score.one_pixel import _paint
from attacks.toolkit.windows import L2Windows, LinfWindows, Windows
from bench.contracts.defense import BareModel
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.plugins.registry import ATTACKS
from bench.plugins.resolve import get_attack

#: Two channels of 12 times, and 24 values without neighbours.
WAVE, ROW = (2, 12), (24,)
#: In multiples of the smallest radius that fools, where every attack finds something; in l0 a number of positions.
FACTORS = {"linf": 1.5, "l2": 3.0, "l1": 1.6}
POSITIONS = 10
BUDGETS: dict[str, dict[str, Any]] = {
    "square": {"queries": 300}, "genattack": {"generations": 100}, "one-pixel": {"generations": 30},
}  # fmt: skip
ELSEWHERE = NEED_DETECTOR | NEED_GUIDE | NEED_LEVELS | {"adaptive"}
BUILT_IN = [get_attack(name) for name in ATTACKS.built_in() if name not in ELSEWHERE]
SPECS = [spec for spec in BUILT_IN if spec.prepare_scope == "defense"]
CASES: list[tuple[str, str, tuple[int, ...]]] = [
    *[(spec.name, norm, WAVE) for spec in SPECS for norm in spec.norms],
    *[(spec.name, spec.norms[-1], ROW) for spec in SPECS],
]


class Through(nn.Module):
    """A model of inputs in [0, 1], given them in [low, low + width]."""

    def __init__(self, inner: nn.Module, low: float, width: float) -> None:
        super().__init__()
        self.inner, self.low, self.width = inner, low, width

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - self.low) / self.width)


@pytest.mark.parametrize(("name", "norm", "shape"), CASES)
def test_an_attack_finds_the_same_points_in_another_box(name: str, norm: str, shape: tuple[int, ...]) -> None:
    case = linear_case(2, (*shape, 1, 1)[:3], "linf" if norm == "l0" else norm, dtype=torch.float64)
    x, budget = case.x.view(2, *shape), BUDGETS.get(name, {})
    radius = POSITIONS if norm == "l0" else FACTORS[norm] * case.radius
    wider = radius if norm == "l0" else 2 * radius
    narrow = attacks.run(name, Through(case.defense, 0, 1).eval(), x, case.y, norm=norm, eps=radius, **budget)
    box = {"low": -1.0, "high": 1.0}
    wide = attacks.run(
        name, Through(case.defense, -1, 2).eval(), 2 * x - 1, case.y, norm=norm, eps=wider, **box, **budget
    )
    assert name == "noise" or narrow.success.all()
    torch.testing.assert_close((wide.x_adv + 1) / 2, narrow.x_adv, atol=1e-4, rtol=0)
    threat = Lp(norm, wider, -1.0, 1.0)  # type: ignore[arg-type]
    assert threat.violations(2 * x - 1, wide.x_adv) == ["ok"] * 2
    assert torch.equal(narrow.forward, wide.forward)


# -- windows that are stretches ----------------------------------------------------------------------------------


def _target(shape: tuple[int, ...], norm: str, eps: float) -> Target:
    defense = BareModel(nn.Flatten(), DataInfo("toy", InputSpec(shape, -1.0, 1.0), 24)).eval()
    generator = torch.Generator().manual_seed(0)
    threat = Lp(norm, eps, -1.0, 1.0)  # type: ignore[arg-type]
    return Target(defense, threat, 3, knowledge="score", generator=generator)


@pytest.mark.parametrize("kind", [LinfWindows, L2Windows])
@pytest.mark.parametrize("shape", [WAVE, ROW], ids=str)
def test_square_changes_a_stretch_of_all_channels(kind: type[Windows], shape: tuple[int, ...]) -> None:
    target = _target(shape, "linf" if kind is LinfWindows else "l2", 0.2)
    x = torch.zeros(3, *shape)
    windows = kind(target, x, torch.arange(3))
    before = windows.images.clone()
    windows.propose(0.25)
    changed = (windows.images != before).view(3, -1, shape[-1]).any(1)
    length = shape[-1] // 4
    for row in changed:
        places = row.nonzero().squeeze(1)
        if kind is LinfWindows:
            assert places.max() - places.min() < length
        else:  # the window, and another one that gives up its length to it
            assert len(places) <= 2 * (length | 1)  # of odd length
    assert changed.any(1).all()
    windows.settle(torch.zeros(3, dtype=torch.bool))
    assert torch.equal(windows.images, before), "undone"
    assert target.threat.violations(x, before) == ["ok"] * 3


# -- places that are one number ----------------------------------------------------------------------------------


def test_painting_a_waveform_or_a_row_takes_one_number_for_the_place() -> None:
    members = torch.tensor([[[0.5, 1.0, 0.25], [0.99, 0.5, 0.0]]])  # two pixels: place, then a colour per channel
    wave = _paint(_target((2, 4), "l0", 2), members, torch.full((1, 2, 4), 0.1))
    torch.testing.assert_close(wave, torch.tensor([[[0.1, 0.1, 1.0, 0.0], [0.1, 0.1, -0.5, -1.0]]]))
    row = _paint(_target((4,), "l0", 2), members[:, :, :2], torch.full((1, 4), 0.1))
    torch.testing.assert_close(row, torch.tensor([[0.1, 0.1, 1.0, 0.0]]))
