"""Adversarial inputs in a file: steps of grey levels where they come back bit for bit, float32 elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.contracts.errors import InputError
from bench.contracts.inputs import InputSpec
from bench.contracts.levels import Levels
from bench.contracts.threat import Lp
from bench.storing.images import STEPS, Images, decode, encode, pick

SPECS = {
    "digits": InputSpec((1, 8, 8), levels=17),
    "grey": InputSpec((1, 28, 28), levels=256),
    "colour": InputSpec((3, 32, 32), levels=256),
    "signed": InputSpec((3, 8, 8), low=-1.0, high=1.0, levels=256),
    "16 bits": InputSpec((1, 8, 8), levels=65536),
}


def examples(spec: InputSpec, n: int = 6) -> tuple[Tensor, Tensor]:
    """Clean inputs on levels, and points of a ball around them of which every other lies on levels."""
    assert spec.levels is not None
    drawn = torch.randint(spec.levels, (n, *spec.shape), generator=torch.Generator().manual_seed(0))
    x = spec.low + drawn / (spec.levels - 1) * (spec.high - spec.low)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    x_adv = (x + 0.2 * noise).clamp(spec.low, spec.high)
    snapped = Levels(spec, Lp("linf", 0.2, spec.low, spec.high), x).snapped(x_adv, None)
    return x, torch.where(torch.arange(n).view(-1, *[1] * len(spec.shape)) % 2 == 0, snapped, x_adv)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_input_comes_back_bit_for_bit(spec: InputSpec) -> None:
    x, x_adv = examples(spec)
    stored = encode(x_adv, x, spec)
    assert len(stored.tensors[STEPS]) == 3
    assert torch.equal(decode(stored, x), x_adv)


@pytest.mark.parametrize("rows", [[], [0], [1], [1, 3], [0, 2, 4], [0, 1, 4, 5]], ids=str)
def test_some_of_the_inputs_come_back_as_well(rows: list[int]) -> None:
    spec = SPECS["colour"]
    x, x_adv = examples(spec)
    assert torch.equal(decode(pick(encode(x_adv, x, spec), rows), x[rows]), x_adv[rows])


def test_steps_take_a_quarter_of_the_room() -> None:
    spec = SPECS["colour"]
    x, x_adv = examples(spec)
    stored = encode(x_adv[::2], x[::2], spec)
    assert stored.tensors[STEPS].dtype == torch.int8
    assert sum(t.numel() * t.element_size() for t in stored.tensors.values()) == x[::2].numel() + 3


def test_what_is_no_number_or_off_the_levels_stays_as_it_is() -> None:
    spec = SPECS["colour"]
    x, x_adv = examples(spec)
    x_adv[0, 0, 0, 0] = torch.nan
    again = decode(encode(x_adv, x, spec), x)
    assert torch.equal(again[1:], x_adv[1:])
    assert torch.isnan(again[0, 0, 0, 0])
    without = InputSpec((3, 32, 32))
    assert torch.equal(decode(encode(x_adv[1:], x[1:], without), None), x_adv[1:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda stored, x: (stored, None), "not given"),
        (lambda stored, x: (stored, x[:4]), "do not fit"),
        (lambda stored, x: (stored, x[:, :2]), "do not fit"),
        (lambda stored, x: (Images(stored.tensors), x), "does not say what a step is"),
    ],
    ids=["no clean inputs", "fewer of them", "another shape", "no header"],
)
def test_what_does_not_fit_is_refused(spoil, message: str) -> None:
    spec = SPECS["colour"]
    x, x_adv = examples(spec)
    with pytest.raises(InputError, match=message):
        decode(*spoil(encode(x_adv, x, spec), x))
