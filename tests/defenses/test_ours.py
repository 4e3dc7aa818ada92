"""The adversarial transformation: what g does, and what its smooth stand-ins do, without training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.training.recipe import TrainingRun
from defenses.adversarial_transformation.ours import AdversarialTransformation
from defenses.parts.smooth_sign import LEAK, LeakyClamp, SmoothSign, softsign_slope, tanh_slope

GREY = DataInfo("grey", InputSpec((1, 8, 8)), 10)
COLOUR = DataInfo("colour", InputSpec((3, 32, 32)), 10)
INFOS = pytest.mark.parametrize("info", [GREY, COLOUR], ids=lambda info: info.name)


def _make(info: DataInfo, **params: object) -> AdversarialTransformation:
    with seeded("weights"):
        return AdversarialTransformation(info, **params).eval()


def _images(info: DataInfo, n: int = 3) -> Tensor:
    return torch.rand(n, *info.shape, generator=torch.Generator().manual_seed(2))


def _ce(defense: AdversarialTransformation, x: Tensor, label: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(defense.external(x), label, reduction="none")


@INFOS
@pytest.mark.parametrize("random_start", [True, False])
def test_g_stays_within_the_radius_and_is_not_clipped(info: DataInfo, random_start: bool) -> None:
    defense, x = _make(info, random_start=random_start), _images(info)
    with torch.no_grad():
        z = defense.transform(x)
    assert z.shape == x.shape
    assert not z.requires_grad
    assert (z - x).abs().max() <= defense.radius + 1e-6
    assert (z - x).abs().mean() > 0.3 * defense.radius
    assert z.min() < 0 or z.max() > 1
    assert defense.randomized is random_start


@INFOS
def test_g_raises_the_least_likely_class(info: DataInfo) -> None:
    defense, x = _make(info), _images(info)
    with torch.no_grad():
        least = defense.external(x).argmin(1)
        start = defense.sample_start(x)
        assert (_ce(defense, defense.transform_from(x, start), least) < _ce(defense, x + start, least)).all()


@INFOS
def test_untargeted_g_lowers_the_predicted_class(info: DataInfo) -> None:
    defense, x = _make(info, mode="untargeted"), _images(info)
    with torch.no_grad():
        likely = defense.external(x).argmax(1)
        assert (_ce(defense, defense.transform(x), likely) > _ce(defense, x, likely)).all()


def test_one_step_is_the_papers_update() -> None:
    defense, x = _make(GREY, steps=1, radius=0.3, step_size=0.05), _images(GREY)
    start = 0.3 * (2 * torch.rand_like(x) - 1)
    z = (x + start).requires_grad_()
    least = defense.external(x).argmin(1)
    (u,) = torch.autograd.grad(_ce(defense, z, least).sum(), z)
    expected = x + (start - 0.05 * u.sign()).clamp(-0.3, 0.3)
    assert torch.allclose(defense.transform_from(x, start), expected, atol=1e-6)


def test_start_noise_fills_the_ball_and_decides_the_draw() -> None:
    defense, x = _make(GREY, radius=0.4), _images(GREY, 200)
    start = defense.sample_start(x)
    assert -0.4 <= start.min() < -0.39 and 0.39 < start.max() <= 0.4
    assert torch.equal(defense.transform_from(x, start), defense.transform_from(x, start))
    with seeded("draw"):
        z = defense.transform(x)
    with seeded("draw"):
        start = defense.sample_start(x)
    assert torch.equal(z, defense.transform_from(x, start))
    assert not _make(GREY, random_start=False).sample_start(x).any()


def test_no_example_influences_another() -> None:
    defense, x = _make(GREY), _images(GREY, 6)
    start = defense.sample_start(x)
    together = defense.transform_from(x, start)
    alone = torch.cat([defense.transform_from(x[i : i + 1], start[i : i + 1]) for i in range(6)])
    assert ((together - alone).abs() < 1e-5).float().mean() > 0.99  # a gradient near 0 may change its sign


@INFOS
@pytest.mark.parametrize("name", ["tanh", "softsign"])
@pytest.mark.parametrize("mode", ["least-likely", "untargeted"])
def test_approximation_is_a_real_draw_forward(info: DataInfo, name: str, mode: str) -> None:
    defense, x = _make(info, mode=mode), _images(info)
    approximation = defense.approximations()[name]
    assert approximation.exact_forward
    with seeded("draw"):
        real = defense.transform(x)
    with seeded("draw"):
        smooth = approximation.through(x.clone().requires_grad_())
    assert smooth.requires_grad
    assert torch.allclose(smooth, real, atol=1e-6)


def test_backward_goes_through_the_inner_gradients() -> None:
    """Through the projection alone the Jacobian would be diagonal."""
    defense, x = _make(GREY), _images(GREY, 1).requires_grad_()
    z = defense.approximations()["tanh"].through(x)
    (grad,) = torch.autograd.grad(z[0, 0, 3, 3], x)
    assert (grad != 0).sum() > 1


@pytest.mark.parametrize(
    ("slope", "smooth"), [(tanh_slope, torch.tanh), (softsign_slope, torch.nn.functional.softsign)]
)
def test_smooth_sign_has_the_papers_derivatives(slope, smooth) -> None:
    u = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    scale = u.detach().flatten(1).abs().mean(1).view(-1, 1, 1, 1)
    weights = torch.randn_like(u)
    (found,) = torch.autograd.grad((weights * SmoothSign.apply(u, slope)).sum(), u)
    (expected,) = torch.autograd.grad((weights * smooth(u / scale)).sum(), u)
    assert torch.allclose(found, expected)
    assert torch.equal(SmoothSign.apply(u, slope), u.sign())


def test_leaky_clamp() -> None:
    delta = torch.tensor([-2.0, -0.5, 0.5, 2.0], requires_grad=True)
    out = LeakyClamp.apply(delta, 1.0)
    assert out.tolist() == [-1.0, -0.5, 0.5, 1.0]
    (grad,) = torch.autograd.grad(out.sum(), delta)
    assert torch.allclose(grad, torch.tensor([LEAK, 1.0, 1.0, LEAK]))


def test_external_network_stays_in_evaluation_mode_and_frozen() -> None:
    defense = _make(GREY).train()
    assert defense.classifier.training
    assert not any(m.training for m in defense.external.modules())
    assert not any(p.requires_grad for p in defense.external.parameters())
    x = _images(GREY)
    before = {k: v.clone() for k, v in defense.external.state_dict().items()}
    defense(x).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in defense.external.state_dict().items())
    assert all(p.grad is None for p in defense.external.parameters())
    assert all(p.grad is not None for p in defense.classifier.parameters())


@pytest.mark.parametrize(
    ("external", "stages"),
    [
        ("adversarial", ["external network", "classifier"]),
        ("standard", ["external network", "classifier"]),
        ("untrained", ["classifier"]),
    ],
)
def test_recipe(external: str, stages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    defense, seen = _make(GREY, external=external), []

    def minimise(self: TrainingRun, stage: str, module: torch.nn.Module, loss_fn, **settings: object) -> None:
        trained = {name for name, p in defense.named_parameters() if p.requires_grad}
        seen.append(stage)
        if stage == "classifier":
            assert module is defense.classifier
            assert not any(name.startswith("external") for name in trained)
        else:
            assert module is defense.external
            assert all(p.requires_grad for p in module.parameters())
        module.train()
        assert torch.isfinite(loss_fn(_images(GREY, 4), torch.arange(4)))
        module.eval()

    monkeypatch.setattr(TrainingRun, "minimise", minimise)
    run = TrainingRun(None, None, GREY, Lp("linf", 0.2), 0, torch.device("cpu"), None)  # type: ignore[arg-type]
    defense.fit(run)
    assert seen == stages
    assert not any(p.requires_grad for p in defense.external.parameters())


@INFOS
def test_variants_are_easier_versions_of_g(info: DataInfo) -> None:
    defense, x = _make(info), _images(info)
    variants = defense.variants()
    assert list(variants) == ["steps-3", "steps-1", "tanh-3", "tanh-1", "fixed-start"]
    for name, g in variants.items():
        z = g(x)
        assert (z - x).abs().max() <= defense.radius + 1e-6, name
        assert not z.requires_grad or name.startswith("tanh"), name
    assert torch.equal(variants["fixed-start"](x), variants["fixed-start"](x))
    assert not torch.equal(variants["steps-3"](x), variants["steps-3"](x))
    start = torch.zeros_like(x)
    (grad,) = torch.autograd.grad(_ce(defense, z := x.clone().requires_grad_(), defense.external(x).argmin(1)).sum(), z)
    one = defense._from(x, start, steps=1)
    torch.testing.assert_close(one, x - (13 * defense.step_size * grad.sign()).clamp(-defense.radius, defense.radius))
    assert "fixed-start" not in _make(info, random_start=False).variants()


@INFOS
@pytest.mark.parametrize("mode", ["least-likely", "untargeted"])
def test_its_guide_is_the_external_network(info: DataInfo, mode: str) -> None:
    defense, x = _make(info, mode=mode), _images(info)
    guide = defense.guide()
    logits = guide.logits(x)
    choice = logits.argmin(1) if guide.picks == "least-likely" else logits.argmax(1)
    assert guide.picks == ("least-likely" if mode == "least-likely" else "most-likely")
    with seeded("a draw"):
        forced = guide.forced(x, choice)
    with seeded("a draw"):
        drawn = defense.transform(x)
    assert torch.equal(forced, drawn)
    assert not torch.equal(guide.forced(x, (choice + 1) % 10), drawn)


@INFOS
def test_a_shortened_backward_pass_keeps_the_value(info: DataInfo) -> None:
    defense, x = _make(info), _images(info).requires_grad_()
    with seeded("a draw"):
        value = defense.variants()["tanh-3"](x)
    with seeded("a draw"):
        drawn = defense.transform(x)
    torch.testing.assert_close(value, drawn, atol=1e-6, rtol=0)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert torch.isfinite(grad).all()
    assert grad.abs().sum() > 0
