"""Randomised defenses: votes, noise, pruning, deflection, and the barrage of transforms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
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
from defenses.parts import random_transforms
from defenses.parts.nets import NETWORKS
from defenses.parts.voting import GaussianNoise, UniformNoise, Vote
from defenses.randomised.bart import BaRT
from defenses.randomised.pixel_deflection import PixelDeflection
from defenses.randomised.region_based import RegionBased
from defenses.randomised.rse import RandomSelfEnsemble
from defenses.randomised.sap import SAP, StochasticActivationPruning

GREY = DataInfo("grey", InputSpec((1, 8, 8)), 10)
COLOUR = DataInfo("colour", InputSpec((3, 32, 32)), 10)
DIGITS = load_data("digits")


def _images(n: int, *shape: int) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(3))


# -- votes and noise --------------------------------------------------------------------------------------------


def test_vote_is_the_log_of_the_mean_probability() -> None:
    network = nn.Sequential(nn.Flatten(), GaussianNoise(0.5), nn.Linear(64, 10))
    vote, x = Vote(network, 6).eval(), _images(3, 1, 8, 8)
    with seeded("vote"):
        out = vote(x)
    with seeded("vote"):
        rows = network(torch.cat([x] * 6)).softmax(1)
    mean = torch.stack([rows[3 * k : 3 * k + 3] for k in range(6)]).mean(0)
    assert torch.allclose(out.exp(), mean, atol=1e-6)
    assert vote.train()(x).shape == (3, 10)
    assert vote.eval()(x[:0]).shape == (0, 10)


def test_vote_of_saturated_networks_stays_finite() -> None:
    vote = Vote(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 2).eval()
    out = vote(1e4 * _images(2, 1, 2, 2))
    assert torch.isfinite(out).all()


def test_uniform_noise_fills_its_cube_in_evaluation_only() -> None:
    layer, x = UniformNoise(0.3), _images(500, 1, 4, 4)
    assert torch.equal(layer(x), x)
    moved = layer.eval()(x) - x
    assert -0.3 <= moved.min() < -0.299 and 0.299 < moved.max() <= 0.3
    assert moved.var().item() == pytest.approx(0.3**2 / 3, rel=0.03)


@pytest.mark.parametrize("network", ["auto", "resnet8", "cnn-a"])
def test_rse_has_noise_before_every_convolution(network: str) -> None:
    defense = RandomSelfEnsemble(GREY, init_noise=0.25, inner_noise=0.125, network=network)
    modules = list(defense.modules())
    stds = [m.std for m in modules if isinstance(m, GaussianNoise)]
    assert len(stds) == sum(isinstance(m, nn.Conv2d) for m in modules)
    assert stds[0] == 0.25 and set(stds[1:]) == {0.125}
    for noise, after in itertools.pairwise(modules):
        assert isinstance(after, nn.Conv2d) or not isinstance(noise, GaussianNoise)


def test_region_of_almost_no_size_is_the_network_itself() -> None:
    defense, x = RegionBased(GREY, radius=1e-6).eval(), _images(4, 1, 8, 8)
    _, inner = next(iter(defense.classifier.children())).children()
    assert torch.allclose(defense(x), inner(x).log_softmax(1), atol=1e-3)


# -- stochastic activation pruning ------------------------------------------------------------------------------


def test_pruning_keeps_what_sampling_with_replacement_keeps() -> None:
    h = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 4.0]).expand(20_000, 6)
    kept = (StochasticActivationPruning(0.5).factors(h) > 0).double().mean(0)
    drawn = torch.multinomial(h, 3, replacement=True)
    expected = torch.zeros(len(h), 6, dtype=torch.double).scatter_(1, drawn, 1.0).mean(0)
    assert torch.allclose(kept, expected, atol=0.015)
    assert kept[0] == 0


def test_pruning_is_unbiased_and_passes_its_factor_backward() -> None:
    layer = StochasticActivationPruning(1.0).eval()
    h = torch.rand(2, 3, 4, 4) + 0.1
    mean = torch.stack([layer(h) for _ in range(4000)]).mean(0)
    assert torch.allclose(mean, h, rtol=0.15)
    leaf = h.clone().requires_grad_()
    with seeded("draw"):
        out = layer(leaf)
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    with seeded("draw"):
        factors = layer.factors(h)
    assert torch.equal(grad, factors)
    assert torch.equal(out, h * factors)
    assert 0 < (factors == 0).float().mean() < 1


def test_pruning_leaves_training_and_dead_layers_alone() -> None:
    layer, h = StochasticActivationPruning(0.5), _images(2, 3, 4, 4)
    assert torch.equal(layer(h), h)
    assert not layer.eval()(torch.zeros(2, 5)).any()
    assert torch.equal(layer(torch.tensor([[0.0, 7.0]])), torch.tensor([[0.0, 7.0]]))
    assert sum(isinstance(m, StochasticActivationPruning) for m in SAP(GREY).modules()) == 4


# -- pixel deflection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3])
def test_deflected_pixels_come_from_the_window(window: int) -> None:
    defense = PixelDeflection(COLOUR, deflections=60, window=window, activation_map=False)
    index = torch.arange(32 * 32).view(1, 1, 32, 32)
    x = torch.cat([index, index + 5000, index + 9000], 1).float().expand(8, 3, 32, 32)
    z = defense.deflect(x)
    source = z[:, 0].long()
    assert torch.equal(z[:, 1] - z[:, 0], x[:, 1] - x[:, 0])  # all channels of a pixel move together
    rows, columns = source // 32 - index[0] // 32, source % 32 - index[0] % 32
    assert rows.abs().max() == window and columns.abs().max() == window
    moved = (source != index[0]).flatten(1).sum(1)
    assert (moved <= 60).all() and (moved > 60 * (1 - 2 / (2 * window + 1) ** 2) - 15).all()
    assert len(set(map(tuple, source.flatten(1).tolist()))) == 8  # every example its own draw


def test_deflection_passes_gradients_to_the_pixels_it_copied() -> None:
    defense = PixelDeflection(GREY, deflections=20, window=2, activation_map=False)
    x = torch.arange(64.0).view(1, 1, 8, 8).requires_grad_()
    z = defense.deflect(x)
    (grad,) = torch.autograd.grad(z.sum(), x)
    times = torch.bincount(z.detach().long().flatten(), minlength=64)
    assert torch.equal(grad.flatten(), times.float())


def test_activation_map_spares_what_the_class_depends_on() -> None:
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([3 * x[:, 0, :4, :4].sum((1, 2)), x[:, 0].sum((1, 2)) - 100], 1)

    hits = {}
    for spare in (True, False):
        defense = PixelDeflection(GREY, deflections=16, window=1, activation_map=spare)
        defense.classifier = Corner()
        target = defense._targets(_images(300, 1, 8, 8))
        assert all(len(set(row)) == 16 for row in target.tolist())
        hits[spare] = ((target // 8 < 4) & (target % 8 < 4)).float().mean().item()
    assert hits[False] == pytest.approx(0.25, abs=0.03)
    assert hits[True] < 0.02


# -- barrage of random transforms -------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [*random_transforms.GREY, random_transforms.colour], ids=lambda g: g.__name__)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 8, 8)], ids=str)
def test_transform_moves_each_example_its_own_way(group: Any, shape: tuple[int, int, int]) -> None:
    x = _images(1, *shape).expand(16, *shape).clone().requires_grad_()
    z = group(x, 1.0)
    assert z.shape == x.shape and torch.isfinite(z).all()
    flat = z.detach().flatten(1)
    assert len({tuple(row) for row in flat.tolist()}) >= 8  # a codec's qualities are few, and a median draws nothing
    assert z.requires_grad is (group not in random_transforms.NOT_DIFFERENTIABLE)
    if z.requires_grad:
        (grad,) = torch.autograd.grad(z.sum(), x)
        assert torch.isfinite(grad).all() and (grad.flatten(1).abs().amax(1) > 0).all()


def test_precision_rounds_to_levels() -> None:
    x = _images(50, 3, 8, 8)
    z = random_transforms.precision(x, 1.0)
    assert (z - x).abs().max() <= 1 / 16 + 1e-6
    assert (random_transforms.precision(x, 0.01) - x).abs().max() < 1 / 350


def test_geometry_keeps_a_constant_and_zoom_is_a_crop() -> None:
    flat = torch.full((20, 1, 16, 16), 0.3)
    for group in (random_transforms.swirl, random_transforms.zoom, random_transforms.blur):
        assert torch.allclose(group(flat, 1.0), flat, atol=1e-6)
    ramp = torch.linspace(0, 1, 16).expand(50, 1, 16, 16)
    zoomed = random_transforms.zoom(ramp, 1.0)[:, 0, 5]
    inside = zoomed[:, 2:-2]
    step = inside[:, 1:] - inside[:, :-1]
    assert torch.allclose(step, step[:, :1].expand_as(step), atol=1e-5)  # a part of a ramp is a flatter ramp
    assert (15 * step[:, 0] > 0.59).all() and (15 * step[:, 0] < 1.01).all()


def test_fourier_keeps_the_mean_and_drops_a_share() -> None:
    x = _images(200, 1, 8, 8)
    ratio = random_transforms.fourier(x, 1.0).mean((1, 2, 3)) / x.mean((1, 2, 3))
    assert (ratio >= 0.98 - 1e-5).all() and (ratio <= 1.02 + 1e-5).all()
    before, after = (torch.fft.rfft2(t).abs()[..., 1:-1] for t in (x, random_transforms.fourier(x, 1.0)))
    share = (after < 1e-4 * before).float().mean((1, 2, 3))
    assert share.mean().item() == pytest.approx(0.25, abs=0.05)
    assert share.max() > 0.4


def test_blur_is_a_gaussian() -> None:
    x = _images(4, 1, 12, 12)
    with seeded("blur"):
        z = random_transforms.blur(x, 0.8)
    with seeded("blur"):
        sigmas = 0.1 + 0.7 * torch.rand(4)
    for image, blurred, sigma in zip(x, z, sigmas.tolist(), strict=True):
        weights = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
        weights /= weights.sum()
        expected = image[0].numpy()
        for axis in (0, 1):
            expected = scipy.ndimage.correlate1d(expected, weights, axis=axis, mode="nearest")
        assert np.allclose(blurred[0].numpy(), expected, atol=1e-5)


def test_contrast_stretches_percentiles_to_the_whole_range() -> None:
    x = 0.2 + 0.5 * _images(30, 1, 16, 16)
    z = random_transforms.contrast(x, 1.0)
    assert ((z <= 0).float().mean((1, 2, 3)) <= 0.12).all() and ((z >= 1).float().mean((1, 2, 3)) <= 0.12).all()
    assert (z.amax((1, 2, 3)) >= 1 - 1e-5).all() and (z.amin((1, 2, 3)) <= 1e-5).all()
    flat = torch.full((2, 1, 8, 8), 0.4)
    assert torch.isfinite(random_transforms.contrast(flat, 1.0)).all()


@pytest.mark.parametrize("info", [GREY, COLOUR], ids=lambda info: info.name)
def test_barrage_stand_in_is_the_same_draw_with_a_gradient_everywhere(info: DataInfo) -> None:
    defense = BaRT(info, transforms=2, strength=0.5, network="resnet8").eval()
    x = _images(24, *info.shape)
    grads = {}
    for name, g in (("exact", defense.transform), ("stand-in", defense.approximations()["true-derivatives"].through)):
        leaf = x.clone().requires_grad_()
        with seeded("draw"):
            z = g(leaf)
        (grads[name],) = torch.autograd.grad((z * z).sum(), leaf)
        assert z.shape == x.shape
        if name == "exact":
            value = z.detach()
    assert torch.allclose(z, value, atol=1e-5)
    alive = {name: (grad.flatten(1).abs().amax(1) > 0).double().mean().item() for name, grad in grads.items()}
    assert alive["stand-in"] == 1.0
    assert 0.1 < alive["exact"] < 0.9  # rounding and JPEG cut the graph of those that drew one of them


def test_barrage_of_one_example_does_not_see_the_others() -> None:
    defense, x = BaRT(GREY).eval(), _images(6, 1, 8, 8)
    other = x.clone()
    other[3:] = 1 - other[3:]
    with seeded("draw"):
        z = defense.transform(x)
    with seeded("draw"):
        moved = defense.transform(other)
    assert torch.allclose(z[:3], moved[:3], atol=1e-6)
    assert not torch.allclose(z[3:], moved[3:], atol=1e-3)


# -- parameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "params", "message"),
    [
        (RegionBased, {"radius": 0.0}, "region-based: radius 0.0"),
        (RegionBased, {"samples": 0}, "region-based: samples 0"),
        (SAP, {"ratio": 0.0}, "sap: ratio 0.0"),
        (RandomSelfEnsemble, {"inner_noise": -0.1}, "rse: inner_noise -0.1"),
        (RandomSelfEnsemble, {"init_noise": 0.0, "inner_noise": 0.0}, "rse: init_noise 0.0"),
        (RandomSelfEnsemble, {"samples": 0}, "rse: samples 0"),
        (PixelDeflection, {"deflections": 65}, "pixel-deflection: deflections 65"),
        (PixelDeflection, {"window": 0}, "pixel-deflection: window 0"),
        (PixelDeflection, {"sigma": -0.1}, "pixel-deflection: sigma -0.1"),
        (BaRT, {"transforms": 9}, "bart: transforms 9"),
        (BaRT, {"strength": 0.0}, "bart: strength 0.0"),
    ],
)
def test_impossible_parameters(make: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        make(GREY, **params)


def test_barrage_needs_a_codec() -> None:
    with pytest.raises(InputError, match=r"^bart: images have 2 channels"):
        BaRT(DataInfo("two", InputSpec((2, 32, 32)), 10))


def test_paper_networks_exist() -> None:
    assert {"resnet20", "vgg16"} <= set(NETWORKS)


# -- the shipped checkpoints ------------------------------------------------------------------------------------


def _load(name: str) -> Defense:
    return load_defense(DefenseSpec(name), DIGITS.info).defense.eval()


def _accuracy(defense: Defense, x: Tensor, y: Tensor, draws: int = 4) -> float:
    with torch.no_grad(), seeded("score"):
        return sum((defense(x).argmax(1) == y).double().mean().item() for _ in range(draws)) / draws


def _under_attack(name: str, estimator: Any, steps: int = 12) -> float:
    from attacks.gradient.pgd import pgd

    defense, some = _load(name), DIGITS.test.take(50)
    target = Target(
        defense, Lp("linf", 0.2), 50, knowledge="gradient", generator=generator(0), randomized=True
    )
    with seeded("attack"):
        x_adv = pgd(target, some.x, some.y, steps=steps, estimator=estimator, rescore=4)
    return _accuracy(defense, x_adv, some.y)


@pytest.mark.parametrize("name", ["region-based", "sap", "rse", "pixel-deflection", "bart"])
def test_clean_accuracy_of_the_checkpoints(name: str) -> None:
    some = DIGITS.test.take(150)
    assert _accuracy(_load(name), some.x, some.y, draws=1) >= (0.9 if name == "bart" else 0.93)


@pytest.mark.parametrize("name", ["region-based", "sap", "pixel-deflection"])
def test_randomness_in_front_of_an_undefended_network_falls_to_eot(name: str) -> None:
    assert _under_attack(name, {"eot": {"samples": 2, "of": "exact"}}) <= 0.1


def test_a_barrage_falls_further_to_its_true_derivatives() -> None:
    exact = _under_attack("bart", "exact")
    adapted = _under_attack("bart", {"eot": {"samples": 4, "of": {"bpda": "true-derivatives"}}})
    assert adapted < exact - 0.05
