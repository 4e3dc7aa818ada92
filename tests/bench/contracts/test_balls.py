"""Distances, nearest points of a ball within a box against independent solutions, points of largest change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from bench.contracts.balls import distances, l1_projection, l2_projection, largest_positions

SHAPE = (3, 4, 5)


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _l1_by_root_finding(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """The dual of min ‖u - δ‖² over the ball and the box has one variable, whose root is searched for."""
    flat, low, high = (part.flatten(1).numpy() for part in (delta, -x, 1 - x))
    rows = []
    for d, lower, upper in zip(flat, low, high, strict=True):

        def shrunk(cut: float, d=d, lower=lower, upper=upper):
            return np.clip(np.sign(d) * np.maximum(np.abs(d) - cut, 0), lower, upper)

        def excess(cut: float, shrunk=shrunk) -> float:
            return float(np.abs(shrunk(cut)).sum() - eps)

        rows.append(shrunk(0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, np.abs(d).max(), xtol=1e-14)))
    return torch.tensor(np.stack(rows)).view_as(delta)


@pytest.mark.parametrize("eps", [0.05, 1.0, 4.0, 12.0, 100.0])
@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_the_l1_projection_is_the_nearest_feasible_point(eps, size) -> None:
    x = _rand(20, *SHAPE)
    x[:5] = x[:5].round()  # values at the edges of the box
    delta = size * (2 * _rand(20, *SHAPE, seed=1) - 1)
    ours = l1_projection(delta, -x, 1 - x, eps)
    torch.testing.assert_close(ours, _l1_by_root_finding(delta, x, eps), atol=1e-9, rtol=0)


def _l2_by_root_finding(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """The same in l2: the multiplier of the ball shortens δ before it is clipped."""
    flat, low, high = (part.flatten(1).numpy() for part in (delta, -x, 1 - x))
    rows = []
    for d, lower, upper in zip(flat, low, high, strict=True):

        def clipped(multiplier: float, d=d, lower=lower, upper=upper):
            return np.clip(d / (1 + multiplier), lower, upper)

        def excess(multiplier: float, clipped=clipped) -> float:
            return float(np.linalg.norm(clipped(multiplier)) - eps)

        rows.append(clipped(0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, 1e6, xtol=1e-13)))
    return torch.tensor(np.stack(rows)).view_as(delta)


@pytest.mark.parametrize("eps", [0.05, 0.5, 2.0, 4.0, 100.0])
@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_the_l2_projection_is_the_nearest_feasible_point(eps, size) -> None:
    x = _rand(20, *SHAPE)
    x[:5] = x[:5].round()
    delta = size * (2 * _rand(20, *SHAPE, seed=1) - 1)
    delta[0] = -x[0]  # nothing but clipped values, or none
    ours = l2_projection(delta, -x, 1 - x, eps)
    assert ours.flatten(1).norm(dim=1).max() <= eps * (1 + 1e-12)
    torch.testing.assert_close(ours, _l2_by_root_finding(delta, x, eps), atol=1e-5 * size, rtol=0)


def test_the_l1_projection_takes_a_radius_per_row_and_keeps_what_is_inside() -> None:
    x, delta = _rand(4, *SHAPE), 0.01 * _rand(4, *SHAPE, seed=2)
    radii = torch.tensor([0.01, 0.1, 0.2, 10.0], dtype=torch.float64)
    ours = l1_projection(delta, -x, 1 - x, radii)
    for row, radius in enumerate(radii.tolist()):
        one = slice(row, row + 1)
        torch.testing.assert_close(ours[one], l1_projection(delta[one], -x[one], 1 - x[one], radius))
    torch.testing.assert_close(ours[3], delta[3].clamp(-x[3], 1 - x[3]))
    zero = torch.zeros_like(delta)
    assert torch.equal(l1_projection(zero, -x, 1 - x, 1.0), zero)


def test_a_position_counts_once_whatever_its_channels_and_in_a_row_every_value_is_one() -> None:
    x = torch.zeros(2, 2, 3)
    x_adv = x.clone()
    x_adv[0, :, 1] = torch.tensor([0.25, -0.5])  # both channels of one time
    x_adv[1, 0, 0], x_adv[1, 1, 2] = 1.0, 1.0
    found = distances(x, x_adv)
    assert found["l0"].tolist() == [1, 2]
    assert found["linf"].tolist() == [0.5, 1]
    assert found["l1"].tolist() == [0.75, 2]
    torch.testing.assert_close(found["l2"], torch.tensor([0.3125, 2.0], dtype=torch.float64).sqrt())
    assert distances(x.flatten(1), x_adv.flatten(1))["l0"].tolist() == [2, 2]


def test_the_largest_positions_of_images_waveforms_and_rows() -> None:
    delta = torch.tensor([[[0.3, 0.0, 0.2], [0.3, -0.4, 0.2]]])  # lengths 0.42, 0.4 and 0.28
    assert largest_positions(delta, 1).tolist() == [[[True, False, False]]]
    assert largest_positions(delta[..., None], 2).flatten().tolist() == [True, True, False]
    assert largest_positions(delta[:, 1], 1).tolist() == [[False, True, False]]
    assert largest_positions(delta, 99).all()
