"""JSMA: the pair map against all pairs, closed form on linear models, passes, and defenses that return nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from lab import Linear, assert_feasible, curved_case, length, make_target
from torch import Tensor
from two_classes import INFO, Broken, CoinFlip, Constant

import attacks
from attacks.minimum_norm import jsma as module
from attacks.minimum_norm.jsma import jsma, most_salient_pair
from bench.contracts.defense import BareModel, Defense
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.inputs import DataInfo, InputSpec

every_output = pytest.mark.parametrize("outputs", ["logits", "probabilities"])


def _best_saliency(gain: Tensor, loss: Tensor, free: Tensor) -> float:
    """Over all pairs, by the definition."""
    values = [0.0]
    for p, q in itertools.combinations(range(len(gain)), 2):
        alpha, beta = float(gain[p] + gain[q]), float(loss[p] + loss[q])
        if free[p] and free[q] and alpha > 0 and beta > 0:
            values.append(alpha * beta)
    return max(values)


@pytest.mark.parametrize("correlation", [-0.95, 0.0, 0.95])
@pytest.mark.parametrize("block", [2**25, 40, 1])
def test_the_pair_is_the_best_of_all_pairs(correlation, block, monkeypatch) -> None:
    monkeypatch.setattr(module, "_VALUES", block)
    generator = torch.Generator().manual_seed(3)
    gain = torch.randn(20, 14, generator=generator, dtype=torch.float64)
    loss = correlation * gain + (1 - correlation**2) ** 0.5 * torch.randn(20, 14, generator=generator).double()
    gain[:4], loss[:4] = gain[:4].round(), loss[:4].round()  # ties
    free = torch.rand(20, 14, generator=generator) < 0.7
    gain[4] = -gain[4].abs()  # no salient pair
    free[5] = False
    free[6] = torch.arange(14) == 3  # one value makes no pair
    pair, found = most_salient_pair(gain, loss, free)
    for r in range(20):
        best = _best_saliency(gain[r], loss[r], free[r])
        assert bool(found[r]) == (best > 0)
        if best > 0:
            p, q = pair[r]
            assert p != q and free[r, p] and free[r, q]
            assert float((gain[r, p] + gain[r, q]) * (loss[r, p] + loss[r, q])) == pytest.approx(best, rel=1e-12)
    assert not found[4:7].any()


def _needs(pixels: int, shape: tuple[int, int, int] = (1, 8, 8), dtype: torch.dtype = torch.float32) -> Defense:
    """Class 0 until ``pixels`` black values (of falling weight) have become white, then class 1; class 2 is away."""
    dim = shape[0] * shape[1] * shape[2]
    # Values of one pixel are next to one another in weight, so that pairs fall into as few pixels as possible.
    order = torch.arange(dim).view(shape[0], -1).T.flatten()
    weight = torch.zeros(3, dim, dtype=dtype)
    weight[1, order] = torch.linspace(2.0, 1.0, dim, dtype=dtype)
    weight[0] = -weight[1]
    best = 2 * weight[1].sort(descending=True).values
    bias = weight[1].sum() - (best[: pixels - 1].sum() + best[:pixels].sum()) / 2
    biases = torch.stack([torch.zeros_like(bias), bias, torch.full_like(bias, -50.0)])
    return BareModel(Linear(weight, biases), DataInfo("toy", InputSpec(shape), 3)).eval()


@pytest.mark.parametrize("size", [1, 2, 64, 3072])
def test_where_gain_and_loss_are_one_tensor_the_pair_is_that_of_two_equal_ones(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    gain = torch.randn(40, size, generator=generator) - torch.linspace(0, 4, 40)[:, None]
    gain[:5] *= 1e-30  # whose products vanish
    free = torch.rand(40, size, generator=generator) < 0.7
    pair, found = most_salient_pair(gain, gain, free)
    expected, which = most_salient_pair(gain, gain.clone(), free)
    assert torch.equal(found, which) and (size < 3 or 0 < found.sum() < 40)
    assert torch.equal(pair[found], expected[found])


@every_output
@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("pixels", [1, 2, 3, 6])
def test_the_fewest_pixels_are_found_in_pairs(n, pixels, outputs) -> None:
    defense = _needs(pixels)
    x, y = torch.zeros(n, 1, 8, 8), torch.zeros(n, dtype=torch.int64)
    even = pixels + pixels % 2
    for eps, fooled in ((even, True), (pixels - 1, False)):
        if eps < 1:
            continue
        target = make_target(defense, n, "gradient", norm="l0", eps=eps)
        x_adv = jsma(target, x, y, outputs=outputs)
        assert_feasible(target, x, x_adv)
        assert ((defense(x_adv).argmax(1) != 0) == fooled).all()
    free = attacks.run("attacks.minimum_norm.jsma:jsma", defense, x, y, norm="l0", outputs=outputs)
    assert free.success.all()
    assert (length(free.x_adv - x, "l0") == even).all()


@every_output
def test_a_pixel_counts_once_however_many_channels_change(outputs) -> None:
    defense = _needs(6, (3, 5, 7))
    x, y = torch.zeros(3, 3, 5, 7), torch.zeros(3, dtype=torch.int64)
    result = attacks.run("attacks.minimum_norm.jsma:jsma", defense, x, y, norm="l0", eps=2, outputs=outputs)
    assert result.success.all()
    assert (length(result.x_adv - x, "l0") == 2).all()


@every_output
def test_values_are_decreased_as_they_are_increased(outputs) -> None:
    up = _needs(4, dtype=torch.float64)
    down = BareModel(Linear(-up.classifier.weight, up.classifier.bias), up.data).eval()  # type: ignore[union-attr]
    y = torch.zeros(2, dtype=torch.int64)
    x = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    risen = jsma(make_target(up, 2, "gradient", norm="l0", eps=6), x, y, outputs=outputs, theta=0.5)
    fallen = jsma(make_target(down, 2, "gradient", norm="l0", eps=6), 1 - x, y, outputs=outputs, theta=-0.5)
    assert (up(risen).argmax(1) == 1).all()
    torch.testing.assert_close(risen, 1 - fallen)
    # The heaviest pair is raised again until it is at the end of the box.
    assert risen.flatten(1).sort(descending=True).values[0, :5].tolist() == [1, 1, 1, 1, 0]


def test_gamma_limits_the_values_changed() -> None:
    defense, x, y = _needs(6), torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)
    for gamma, success in ((6 / 64, True), (5 / 64, False)):
        result = attacks.run("attacks.minimum_norm.jsma:jsma", defense, x, y, norm="l0", gamma=gamma)
        assert bool(result.success) == success


def test_every_pass_is_counted() -> None:
    def counts(pixels: int, eps: int, **settings: Any) -> list[int]:
        target = make_target(_needs(pixels), 2, "gradient", norm="l0", eps=eps)
        jsma(target, torch.zeros(2, 1, 8, 8), torch.zeros(2).long(), **settings)
        return [int(c) for c in (target.counts.forward[1], target.counts.backward[1])]

    # A look at x to rank the classes; then an evaluation of two gradients at 0, 2 and 4 pixels.
    assert counts(4, 8, targets=1) == [1 + 3, 2 * 3]
    # By probabilities one gradient.
    assert counts(4, 8, targets=1, outputs="probabilities") == [1 + 3, 3]
    # Not beyond eps pixels.
    assert counts(4, 3, targets=1) == [1 + 2, 2 * 2]
    assert counts(4, 3, targets=1, stop_inside=False) == [1 + 3, 2 * 3]
    # The share of values that may be changed ends with a look.
    assert counts(4, 8, targets=1, gamma=2 / 64) == [1 + 1 + 1, 2]
    # Both other classes side by side until the first succeeds.
    assert counts(4, 8, targets=2, outputs="probabilities") == [1 + 2 * 3, 2 * 3]


@every_output
def test_a_class_is_reached(outputs) -> None:
    defense, x, y = curved_case(8)
    towards = (y + 1) % 4
    result = attacks.run("attacks.minimum_norm.jsma:jsma", defense, x, y, norm="l0", towards=towards, outputs=outputs)
    assert (defense(result.x_adv).argmax(1) == towards)[result.success].all()
    assert result.success.float().mean() > 0.5


@every_output
def test_more_classes_need_no_more_pixels(outputs) -> None:
    defense, x, y = curved_case(16)
    one, three = (_pixels_needed(defense, x, y, targets=targets, outputs=outputs) for targets in (1, 3))
    assert (three <= one).all() and (three < one).any()


def _pixels_needed(defense: Defense, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    """Of each example, infinite on failure."""
    result = attacks.run("attacks.minimum_norm.jsma:jsma", defense, x, y, norm="l0", **settings)
    return torch.where(result.success, length(result.x_adv - x, "l0"), torch.inf)


@every_output
@pytest.mark.parametrize("defense", [Constant, Broken])
def test_defenses_without_gradients_or_numbers_end_in_feasible_points(defense, outputs) -> None:
    target = make_target(defense(INFO), 2, "gradient", norm="l0", eps=5)
    x = torch.rand(2, 1, 8, 8)
    x_adv = jsma(target, x, torch.zeros(2).long(), outputs=outputs)
    assert_feasible(target, x, x_adv)


def test_a_randomised_defense_ends_in_feasible_points() -> None:
    target = make_target(CoinFlip(INFO), 4, "gradient", norm="l0", eps=5, randomized=True)
    x = torch.rand(4, 1, 8, 8)
    x_adv = jsma(target, x, torch.zeros(4).long(), rescore=5)
    assert_feasible(target, x, x_adv)


def test_other_norms_and_a_step_of_nothing_are_refused() -> None:
    defense, x, y = curved_case(2)
    with pytest.raises(NotApplicable, match="no linf version"):
        attacks.run("attacks.minimum_norm.jsma:jsma", defense, x, y, norm="linf", eps=0.1)
    with pytest.raises(InputError, match="theta"):
        attacks.run("attacks.minimum_norm.jsma:jsma", defense, x, y, norm="l0", theta=0)
