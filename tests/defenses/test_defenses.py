"""The first defenses and their networks, on small grey and on 32×32 colour images, without training."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.training.recipe import TrainingRun
from defenses.adversarial_training.madry import Madry
from defenses.adversarial_transformation.ours import AdversarialTransformation
from defenses.input_transformation.jpeg import JPEG, differentiable_jpeg
from defenses.none import Undefended
from defenses.parts.nets import classifier_for, external_for
from defenses.parts.recipes import pgd_examples, random_crop_and_flip
from defenses.randomised.random_resize_pad import RandomResizePad, resize_and_pad

GREY = DataInfo("grey", InputSpec((1, 8, 8)), 10)
COLOUR = DataInfo("colour", InputSpec((3, 32, 32)), 10)
INFOS = pytest.mark.parametrize("info", [GREY, COLOUR], ids=lambda info: info.name)
ALL = (Undefended, Madry, JPEG, RandomResizePad, AdversarialTransformation)
EACH = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)


def _make(cls: type[Defense], info: DataInfo, **params: object) -> Defense:
    with seeded("weights"):
        return cls(info, **params).eval()


def _images(info: DataInfo, n: int = 3) -> Tensor:
    """Smooth images, on which a codec behaves as it does on photographs."""
    coarse = torch.rand(n, info.shape[0], 4, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, info.shape[1:], mode="bilinear", align_corners=False)


@EACH
@INFOS
def test_randomness_is_as_declared(cls: type[Defense], info: DataInfo) -> None:
    defense, x = _make(cls, info), _images(info)
    with torch.no_grad():
        one, two = defense.transform(x), defense.transform(x)
    assert torch.equal(one, two) is not defense.randomized
    assert defense.randomized == (cls in (RandomResizePad, AdversarialTransformation))


@EACH
@INFOS
def test_gradient(cls: type[Defense], info: DataInfo) -> None:
    defense = _make(cls, info)
    x = _images(info).requires_grad_()
    (grad,) = torch.autograd.grad(defense(x).logsumexp(1).sum(), x, allow_unused=True)
    if cls in (JPEG, AdversarialTransformation):
        assert grad is None
    else:
        assert grad.abs().flatten(1).sum(1).min() > 0


@pytest.mark.parametrize("cls", [JPEG, AdversarialTransformation], ids=lambda cls: cls.__name__)
@INFOS
def test_every_approximation_carries_a_gradient(cls: type[Defense], info: DataInfo) -> None:
    defense = _make(cls, info)
    for approximation in defense.approximations().values():
        x = _images(info, 2).requires_grad_()
        z = approximation.through(x)
        (grad,) = torch.autograd.grad((z * torch.randn_like(z)).sum(), x)
        assert torch.isfinite(grad).all()
        assert grad.abs().flatten(1).sum(1).min() > 0


def test_other_image_sizes() -> None:
    for size in (8, 10):
        assert classifier_for(GREY).eval()(torch.rand(1, 1, size, size)).shape == (1, 10)
    assert classifier_for(COLOUR).eval()(torch.rand(1, 3, 36, 36)).shape == (1, 10)
    tiny = DataInfo("tiny", InputSpec((3, 64, 64)), 200)
    assert external_for(tiny).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 200)
    fashion = DataInfo("fashion", InputSpec((1, 28, 28)), 10)
    for net in (classifier_for(fashion), external_for(fashion)):
        assert net.eval()(torch.rand(1, 1, 28, 28)).shape == (1, 10)


def test_external_network_is_the_papers_table_4() -> None:
    convolutions = [m for m in external_for(COLOUR) if isinstance(m, torch.nn.Conv2d)]
    linear = [m for m in external_for(COLOUR) if isinstance(m, torch.nn.Linear)]
    assert [m.out_channels for m in convolutions] == [64, 128, 128, 128, 128, 128]
    assert [(m.in_features, m.out_features) for m in linear] == [(512, 512), (512, 512), (512, 10)]
    external = external_for(DataInfo("t", InputSpec((3, 64, 64)), 200))
    (first, *_) = [m for m in external if isinstance(m, torch.nn.Linear)]
    assert first.in_features == 2048  # appendix A.1, Tiny ImageNet


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (JPEG, {"quality": 0}),
        (Madry, {"steps": 0}),
        (Madry, {"epochs": 0}),
        (Undefended, {"epochs": 0}),
        (AdversarialTransformation, {"radius": 0.0}),
        (AdversarialTransformation, {"steps": 0}),
    ],
)
def test_impossible_parameters(cls: type[Defense], params: dict[str, object]) -> None:
    ((name, value),) = params.items()
    with pytest.raises(InputError, match=f"{name} {value}"):
        cls(GREY, **params)


@pytest.mark.parametrize("cls", [Madry, Undefended])
@pytest.mark.parametrize(("asked", "made"), [(3, 3), (None, 40)])
def test_the_epochs_are_those_asked_for_or_the_schedules_own(
    cls: type[Defense], asked: int | None, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(TrainingRun, "minimise", lambda *_, epochs, **settings: seen.append(epochs))
    run = TrainingRun(None, None, GREY, Lp("linf", 0.2), 0, torch.device("cpu"), None)  # type: ignore[arg-type]
    cls(GREY, epochs=asked).fit(run)
    assert seen == [made]


# -- JPEG ---------------------------------------------------------------------------------------------------


@INFOS
@pytest.mark.parametrize("quality", [30, 75, 90])
def test_differentiable_jpeg_follows_the_codec(info: DataInfo, quality: int) -> None:
    x = _images(info, 8)
    real = _make(JPEG, info, quality=quality).transform(x)
    smooth = differentiable_jpeg(x, quality).clamp(0, 1)
    assert (smooth - real).abs().mean() < 0.01
    assert (smooth - real).abs().mean() < 0.5 * (real - x).abs().mean() + 0.002
    assert real.min() >= 0 and real.max() <= 1
    assert not torch.equal(real, x)


def test_differentiable_jpeg_of_odd_sizes() -> None:
    x = _images(DataInfo("odd", InputSpec((3, 13, 21)), 10), 2)
    assert (differentiable_jpeg(x, 75).clamp(0, 1) - _make(JPEG, COLOUR).transform(x)).abs().mean() < 0.02


def test_jpeg_loses_more_at_lower_quality() -> None:
    x = _images(COLOUR)
    loss = [(_make(JPEG, COLOUR, quality=q).transform(x) - x).abs().mean() for q in (10, 50, 90)]
    assert loss[0] > loss[1] > loss[2]


# -- random resize and pad ----------------------------------------------------------------------------------


@INFOS
def test_resize_pad_draws_per_example(info: DataInfo) -> None:
    defense = _make(RandomResizePad, info)
    one = torch.ones(1, *info.shape).repeat(64, 1, 1, 1)
    with seeded("draws"):
        out = defense.transform(one)
    side = info.shape[1]
    assert out.shape == (64, info.shape[0], side + defense.growth, side + defense.growth)
    sizes = (out[:, 0] > 0).any(2).sum(1)
    assert set(sizes.tolist()) == set(range(side, side + defense.growth + 1))
    assert len({tuple((image[0] > 0).flatten().tolist()) for image in out}) > 5
    assert torch.equal((out[:, 0] > 0).sum((1, 2)), sizes**2)


def test_resize_pad_places_what_interpolation_gives() -> None:
    x = torch.rand(1, 2, 8, 8)
    out = resize_and_pad(x, torch.tensor([1]), torch.tensor([0.0]), torch.tensor([1.0]), growth=2)
    resized = torch.nn.functional.interpolate(x, (9, 9), mode="bilinear", align_corners=False)
    assert torch.allclose(out[..., 0:9, 1:10], resized, atol=1e-6)
    assert out[..., 9, :].abs().max() == 0
    assert out[..., :, 0].abs().max() == 0


# -- recipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_training_examples_stay_in_the_ball_and_raise_the_loss(norm: str) -> None:
    net, x, y = classifier_for(GREY), _images(GREY, 16), torch.arange(16) % 10
    threat = Lp(norm, 0.5)  # type: ignore[arg-type]
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x_adv = pgd_examples(net, x, y, threat, steps=5)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    delta = (x_adv - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert size.max() <= 0.5 + threat.tolerance
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    net.eval()
    loss = torch.nn.functional.cross_entropy
    assert loss(net(x_adv), y) > loss(net(x), y)
    assert not x_adv.requires_grad


def test_crop_and_flip_moves_whole_images() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4).repeat(200, 1, 1, 1) + 1
    with seeded("crops"):
        out = random_crop_and_flip(1, flip=True)(x)
    padded = torch.nn.functional.pad(x[0, 0], (1, 1, 1, 1))
    possible = {tuple(padded[i : i + 4, j : j + 4].flatten().tolist()) for i in range(3) for j in range(3)}
    possible |= {tuple(padded[i : i + 4, j : j + 4].flip(1).flatten().tolist()) for i in range(3) for j in range(3)}
    seen = {tuple(image.flatten().tolist()) for image in out}
    assert seen == possible


def test_no_defense_imports_torchvision_before_it_needs_it() -> None:
    """It takes as long as PyTorch, in every process that opens a defense."""
    code = "import sys, defenses.none, defenses.adversarial_training.madry; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
