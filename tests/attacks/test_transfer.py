"""The transfer attack: surrogates, what can be stored of them, and what they do to a model they never saw."""

from __future__ import annotations

import pytest
import torch
from lab import DIGITS, assert_feasible, digits, digits_classifier, make_context, make_target
from safetensors.torch import load, save
from torch import Tensor

from attacks.noise import noise
from attacks.surrogates import build, is_robust, load_surrogates, train_surrogates
from attacks.transfer import transfer
from bench.defense import BareModel, DataInfo


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


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 5, 7), (2, 64, 48)], ids=str)
@pytest.mark.parametrize("number", range(3))
def test_architectures_fit_any_image(shape, number) -> None:
    info = DataInfo("toy", shape, 7)
    model = build(number, info)
    assert model(torch.rand(2, *shape)).shape == (2, 7)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    assert type(build(number + 3, info)) is type(model)


def test_which_surrogates_are_robust() -> None:
    assert [is_robust(i, "mixed") for i in range(6)] == [True, True, False] * 2
    assert all(is_robust(i, "adversarial") and not is_robust(i, "standard") for i in range(3))
