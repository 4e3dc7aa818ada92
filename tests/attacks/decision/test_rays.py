"""RayS: flips of signs, and what each of them costs."""

from __future__ import annotations

import torch
from lab import Linear, length, linear_case, make_target
from torch import Tensor

from attacks.decision.rays import _Search, rays
from attacks.toolkit.decision_walk import Nearest, Oracle
from bench.contracts.defense import BareModel
from bench.contracts.inputs import DataInfo, InputSpec

INFO = DataInfo("toy", InputSpec((1, 4, 4)), 2)


def _search(weight: Tensor, tolerance: float = 0.01) -> _Search:
    """A search on a model that calls an image 1 when ``weight · (x - 0.3) > 1``, from an image of ones."""
    weights = torch.stack([torch.zeros(16), weight])
    defense = BareModel(Linear(weights, torch.tensor([0.0, 0.2 * weight.sum() - 1])), INFO)
    x = torch.full((1, 1, 4, 4), 0.3)
    target = make_target(defense, 1, "decision", eps=1.0)
    return _Search(Nearest(Oracle(target, torch.zeros(1).long(), 1000), x), torch.arange(1), x + 0.7, tolerance)


def test_blocks_halve_down_to_single_values_and_begin_again_in_random_order() -> None:
    search = _search(torch.ones(16))
    search.direction = torch.ones(1, 16)
    flips = []
    for _ in range(2 + 4 + 8 + 16 + 2):
        search._next(torch.arange(1))
        flips.append(search.candidate[0] < 0)
    assert [int(f.sum()) for f in flips] == [8] * 2 + [4] * 4 + [2] * 8 + [1] * 16 + [8] * 2
    assert flips[0].nonzero().flatten().tolist() == list(range(8))
    assert flips[3].nonzero().flatten().tolist() == list(range(4, 8))
    again = flips[-2]
    assert not torch.equal(again, flips[0])
    assert torch.equal(again, ~flips[-1])


def test_blocks_that_do_not_divide_the_values_cover_them_all() -> None:
    case = linear_case(1, (3, 5, 7), "linf")
    nearest = Nearest(Oracle(case.target(4.0, "decision"), case.y, 100), case.x)
    search = _Search(nearest, torch.arange(1), torch.rand(1, 3, 5, 7), 0.01)
    search.direction = torch.ones(1, 105)
    for blocks in (2, 4):
        covered = torch.zeros(105)
        while search.blocks.item() == blocks:
            search._next(torch.arange(1))
            covered += search.candidate[0] < 0
        assert torch.equal(covered, torch.ones(105))


def test_the_best_signs_of_a_linear_model_are_those_of_its_weight() -> None:
    weight = torch.tensor([1.0, 1, 1, 1, -1, -1, 1, 1, 1, 1, -1, 1, 1, 1, 1, 1])
    search = _search(weight)
    for _ in range(150):
        search.ask()
    assert torch.equal(search.direction[0].sign(), weight)
    assert 1 / 16 <= search.distance.item() < 1.02 / 16


def test_a_flip_that_gains_nothing_costs_one_query() -> None:
    search = _search(torch.ones(16))
    while search.low.item() == search.low.item():  # the distance along the first direction: until low is NaN again
        search.ask()
    before, distance = search.oracle.left.item(), search.distance.item()
    for _ in range(2 + 4 + 8):
        search.ask()
    assert before - search.oracle.left.item() == 14
    assert search.block.item() == 1 and search.blocks.item() == 16
    assert search.distance.item() == distance


def test_the_last_query_is_spent() -> None:
    case = linear_case(3, (1, 8, 8), "linf")
    target = case.target(4.0, "decision")
    rays(target, case.x, case.y, queries=123, stop_inside=False)
    assert target.counts.forward.tolist() == [123] * 3


def test_an_image_is_the_direction_where_its_signs_lead_nowhere() -> None:
    """Here a corner of the box is class 0 again, and only an image of the shard shows a way."""

    class Band(BareModel):
        def forward(self, x: Tensor) -> Tensor:
            first = x[:, 0, 0, 0]
            hit = (first > 0.5) & (first < 0.8)
            return torch.stack([(~hit).to(x), hit.to(x)], 1)

    x = torch.full((2, 1, 4, 4), 0.2)
    x[1, 0, 0, 0] = 0.7
    y = torch.tensor([0, 1])
    target = make_target(Band(torch.nn.Identity(), INFO), 2, "decision", eps=0.9)
    x_adv = rays(target, x, y, queries=200, init_tries=1, stop_inside=False)
    assert 0.5 < x_adv[0, 0, 0, 0] < 0.52
    assert length(x_adv - x, "linf")[0] < 0.32


def test_a_small_input_may_be_given_more_questions_than_its_signs_last() -> None:
    search = _search(torch.ones(16), tolerance=0.5)
    search.oracle.left[:] = 5000
    for _ in range(3000):
        search.ask()
    assert search.oracle.left.item() == 2000
