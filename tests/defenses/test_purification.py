"""Guided denoiser, PixelDefend and Defense-GAN: what each computes, and how the shipped ones fall."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.gradient.pgd import pgd
from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import generator, seeded
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.plugins.resolve import load_defense
from bench.training.recipe import TrainingRun
from defenses.parts.unet import UNet, scales_for
from defenses.purification.defense_gan import DefenseGAN, _gradient_penalty, _Reverse, critic_for, generator_for
from defenses.purification.guided_denoiser import GuidedDenoiser
from defenses.purification.pixeldefend import PixelCNN, PixelDefend

GREY = DataInfo("grey", InputSpec((1, 8, 8)), 10)
SMALL_COLOUR = DataInfo("small", InputSpec((3, 4, 5)), 10)
DATA = load_data("digits")
THREAT = Lp("linf", 0.2)


def _make(cls: type[Defense], info: DataInfo, **params: object) -> Any:
    with seeded("weights"):
        return cls(info, **params).eval()


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (GuidedDenoiser, {"width": 0}),
        (PixelDefend, {"levels": 1}),
        (PixelDefend, {"eps_defend": 0.01}),
        (PixelDefend, {"width": 0}),
        (DefenseGAN, {"steps": 0}),
        (DefenseGAN, {"restarts": 0}),
        (DefenseGAN, {"step_size": 0.0}),
        (DefenseGAN, {"latent": 0}),
        (DefenseGAN, {"trained_on": "noise"}),
    ],
)
def test_impossible_parameters(cls: type[Defense], params: dict[str, object]) -> None:
    ((name, value),) = params.items()
    with pytest.raises(InputError, match=f"{name} {value}"):
        cls(GREY, **params)


def _stages(defense: Defense, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Stages of the recipe, and what gets a gradient from one loss of each."""
    seen: dict[str, list[str]] = {}

    def minimise(self: TrainingRun, stage: str, module: nn.Module, loss_fn: Callable, **settings: object) -> None:
        defense.zero_grad(set_to_none=True)
        module.train()
        loss = loss_fn(torch.rand(4, *self.info.shape), torch.arange(4))
        assert torch.isfinite(loss)
        loss.backward()
        module.eval()
        seen[stage] = sorted({name.split(".")[0] for name, p in defense.named_parameters() if p.grad is not None})

    monkeypatch.setattr(TrainingRun, "minimise", minimise)
    run = TrainingRun(None, None, defense.data, THREAT, 0, torch.device("cpu"), None)  # type: ignore[arg-type]
    defense.fit(run)
    return seen


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (GuidedDenoiser, {"classifier": ["classifier"], "denoiser": ["denoiser"]}),
        (PixelDefend, {"density model": ["density"], "classifier": ["classifier"]}),
        (DefenseGAN, {"generator": ["generator"], "classifier": ["classifier"]}),
    ],
)
def test_every_stage_trains_its_part_alone(
    cls: type[Defense], expected: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _stages(_make(cls, GREY), monkeypatch) == expected


# -- guided denoiser ----------------------------------------------------------------------------------------


def test_untrained_denoiser_changes_nothing() -> None:
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(_make(GuidedDenoiser, GREY).transform(x), x)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (28, 28), (32, 32)])
def test_unet_takes_any_size(size: tuple[int, int]) -> None:
    net = UNet(2, 3, 4, scales_for(min(size))).eval()
    nn.init.ones_(net.last.weight)
    x = torch.rand(2, 2, *size, requires_grad=True)
    out = net(x)
    assert out.shape == (2, 3, *size)
    (grad,) = torch.autograd.grad(out[0, 0, 0, 0], x)
    assert grad[0].abs().sum() > 0
    assert grad[1].abs().sum() == 0


def test_scales_halve_to_four_pixels() -> None:
    assert [scales_for(size) for size in (4, 8, 16, 28, 32, 64, 299)] == [1, 1, 2, 2, 3, 4, 4]


# -- PixelDefend --------------------------------------------------------------------------------------------


def test_density_sees_only_what_comes_before() -> None:
    with seeded("density"):
        density = PixelCNN(3, 6, 8, 3)
    x = torch.rand(1, 3, 4, 5, requires_grad=True)
    logits = density(x)
    assert logits.shape == (1, 4, 5, 3, 6)
    for row, column, channel in [(0, 0, 0), (0, 0, 2), (2, 3, 1), (3, 4, 2)]:
        (grad,) = torch.autograd.grad(logits[0, row, column, channel].sum(), x, retain_graph=True, allow_unused=True)
        order = torch.zeros(1, 3, 4, 5) if grad is None else grad
        place = (5 * row + column) * 3 + channel
        seen = order[0].permute(1, 2, 0).flatten().abs() > 0
        assert not seen[place:].any()
        assert place == 0 or seen[place - channel - 3 * (column > 0) : place].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_purification_is_the_papers_loop(dtype: torch.dtype) -> None:
    defense = _make(PixelDefend, SMALL_COLOUR, levels=9, eps_defend=0.3).to(dtype)
    for head in defense.density.heads:
        nn.init.normal_(head.weight, std=3)  # far from ties
    x = torch.rand(2, 3, 4, 5, dtype=dtype)
    grid = torch.arange(9, dtype=dtype) / 8
    expected = x.clone()
    with torch.no_grad():
        for row in range(4):
            for column in range(5):
                for channel in range(3):
                    logits = defense.density(expected)[:, row, column, channel]
                    for i in range(2):
                        near = [k for k in range(9) if abs(grid[k] - x[i, channel, row, column]) <= 0.3]
                        expected[i, channel, row, column] = grid[max(near, key=lambda k: float(logits[i, k]))]
    purified = defense.transform(x)
    assert torch.allclose(purified, expected)
    assert (purified - x).abs().max() <= 0.3 + 1e-6
    assert not torch.equal(purified, (8 * x).round() / 8)


def test_soft_stand_in_is_exact_forward_and_follows_the_window() -> None:
    defense = _make(PixelDefend, GREY)
    # A density that wants every value to be dark: each is then as dark as the window lets it be.
    nn.init.zeros_(defense.density.heads[0].weight)
    defense.density.heads[0].bias.data = -5 * torch.arange(17.0)
    x = torch.full((1, 1, 8, 8), 0.7, requires_grad=True)
    z = defense.approximations()["soft"].through(x)
    assert torch.equal(z, defense.transform(x))
    (grad,) = torch.autograd.grad(z.sum(), x)
    assert grad.min() > 0


def test_empty_batch() -> None:
    assert _make(PixelDefend, GREY).transform(torch.zeros(0, 1, 8, 8)).shape == (0, 1, 8, 8)
    assert _make(DefenseGAN, GREY).transform(torch.zeros(0, 1, 8, 8)).shape == (0, 1, 8, 8)


# -- Defense-GAN --------------------------------------------------------------------------------------------


def _linear_generator(**params: object) -> tuple[DefenseGAN, Tensor]:
    """A defense whose generator is z -> A z, and A ``(16, 3)``."""
    defense = _make(DefenseGAN, DataInfo("tiny", InputSpec((1, 4, 4)), 10), latent=3, **params)
    matrix = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(3))).Q
    linear = nn.Linear(3, 16, bias=False)
    linear.weight.data = matrix * torch.tensor([1.0, 0.8, 0.6])
    defense.generator = nn.Sequential(linear, nn.Unflatten(1, (1, 4, 4))).requires_grad_(False)
    return defense, linear.weight


def test_search_finds_the_least_squares_point() -> None:
    defense, matrix = _linear_generator(steps=200, restarts=2, step_size=2.0)
    x = torch.rand(3, 1, 4, 4)
    projector = matrix @ torch.linalg.inv(matrix.T @ matrix) @ matrix.T
    expected = (x.flatten(1) @ projector).view_as(x)
    assert torch.allclose(defense.transform(x), expected, atol=1e-4)
    assert not defense.transform(x.requires_grad_()).requires_grad


def test_projection_is_the_derivative_of_the_search() -> None:
    defense, matrix = _linear_generator(steps=200, restarts=1, step_size=2.0)
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    weights = torch.randn(2, 1, 4, 4)
    with seeded("draw"):
        z = defense.approximations()["projection"].through(x)
    with seeded("draw"):
        assert torch.allclose(z, defense.transform(x), atol=1e-6)
    (grad,) = torch.autograd.grad((weights * z).sum(), x)
    projector = matrix @ torch.linalg.inv(matrix.T @ matrix) @ matrix.T
    expected = (weights.flatten(1) @ projector).view_as(x)
    assert torch.nn.functional.cosine_similarity(grad.flatten(1), expected.flatten(1)).min() > 0.999


def test_more_restarts_come_nearer() -> None:
    x = DATA.test.take(20).x
    errors = []
    for restarts in (1, 8):
        defense = _shipped("defense-gan")
        defense.restarts = restarts  # type: ignore[assignment]
        with seeded("starts"):
            errors.append((defense.transform(x) - x).square().mean())
    assert errors[1] < errors[0]


def test_every_image_draws_its_own_starts() -> None:
    one = DATA.test.take(1).x.repeat(6, 1, 1, 1)
    z = _shipped("defense-gan").transform(one)
    assert len({tuple(image.flatten().tolist()) for image in z}) > 1


def test_reversed_gradient_and_penalty() -> None:
    x = torch.rand(5, 1, 4, 4, requires_grad=True)
    out = _Reverse.apply(x)
    assert torch.equal(out, x)
    (grad,) = torch.autograd.grad((3 * out).sum(), x)
    assert torch.equal(grad, torch.full_like(x, -3))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    expected = (critic[1].weight.norm() - 1) ** 2
    penalty = _gradient_penalty(critic, x.detach(), torch.rand(5, 1, 4, 4))
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_generator_and_critic_fit_the_image(shape: tuple[int, int, int]) -> None:
    images = generator_for(shape, 7)(torch.randn(2, 7))
    assert images.shape == (2, *shape)
    assert images.min() >= 0 and images.max() <= 1
    assert critic_for(shape)(images).shape == (2, 1)


# -- the shipped digits checkpoints -------------------------------------------------------------------------


def _shipped(name: str) -> Defense:
    return load_defense(DefenseSpec(name), DATA.info).defense.eval()


def _under_attack(defense: Defense, estimator: Any, steps: int, threat: Lp = THREAT) -> float:
    some = DATA.test.take(50)
    target = Target(
        defense, threat, len(some), knowledge="gradient", generator=generator(0), randomized=defense.randomized
    )
    with seeded("attack"):
        x_adv = pgd(target, some.x, some.y, steps=steps, estimator=estimator, rescore=4)
    with torch.no_grad(), seeded("score"):
        return (defense(x_adv).argmax(1) == some.y).double().mean().item()


@pytest.mark.parametrize(
    ("name", "accuracy"), [("guided-denoiser", 0.95), ("pixeldefend", 0.93), ("defense-gan", 0.87)]
)
def test_clean_accuracy(name: str, accuracy: float) -> None:
    some = DATA.test.take(150)
    with torch.no_grad(), seeded("score"):
        assert (_shipped(name)(some.x).argmax(1) == some.y).double().mean() >= accuracy


def test_guided_denoiser_knows_only_attacks_on_the_classifier() -> None:
    defense = _shipped("guided-denoiser")
    assert _under_attack(defense, "classifier", steps=20) >= 0.7
    assert _under_attack(defense, "exact", steps=20) <= 0.1


def test_pixeldefend_only_hides_its_gradient() -> None:
    defense = _shipped("pixeldefend")
    assert _under_attack(defense, "exact", steps=5) >= 0.9
    assert _under_attack(defense, {"bpda": "soft"}, steps=20) <= 0.4


def test_defense_gan_only_hides_its_gradient() -> None:
    defense = _shipped("defense-gan")
    assert _under_attack(defense, "exact", steps=5) >= 0.8
    assert _under_attack(defense, {"eot": {"samples": 4, "of": {"bpda": "projection"}}}, steps=15) <= 0.2
