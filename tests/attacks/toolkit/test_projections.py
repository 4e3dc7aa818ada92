"""Steps of unit norm, and what cannot move."""

from __future__ import annotations

import pytest
import torch
from lab import length
from torch import Tensor

from attacks.toolkit.projections import movable, steepest, top_signs
from bench.contracts.threat import Lp

SHAPE = (3, 4, 5)


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_steepest_step_has_unit_norm_and_reaches_the_dual_norm(norm) -> None:
    grad = _rand(6, *SHAPE) - 0.5
    step = steepest(grad, norm)
    torch.testing.assert_close(length(step, norm), torch.ones(6, dtype=torch.float64))
    gain = (step * grad).flatten(1).sum(1)
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    torch.testing.assert_close(gain, grad.flatten(1).norm(p=dual, dim=1))
    assert (steepest(torch.zeros(2, *SHAPE), norm) == 0).all(), "no gradient, no step"


def test_sparse_steps_move_the_values_of_largest_gradient() -> None:
    grad = torch.tensor([[[[0.1, -5.0, 3.0, 0.0, 4.0]]]])
    torch.testing.assert_close(top_signs(grad, 2), torch.tensor([[[[0, -0.5, 0, 0, 0.5]]]]))
    torch.testing.assert_close(top_signs(grad, 99).abs().sum(), torch.tensor(0.8))


def test_what_is_stuck_at_the_box_has_no_gradient() -> None:
    x = torch.tensor([[[[0.0, 0.0, 1.0, 1.0, 0.5]]]])
    grad = torch.tensor([[[[-1.0, 1.0, -1.0, 1.0, 1.0]]]])
    assert movable(grad, x, Lp("l1", 1)).tolist() == [[[[0, 1, -1, 0, 1]]]]


@pytest.mark.parametrize("size", [1e-20, 1e-30, 1e-40])
def test_a_gradient_too_short_for_its_squares_has_a_direction(size: float) -> None:
    """In single precision, beside one of ordinary length and none at all."""
    grad = torch.tensor([[3.0, -4.0], [3.0 * size, -4.0 * size], [0.0, 0.0]])
    expected = torch.tensor([[0.6, -0.8], [0.6, -0.8], [0.0, 0.0]])
    torch.testing.assert_close(steepest(grad, "l2"), expected, rtol=1e-3, atol=0)
