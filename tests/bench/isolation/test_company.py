"""Clean inputs go to a server with a noisy copy of their batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.contracts.inputs import InputSpec
from bench.contracts.levels import on_levels
from bench.contracts.threat import Lp
from bench.isolation.company import Company
from bench.isolation.remote import _ask

THREAT = Lp("linf", 0.2)


class Door:
    """Answers twice the sum of each input's values, in three classes, and remembers what it was asked."""

    def __init__(self, company: Company | None) -> None:
        self.company, self.dropped = company, []
        self.asked: list[Tensor] = []
        self.seeds: list[int] = []
        self.back: list[int] = []

    def ask(self, message: dict[str, Any], *tensors: Tensor) -> tuple[dict[str, Any], Tensor]:
        if "back" in message:
            self.back.append(message["back"])
            x = self.asked[message["back"]]
            (grad,) = tensors
            return {}, 2 * grad.sum(1).view(-1, *[1] * (x.ndim - 1)).expand_as(x)
        self.asked.append(tensors[0].clone())
        self.seeds.append(message["seed"])
        out = 2 * tensors[0].flatten(1).sum(1, keepdim=True).expand(-1, 3)
        return {"number": len(self.asked) - 1, "differentiable": True}, out.clone()


def clean(shape: tuple[int, ...], levels: int) -> Tensor:
    drawn = torch.randint(levels, (6, *shape), generator=torch.Generator().manual_seed(sum(shape)))
    return drawn.float() / (levels - 1)


@pytest.mark.parametrize(("shape", "levels"), [((1, 8, 8), 17), ((1, 28, 28), 256), ((3, 32, 32), 256)])
def test_a_clean_batch_is_asked_beside_a_copy_and_the_answer_is_its_own(shape: tuple[int, ...], levels: int) -> None:
    spec, x = InputSpec(shape, levels=levels), clean(shape, levels)
    door = Door(Company(x, THREAT, spec, torch.Generator().manual_seed(0)))
    places = []
    for rows in (x, x[2:5], x[5:]):
        for _ in range(8):
            door.asked.clear(), door.seeds.clear(), door.back.clear()
            at = rows.clone().requires_grad_()
            answer = _ask(door, "forward", at)  # type: ignore[arg-type]
            assert torch.allclose(answer[:, 0], 2 * rows.flatten(1).sum(1))
            (grad,) = torch.autograd.grad(answer[:, 1].sum(), at)
            assert torch.equal(grad, torch.full_like(rows, 2))
            assert door.back == [0, 1] and len(door.asked) == 2 and door.seeds[0] != door.seeds[1]
            mine = [torch.equal(one, rows) for one in door.asked]
            assert sum(mine) == 1
            copy = door.asked[1 - mine.index(True)]
            assert on_levels(copy, spec).all() and THREAT.violations(rows, copy) == ["ok"] * len(rows)
            assert (copy != rows).flatten(1).any(1).all()
            places.append(mine.index(True))
    assert 4 < sum(places) < 20  # by lot


def test_other_points_are_asked_alone_and_on_the_same_random_numbers_as_without_company() -> None:
    spec, x = InputSpec((1, 8, 8), levels=17), clean((1, 8, 8), 17)
    points = THREAT.sample(x, torch.Generator().manual_seed(1))
    doors = Door(Company(x, THREAT, spec, torch.Generator().manual_seed(0))), Door(None)
    for door in doors:
        torch.manual_seed(5)
        for batch in (points, x, points[:3]):
            _ask(door, "forward", batch)  # type: ignore[arg-type]
    assert [len(door.asked) for door in doors] == [4, 3]
    of_points = []
    for door in doors:
        asked = zip(door.seeds, door.asked, strict=True)
        of_points.append([seed for seed, one in asked if torch.equal(one, points[: len(one)])])
    assert of_points[0] == of_points[1] and len(of_points[0]) == 2
    first = Door(Company(x, THREAT, spec, torch.Generator().manual_seed(0)))
    _ask(first, "forward", torch.cat([points[:2], x[:1]]))  # type: ignore[arg-type]
    assert len(first.asked) == 2  # one clean input among others is enough


def test_what_is_no_input_has_no_copy() -> None:
    spec, x = InputSpec((1, 8, 8), levels=17), clean((1, 8, 8), 17)
    company = Company(x, THREAT, spec, torch.Generator().manual_seed(0))
    assert company.of(x.flatten(1)) is None and company.of(x[:0]) is None
    assert Company(x, THREAT, InputSpec((1, 8, 8)), torch.Generator()).of(x) is not None
