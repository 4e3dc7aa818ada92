"""The transfer attack: surrogates, what can be stored of them, and what they do to a model they never saw."""

from __future__ import annotations

import pytest
import torch
from lab import DIGITS, assert_feasible, digits, digits_classifier, make_context, make_target
from safetensors.torch import load, save
from torch import Tensor

from attacks.score.noise import noise
from attacks.toolkit.surrogates import Budget, bounded, build, is_robust, load_surrogates, train_surrogates
from attacks.transfer.transfer import blurred, transfer
from bench.contracts.defense import BareModel
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.reporting import Report, listening


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    x, y, *_ = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prepare = transfer.attack.prepare  # type: ignore[attr-defined]
        return prepare(make_context(None, x, y, DIGITS), surrogates=2, epochs=6, training="mixed", steps=1)


def test_surrogates_survive_storage_and_classify(weights) -> None:
    stored = load(save(weights))
    x, y = digits()[2:]
    models = load_surrogates(stored, DIGITS, torch.device("cpu"))
    assert len(models) == 2
    for model in models:
        assert (model(x).argmax(1) == y).float().mean() > 0.9


def test_training_is_reproducible() -> None:
    x, y, *_ = digits()
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(train_surrogates(make_context(None, x[:200], y[:200], DIGITS), count=1, epochs=1, training="mixed"))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_training_says_how_far_it_is() -> None:
    x, y, *_ = digits()
    heard: list[Report] = []
    with listening(heard.append):
        train_surrogates(make_context(None, x[:50], y[:50], DIGITS), count=2, epochs=2, training="standard")
    assert [said.fraction for said in heard] == [0.0, 0.25, 0.5, 0.5, 0.75, 1.0]
    names = [f"surrogate {number}/2, standard, epoch {epoch}/2" for number, epoch in ((1, 1), (1, 2), (2, 1), (2, 2))]
    assert list(dict.fromkeys(said.text for said in heard)) == names
    with listening(heard.append):
        train_surrogates(make_context(None, x[:5], y[:5], DIGITS), count=1, epochs=1, training="adversarial")
    assert heard[-1].text == "surrogate 1/1, adversarially trained, epoch 1/1"


def test_training_on_many_images_is_bounded_in_steps_and_reports_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grey, colour, large = (1, 8, 8), (3, 32, 32), (3, 224, 224)
    assert bounded(15, 1000, grey, 200_000) == bounded(15, 1000, colour, 200_000) == Budget(15, 1000)
    assert bounded(15, 45_000, colour, 200_000) == Budget(4, 45_000)
    assert bounded(2, 45_000, colour, 200_000) == Budget(2, 45_000)
    assert bounded(15, 10**7, colour, 200_000) == Budget(1, 200_000)
    assert bounded(15, 1000, large, 200_000) == Budget(4, 1000)
    assert bounded(15, 10**6, large, 200_000) == Budget(1, 4081)
    assert bounded(30, 45_000, colour, 50_000) == Budget(1, 45_000)
    monkeypatch.setattr("attacks.toolkit.surrogates._MOST_IMAGES", 100)
    monkeypatch.setattr("attacks.toolkit.surrogates._BATCH", 5)
    monkeypatch.setattr("attacks.toolkit.surrogates._REPORTED", 4)
    x, y, *_ = digits()
    heard: list[Report] = []
    with listening(heard.append):
        train_surrogates(make_context(None, x[:50], y[:50], DIGITS), count=1, epochs=9, training="standard")
    assert [said.fraction for said in heard] == [0.0, 0.2, 0.4, 0.5, 0.7, 0.9, 1.0]
    assert heard[0].text == "surrogate 1/1, standard, epoch 1/2"


def test_of_very_many_images_a_surrogate_sees_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attacks.toolkit.surrogates._MOST_PIXELS", 64 * 20)
    seen: list[int] = []
    x, y, *_ = digits()
    context = make_context(None, x[:50], y[:50], DIGITS)
    at = type(context.train).at
    monkeypatch.setattr(type(context.train), "at", lambda self, rows: seen.extend(rows.tolist()) or at(self, rows))
    train_surrogates(context, count=1, epochs=9, training="standard")
    assert len(set(seen)) == len(seen) == 20


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_lowers_the_accuracy_of_a_network_it_never_saw(weights, norm) -> None:
    x, y = (part[:100] for part in digits()[2:])
    defense = BareModel(digits_classifier(), DIGITS)
    eps = {"linf": 0.15, "l2": 1.0}[norm]
    accuracy = {}
    for attack in (transfer, noise):
        target = make_target(defense, 100, attack.attack.knowledge, norm=norm, eps=eps, prepared=weights)
        settings = {"steps": 20} if attack is transfer else {"draws": 10}
        x_adv = attack(target, x, y, **settings)
        assert_feasible(target, x, x_adv)
        accuracy[attack.attack.name] = (defense(x_adv).argmax(1) == y).float().mean()
    assert accuracy["transfer"] < accuracy["noise"] - 0.25


def test_it_never_queries_the_defense(weights) -> None:
    x, y = (part[:3] for part in digits()[2:])
    target = make_target(BareModel(digits_classifier(), DIGITS), 3, "transfer", prepared=weights)
    first = transfer(target, x, y, steps=3)
    assert target.counts.forward.sum() == 0
    target = make_target(BareModel(digits_classifier(), DIGITS), 3, "transfer", prepared=weights)
    assert torch.equal(transfer(target, x, y, steps=3), first)
    assert transfer(target, x.double(), y, steps=3).dtype == torch.float64


def test_averaging_over_shifts_is_a_gaussian_blur() -> None:
    grad = torch.zeros(1, 2, 9, 9)
    grad[0, 1, 4, 4] = 1
    out = blurred(grad, 3)
    assert out.shape == grad.shape and (out[0, 0] == 0).all(), "channels stay apart"
    assert out.sum().item() == pytest.approx(1, abs=1e-6)
    spot = out[0, 1]
    torch.testing.assert_close(spot, spot.T)
    torch.testing.assert_close(spot, spot.flip(0))
    assert spot[4, 5] / spot[4, 4] == pytest.approx(torch.tensor(-0.5).exp().item(), rel=1e-5), "σ = radius/3"
    assert (spot[0] == 0).all() and (spot[1] > 0).any(), "seven pixels wide"
    assert blurred(grad, 0) is grad
    assert blurred(torch.ones(1, 1, 2, 2), 7).isfinite().all(), "wider than the image"


def test_blurring_is_the_weighted_mean_over_shifts() -> None:
    """Dong et al. 2019, eq. 6, summed shift by shift."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    grad[..., 3:9, 3:9] = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    weights = torch.exp(-0.5 * (3 * torch.arange(-2, 3, dtype=torch.float64) / 2) ** 2)
    weights /= weights.sum()
    shifted = sum(weights[i] * weights[j] * grad.roll((i - 2, j - 2), (2, 3)) for i in range(5) for j in range(5))
    torch.testing.assert_close(blurred(grad, 2), shifted)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("settings", [{"nesterov": True}, {"translation": 1}, {"momentum": 0.0, "diversity": 0.0}])
def test_its_options_work(weights, settings, norm) -> None:
    x, y = (part[:50] for part in digits()[2:])
    defense = BareModel(digits_classifier(), DIGITS)
    eps = {"linf": 0.2, "l2": 1.5}[norm]
    targets = [make_target(defense, 50, "transfer", norm=norm, eps=eps, prepared=weights) for _ in range(3)]
    plain, first, again = (
        transfer(target, x, y, steps=15, **({} if target is targets[0] else settings)) for target in targets
    )
    assert_feasible(targets[0], x, first)
    assert torch.equal(first, again) and not torch.equal(first, plain)
    assert (defense(first).argmax(1) == y).float().mean() < 0.7


def test_a_class_to_reach_is_reached_on_the_surrogates(weights) -> None:
    x, y = (part[:50] for part in digits()[2:])
    towards = (y + 1) % 10
    target = make_target(
        BareModel(digits_classifier(), DIGITS), 50, "transfer", eps=0.3, prepared=weights, towards=towards
    )  # fmt: skip
    x_adv = transfer(target, x, y, steps=20)
    assert_feasible(target, x, x_adv)
    surrogates = load_surrogates(weights, DIGITS, torch.device("cpu"))
    reached = [(model(x_adv).argmax(1) == towards).float().mean() for model in surrogates]
    assert min(reached) > 0.5


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 5, 7), (2, 64, 48)], ids=str)
@pytest.mark.parametrize("number", range(3))
def test_architectures_fit_any_image(shape, number) -> None:
    info = DataInfo("toy", InputSpec(shape), 7)
    model = build(number, info)
    assert model(torch.rand(2, *shape)).shape == (2, 7)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    assert type(build(number + 3, info)) is type(model)


def test_which_surrogates_are_robust() -> None:
    assert [is_robust(i, "mixed") for i in range(6)] == [True, True, False] * 2
    assert all(is_robust(i, "adversarial") and not is_robust(i, "standard") for i in range(3))
