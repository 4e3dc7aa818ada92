"""Losses against their formulas worked out by hand, and the goals made of them."""

from __future__ import annotations

import math

import pytest
import torch
from lab import linear_case, make_target
from torch import Tensor

from attacks.toolkit.losses import LOSSES, Goal, MLogit, ce, dlr, get_loss, log_odds, logit, margin, probability_margin
from bench.contracts.errors import InputError

LOGITS = torch.tensor([[4.0, 1.0, 2.5, -1.0], [0.0, 3.0, 1.0, 2.0]], dtype=torch.float64)
Y = torch.tensor([0, 2])
T = torch.tensor([2, 1])


def _log_p(row: int, label: int) -> float:
    return float(LOGITS[row, label]) - math.log(sum(math.exp(z) for z in LOGITS[row].tolist()))


def _p(row: int, label: int) -> float:
    return math.exp(_log_p(row, label))


def _log_odds(row: int, label: int) -> float:
    p = math.exp(_log_p(row, label))
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("loss", "away", "towards"),
    [
        (ce, [-_log_p(0, 0), -_log_p(1, 2)], [_log_p(0, 2), _log_p(1, 1)]),
        (log_odds, [-_log_odds(0, 0), -_log_odds(1, 2)], [_log_odds(0, 2), _log_odds(1, 1)]),
        (margin, [2.5 - 4, 3 - 1], [2.5 - 4, 3 - 1]),
        (probability_margin, [_p(0, 2) - _p(0, 0), _p(1, 1) - _p(1, 2)], [_p(0, 2) - _p(0, 0), _p(1, 1) - _p(1, 2)]),
        (MLogit(0.5), [-1.5, 0.5], [-1.5, 0.5]),
        (logit, [-4, -1], [2.5, 3]),
        (dlr, [-1.5 / (4 - 1), 2 / (3 - 1)], [-1.5 / (4 - 0), 2 / (3 - 0.5)]),
    ],
)
def test_values(loss, away, towards) -> None:
    torch.testing.assert_close(loss(LOGITS, Y, None), torch.tensor(away, dtype=torch.float64))
    torch.testing.assert_close(loss(LOGITS, Y, T), torch.tensor(towards, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_to_reach_is_the_untargeted_loss_of_that_class_turned_round(name) -> None:
    goal = Goal(get_loss(name), T, reach=True)
    value = goal(LOGITS)
    if name == "m_logit":  # min(margin, κ) of the class to reach; turned round it would be cut on the other side
        torch.testing.assert_close(value, torch.tensor([-1.5, 0.0], dtype=torch.float64))
    else:
        torch.testing.assert_close(value, -get_loss(name)(LOGITS, T, None))
    assert goal.margin(LOGITS).tolist() == [-1.5, 1.0]


@pytest.mark.parametrize("reach", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_raising_a_loss_raises_the_margin(name, reach) -> None:
    goal = Goal(get_loss({"m_logit": {"kappa": 50}} if name == "m_logit" else name), T if reach else Y, reach=reach)
    logits = LOGITS.clone().requires_grad_()
    (grad,) = torch.autograd.grad(goal(logits).sum(), logits)
    assert (goal.margin(LOGITS + 1e-3 * grad) > goal.margin(LOGITS)).all()


def test_the_margin_is_positive_exactly_where_the_label_is_wrong() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 7
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)
    assert torch.equal(Goal(margin, y, reach=True).margin(logits) > 0, logits.argmax(1) == y)


def test_dlr_does_not_mind_the_scale_of_the_logits() -> None:
    torch.testing.assert_close(dlr(1000 * LOGITS, Y), dlr(LOGITS, Y))
    torch.testing.assert_close(dlr(1000 * LOGITS + 5, Y, T), dlr(LOGITS, Y, T))


def _gradient(loss: object, logits: Tensor, y: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(get_loss(loss)(logits, y, None).sum(), logits)[0]


def test_cross_entropy_dies_where_the_margin_does_not() -> None:
    """Ozbulak et al. 2020: no gradient is left once the softmax has saturated in single precision."""
    logits, y = torch.tensor([[200.0, 0.0, -5.0, -5.0]]), torch.tensor([0])
    assert (_gradient("ce", logits, y) == 0).all()
    assert _gradient("margin", logits, y).tolist() == [[-1, 1, 0, 0]]
    assert _gradient("logit", logits, y).tolist() == [[-1, 0, 0, 0]]
    odds = torch.tensor([[-1.0, 0.9867, 0.0066, 0.0066]])
    torch.testing.assert_close(_gradient("log_odds", logits, y), odds, atol=1e-4, rtol=0)


def test_log_odds_point_where_cross_entropy_does() -> None:
    unit = [g / g.norm(dim=1, keepdim=True) for g in (_gradient(loss, LOGITS, Y) for loss in ("ce", "log_odds"))]
    torch.testing.assert_close(*unit)


def test_m_logit_loses_interest_beyond_kappa() -> None:
    logits, y = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0])
    assert (_gradient({"m_logit": {"kappa": 2}}, logits, y) == 0).all()
    assert _gradient({"m_logit": {"kappa": 4}}, logits, y).tolist() == [[-1, 1, 0]]


@pytest.mark.parametrize(("loss", "classes", "t"), [(dlr, 2, None), (dlr, 3, torch.tensor([1]))])
def test_dlr_refuses_too_few_classes(loss, classes, t) -> None:
    with pytest.raises(InputError, match=f"got {classes}"):
        loss(torch.zeros(1, classes), torch.tensor([0]), t)


def test_written_forms() -> None:
    assert get_loss("ce") is ce and get_loss(ce) is ce
    assert get_loss({"m_logit": {"kappa": 5}}) == MLogit(5.0)
    with pytest.raises(InputError, match="did you mean 'margin'"):
        get_loss("margni")
    with pytest.raises(InputError, match="m_logit has kappa"):
        get_loss({"margin": {"kappa": 1}})
    with pytest.raises(InputError, match="does not exist"):
        get_loss(3)


def test_goals_of_a_target_and_of_its_rows() -> None:
    case = linear_case(3, (1, 8, 8), "linf")
    away = Goal.of(case.target(1.0, "gradient"), margin, case.y)
    assert not away.reach and torch.equal(away.y, case.y)
    towards = torch.tensor([1, 0, 3])
    target = make_target(case.defense, 3, "gradient", towards=towards)
    goal = Goal.of(target, margin, case.y)
    assert goal.reach and torch.equal(goal.at(torch.tensor([2, 0])).y, towards[[2, 0]])
    assert goal.towards(case.y) is goal, "a class that has to be reached is not replaced"
    assert torch.equal(goal.repeat(2).y, towards.repeat(2))
    several = away.towards(towards)
    assert several.at(slice(1, 3)).t is not None and torch.equal(several.at(slice(1, 3)).t, towards[1:])  # type: ignore[arg-type]
    assert torch.equal(several.repeat(2).t, towards.repeat(2))  # type: ignore[arg-type]
