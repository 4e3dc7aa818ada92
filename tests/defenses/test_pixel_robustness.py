"""Pixel robustness manipulation, and the measurement that goes with it (bench.studies.input_gradients.measure)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.data.splits import Split
from bench.plugins.resolve import load_defense
from bench.studies.input_gradients.measure import (
    equal_l2,
    intersection_over_union,
    mean_absolute_gradient,
    measure,
    top_share,
)
from defenses.input_transformation.jpeg import JPEG
from defenses.modified_network.prm import PRM, SETS, lattice
from defenses.modified_network.random_prm import RandomPRM

GREY = DataInfo("grey", InputSpec((1, 8, 8)), 10)
COLOUR = DataInfo("colour", InputSpec((3, 32, 32)), 10)
INFOS = pytest.mark.parametrize("info", [GREY, COLOUR], ids=lambda info: info.name)
THREAT = Lp("linf", 0.2)
DATA = load_data("digits")


def _make(cls: type[PRM], info: DataInfo, **params: object) -> PRM:
    with seeded("weights"):
        defense = cls(info, width=4, **params).eval()  # type: ignore[arg-type]
        nn.init.normal_(defense.rebuilder.last.weight)
    return defense


def _shipped(name: str) -> Defense:
    return load_defense(DefenseSpec(name), DATA.info).defense.eval().requires_grad_(False)


# -- the defenses -------------------------------------------------------------------------------------------


def test_lattices_share_out_the_pixels() -> None:
    sets = lattice(torch.arange(SETS), 8, 10)
    assert sets.shape == (4, 8, 10)
    assert (sets.sum((1, 2)) == 20).all()
    assert (sets.sum(0) == 1).all()
    assert sets[1].nonzero()[0].tolist() == [0, 1] and sets[2].nonzero()[0].tolist() == [1, 0]


@INFOS
@pytest.mark.parametrize("number", [0, 3])
def test_at_full_strength_only_designated_pixels_have_a_gradient(info: DataInfo, number: int) -> None:
    defense = _make(PRM, info, strength=1.0, designated_set=number)
    x = torch.rand(2, *info.shape, requires_grad=True)
    (grad,) = torch.autograd.grad(defense(x).square().sum(), x)
    reached = grad.abs().sum((0, 1)) > 0
    assert not reached[~defense.designated].any()
    assert reached[defense.designated].double().mean() > 0.9


@INFOS
def test_strength_mixes_image_and_reconstruction(info: DataInfo) -> None:
    x = torch.rand(2, *info.shape)
    with torch.no_grad():
        assert torch.equal(_make(PRM, info, strength=0.0).transform(x), x)
        defense = _make(PRM, info, strength=0.25)
        rebuilt = defense.rebuild(x, defense.draw_sets(x))
        assert torch.allclose(defense.transform(x), 0.75 * x + 0.25 * rebuilt)
        elsewhere = torch.where(defense.designated, x, torch.rand_like(x))
        assert torch.equal(defense.rebuild(elsewhere, defense.draw_sets(x)), rebuilt)


def test_random_sets_are_drawn_for_every_image() -> None:
    defense = _make(RandomPRM, GREY, strength=1.0)
    one = torch.rand(1, 1, 8, 8).repeat(64, 1, 1, 1)
    with torch.no_grad(), seeded("draw"):
        out = defense.transform(one)
        single = torch.cat([defense.rebuild(one[:1], torch.tensor([number])) for number in range(SETS)])
    nearest = (out[:, None] - single[None]).abs().flatten(2).amax(2)
    assert nearest.min(1).values.max() < 1e-5
    assert set(nearest.argmin(1).tolist()) == set(range(SETS))


@pytest.mark.parametrize("params", [{"strength": 1.5}, {"designated_set": 4}, {"width": 0}])
def test_impossible_parameters(params: dict[str, object]) -> None:
    ((name, value),) = params.items()
    with pytest.raises(InputError, match=f"prm: {name} {value}"):
        PRM(GREY, **params)  # type: ignore[arg-type]


# -- the measurement ----------------------------------------------------------------------------------------


class _Linear(Defense):
    """logits = W x, whose input gradient is Wᵀ(p - onehot)."""

    def __init__(self, info: DataInfo) -> None:
        super().__init__(info)
        values = info.shape[0] * info.shape[1] * info.shape[2]
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(values, info.num_classes, bias=False))


def _reference(defense: _Linear, x: Tensor, y: Tensor) -> Tensor:
    weight = defense.classifier[1].weight  # type: ignore[index]
    total = torch.zeros(x.shape[2:])
    for image, label in zip(x, y, strict=True):
        residual = (weight @ image.flatten()).softmax(0)
        residual[label] -= 1
        total += (weight.T @ residual).view_as(image).abs().mean(0)
    return total / len(x)


def test_heat_map_of_a_linear_model() -> None:
    info = DataInfo("linear", InputSpec((3, 4, 5)), 6)
    with seeded("linear"):
        defense = _Linear(info).requires_grad_(False).eval()
    x, y = torch.rand(7, *info.shape), torch.arange(7) % 6
    found = mean_absolute_gradient(defense, x, y, batch_size=3)
    assert torch.allclose(found.float(), _reference(defense, x, y), rtol=1e-4)


def test_top_share_and_overlap() -> None:
    heat_map = torch.arange(16.0).view(4, 4)
    top = top_share(heat_map)
    assert top.flatten().nonzero().flatten().tolist() == [12, 13, 14, 15]
    assert int(top_share(torch.zeros(8, 8)).sum()) == 16
    assert intersection_over_union(top, top) == 1
    other = top_share(-heat_map)
    assert intersection_over_union(top, other) == 0
    half = torch.tensor([[True, True, False, False]]), torch.tensor([[True, False, True, False]])
    assert intersection_over_union(*half) == pytest.approx(1 / 3)
    for call in (lambda: top_share(heat_map, 0.0), lambda: intersection_over_union(top, top[:2])):
        with pytest.raises(InputError):
            call()


def test_equal_l2_is_the_length_of_a_quarter_at_the_linf_bound() -> None:
    delta = torch.where(lattice(torch.tensor([0]), 8, 8), 0.2, 0.0)
    bound = equal_l2(THREAT, (1, 8, 8))
    assert bound.norm == "l2"
    assert bound.eps == pytest.approx(delta.norm().item())


def test_prm_moves_gradients_and_attacks_to_the_designated_pixels() -> None:
    defense, some = _shipped("prm"), DATA.test.take(40)
    moved = measure(defense, some, THREAT, steps=10)
    assert moved.iou is not None and moved.chance_iou == pytest.approx(1 / 7)
    plain = mean_absolute_gradient(_shipped("none"), some.x, some.y)
    assert moved.iou > 0.5 > intersection_over_union(top_share(plain), defense.designated)  # type: ignore[arg-type]
    accuracy = {(a.pixels, a.norm): a.accuracy for a in moved.accuracies}
    assert accuracy["none", "linf"] > 0.85
    assert accuracy["all", "linf"] <= 0.1
    assert accuracy["designated", "l2"] < accuracy["others", "l2"]
    assert accuracy["all", "l2"] <= accuracy["designated", "l2"]
    assert type(moved).model_validate_json(moved.model_dump_json()) == moved


def test_measurement_is_reproducible_and_states_its_budget() -> None:
    some = DATA.test.take(4)
    defense = _shipped("random-prm")
    one = measure(defense, some, THREAT, steps=2, seed=5)
    assert one == measure(defense, some, THREAT, steps=2, seed=5)
    assert one.gradient_draws > 1
    for entry in one.accuracies[1:]:
        assert (entry.n, entry.seed, entry.steps, entry.loss) == (4, 5, 2, "ce")
        assert entry.draws > 1 and "eot" in entry.estimator
    assert [entry.changeable for entry in one.accuracies] == [0, 64, 16, 48, 64, 16, 48]


def test_without_designated_pixels_the_heat_map_decides() -> None:
    found = measure(_shipped("none"), DATA.test.take(12), THREAT, steps=1)
    assert found.iou is None and found.designated is None
    assert [entry.pixels for entry in found.accuracies] == ["none", "all", "top", "rest", "all", "top", "rest"]
    assert torch.equal(torch.tensor(found.top).bool(), top_share(torch.tensor(found.heat_map)))


def test_what_cannot_be_measured() -> None:
    defense, some = _shipped("prm"), DATA.test.take(4)
    with pytest.raises(InputError, match="JPEG cuts its graph"):
        mean_absolute_gradient(JPEG(GREY).eval(), some.x, some.y)
    with pytest.raises(InputError, match="no examples"):
        mean_absolute_gradient(defense, some.x[:0], some.y[:0])
    with pytest.raises(InputError, match="l2"):
        measure(defense, some, Lp("l2", 1.0))
    for designated in (torch.ones(8, 8), torch.zeros(8, 8), torch.ones(4, 4)):
        with pytest.raises(InputError, match="designated"):
            measure(defense, Split(some.x, some.y, some.ids), THREAT, designated=designated)
