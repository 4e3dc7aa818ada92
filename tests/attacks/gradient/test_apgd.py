"""Auto-PGD: closed forms, the published step-size rule, exact counts, and defenses that misbehave."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lab import Linear, assert_feasible, linear_case, make_target
from torch import Tensor, nn

from attacks.gradient.apgd import _windows, apgd
from bench.contracts.balls import l1_projection
from bench.contracts.defense import BareModel, Defense
from bench.contracts.inputs import DataInfo, InputSpec

INFO = DataInfo("toy", InputSpec((1, 8, 8)), 4)
NORMS = ["linf", "l2", "l1"]
every_norm = pytest.mark.parametrize("norm", NORMS)

FORMS = {
    "ce": apgd,
    "dlr": partial(apgd, steps=50, loss="dlr"),
    "margin": partial(apgd, steps=50, loss="margin", random_start=False),
    "restarts": partial(apgd, steps=30, restarts=2, loss="margin"),
    "targets": partial(apgd, steps=30, loss="dlr", targets=3),
    "eot": partial(apgd, steps=50, estimator={"eot": {"samples": 4, "of": "exact"}}),
    "stand-in": partial(apgd, steps=30, estimator="classifier", restarts=2),
    "short": partial(apgd, steps=3),
}
every_form = pytest.mark.parametrize("form", FORMS)


class Constant(Defense):
    """Always class 0, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(len(x), 1).to(x)


class NoNumber(Linear):
    """NaN for images brighter than 1/2 in their first pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill(x.flatten(1)[:, :1] > 0.5, torch.nan)


class Noisy(Defense):
    """A linear model of the image and noise."""

    randomized = True

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__(INFO)
        self.classifier, self.sigma = model, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x + self.sigma * torch.randn_like(x))


def _bright(n: int) -> tuple[Defense, Tensor, Tensor]:
    """A model that calls an image bright (1) when its mean is above 1/2; images of growing distance to that."""
    weight = torch.stack([-torch.ones(64), torch.ones(64)])
    defense = BareModel(Linear(weight, torch.zeros(2)), DataInfo("toy", InputSpec((1, 8, 8)), 2))
    x = (0.48 - 0.1 * torch.arange(n) / n)[:, None, None, None].expand(n, 1, 8, 8).clone()
    return defense, x, torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)], ids=str)
@every_norm
@pytest.mark.parametrize("form", [name for name in FORMS if name != "short"])
def test_it_succeeds_just_beyond_the_minimal_radius(form, norm, shape, n) -> None:
    case = linear_case(n, shape, norm)
    target = case.target(1.02, "gradient")
    x_adv = FORMS[form](target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()


@every_norm
@every_form
def test_it_succeeds_nowhere_below_the_minimal_radius(form, norm) -> None:
    case = linear_case(3, (3, 5, 7), norm)
    target = case.target(0.98, "gradient")
    x_adv = FORMS[form](target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert not case.fooled(x_adv).any()


@every_norm
@pytest.mark.parametrize("n", [1, 3, 8])
def test_one_run_per_class_finds_the_nearest_of_several(n, norm) -> None:
    case = linear_case(n, (3, 5, 7), norm, rivals=4)
    x_adv = apgd(case.target(1.02, "gradient"), case.x, case.y, loss="dlr", targets=3)
    assert case.fooled(x_adv).all()


@every_norm
@pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
def test_it_reaches_a_class(loss, norm) -> None:
    case = linear_case(3, (1, 8, 8), norm)
    towards = 1 - case.y  # the two classes that meet in the middle: the radius is the same
    target = case.target(1.02, "gradient", towards=towards)
    x_adv = apgd(target, case.x, case.y, loss=loss, targets=2)
    assert_feasible(target, case.x, x_adv)
    assert (case.defense(x_adv).argmax(1) == towards).all()
    far = case.target(1.02, "gradient", towards=torch.full_like(case.y, 3))
    assert not (case.defense(apgd(far, case.x, case.y, loss=loss)).argmax(1) == 3).any()


@pytest.mark.parametrize("norm", ["linf", "l1"])
@every_form
def test_the_same_seed_gives_the_same_result(form, norm) -> None:
    case = linear_case(3, (1, 8, 8), norm)
    state = torch.get_rng_state()
    first, again = (FORMS[form](case.target(0.9, "gradient", seed=1), case.x, case.y) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


@every_norm
@every_form
def test_the_micro_batch_size_changes_nothing(form, norm) -> None:
    case = linear_case(5, (1, 8, 8), norm, dtype=torch.float64)
    factor = 0.9 if form == "dlr" else 1.1
    whole = FORMS[form](case.target(factor, "gradient"), case.x, case.y)
    split = FORMS[form](case.target(factor, "gradient", batch_size=2), case.x, case.y)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole, split, atol=1e-6, rtol=0)


@every_norm
def test_an_example_does_not_depend_on_when_others_leave(norm) -> None:
    case = linear_case(4, (1, 8, 8), norm, dtype=torch.float64)
    alone = apgd(case.target(0.9, "gradient"), case.x, case.y, steps=30)
    wrong = torch.where(torch.arange(4) % 2 == 0, case.y, 1 - case.y)  # two are fooled from the start
    target = case.target(0.9, "gradient")
    beside = apgd(target, case.x, wrong, steps=30)
    torch.testing.assert_close(alone[::2], beside[::2], atol=1e-6, rtol=0)
    # In l1 the 2 · 9 steps in wider balls come first: their points are no results.
    once = 19 if norm == "l1" else 1
    assert target.counts.forward.tolist() == [31, once, 31, once]


@pytest.mark.parametrize("norm, steps", [("linf", 100), ("l2", 20), ("l1", 50), ("l1", 3), ("linf", 1), ("l1", 1)])
def test_every_step_costs_one_gradient_and_the_end_one_forward_pass(norm, steps) -> None:
    target = make_target(Constant(INFO), 2, "gradient", norm=norm)
    x = torch.rand(2, 1, 8, 8)
    x_adv = apgd(target, x, torch.zeros(2).long(), steps=steps, restarts=2)
    assert_feasible(target, x, x_adv)
    assert target.counts.forward.tolist() == [2 * (steps + 1)] * 2
    assert target.counts.backward.tolist() == [2 * steps] * 2


def test_classes_are_ranked_once() -> None:
    target = make_target(Constant(INFO), 2, "gradient")
    apgd(target, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), steps=5, restarts=2, targets=9, loss="dlr")
    assert target.counts.forward.tolist() == [1 + 2 * 3 * 6] * 2  # four classes have three others
    assert target.counts.backward.tolist() == [2 * 3 * 5] * 2


def test_an_example_leaves_when_it_is_fooled() -> None:
    defense, x, y = _bright(4)  # .02, .045, .07 and .095 away
    target = make_target(defense, 4, "gradient", eps=0.08)
    x_adv = apgd(target, x, y, steps=20, random_start=False)
    # The first step, of 2 eps, leads to the surface of the ball.
    assert target.counts.forward.tolist() == [2, 2, 2, 21]
    assert target.counts.backward.tolist() == [2, 2, 2, 20]
    assert (defense(x_adv).argmax(1) == 1).tolist() == [True, True, True, False]


def test_a_clean_image_that_is_misclassified_is_returned_as_it_is() -> None:
    case = linear_case(3, (1, 8, 8), "linf")
    target = case.target(0.5, "gradient")
    x_adv = apgd(target, case.x, 1 - case.y, targets=3)
    assert torch.equal(x_adv, case.x)
    assert target.counts.forward.tolist() == [1] * 3


@pytest.mark.parametrize(
    "steps, reviews",
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
        (50, [11, 21, 30, 38, 45]),
        (10, [2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_steps_are_reviewed_when_the_paper_says(steps, reviews) -> None:
    windows = _windows(steps)
    assert list(windows) == reviews
    assert [end - window for end, window in windows.items()] == [0, *reviews[:-1]]


class Ridge(Defense):
    """z_1 - z_0 falls with the distance of the mean to a ridge: a step that is too long jumps over it."""

    def __init__(self, ridge: float) -> None:
        super().__init__(DataInfo("toy", InputSpec((1, 8, 8)), 2))
        self.ridge = ridge

    def forward(self, x: Tensor) -> Tensor:
        away = (x - self.ridge).flatten(1).abs().sum(1)
        return torch.stack([1 + away, torch.zeros_like(away)], 1)


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.8)])
def test_the_step_shrinks_where_the_loss_oscillates(norm, eps) -> None:
    ridge = 0.53
    defense, x = Ridge(ridge), torch.full((1, 1, 8, 8), 0.5)
    target = make_target(defense, 1, "gradient", norm=norm, eps=eps)
    x_adv = apgd(target, x, torch.zeros(1).long(), loss="margin")
    assert (x_adv - ridge).abs().max() < 0.01


@pytest.mark.parametrize("eps", [0.3, 2.0, 50.0])
def test_the_l1_projection_is_the_nearest_point_of_ball_and_box(eps) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 4, 5, generator=generator, dtype=torch.float64)
    x[0] = 0.0  # no room below
    delta = 0.7 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    delta[1, :, :2] = 0.0
    u = l1_projection(delta, -x, 1 - x, eps)
    # The nearest point shrinks every value by one λ ≥ 0, which bisection finds as well.
    low, high = torch.zeros(6, dtype=torch.float64), torch.full((6,), 5.0, dtype=torch.float64)

    def shrunk(cut: Tensor) -> Tensor:
        kept = (delta.abs() - cut[:, None, None, None]).clamp_min(0)
        return (delta.sign() * kept).maximum(-x).minimum(1 - x)

    for _ in range(60):
        middle = (low + high) / 2
        beyond = shrunk(middle).abs().sum((1, 2, 3)) > eps
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    free = shrunk(torch.zeros_like(low))
    inside = free.abs().sum((1, 2, 3)) <= eps
    expected = torch.where(inside[:, None, None, None], free, shrunk(high))
    torch.testing.assert_close(u, expected, atol=1e-9, rtol=0)
    assert l1_projection(delta[:0], -x[:0], 1 - x[:0], eps).shape == (0, 3, 4, 5)


@every_norm
@every_form
def test_a_model_that_returns_nan_ends_in_feasible_points(form, norm) -> None:
    case = linear_case(3, (1, 8, 8), norm)
    linear = case.defense.classifier
    defense = BareModel(NoNumber(linear.weight.data, linear.bias.data), case.defense.data)
    for towards in (None, 1 - case.y):
        target = make_target(defense, 3, "gradient", norm=norm, eps=0.1, towards=towards)
        assert_feasible(target, case.x, FORMS[form](target, case.x, case.y))


@every_norm
def test_a_randomised_defense_is_judged_on_fresh_draws(norm) -> None:
    case = linear_case(4, (1, 8, 8), norm)
    noisy = Noisy(case.defense, 0.02)
    noisy.data = case.defense.data
    target = make_target(noisy, 4, "gradient", norm=norm, eps=1.5 * case.radius, randomized=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = {"eot": {"samples": 3, "of": "exact"}}
        x_adv = apgd(target, case.x, case.y, steps=20, restarts=2, estimator=draws, rescore=5)
        # 20 gradients of 3 draws and 2 candidates on 5 draws each, twice: nothing ends because of one lucky draw.
        assert target.counts.forward.tolist() == [2 * (20 * 3 + 2 * 5)] * 4
        assert target.counts.backward.tolist() == [2 * 20 * 3] * 4
        wrong = torch.stack([noisy(x_adv).argmax(1) != case.y for _ in range(20)])
    assert_feasible(target, case.x, x_adv)
    assert wrong.float().mean(0).min() > 0.9


def test_restarts_by_a_stand_in_are_compared_on_the_defense() -> None:
    case = linear_case(3, (1, 8, 8), "linf")
    target = case.target(0.5, "gradient")
    apgd(target, case.x, case.y, steps=5, restarts=2, estimator="classifier")
    assert target.counts.forward.tolist() == [2 * (5 + 2)] * 3
    assert target.counts.backward.tolist() == [2 * 5] * 3
