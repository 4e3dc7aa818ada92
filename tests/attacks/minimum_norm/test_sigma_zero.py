"""σ-zero on linear models, where the fewest pixels are known, and its parts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lab import assert_feasible, length, linear_case, make_target

from attacks.minimum_norm.sigma_zero import sigma_zero

every_shape = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 28, 28), (3, 32, 32)], ids=str)


def _fewest(case) -> torch.Tensor:
    """Pixels needed where those that gain most go to the edge of the box."""
    weight = case.defense.classifier.weight
    difference = weight[1 - case.y] - weight[case.y]
    room = torch.where(difference > 0, 1 - case.x.flatten(1), case.x.flatten(1))
    gain = (difference.abs() * room).view(len(case.x), case.x.shape[1], -1).sum(1)
    logits = case.defense(case.x)
    margin = (logits.gather(1, case.y[:, None]) - logits.gather(1, 1 - case.y[:, None])).squeeze(1)
    return (gain.sort(1, descending=True).values.cumsum(1) <= margin[:, None]).sum(1).to(case.x.dtype) + 1


@every_shape
@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("estimator", ["exact", "classifier"])
def test_few_more_than_the_fewest_pixels(n, shape, estimator) -> None:
    case = linear_case(n, shape, "l2")
    fewest = _fewest(case)
    target = make_target(case.defense, n, "gradient", norm="l0", eps=4 * fewest.max().item())
    x_adv = sigma_zero(target, case.x, case.y, estimator=estimator, stop_inside=False)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()
    found = length(x_adv - case.x, "l0")
    assert (found >= fewest).all() and (found <= (fewest + 1 if x_adv[0].numel() <= 105 else 2 * fewest)).all()
    if estimator == "exact":
        assert target.counts.backward.tolist() == [300] * n and target.counts.forward.tolist() == [301] * n


@every_shape
def test_it_succeeds_with_twice_the_fewest_and_not_with_one_less(shape) -> None:
    case = linear_case(3, shape, "l2")
    fewest = _fewest(case)
    for eps in (2 * fewest.max().item(), fewest.min().item() - 1):
        target = make_target(case.defense, 3, "gradient", norm="l0", eps=eps)
        x_adv = sigma_zero(target, case.x, case.y)
        assert_feasible(target, case.x, x_adv)
        assert (case.fooled(x_adv) == (eps > fewest.max())).all()


def test_what_is_below_the_threshold_is_set_back_and_the_threshold_follows_success() -> None:
    case = linear_case(1, (1, 8, 8), "l2")

    def changed(**settings) -> float:
        target = make_target(case.defense, 1, "gradient", norm="l0", eps=64)
        return length(sigma_zero(target, case.x, case.y, stop_inside=False, **settings) - case.x, "l0").item()

    free = partial(changed, steps=30, eta=0.05)
    assert free(threshold=0.0, threshold_step=0.0) == 64, "no threshold: no value is set back"
    assert free(threshold=0.1, threshold_step=0.0) < 32
    assert free(threshold=0.0, threshold_step=0.2) < free(threshold=0.0, threshold_step=0.01) <= 64


def test_without_the_smooth_count_more_pixels_are_changed() -> None:
    case = linear_case(8, (3, 32, 32), "l2")
    targets = [make_target(case.defense, 8, "gradient", norm="l0", eps=1024) for _ in range(2)]
    near, far = (
        sigma_zero(target, case.x, case.y, sigma=sigma, stop_inside=False)
        for target, sigma in zip(targets, (1e-3, 1e6), strict=True)
    )
    assert length(near - case.x, "l0").sum() < length(far - case.x, "l0").sum()
