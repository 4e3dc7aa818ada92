"""Noise in the corners of the ball."""

from __future__ import annotations

import pytest
import torch
from lab import Linear, make_target
from torch import Tensor

from attacks.score.noise import noise
from bench.contracts.defense import BareModel
from bench.contracts.errors import NotApplicable
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.target import Target

SHAPE = (3, 4, 5)


def _target(norm: str) -> Target:
    # It always answers with the first class, so that class 1 is fooled at once and class 0 never is.
    bias = torch.tensor([1.0, 0.0])
    defense = BareModel(Linear(torch.zeros(2, 60), bias), DataInfo("toy", InputSpec(SHAPE), 2))
    return make_target(defense, 3, "decision", norm=norm, eps=0.1)


def _images(value: float) -> Tensor:
    return torch.full((3, *SHAPE), value)


@pytest.mark.parametrize("label", [0, 1])
def test_corners(label: int) -> None:
    x = _images(0.5)
    x_adv = noise(_target("linf"), x, torch.full((3,), label), draws=3, corners=True)
    torch.testing.assert_close((x_adv - x).abs(), torch.full_like(x, 0.1))
    assert (x_adv > x).any() and (x_adv < x).any()
    assert (noise(_target("linf"), _images(1.0), torch.full((3,), label), draws=3, corners=True) <= 1).all()
    with pytest.raises(NotApplicable, match="no random start in the corners for l2 balls"):
        noise(_target("l2"), x, torch.full((3,), label), corners=True)
