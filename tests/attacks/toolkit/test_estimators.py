"""Gradient estimators against gradients known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lab import Linear, Wrapped, make_context, make_target
from torch import Tensor, nn

from attacks.toolkit.estimators import BPDA, EOT, FiniteDifference, as_estimator, eot, exact
from attacks.toolkit.imitation import TEST_MSE, TRAIN_MSE, imitate
from attacks.toolkit.losses import Goal, get_loss
from attacks.toolkit.paths import straight_through
from bench.contracts.answers import Evaluation
from bench.contracts.defense import Approximation, BareModel, Defense, freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.reporting import Report, listening
from bench.contracts.target import Target

INFO = DataInfo("toy", InputSpec((2, 4, 5)), 3)
DIM = 40


class Quadratic(nn.Module):
    """Logits ``W x + (V x)²/2``: the gradient depends on the point it is taken at."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(3, DIM, generator=generator))
        self.v = nn.Parameter(torch.randn(3, DIM, generator=generator) / 4)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return flat @ self.w.T + (flat @ self.v.T) ** 2 / 2

    def margin_gradient(self, at: Tensor, y: Tensor) -> Tensor:
        """Of z_t - z_y, t = y + 1 (mod 3), worked out by hand."""
        j = (y + 1) % 3
        rows = self.w + (at.flatten(1) @ self.v.T)[:, :, None] * self.v  # ∂z_k/∂x, (N, 3, DIM)
        pick = torch.arange(len(at))
        return (rows[pick, j] - rows[pick, y]).view_as(at)


def quantise(x: Tensor) -> Tensor:
    return torch.round(8 * x) / 8


class Quantised(Wrapped):
    """g(x) = round(8x)/8 with a declared smooth stand-in of slope 2."""

    def __init__(self, exact_forward: bool = False) -> None:
        super().__init__(Quadratic(), INFO, quantise)
        self.exact_forward = exact_forward

    def approximations(self) -> dict[str, Approximation]:
        def through(x: Tensor) -> Tensor:
            smooth = 2 * x
            return straight_through(quantise(x), smooth) if self.exact_forward else smooth

        return {"slope": Approximation(through, self.exact_forward), "flat": Approximation(lambda x: 0 * x)}


class Noisy(Wrapped):
    """g(x) = x + s, s uniform in ±0.1, from the global generator as any defense might."""

    randomized = True

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__(Quadratic(), INFO, lambda x: x + scale * (2 * torch.rand_like(x) - 1))


def _evaluate(defense: Defense, estimator: Any, n: int = 4, **settings: Any) -> tuple[Evaluation, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, *INFO.shape, generator=generator)
    y = torch.arange(n) % 3
    goal = Goal(get_loss("margin"), y, (y + 1) % 3)
    target = make_target(freeze(defense), n, "gradient", randomized=defense.randomized, **settings)  # type: ignore[arg-type]
    return as_estimator(estimator).evaluate(target, x, goal, torch.arange(n)), x, y


def _model(defense: Defense) -> Quadratic:
    assert isinstance(defense.classifier, Quadratic)
    return defense.classifier


def test_exact_is_the_gradient() -> None:
    defense = BareModel(Quadratic(), INFO)
    result, x, y = _evaluate(defense, "exact")
    torch.testing.assert_close(result.grad, _model(defense).margin_gradient(x, y))
    torch.testing.assert_close(result.logits, _model(defense)(x))


def test_exact_sees_nothing_of_a_quantised_input() -> None:
    result, *_ = _evaluate(Quantised(), "exact")
    assert (result.grad == 0).all()


def test_identity_is_taken_at_g_of_x() -> None:
    """Regression: a released evaluation of such a defense took it at g(x) + x."""
    defense = Quantised()
    result, x, y = _evaluate(defense, "identity")
    model = _model(defense)
    torch.testing.assert_close(result.grad, model.margin_gradient(quantise(x), y))
    assert not torch.allclose(result.grad, model.margin_gradient(quantise(x) + x, y), rtol=0.1)
    assert torch.equal(result.logits, model(quantise(x)))


@pytest.mark.parametrize("exact_forward", [False, True])
@pytest.mark.parametrize("written", ["bpda", {"bpda": "slope"}])
def test_bpda_goes_forward_through_g_and_back_through_the_stand_in(exact_forward, written) -> None:
    defense = Quantised(exact_forward)
    result, x, y = _evaluate(defense, written)
    torch.testing.assert_close(result.grad, 2 * _model(defense).margin_gradient(quantise(x), y))
    assert torch.equal(result.logits, _model(defense)(quantise(x)))


def test_bpda_of_another_name_and_of_an_undeclared_one() -> None:
    result, *_ = _evaluate(Quantised(), {"bpda": "flat"})
    assert (result.grad == 0).all()
    defense = Quantised()
    target = make_target(freeze(defense), 1, "gradient")  # type: ignore[arg-type]
    x, goal = torch.rand(1, *INFO.shape), Goal(get_loss("margin"), torch.tensor([0]))
    BPDA("tanh").evaluate(target, x, goal, torch.arange(1))
    assert target.counts.notes == {"approximation 'tanh' is not declared; 'slope' was used"}


def test_classifier_is_taken_at_x_without_g() -> None:
    defense = Quantised()
    result, x, y = _evaluate(defense, "classifier")
    torch.testing.assert_close(result.grad, _model(defense).margin_gradient(x, y))
    assert not as_estimator("classifier").true_forward


def test_classifier_and_identity_work_where_g_changes_the_size() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for estimator in ("classifier", "identity"):
        defense = Wrapped(net, INFO, lambda x: F.interpolate(x, (7, 9)))
        result, x, _ = _evaluate(defense, estimator)
        assert result.grad.shape == x.shape and result.grad.abs().sum() > 0


def test_identity_of_a_transform_that_changes_the_channels_is_refused() -> None:
    with pytest.raises(InputError, match="2 channels to 1"):
        _evaluate(Wrapped(Linear(torch.zeros(3, 20), torch.zeros(3)), INFO, lambda x: x[:, :1]), "identity")


@pytest.mark.parametrize("sigma", [0.001, 0.03])
def test_finite_differences_along_all_directions_are_exact_on_a_linear_model(sigma) -> None:
    weight = torch.randn(3, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    defense = BareModel(Linear(weight, torch.zeros(3, dtype=torch.float64)), INFO)
    x = torch.full((2, *INFO.shape), 0.5, dtype=torch.float64)
    target = make_target(freeze(defense), 2, "score")  # type: ignore[arg-type]
    goal = Goal(get_loss("margin"), torch.tensor([0, 1]), torch.tensor([1, 2]))
    result = FiniteDifference(1000, sigma).evaluate(target, x, goal, torch.arange(2))
    expected = torch.stack([weight[1] - weight[0], weight[2] - weight[1]]).view_as(x)
    torch.testing.assert_close(result.grad, expected)


def test_finite_differences_see_through_a_quantised_input() -> None:
    defense = Quantised()
    result, x, y = _evaluate(defense, {"finite_difference": {"samples": 40, "sigma": 0.2}})
    truth = _model(defense).margin_gradient(x, y)
    assert (F.cosine_similarity(result.grad.flatten(1), truth.flatten(1)) > 0.9).all()


def test_one_draw_is_not_divided_by_zero() -> None:
    """Regression: dividing by samples - 1 gives infinities for one sample."""
    result, *_ = _evaluate(Noisy(), eot(exact(), samples=1))
    assert torch.isfinite(result.grad).all() and result.grad.abs().max() < 100


@pytest.mark.parametrize("average", ["loss", "logits"])
def test_eot_approaches_the_gradient_of_the_expectation(average) -> None:
    defense = Noisy()
    # E over s of the logits has the gradient at s = 0, the logits being quadratic and s symmetric.
    result, x, y = _evaluate(defense, {"eot": {"samples": 4000, "of": "exact", "average": average}})
    truth = _model(defense).margin_gradient(x, y)
    torch.testing.assert_close(result.grad, truth, atol=0.05, rtol=0.05)


def test_eot_of_one_point_mass_is_the_estimator_itself() -> None:
    defense = Noisy(scale=0.0)
    for average in ("loss", "logits"):
        many, x, y = _evaluate(defense, {"eot": {"samples": 7, "of": "identity", "average": average}})
        torch.testing.assert_close(many.grad, _model(defense).margin_gradient(x, y))
        assert many.loss.shape == (4,) and many.logits.shape == (4, 3)


def test_eot_of_a_deterministic_defense_is_evaluated_once() -> None:
    defense = Quantised()
    target = make_target(freeze(defense), 2, "gradient")  # type: ignore[arg-type]
    goal = Goal(get_loss("margin"), torch.tensor([0, 1]))
    eot(exact(), samples=50).evaluate(target, torch.rand(2, *INFO.shape), goal, torch.arange(2))
    assert target.counts.forward.tolist() == [1, 1]


def test_averaged_logits_differ_from_averaged_loss_where_the_loss_is_curved() -> None:
    class Signs(Defense):
        """One draw of logits ±(a, -a) with a = x: the mean logits are 0, the mean cross-entropy is not."""

        randomized = True

        def forward(self, x: Tensor) -> Tensor:
            a = x.flatten(1).sum(1)
            sign = torch.where(torch.arange(len(x)) % 2 == 0, 1.0, -1.0)  # draws of one example alternate
            return torch.stack([sign * a, -sign * a, torch.full_like(a, -100.0)], 1)

    target = make_target(Signs(INFO), 1, "gradient", randomized=True)
    x, goal = torch.full((1, *INFO.shape), 0.05), Goal(get_loss("ce"), torch.tensor([0]))
    loss = EOT(exact(), 2, "loss").evaluate(target, x, goal, torch.arange(1))
    logits = EOT(exact(), 2, "logits").evaluate(target, x, goal, torch.arange(1))
    assert logits.grad.abs().max() < 1e-6
    torch.testing.assert_close(logits.loss, torch.tensor([2.0]).log())
    # Mean of log(1 + e^{∓2a}) at a = 2, and its derivative in a, tanh(a).
    torch.testing.assert_close(loss.grad, torch.full_like(x, torch.tanh(torch.tensor(2.0)).item()))
    assert loss.loss > 2


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("bdpa", "did you mean 'bpda'"),
        ({"eot": {"samples": 0, "of": "exact"}}, "samples 0 must be at least 1"),
        ({"eot": {"of": "exact", "average": "labels"}}, "'labels' is not"),
        ({"eot": {"samples": 2}}, "of"),
        ({"finite_difference": {"sample": 2}}, "sample"),
        ({"exact": {}, "bpda": {}}, "mapping with one name"),
        (3, "got 3"),
    ],
)
def test_a_wrong_estimator_is_named(written, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        as_estimator(written)
    assert "\n" not in str(caught.value)


def test_averaging_logits_needs_a_differentiable_estimator() -> None:
    with pytest.raises(InputError, match="differentiable"):
        _evaluate(Noisy(), {"eot": {"samples": 2, "of": "finite_difference", "average": "logits"}})


# -- reparameterization -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    ["exact", {"finite_difference": {"samples": DIM}}, {"eot": {"samples": 2, "of": "exact"}}],
    ids=["exact", "finite_difference", "eot"],
)
def test_gradients_of_chosen_logits_and_of_weighted_sums_follow_from_those_of_all(estimator) -> None:
    defense = freeze(BareModel(Quadratic(), INFO))
    x = torch.rand(4, *INFO.shape, generator=torch.Generator().manual_seed(1))
    index = torch.arange(4)

    def jacobian(classes: Tensor | None) -> tuple[Tensor, Target]:
        target = make_target(defense, 4, "gradient", randomized=True, batch_size=3)  # type: ignore[arg-type]
        return as_estimator(estimator).jacobian(target, x, index, classes).grads, target

    everything, _ = jacobian(None)
    classes = torch.tensor([[0, 2], [1, 0], [2, 1], [2, 2]])
    weights = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(2))
    some, _ = jacobian(classes)
    sums, target = jacobian(weights)
    torch.testing.assert_close(some, everything[index[:, None], classes])
    torch.testing.assert_close(sums, torch.einsum("mkc,mcdhw->mkdhw", weights, everything), atol=1e-4, rtol=1e-4)
    draws = 2 if "eot" in estimator else 1
    assert target.counts.backward.tolist() == [0 if "finite_difference" in estimator else 2 * draws] * 4


class Shifted(Defense):
    """g(x; s) = 0.8x + s with a start noise that the defense shows."""

    randomized = True

    def __init__(self) -> None:
        super().__init__(INFO)
        self.classifier = Quadratic()

    def sample_start(self, x: Tensor) -> Tensor:
        return 0.2 * (2 * torch.rand_like(x) - 1)

    def transform_from(self, x: Tensor, start: Tensor) -> Tensor:
        return (0.8 * x + start).detach()

    def transform(self, x: Tensor) -> Tensor:
        return self.transform_from(x, self.sample_start(x))


class Hidden(Shifted):
    """The same transform, showing nothing of its noise."""

    sample_start = None  # type: ignore[assignment]
    transform_from = None  # type: ignore[assignment]

    def transform(self, x: Tensor) -> Tensor:
        return (0.8 * x + 0.2 * (2 * torch.rand_like(x) - 1)).detach()


def _prepare(defense: Defense) -> tuple[dict[str, Tensor], Tensor]:
    x = torch.rand(400, *INFO.shape)
    estimator = as_estimator({"reparameterized": {"epochs": 60, "width": 16}})
    return estimator.prepare(make_context(freeze(defense), x, torch.zeros(400).long(), INFO)), x  # type: ignore[arg-type]


def test_an_imitator_learns_the_transform_from_its_start_noise() -> None:
    defense = Shifted()
    heard: list[Report] = []
    with listening(heard.append):
        prepared, x = _prepare(defense)
    texts = list(dict.fromkeys(said.text for said in heard))
    epochs = [f"imitation of the transform, epoch {epoch}/60" for epoch in range(1, 61)]
    assert texts == [*epochs, "measuring the imitation"]
    assert (heard[0].fraction, heard[-1].fraction) == (0.0, 1.0)
    assert prepared[TRAIN_MSE] < 0.003 and prepared[TEST_MSE] < 0.003
    written = {"reparameterized": {"epochs": 60, "width": 16}}
    result, x, y = _evaluate(defense, {"eot": {"samples": 200, "of": written}}, prepared=prepared)
    truth = 0.8 * _model(defense).margin_gradient(0.8 * x, y)
    assert (F.cosine_similarity(result.grad.flatten(1), truth.flatten(1)) > 0.95).all()


def test_an_imitator_of_hidden_noise_learns_the_mean() -> None:
    defense = Hidden()
    prepared, x = _prepare(defense)
    variance = 0.2**2 / 3
    assert 0.8 * variance < prepared[TEST_MSE] < 1.2 * variance
    target = make_target(freeze(defense), 400, "gradient", prepared=prepared)  # type: ignore[arg-type]
    assert F.mse_loss(imitate(target, x, 16), 0.8 * x) < 0.001


def test_an_imitator_follows_a_change_of_size_and_channels() -> None:
    wrapped = Wrapped(nn.Identity(), INFO, lambda x: F.interpolate(x.mean(1, keepdim=True), (3, 4)))
    prepared, x = _prepare(wrapped)
    target = make_target(wrapped, 400, "gradient", prepared=prepared)
    assert imitate(target, x, 16).shape == (400, 1, 3, 4)
    assert prepared[TEST_MSE] < 0.05


def test_the_imitator_of_the_identity_is_the_identity() -> None:
    defense = BareModel(Quadratic(), INFO)
    prepared, x = _prepare(defense)
    assert prepared == {}
    assert imitate(make_target(defense, 400, "gradient"), x, 16) is x
