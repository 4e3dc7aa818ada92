"""CGBA on linear models, where one semicircle with the true normal ends at the nearest point, and its cap."""

from __future__ import annotations

import pytest
import torch
from lab import assert_feasible, length, linear_case, make_target
from two_classes import INFO, CoinFlip

from attacks.decision.cgba import _follow_arc, cgba
from attacks.toolkit.boundary_walk import Walk
from attacks.toolkit.decision_walk import Oracle, find_start

every_batch = pytest.mark.parametrize("n", [1, 3, 8])
every_shape = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)], ids=str)


@every_batch
@every_shape
def test_it_comes_near_the_minimal_distance(n, shape) -> None:
    case = linear_case(n, shape, "l2")
    x_adv = cgba(case.target(4.0, "decision"), case.x, case.y, queries=3000, stop_inside=False)
    distance = length(x_adv - case.x, "l2")
    assert case.fooled(x_adv).all()
    assert distance.min() > 0.99 * case.radius and distance.max() < 1.05 * case.radius


@every_batch
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
def test_one_semicircle_with_the_true_normal_ends_at_the_nearest_point(n, shape) -> None:
    case = linear_case(n, shape, "l2")
    case.defense.classifier.bias[2:] = -1e4  # out of reach with many values too
    target = case.target(1.0, "decision")
    walk = Walk(Oracle(target, case.y, 1000), case.x, 1.0)
    begin, rows = find_start(walk.nearest, 20)
    walk.search(begin[rows], rows)
    before = length(walk.point - case.x, "l2")
    weight = case.defense.classifier.weight
    normal = (weight[1 - case.y] - weight[case.y]).view_as(case.x)
    _follow_arc(walk, normal, rows, 1)
    after = length(walk.point - case.x, "l2")
    assert (before > 1.05 * case.radius).all()
    torch.testing.assert_close(after, torch.full_like(after, case.radius), rtol=0.02, atol=0)
    assert walk.oracle(walk.point, rows).all()
    assert torch.equal(walk.nearest.distance, after)


def test_a_wrong_normal_leaves_the_point_where_it_is() -> None:
    case = linear_case(3, (1, 8, 8), "l2")
    walk = Walk(Oracle(case.target(1.0, "decision"), case.y, 1000), case.x, 1.0)
    begin, rows = find_start(walk.nearest, 20)
    walk.search(begin[rows], rows)
    before = walk.point.clone()
    weight = case.defense.classifier.weight
    _follow_arc(walk, (weight[case.y] - weight[1 - case.y]).view_as(case.x), rows, 1)
    distance = length(walk.point - before, "l2")
    assert (distance < 0.02 * length(before - case.x, "l2")).all()


@every_batch
@every_shape
def test_it_succeeds_inside_the_ball_and_not_below_the_minimal_radius(n, shape) -> None:
    case = linear_case(n, shape, "l2")
    for factor in (1.1, 0.98):
        target = case.target(factor, "decision")
        x_adv = cgba(target, case.x, case.y, queries=2000)
        assert_feasible(target, case.x, x_adv)
        assert (case.fooled(x_adv) == (factor > 1)).all()


@pytest.mark.parametrize("queries", [1, 2, 30, 77, 500])
def test_it_never_exceeds_its_queries(queries) -> None:
    case = linear_case(5, (1, 8, 8), "l2")
    target = case.target(0.5, "decision")
    cgba(target, case.x, case.y, queries=queries)
    assert target.counts.forward.max() <= queries
    if queries == 500:
        assert target.counts.forward.min() > 400


def test_it_ends_on_an_oracle_that_contradicts_itself() -> None:
    target = make_target(CoinFlip(INFO), 6, "decision", norm="l2", randomized=True)
    x_adv = cgba(target, torch.rand(6, 1, 8, 8), torch.arange(6) % 2, queries=400, draws=3)
    assert torch.isfinite(x_adv).all() and target.counts.forward.max() <= 400
