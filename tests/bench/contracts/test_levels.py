"""Points on whole grey levels: inside the ball, and where the files of the data could have them."""

from __future__ import annotations

import pytest
import torch
from lab import digits, digits_classifier, make_target

from bench.contracts.defense import BareModel
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.levels import Levels, on_levels
from bench.contracts.threat import Lp

SPEC = InputSpec((1, 8, 8), levels=17)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("linf", 0.24), ("linf", 0.05), ("l2", 0.6), ("l1", 2.0)])
def test_a_snapped_point_is_a_level_of_the_ball(norm: str, eps: float) -> None:
    x, threat = digits()[2][:50], Lp(norm, eps)
    points = threat.sample(x, torch.Generator().manual_seed(0))
    snapped = Levels(SPEC, threat, x).snapped(points, None)
    assert on_levels(x, SPEC).all() and on_levels(snapped, SPEC).all()
    assert set(threat.violations(x, snapped)) == {"ok"}
    if norm == "linf":
        assert ((snapped - points).abs() <= 1.5 / 16 + 1e-6).all()
        assert ((snapped - points).abs()[(points - x).abs() < 1 / 16] <= 0.5 / 16 + 1e-6).all() or eps < 1 / 16


def test_eight_bit_images_keep_their_exact_values() -> None:
    spec = InputSpec((1, 16, 16), levels=256)
    x = (torch.arange(256, dtype=torch.uint8).to(torch.float32) / 255).view(1, 1, 16, 16)
    assert Levels(spec, Lp("linf", 8 / 255), x).snapped(x, None).equal(x)
    assert Levels(spec, Lp("linf", 8 / 255), x).snapped((x + 0.001).clamp(0, 1), None).equal(x)


def test_a_target_on_levels_looks_at_nothing_else() -> None:
    x = digits()[2][:8]
    seen = []

    class Watched(BareModel):
        def forward(self, x):
            seen.append(x.detach())
            return super().forward(x)

    defense = Watched(digits_classifier(), DataInfo("digits", SPEC, 10)).eval()
    target = make_target(defense, 8, "gradient", eps=0.2).on_levels(x)
    points = target.threat.sample(x, target.generator)
    index = torch.tensor([5, 2])
    target.labels(points)
    target.logits(points[index], index)
    target.evaluate(points[index], lambda defense, x: defense(x), _First(), index)
    target.subset(index).labels(points[index])
    for rows, part in zip((slice(None), index, index, index), seen, strict=True):
        assert on_levels(part, SPEC).all() and part.equal(target.snap(points)[rows])


class _First:
    def __call__(self, logits):
        return logits[:, 0]


def test_levels_have_to_be_two_at_least() -> None:
    with pytest.raises(InputError, match="levels: 1 must be at least 2"):
        InputSpec((1, 8, 8), levels=1)
