"""The boundary attack's moves and step sizes."""

from __future__ import annotations

import pytest
import torch
from lab import length, linear_case

from attacks.decision.boundary import _Walk, boundary
from attacks.toolkit.decision_walk import Nearest, Oracle, find_start, search


def _walk(norm: str, n: int = 3) -> _Walk:
    case = linear_case(n, (1, 8, 8), norm)
    nearest = Nearest(Oracle(case.target(20.0, "decision"), case.y, 1000), case.x)
    points, rows = find_start(nearest, 20)
    return _Walk(nearest, rows, search(nearest, points[rows], rows, 10), 0.1, 0.03)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_sideways_moves_are_no_longer_than_the_perturbation_and_in_the_box(norm) -> None:
    walk = _walk(norm)
    low, high = -walk.x, 1 - walk.x
    beside = walk._sideways(torch.randn(5, 3, 64), torch.ones(5, 3, 64, dtype=torch.bool), low, high)
    assert beside.shape == (5, 3, 64)
    assert (length(beside.flatten(0, 1), norm) <= walk.distance.repeat(5) * (1 + 1e-5)).all()
    assert (beside >= low).all() and (beside <= high).all()
    assert not torch.allclose(beside[0], walk.delta)


def test_a_sideways_move_in_l2_has_the_length_that_was_asked_for() -> None:
    walk = _walk("l2")
    walk.delta = 0.1 * walk.delta  # far from the edges of the box
    walk.distance = 0.1 * walk.distance
    beside = walk._sideways(torch.randn(1, 3, 64), torch.ones(1, 3, 64, dtype=torch.bool), -walk.x, 1 - walk.x)[0]
    tangent = (beside / length(beside, "l2")[:, None] * walk.distance[:, None] - walk.delta).norm(dim=1)
    torch.testing.assert_close(tangent / walk.distance, torch.full((3,), 0.1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_values_on_an_edge_stay_there_without_a_coin(norm) -> None:
    walk = _walk(norm)
    low, high = -walk.x, 1 - walk.x
    walk.delta[:, :9] = low[:, :9]
    walk.distance = length(walk.delta, norm)
    noise = torch.randn(1, 3, 64)
    stay = walk._sideways(noise, torch.zeros(1, 3, 64, dtype=torch.bool), low, high)[0]
    go = walk._sideways(noise, torch.ones(1, 3, 64, dtype=torch.bool), low, high)[0]
    edges = (stay - walk.delta)[:, :9].abs().max()
    assert edges < (0.01 if norm == "linf" else 0.1) * (go - walk.delta)[:, :9].abs().max() + 1e-2
    assert ((stay - walk.delta)[:, 9:].abs().amax(1) > 0).all()


def test_an_answer_moves_a_step_size_towards_its_share() -> None:
    size = torch.tensor([0.1, 0.1])
    _Walk._adapt(size, torch.tensor([0.9, -0.1]), 0.5)
    assert size[0] > 0.1 > size[1]
    for _ in range(1000):
        _Walk._adapt(size, torch.tensor([0.9, -0.1]), 0.5)
    assert size.tolist() == pytest.approx([0.9, 1e-5])


def test_a_step_never_lengthens_a_perturbation_and_stays_adversarial() -> None:
    walk = _walk("l2")
    before = walk.distance.clone()
    for number in range(30):
        noise = torch.randn(4, 3, 64, generator=torch.Generator().manual_seed(number))
        walk.step(noise, noise > 0, ask_sideways=number % 3 == 0)
    assert (walk.distance < before).all()
    points = (walk.x + walk.delta).view(3, 1, 8, 8).clamp(0, 1)
    assert walk.oracle(points, walk.rows).all()
    torch.testing.assert_close(walk.nearest.distance[walk.rows], walk.distance)


def test_a_step_asks_as_often_as_it_proposes() -> None:
    walk = _walk("l2")
    before = walk.oracle.left.clone()
    noise, coins = torch.randn(4, 3, 64), torch.zeros(4, 3, 64, dtype=torch.bool)
    walk.step(noise, coins, ask_sideways=False)
    walk.step(noise, coins, ask_sideways=True)
    assert (before - walk.oracle.left).tolist() == [9, 9, 9]


@pytest.mark.parametrize("proposals", [1, 4, 7])
def test_less_than_a_step_is_left_over(proposals) -> None:
    case = linear_case(3, (1, 8, 8), "l2")
    target = case.target(20.0, "decision")
    boundary(target, case.x, case.y, queries=200, proposals=proposals, stop_inside=False)
    assert (target.counts.forward <= 200).all() and (target.counts.forward >= 200 - proposals).all()
