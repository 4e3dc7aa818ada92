"""Finished examples leave with all that belongs to them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from attacks.toolkit.active import Active, take
from attacks.toolkit.losses import Goal, margin

GOING = torch.tensor([True, False, True])


@dataclass
class _State(Active):
    shared = ("table",)

    rows: Tensor
    goal: Goal
    drawn: list[Tensor]
    table: Tensor
    steps: int = 4


def test_tensors_lists_and_goals_lose_the_same_rows_and_the_rest_stays() -> None:
    state = _State(torch.arange(3), Goal(margin, torch.tensor([5, 6, 7])), [torch.eye(3)], torch.zeros(7))
    state.keep(GOING)
    assert state.rows.tolist() == [0, 2]
    assert state.goal.y.tolist() == [5, 7]
    assert torch.equal(state.drawn[0], torch.eye(3)[[0, 2]])
    assert len(state.table) == 7 and state.steps == 4
    state.keep(torch.tensor([False, True]))
    assert state.rows.tolist() == [2] and state.goal.y.tolist() == [7]
    rows, goal, name = take(GOING, torch.arange(3), Goal(margin, torch.arange(3)), "pgd")
    assert rows.tolist() == goal.y.tolist() == [0, 2] and name == "pgd"


@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.zeros(4, 3), torch.tensor(1.0)])
def test_a_tensor_without_a_row_per_example_is_never_cut_by_chance(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"has no row for each of 3 examples"):
        take(GOING, torch.arange(3), wrong)
    with pytest.raises(ValueError, match=r"has no row for each of 3 examples"):
        _State(wrong, Goal(margin, torch.arange(3)), [], torch.zeros(7)).keep(GOING)
