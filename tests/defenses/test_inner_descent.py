"""Hedge and anti-adversary: the inner steps against closed forms on linear networks, and their stand-ins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import generator, seeded
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.plugins.resolve import load_defense
from defenses.adversarial_transformation.anti_adversary import AntiAdversary
from defenses.adversarial_transformation.hedge import Hedge

GREY = DataInfo("grey", InputSpec((1, 8, 8)), 10)
DIGITS = load_data("digits")


def _linear(defense: Defense) -> tuple[Defense, Tensor]:
    """The defense in front of a linear network in double precision, and its weights ``(10, 64)``."""
    layer = nn.Linear(64, 10, dtype=torch.double)
    defense.classifier = nn.Sequential(nn.Flatten(), layer)
    return defense.eval(), layer.weight.detach()


def _images(n: int = 3) -> Tensor:
    return torch.rand(n, 1, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(4))


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def test_one_step_of_hedge_leaves_every_class() -> None:
    defense, w = _linear(Hedge(GREY, steps=1, radius=0.3, step_size=0.05))
    x = _images()
    with seeded("draw"):
        z = defense.transform(x)
    with seeded("draw"):
        start = 0.3 * (2 * torch.rand_like(x) - 1)
    p = defense.classifier(x + start).softmax(1)
    gradient = w.sum(0) - 10 * p @ w  # of Σ_c log p_c
    expected = _flat(x) + (_flat(start) - 0.05 * gradient.sign()).clamp(-0.3, 0.3)
    assert torch.allclose(_flat(z), expected)
    assert not z.requires_grad


def test_hedge_lowers_the_mean_log_probability_within_its_ball() -> None:
    defense, _ = _linear(Hedge(GREY, steps=10, radius=0.1))
    x = _images(20)
    with seeded("draw"):
        z = defense.transform(x)
    with seeded("draw"):
        start = x + 0.1 * (2 * torch.rand_like(x) - 1)
    assert (z - x).abs().max() <= 0.1 + 1e-9
    after, before = (defense.classifier(t).log_softmax(1).sum(1) for t in (z, start))
    assert (after < before).all()
    assert defense.step_size == 0.05


def test_anti_adversary_moves_towards_the_predicted_class() -> None:
    defense, w = _linear(AntiAdversary(GREY, steps=1, step_size=0.07))
    x = _images()
    logits = defense.classifier(x)
    p, label = logits.softmax(1), logits.argmax(1)
    expected = _flat(x) - 0.07 * (p @ w - w[label]).sign()
    assert torch.allclose(_flat(defense.transform(x)), expected)
    two, _ = _linear(AntiAdversary(GREY))
    x = _images(30)
    moved, still = (two.classifier(t).softmax(1) for t in (two.transform(x), x))
    assert torch.equal(moved.argmax(1), still.argmax(1))
    assert (moved.amax(1) > still.amax(1)).all()
    assert (two.transform(x) - x).abs().max() <= 0.3 + 1e-9
    assert not two.randomized and torch.equal(two.transform(x), two.transform(x))


@pytest.mark.parametrize("name", ["tanh", "softsign"])
def test_stand_in_differentiates_the_smooth_step(name: str) -> None:
    """dz/dx = I - α diag(s'(u/m)/m) H, with u the inner gradient, m = mean|u| and H its Jacobian WᵀSW."""
    defense, w = _linear(AntiAdversary(GREY, steps=1, step_size=0.07))
    x, direction = _images(1), torch.randn(64, dtype=torch.double)
    approximation = defense.approximations()[name]
    leaf = x.clone().requires_grad_()
    z = approximation.through(leaf)
    assert approximation.exact_forward and torch.allclose(z, defense.transform(x))
    (grad,) = torch.autograd.grad(_flat(z)[0] @ direction, leaf)
    logits = defense.classifier(x)[0].detach()
    p = logits.softmax(0)
    u = p @ w - w[logits.argmax()]
    mean = u.abs().mean()
    slope = 1 - (u / mean).tanh() ** 2 if name == "tanh" else (1 + (u / mean).abs()) ** -2
    jacobian = torch.eye(64) - 0.07 * (slope / mean)[:, None] * (w.T @ (p.diag() - p[:, None] * p) @ w)
    assert torch.allclose(grad.flatten(), direction @ jacobian.double(), atol=1e-9)


def test_stand_in_of_hedge_is_a_real_draw() -> None:
    defense, x = Hedge(GREY).eval(), _images().float()
    with seeded("draw"):
        z = defense.transform(x)
    for approximation in defense.approximations().values():
        with seeded("draw"):
            smooth = approximation.through(x.clone().requires_grad_())
        assert smooth.requires_grad and torch.allclose(smooth, z, atol=1e-6)


def test_no_example_influences_another() -> None:
    defense, x = AntiAdversary(GREY).eval(), _images(6).float()
    alone = torch.cat([defense.transform(row[None]) for row in x])
    assert ((defense.transform(x) - alone).abs() < 1e-5).float().mean() > 0.99  # a gradient near 0 may change its sign


@pytest.mark.parametrize("make", [Hedge, AntiAdversary])
@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("step_size", -0.1)])
def test_impossible_parameters(make: Any, name: str, value: float) -> None:
    kind = "hedge" if make is Hedge else "anti-adversary"
    with pytest.raises(InputError, match=f"^{kind}: {name} {value}"):
        make(GREY, **{name: value})


# -- the shipped checkpoints ------------------------------------------------------------------------------------


def _under_attack(name: str, estimator: Any, steps: int) -> float:
    from attacks.gradient.pgd import pgd

    defense, some = load_defense(DefenseSpec(name), DIGITS.info).defense.eval(), DIGITS.test.take(50)
    target = Target(
        defense,
        Lp("linf", 0.2),
        50,
        knowledge="gradient",
        generator=generator(0),
        randomized=defense.randomized,
    )
    with seeded("attack"):
        x_adv = some.x if not steps else pgd(target, some.x, some.y, steps=steps, estimator=estimator, rescore=4)
    with torch.no_grad(), seeded("score"):
        return (defense(x_adv).argmax(1) == some.y).double().mean().item()


@pytest.mark.parametrize("name", ["hedge", "anti-adversary"])
def test_clean_accuracy(name: str) -> None:
    assert _under_attack(name, "exact", steps=0) >= 0.95


def test_anti_adversary_on_an_undefended_network_falls() -> None:
    assert _under_attack("anti-adversary", "exact", steps=10) >= 0.9
    assert _under_attack("anti-adversary", "identity", steps=20) <= 0.5
    # The layer keeps the predicted class, so that an attack on the network alone is the adapted one.
    assert _under_attack("anti-adversary", "classifier", steps=10) <= 0.05


def test_hedge_keeps_no_more_than_adversarial_training() -> None:
    naive = _under_attack("hedge", "exact", steps=10)
    adapted = _under_attack("hedge", "classifier", steps=20)
    assert naive >= 0.9
    assert 0.5 <= adapted <= 0.85
