"""Inputs that are made for a probe: of the kind of the data, and none of them."""

from __future__ import annotations

import pytest
import torch

from bench.contracts.inputs import InputSpec
from bench.contracts.levels import on_levels
from bench.data.load import load_data
from bench.data.splits import Split
from bench.judging.made import made, unforeseen

DATA = load_data("digits")


def test_they_are_far_from_every_input_of_the_data_and_look_like_these() -> None:
    x, y = made(DATA.train, DATA.info.input, 128, unforeseen())
    known = torch.cat([split.x for split in (DATA.train, DATA.validation, DATA.test)])
    distance = torch.cdist(x.flatten(1), known.flatten(1), p=torch.inf).amin(1)
    assert distance.median() > 0.2 and (distance > 0).float().mean() > 0.95
    assert on_levels(x, DATA.info.input).all() and x.min() >= 0 and x.max() <= 1
    nearest = torch.cdist(x.flatten(1), DATA.train.x.flatten(1)).argmin(1)
    assert (DATA.train.y[nearest] == y).float().mean() > 0.95
    assert len(y.unique()) == 10


def test_nobody_can_have_made_them_before() -> None:
    one, other = (made(DATA.train, DATA.info.input, 64, unforeseen())[0] for _ in range(2))
    assert not torch.isin(one.flatten(1).sum(1) * 16, other.flatten(1).sum(1) * 16).all()
    same = [made(DATA.train, DATA.info.input, 64, torch.Generator().manual_seed(3))[0] for _ in range(2)]
    assert torch.equal(*same)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 100)])
def test_of_other_shapes_without_levels_and_of_more_than_there_are(shape: tuple[int, ...]) -> None:
    inputs, labels = torch.rand(7, *shape), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    split = Split(inputs, labels, [str(i) for i in range(7)])
    x, y = made(split, InputSpec(shape), 20, unforeseen())
    assert x.shape == (20, *shape) and len(y) == 20
    alone = x[y == 2]
    assert len(alone) and torch.equal(alone, inputs[6:].expand_as(alone))  # the only one of its class
    others = x[y == 0]
    halves = [(inputs[i] + inputs[j]) / 2 for i in range(3) for j in range(3) if i != j]
    assert all(any(torch.allclose(one, half) for half in halves) for one in others)


def test_inputs_that_are_held_as_bytes_are_read_as_floats() -> None:
    inputs = torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8)
    spec = InputSpec((3, 32, 32), levels=256)
    split = Split(inputs, torch.arange(12) % 2, [str(i) for i in range(12)])
    x, _ = made(split, spec, 6, unforeseen())
    assert x.dtype == torch.float32 and x.max() <= 1 and on_levels(x, spec).all()
