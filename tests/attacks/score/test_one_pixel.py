"""One-pixel attack: its parts, its counts, and its strength where the best pixel is known."""

from __future__ import annotations

import pytest
import torch
from lab import DIGITS, Linear, Wrapped, assert_feasible, digits, digits_classifier, make_target
from torch import Tensor
from toys import INFO, Constant, NaNWhereBright

from attacks.score.one_pixel import _children, _paint, one_pixel
from bench.contracts.defense import BareModel, Defense, freeze
from bench.contracts.inputs import DataInfo, InputSpec

every_batch = pytest.mark.parametrize("n", [1, 3, 8])
every_shape = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)], ids=str)
SMALL = {"population": 60, "generations": 40}


def _case(n: int, shape: tuple[int, int, int], pixels: int, factor: float) -> tuple[Defense, Tensor, Tensor]:
    """Images of class 0 whose distance to class 1 is ``factor`` times what the best ``pixels`` pixels can bridge.

    The logits are 0 and a linear function of x, so that the best pixels are known: those in which the step to the
    better end of the box, weighed and summed over the channels, is largest.
    """
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(shape, generator=generator).abs() * torch.randn(shape[1:], generator=generator).sign()
    x = torch.rand(n, *shape, generator=generator) * 0.4 + 0.3
    gain = torch.where(weight > 0, (1 - x) * weight, -x * weight).sum(1).flatten(1)
    within_reach = gain.topk(pixels, dim=1).values.sum(1)
    # One bias serves all examples only if all are at the same distance: shift the images along the weights.
    logit = (x * weight).flatten(1).sum(1)
    bias = -(logit + factor * within_reach)
    return _PerExample(weight, bias, x, DataInfo("linear", InputSpec(shape), 2)), x, torch.zeros(n, dtype=torch.int64)


class _PerExample(Defense):
    """Linear, with a bias of its own for each of the images ``x`` it knows (the nearest one counts)."""

    def __init__(self, weight: Tensor, bias: Tensor, x: Tensor, data: DataInfo) -> None:
        super().__init__(data)
        self.weight, self.bias, self.x = weight, bias, x

    def forward(self, x: Tensor) -> Tensor:
        nearest = (x[:, None] - self.x).flatten(2).abs().gt(1e-6).sum(2).argmin(1)
        value = (x * self.weight).flatten(1).sum(1) + self.bias[nearest]
        return torch.stack([torch.zeros_like(value), value], 1)


@every_batch
@every_shape
def test_it_finds_the_best_pixel(n, shape) -> None:
    defense, x, y = _case(n, shape, 1, 0.97)
    target = make_target(defense, n, "score", norm="l0", eps=1)
    x_adv = one_pixel(target, x, y, generations=40)
    assert_feasible(target, x, x_adv)
    assert (defense(x_adv).argmax(1) == 1).all()


@every_shape
def test_it_comes_near_the_best_three_pixels(shape) -> None:
    defense, x, y = _case(3, shape, 3, 0.85)
    target = make_target(defense, 3, "score", norm="l0", eps=3.0)
    x_adv = one_pixel(target, x, y, population=60, generations=150)
    assert_feasible(target, x, x_adv)
    assert (defense(x_adv).argmax(1) == 1).all()


@pytest.mark.parametrize("pixels", [1, 3])
@every_shape
def test_nothing_succeeds_where_the_best_pixels_do_not_suffice(shape, pixels) -> None:
    defense, x, y = _case(3, shape, pixels, 1.02)
    target = make_target(defense, 3, "score", norm="l0", eps=pixels)
    x_adv = one_pixel(target, x, y, **SMALL)
    assert_feasible(target, x, x_adv)
    assert (defense(x_adv).argmax(1) == 0).all()


def _two_pixels() -> Defense:
    """Class 1 needs the first value white, class 2 the last one; the first is the easier one."""
    weight = torch.zeros(3, 64)
    weight[1, 0], weight[2, -1] = 3.0, 2.0
    return freeze(BareModel(Linear(weight, torch.tensor([0.6, 0.0, 0.0])), INFO))  # type: ignore[return-value]


def test_a_class_to_reach_is_reached_and_no_other_one_counts() -> None:
    defense, x, y = _two_pixels(), torch.full((2, 1, 8, 8), 0.5), torch.zeros(2).long()
    for towards in (torch.tensor([1, 2]), torch.tensor([2, 1])):
        target = make_target(defense, 2, "score", norm="l0", eps=1, towards=towards)
        x_adv = one_pixel(target, x, y, **SMALL)
        assert_feasible(target, x, x_adv)
        assert (defense(x_adv).argmax(1) == towards).all()


def test_the_micro_batch_size_changes_nothing_and_double_precision_works(monkeypatch) -> None:
    x, y = torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.zeros(3).long()
    weight = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    defense = freeze(BareModel(Linear(weight, torch.tensor([4.0, 0.0, 0.0]).double()), INFO))

    def run(size: int) -> Tensor:
        target = make_target(defense, 3, "score", norm="l0", eps=3, batch_size=size)
        x_adv = one_pixel(target, x, y, population=20, generations=10)
        assert_feasible(target, x, x_adv)
        return x_adv

    whole = run(512)
    torch.testing.assert_close(whole, run(2), atol=1e-9, rtol=0)
    monkeypatch.setattr("attacks.score.one_pixel._VALUES", 1)  # one example at a time
    torch.testing.assert_close(whole, run(512), atol=1e-9, rtol=0)


def test_examples_do_not_depend_on_which_others_are_finished() -> None:
    defense, x, y = _case(4, (1, 8, 8), 2, 1.02)
    together = one_pixel(make_target(defense, 4, "score", norm="l0", eps=2), x, y, population=20, generations=9)
    target = make_target(defense, 4, "score", norm="l0", eps=2)
    alone = one_pixel(target, x, torch.tensor([1, 1, 1, 0]), population=20, generations=9)  # wrong from the start
    torch.testing.assert_close(alone[3], together[3])
    assert target.counts.forward.tolist() == [20, 20, 20, 180]


def test_every_candidate_is_counted() -> None:
    target = make_target(Constant(INFO), 2, "score", norm="l0", eps=2)
    x, y = torch.rand(2, 1, 8, 8), torch.zeros(2).long()
    one_pixel(target, x, y, population=11, generations=7)
    assert target.counts.forward.tolist() == [77, 77]
    target = make_target(Constant(INFO), 2, "score", norm="l0", eps=2, randomized=True)
    one_pixel(target, x, y, population=11, generations=7, draws=3)
    assert target.counts.forward.tolist() == [77 * 3 + 9] * 2


def test_outputs_that_are_not_numbers_end_in_feasible_points() -> None:
    x, y = torch.full((2, 1, 8, 8), 0.4), torch.zeros(2).long()
    for towards in (None, torch.ones(2).long()):
        target = make_target(NaNWhereBright(INFO), 2, "score", norm="l0", eps=4, towards=towards)
        assert_feasible(target, x, one_pixel(target, x, y, **SMALL))


def test_less_than_a_pixel_is_nothing_and_more_pixels_than_there_are_is_all() -> None:
    info = DataInfo("tiny", InputSpec((1, 2, 3)), 3)
    x = torch.rand(1, 1, 2, 3)
    target = make_target(Constant(info), 1, "score", norm="l0", eps=0.5)
    assert torch.equal(one_pixel(target, x, torch.zeros(1).long()), x)
    target = make_target(Constant(info), 1, "score", norm="l0", eps=100)
    assert_feasible(target, x, one_pixel(target, x, torch.zeros(1).long(), **SMALL))


def test_children_mix_three_different_members_and_stay_in_range() -> None:
    target = make_target(Constant(INFO), 1, "score", norm="l0", eps=1)
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    # Members 1, 1/4, 1/16, …: a + (b - c)/2 tells a, b and c.
    members = torch.tensor([4.0**-k for k in range(6)], dtype=torch.float64).view(1, 6, 1, 1)
    possible = {
        round(min(max(4.0**-a + 0.5 * (4.0**-b - 4.0**-c), 0), 1), 12)
        for a in range(6) for b in range(6) for c in range(6) if len({a, b, c}) == 3
    }  # fmt: skip
    drawn = {round(v, 12) for _ in range(300) for v in _children(target, x, members, 0.5, 1.0, 0.0).flatten().tolist()}
    assert drawn == possible


def test_painting_puts_the_colour_where_the_numbers_say() -> None:
    target = make_target(Constant(INFO), 1, "score", norm="l0", eps=1)
    x = torch.full((1, 2, 4, 5), 0.5)
    members = torch.tensor([[[0.99, 0.0, 0.1, 0.2], [1.0, 1.0, 0.3, 0.4], [0.3, 0.5, 0.6, 0.7]]])
    image = _paint(target, members, x)
    expected = x.clone()
    expected[0, :, 3, 0] = torch.tensor([0.1, 0.2])
    expected[0, :, 3, 4] = torch.tensor([0.3, 0.4])
    expected[0, :, 1, 2] = torch.tensor([0.6, 0.7])
    torch.testing.assert_close(image, expected)


def test_one_lucky_draw_does_not_end_it() -> None:
    """On a randomised defense the returned point has to fool fresh draws, not only the one it was found on."""
    x, y = digits()[2][:12], digits()[3][:12]
    noisy = Wrapped(digits_classifier(), DIGITS, lambda x: x + 0.05 * torch.randn_like(x))
    target = make_target(noisy, 12, "score", norm="l0", eps=8, randomized=True)
    x_adv = one_pixel(target, x, y, population=20, generations=20)
    fooled = torch.stack([noisy(x_adv).argmax(1) != y for _ in range(50)]).float().mean(0)
    assert fooled.mean() > 0.82  # about 0.7 when the first lucky draw ends it
