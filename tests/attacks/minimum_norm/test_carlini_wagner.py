"""C&W: passes, confidence, the search over c, values at the edge of the box."""

from __future__ import annotations

import pytest
import torch
from lab import curved_case, length, linear_case, make_target
from two_classes import INFO, Constant

from attacks.minimum_norm.carlini_wagner import carlini_wagner

BOX = {"l2": 8.0, "linf": 1.0, "l0": 64}
every_norm = pytest.mark.parametrize("norm", BOX)


@every_norm
def test_every_pass_is_counted(norm) -> None:
    defense, x, y = curved_case(3)
    target = make_target(defense, 3, "gradient", norm=norm, eps=BOX[norm])
    carlini_wagner(target, x, y, steps=7, searches=3, abort_early=False, stop_inside=False)
    assert target.counts.backward.tolist() == target.counts.forward.tolist() == [21, 21, 21]
    target = make_target(Constant(INFO), 2, "gradient", norm=norm, eps=BOX[norm])
    carlini_wagner(target, x[:2], torch.zeros(2).long(), steps=7, searches=3, abort_early=False)
    assert target.counts.backward.tolist() == target.counts.forward.tolist() == [21, 21]


def test_a_run_that_gets_nowhere_ends_early() -> None:
    defense, x, y = curved_case(4)
    every, few = (make_target(defense, 4, "gradient", norm="l2", eps=8) for _ in range(2))
    x_every = carlini_wagner(every, x, y, abort_early=False, stop_inside=False)
    x_few = carlini_wagner(few, x, y, stop_inside=False)
    assert (few.counts.backward < every.counts.backward).all()
    assert length(x_few - x, "l2").mean() < 1.01 * length(x_every - x, "l2").mean()


@every_norm
def test_confidence_is_the_least_margin(norm) -> None:
    defense, x, y = curved_case(4)
    distance = {}
    for kappa in (0.0, 2.0):
        target = make_target(defense, 4, "gradient", norm=norm, eps=BOX[norm])
        x_adv = carlini_wagner(target, x, y, steps=60, searches=3, kappa=kappa, stop_inside=False)
        logits = defense(x_adv)
        margin = logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)
        assert (margin >= kappa).all()
        distance[kappa] = length(x_adv - x, norm).mean()
    if norm != "l0":  # there a greedy search, which may do better by luck
        assert distance[2.0] > distance[0.0]


@pytest.mark.parametrize("initial_const", [1e-3, 1.0])
def test_the_search_finds_c_from_far_off(initial_const) -> None:
    case = linear_case(3, (1, 8, 8), "l2")
    target = case.target(8.0, "gradient")
    x_adv = carlini_wagner(target, case.x, case.y, initial_const=initial_const, searches=7, stop_inside=False)
    assert case.fooled(x_adv).all()
    assert length(x_adv - case.x, "l2").max() < 1.05 * case.radius


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@every_norm
def test_the_scale_of_the_logits_makes_no_difference(norm, scale) -> None:
    case, scaled = (linear_case(2, (1, 8, 8), "l2") for _ in range(2))
    for parameter in scaled.defense.parameters():
        parameter.mul_(scale)
    near, far = (
        carlini_wagner(
            make_target(c.defense, 2, "gradient", norm=norm, eps=BOX[norm]), c.x, c.y, steps=60, searches=3,
            stop_inside=False,
        )
        for c in (case, scaled)
    )  # fmt: skip
    assert case.fooled(far).all()
    assert (length(far - case.x, norm) < 1.05 * length(near - case.x, norm)).all()


@every_norm
def test_values_at_the_edge_of_the_box_can_leave_it(norm) -> None:
    case = linear_case(3, (1, 8, 8), "l2")
    x = case.x.round()
    y = case.defense(x).argmax(1)
    target = make_target(case.defense, 3, "gradient", norm=norm, eps=BOX[norm])
    x_adv = carlini_wagner(target, x, y, steps=60, searches=3, stop_inside=False)
    assert (case.defense(x_adv).argmax(1) != y).all()
