"""FMN: passes, starting points, pixels in l0."""

from __future__ import annotations

import pytest
import torch
from lab import curved_case, length, linear_case, make_target

from attacks.minimum_norm.fmn import _largest, fmn
from bench.contracts.errors import InputError

BOX = {"linf": 1.0, "l2": 8.0, "l1": 64.0, "l0": 64}
every_norm = pytest.mark.parametrize("norm", BOX)


@every_norm
def test_every_pass_is_counted(norm) -> None:
    defense, x, y = curved_case(3)
    target = make_target(defense, 3, "gradient", norm=norm, eps=BOX[norm])
    fmn(target, x, y, steps=7, stop_inside=False)
    assert target.counts.forward.tolist() == [8, 8, 8]
    assert target.counts.backward.tolist() == [7, 7, 7]


@every_norm
def test_a_starting_point_is_drawn_towards_x_first(norm) -> None:
    defense, x, y = curved_case(6)
    start = x.roll(1, 0)
    fools = defense(start).argmax(1) != y
    assert fools.any()
    target = make_target(defense, 6, "gradient", norm=norm, eps=BOX[norm])
    x_adv = fmn(target, x, y, steps=1, start=start, stop_inside=False)
    assert (target.counts.backward == 1).all()
    assert (target.counts.forward <= 1 + 1 + 12).all()
    assert (defense(x_adv).argmax(1) != y)[fools].all()
    near, far = length(x_adv - x, norm)[fools], length(start - x, norm)[fools]
    assert (near <= far).all()
    if norm != "l0":
        assert near.mean() < 0.8 * far.mean()


def test_a_starting_point_has_the_shape_of_x() -> None:
    defense, x, y = curved_case(2)
    target = make_target(defense, 2, "gradient", norm="l2", eps=1)
    with pytest.raises(InputError, match="expected the shape of x"):
        fmn(target, x, y, start=x[:1])


def test_in_l0_all_channels_of_a_pixel_change_for_the_price_of_one() -> None:
    case = linear_case(3, (3, 5, 7), "l2")
    target = make_target(case.defense, 3, "gradient", norm="l0", eps=35)
    x_adv = fmn(target, case.x, case.y, stop_inside=False)
    changed = x_adv != case.x
    assert (changed.flatten(1).sum(1) > changed.any(1).flatten(1).sum(1)).all()


def test_the_largest_are_counted_per_example() -> None:
    score = torch.tensor([[[1.0, 3.0], [2.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]], [[1.0, 2.0], [3.0, 4.0]]])
    kept = _largest(score[:, None], torch.tensor([2.0, 3.0, 1.0]))
    assert kept.shape == (3, 1, 2, 2)
    assert kept[0, 0].tolist() == [[False, True], [False, True]]
    assert kept.flatten(1).sum(1).tolist() == [2, 3, 1]
    assert kept[2, 0].tolist() == [[False, False], [False, True]]
