"""Estimators that look inside a transform, against gradients known in closed form."""

from __future__ import annotations

import pytest
import torch
from lab import Linear, make_context, make_target
from torch import Tensor, nn

from attacks.adaptive.as_released import released_bpda
from attacks.adaptive.hijack import hijack
from attacks.gradient.pgd import pgd
from attacks.toolkit.estimators import as_estimator
from attacks.toolkit.inside import Hijack
from attacks.toolkit.losses import Goal, margin
from bench.contracts.defense import BareModel, Defense, Guide, freeze
from bench.contracts.errors import NotApplicable
from bench.contracts.inputs import DataInfo, InputSpec

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


class Square(nn.Module):
    """Logits (w x², -w x²): the gradient of the margin depends on where it is taken."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, z: Tensor) -> Tensor:
        half = (z.square() * self.weight).flatten(1).sum(1)
        return torch.stack([half, -half], 1)


class Guided(Defense):
    """g adds 0.1 for class 0 of a linear guide at x, 0.3 for class 1, and normal noise of size ``noise``."""

    version = 1
    trainable = False

    def __init__(self, data: DataInfo, noise: float = 0.0) -> None:
        super().__init__(data)
        draw = torch.Generator().manual_seed(1)
        self.noise, self.randomized = noise, noise > 0
        self.classifier = Square(torch.randn(data.shape, generator=draw))
        width = torch.Size(data.shape).numel()
        self.external = Linear(torch.randn(2, width, generator=draw), torch.zeros(2))

    def _moved(self, x: Tensor, label: Tensor) -> Tensor:
        moved = x + 0.1 + 0.2 * label.view(-1, *[1] * (x.ndim - 1))
        return moved + self.noise * torch.randn_like(x)

    def transform(self, x: Tensor) -> Tensor:
        return self._moved(x, self.external(x).argmax(1))

    def variants(self):  # type: ignore[no-untyped-def]
        return {"still": lambda x: x + 0.1}

    def guide(self) -> Guide:
        return Guide(self.external, "most-likely", self._moved)


def _case(shape: tuple[int, ...], noise: float = 0.0, n: int = 5) -> tuple[Guided, Tensor, Tensor]:
    defense = freeze(Guided(DataInfo("toy", InputSpec(shape), 2), noise))
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(3))
    return defense, x, torch.zeros(n, dtype=torch.int64)


def _gradient(defense: Defense, z: Tensor) -> Tensor:
    """Of z_1 - z_0 of :class:`Square` at ``z``, by hand."""
    assert isinstance(defense.classifier, Square)
    return -4 * z * defense.classifier.weight


@pytest.mark.parametrize("shape", SHAPES)
def test_a_variant_is_differentiated_at_its_own_point(shape: tuple[int, ...]) -> None:
    defense, x, y = _case(shape)
    target = make_target(defense, len(x), "gradient")
    at = as_estimator({"variant": "still"}).evaluate(target, x, Goal(margin, y), torch.arange(len(x)))
    torch.testing.assert_close(at.grad, _gradient(defense, x + 0.1))
    torch.testing.assert_close(at.logits, defense.classifier(x + 0.1))
    assert not target.counts.notes
    as_estimator({"variant": "quick"}).evaluate(target, x, Goal(margin, y), torch.arange(len(x)))
    assert target.counts.notes == {"variant 'quick' is not declared; 'still' was used"}


def test_what_is_not_declared_is_not_applicable() -> None:
    defense, x, y = _case((1, 8, 8))
    bare = BareModel(defense.classifier, defense.data)
    for estimator in ({"variant": "still"}, "guide", {"with_guide": {"of": "identity"}}):
        with pytest.raises(NotApplicable, match="declares no"):
            pgd(make_target(bare, len(x), "gradient"), x, y, steps=2, estimator=estimator)
    with pytest.raises(NotApplicable, match="declares no"):
        hijack(make_target(bare, len(x), "gradient"), x, y)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_of_draws_is_taken_before_the_classifier(shape: tuple[int, ...]) -> None:
    defense, x, y = _case(shape, noise=0.3)
    target = make_target(defense, len(x), "gradient", randomized=True)
    index = torch.arange(len(x))
    at = as_estimator({"mean_transform": {"samples": 50}}).evaluate(target, x, Goal(margin, y), index)
    label = defense.external(x).argmax(1)
    mean = x + 0.1 + 0.2 * label.view(-1, 1, 1, 1)
    wanted = _gradient(defense, mean)
    apart = (at.grad - wanted) / (-4 * defense.classifier.weight)  # the noise of the mean, 0.3 / √50
    assert 0.7 < apart.std() / (0.3 / 50**0.5) < 1.3
    assert target.counts.forward.tolist() == [50] * len(x)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_guides_loss_is_added_with_its_weight(shape: tuple[int, ...]) -> None:
    defense, x, y = _case(shape)
    target, index = make_target(defense, len(x), "gradient"), torch.arange(len(x))
    at = as_estimator({"with_guide": {"of": "identity", "weight": 0.5}}).evaluate(target, x, Goal(margin, y), index)
    rows = defense.external.weight
    own = _gradient(defense, defense.transform(x))
    torch.testing.assert_close(at.grad, own + 0.5 * (rows[1] - rows[0]).view(1, *shape))
    torch.testing.assert_close(at.logits, defense(x))
    guide = as_estimator("guide").evaluate(target, x, Goal(margin, y), index)
    torch.testing.assert_close(guide.grad, (rows[1] - rows[0]).view(1, *shape).expand_as(x))
    assert target.counts.forward.tolist() == [3] * len(x)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hijack_climbs_behind_the_forced_choice_until_it_is_made(shape: tuple[int, ...]) -> None:
    defense, x, y = _case(shape)
    target, index = make_target(defense, len(x), "gradient"), torch.arange(len(x))
    chosen = defense.external(x).argmax(1)
    assert len(chosen.unique()) == 2
    at = Hijack(1).evaluate(target, x, Goal(margin, y), index)
    towards = (defense.external.weight[1] - defense.external.weight[0]).view(1, *shape)
    wanted = torch.where(chosen.view(-1, 1, 1, 1) == 0, towards, _gradient(defense, x + 0.3))
    torch.testing.assert_close(at.grad, wanted)
    assert at.loss[chosen == 0].max() < at.loss[chosen == 1].min()


class _Switch(Guided):
    """Right for whatever its guide takes for class 0, wrong for the rest: only the guide's choice can be attacked."""

    def _moved(self, x: Tensor, label: Tensor) -> Tensor:
        side = 2 * label.to(x) - 1
        return side.view(-1, *[1] * (x.ndim - 1)).expand_as(x) + 0 * x

    def __init__(self, data: DataInfo, noise: float = 0.0) -> None:
        super().__init__(data, noise)
        self.classifier = Linear(torch.stack([-torch.ones(64), torch.ones(64)]), torch.zeros(2))


def test_a_hijack_finds_what_no_gradient_of_the_classifier_shows() -> None:
    defense = freeze(_Switch(DataInfo("toy", InputSpec((1, 8, 8)), 2)))
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    towards = (defense.external.weight[1] - defense.external.weight[0]).view(1, 8, 8)
    reach = defense.external((x + 0.15 * towards.sign()).clamp(0, 1)).argmax(1) == 1
    x = x[(defense.external(x).argmax(1) == 0) & reach]
    assert len(x) > 10
    y = torch.zeros(len(x), dtype=torch.int64)
    found = hijack(make_target(defense, len(x), "gradient", eps=0.15), x, y, steps=10)
    assert (defense(found).argmax(1) == 1).all()
    blind = pgd(make_target(defense, len(x), "gradient", eps=0.15), x, y, steps=10, estimator="identity")
    assert (defense(blind).argmax(1) == 1).float().mean() < 0.8


def test_the_released_bpda_has_the_defects_that_it_says() -> None:
    defense, x, _ = _case((3, 32, 32))
    defense.classifier.weight *= 1e-3  # no gradient of the cross-entropy vanishes
    y = torch.ones(len(x), dtype=torch.int64)  # not looked at: the classifier's own label at x is
    found = released_bpda(make_target(defense, len(x), "gradient", eps=0.1), x, y, steps=1, step_size=0.1)
    label = defense.classifier(x).argmax(1)
    doubled = defense.transform(x) + x
    rising = torch.where(label.view(-1, 1, 1, 1) == 0, -1.0, 1.0) * doubled * defense.classifier.weight
    torch.testing.assert_close(found, (x + 0.01 * rising.sign()).clamp(0, 1))


def test_a_value_without_gradient_ends_where_it_was() -> None:
    defense, x, y = _case((1, 8, 8))
    defense.classifier.weight *= 0.1
    defense.classifier.weight[0, 0, 0] = 0.0
    found = released_bpda(make_target(defense, len(x), "gradient", eps=0.1), x, y, steps=5)
    assert torch.equal(found[:, 0, 0, 0], x[:, 0, 0, 0])
    assert not torch.equal(found[:, 0, 1, 1], x[:, 0, 1, 1])
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_a_student_learns_what_a_defense_without_gradient_does(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    width = torch.Size(shape).numel()
    pattern = torch.zeros(shape)
    pattern[..., : shape[-1] // 2] = 1.0
    weight = torch.stack([-(pattern - 0.5).flatten(), (pattern - 0.5).flatten()]) * 40 / width

    class Cut(Guided):
        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(x.detach())

    defense = Cut(DataInfo("toy", InputSpec(shape), 2))
    defense.classifier = Linear(weight, torch.zeros(2))
    freeze(defense)
    left = torch.rand(300, 1, 1, 1)
    x = 0.5 + 0.2 * (left - 0.5) * (2 * pattern - 1) + 0.1 * (torch.rand(300, *shape) - 0.5)
    y = defense(x).argmax(1)
    estimator = as_estimator({"distilled": {"images": 3_000, "draws": 1}})
    prepared = estimator.prepare(make_context(defense, x, y, defense.data, eps=0.1))
    index = torch.arange(40)
    target = make_target(defense, 40, "gradient", prepared=prepared)
    at = estimator.evaluate(target, x[:40], Goal(margin, y[:40]), index)
    assert (at.logits.argmax(1) == y[:40]).float().mean() > 0.9
    found = pgd(target, x[:40], y[:40], steps=10, estimator=estimator)
    assert (defense(found).argmax(1) != y[:40]).float().mean() > 0.8
