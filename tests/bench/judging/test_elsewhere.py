"""The probe looks where attacks go: what shows itself only away from clean inputs is found all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stand_ins import Guarded, Means, Noisy
from torch import Tensor

from bench.contracts.defense import Defense, ready
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.data.splits import Data, Split
from bench.judging.memory import _as_sure, _Asked
from bench.judging.places import Pool, along_the_gradient, places
from bench.judging.probe import probe
from bench.storing.records import Probe

DATA = load_data("digits")
LINF = Lp("linf", 0.2)


def probed(defense: Defense, attacked: Split | None = None, data: Data = DATA, threat: Lp = LINF) -> Probe:
    return probe(ready(defense), data, threat, rate=0.05, seed=0, batch_size=64, attacked=attacked)


def means(forward: Callable[[Any, Tensor], Tensor], base: type[Means] = Means, **members: Any) -> Defense:
    return type("Changed", (base,), {"forward": forward, **members})(DATA.info)  # type: ignore[no-any-return]


def plain(self: Defense, x: Tensor) -> Tensor:
    return self.classifier(x)


def off_grid(x: Tensor) -> Tensor:
    return ((16 * x - (16 * x).round()).abs() > 1e-3).flatten(1).any(1)


# -- places -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_all_places_are_allowed_and_none_is_clean(norm: str) -> None:
    x, y = DATA.validation.x[:8], DATA.validation.y[:8]
    threat = Lp(norm, {"linf": 0.2, "l2": 1.0, "l1": 3.0, "l0": 6.0}[norm])  # type: ignore[arg-type]
    found = places(Means(DATA.info), DATA.info.input, threat, x, y, 0)
    assert list(found) == [
        "random points of the ball",
        "points of the ball on grey levels",
        "adversarial points",
    ]
    for name, points in found.items():
        assert threat.violations(x, points) == ["ok"] * 8, name
        assert (points != x).flatten(1).any(1).all(), name
    assert not off_grid(found["points of the ball on grey levels"]).any()
    assert off_grid(found["random points of the ball"]).all() or norm == "l0"


def test_without_levels_or_a_gradient_there_are_fewer_places() -> None:
    x, y = DATA.validation.x[:8], DATA.validation.y[:8]
    cut = means(lambda self, x: plain(self, x.detach()))
    assert list(places(cut, InputSpec((1, 8, 8)), LINF, x, y, 0)) == ["random points of the ball"]
    assert along_the_gradient(cut, x, y, LINF) is None


def test_points_between_classes_fool_the_nearest_mean_without_a_gradient() -> None:
    x, y = DATA.validation.x[:100], DATA.validation.y[:100]
    pool = Pool.of(DATA.train, torch.device("cpu"))
    defense = ready(Means(DATA.info))
    clean = (defense(x).argmax(1) == y).float().mean()
    moved = (defense(pool.between_means(x, y, LINF)).argmax(1) == y).float().mean()
    assert clean > 0.85 and moved < 0.3
    nearest = pool.nearest(x, y, LINF)
    assert LINF.violations(x, nearest) == ["ok"] * 100


# -- randomness, batch, memory ----------------------------------------------------------------------------------


def test_noise_off_the_grey_levels_alone_is_found() -> None:
    def forward(self: Defense, x: Tensor) -> Tensor:
        return plain(self, x) + off_grid(x)[:, None] * torch.randn(len(x), 10)

    found = probed(means(forward))
    assert found.randomized and not found.declared_randomized
    assert found.random_at is not None and "clean inputs" not in found.random_at
    assert "random points of the ball" in found.random_at
    assert "points of the ball on grey levels" not in found.random_at


def test_a_random_score_off_the_grey_levels_alone_is_found() -> None:
    class Scored(Guarded):
        def detect(self, x: Tensor) -> Tensor:
            return super().detect(x) + off_grid(x) * torch.rand(len(x))

    found = probed(Scored(DATA.info))
    assert found.randomized and "clean inputs" not in (found.random_at or [])


def test_dependence_on_the_batch_off_the_grey_levels_alone_is_found() -> None:
    def forward(self: Defense, x: Tensor) -> Tensor:
        return plain(self, x) + off_grid(x)[:, None] * x.mean() * torch.arange(10)

    found = probed(means(forward))
    assert found.batch_dependent and found.batch_dependent_at is not None
    assert "clean inputs" not in found.batch_dependent_at and "random points of the ball" in found.batch_dependent_at


@pytest.mark.parametrize("size", [1, 16, 32])
def test_a_size_of_batch_that_is_treated_otherwise_is_found(size: int) -> None:
    def forward(self: Defense, x: Tensor) -> Tensor:
        return plain(self, x) * (-1.0 if len(x) == size else 1.0)

    assert probed(means(forward)).batch_dependent


def test_a_score_that_depends_on_the_batch_is_found() -> None:
    class Scored(Guarded):
        def detect(self, x: Tensor) -> Tensor:
            return super().detect(x) - x.mean()

    assert probed(Scored(DATA.info)).batch_dependent
    assert not probed(Guarded(DATA.info)).batch_dependent


def remembering(self: Any, x: Tensor) -> Tensor:
    """The first answer to a clean input, for all that is near it."""
    logits = plain(self, x)
    memory = self.seen
    for i in (~off_grid(x)).nonzero().flatten().tolist():
        memory.append((x[i].detach().clone(), logits[i].detach().clone()))
    answers = []
    for row, own in zip(x, logits, strict=True):
        near = [said for point, said in memory if (row.detach() - point).abs().max() < 0.21]
        answers.append(near[0] if near else own)
    return torch.stack(answers)


def test_a_memory_of_clean_inputs_is_found() -> None:
    assert probed(means(remembering, seen=[])).stateful is True
    assert probed(means(plain)).stateful is False


@pytest.mark.parametrize("declared", [False, True])
def test_a_count_of_calls_is_found_unless_it_is_declared_to_be_random(declared: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return plain(self, x) + self.calls

    found = probed(means(forward, randomized=declared))
    assert found.stateful is (None if declared else True)


def test_declared_noise_from_the_global_generators_is_no_memory() -> None:
    found = probed(Noisy(DATA.info))
    assert found.stateful is False and found.batch_dependent is False
    assert found.mode_dependent is False


def test_a_score_that_rejects_what_was_asked_before_is_found() -> None:
    class Watching(Guarded):
        def detect(self, x: Tensor) -> Tensor:
            before = vars(self).setdefault("asked", [torch.full((1, 64), 9.0)])
            distance = torch.cdist(x.flatten(1), torch.cat(before), p=torch.inf)
            before.append(x.detach().flatten(1).clone())
            return super().detect(x) + ((distance > 1e-6) & (distance < 0.21)).sum(1)

    assert probed(Watching(DATA.info)).stateful


def test_logits_that_overflow_losses_are_refused_wherever_they_are() -> None:
    with pytest.raises(InputError, match=r"forward: logits reach 1e\+20, at most 1e\+15 is allowed"):
        probed(means(lambda self, x: 1e20 * plain(self, x) / plain(self, x).abs().max()))
    with pytest.raises(InputError, match="forward: logits reach"):
        probed(means(lambda self, x: plain(self, x) * torch.where(off_grid(x), 1e20, 1.0)[:, None]))


# -- gradients --------------------------------------------------------------------------------------------------


class _Other(torch.autograd.Function):
    """The value of one tensor, the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, other: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, grads[0]


def test_logits_that_differ_where_a_gradient_is_asked_for_are_noticed() -> None:
    def forward(self: Defense, x: Tensor) -> Tensor:
        return plain(self, x) * (-1.0 if torch.is_grad_enabled() and x.requires_grad else 1.0)

    assert probed(means(forward)).mode_dependent
    assert not probed(means(plain)).mode_dependent


def other_weights(self: Defense, x: Tensor) -> Tensor:
    weights = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    return _Other.apply(plain(self, x).detach(), x.flatten(1) @ weights)  # type: ignore[no-any-return]


def one_direction(self: Defense, x: Tensor) -> Tensor:
    """Along a fixed direction the gradient is right, and nothing of it is left across."""
    unit = torch.randn(64, generator=torch.Generator().manual_seed(1))
    unit /= unit.norm()
    along = (x.flatten(1) @ unit)[:, None] * unit
    return _Other.apply(plain(self, x).detach(), plain(self, along.view_as(x)))  # type: ignore[no-any-return]


def constant(self: Defense, x: Tensor) -> Tensor:
    """The nearest label of a table, with the gradient of a network."""
    return _Other.apply(torch.eye(10)[torch.zeros(len(x), dtype=torch.int64)], plain(self, x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [other_weights, one_direction, constant])
def test_a_gradient_of_another_function_agrees_with_no_difference(forward: Any) -> None:
    found = probed(means(forward)).slopes
    assert found is not None and min(found.along / 0.1, found.across / 0.15) < 1


@pytest.mark.parametrize("steps", [4, 16, 64])
def test_steps_that_pass_the_gradient_straight_through_agree(steps: int) -> None:
    def forward(self: Defense, x: Tensor) -> Tensor:
        return plain(self, x + ((x * steps).round() / steps - x).detach())

    found = probed(means(forward)).slopes
    assert found is not None and found.along > 0.5 and found.across > 0.5


def test_a_randomised_defense_is_compared_on_the_same_draws() -> None:
    found = probed(Noisy(DATA.info)).slopes
    assert found is not None and found.along == pytest.approx(1, abs=0.1) and found.across > 0.9


def test_without_a_gradient_there_is_nothing_to_compare() -> None:
    assert probed(means(lambda self, x: plain(self, x.detach()))).slopes is None


# -- known inputs -----------------------------------------------------------------------------------------------


def looking_up(self: Any, x: Tensor) -> Tensor:
    """The label of the test image within the ball, else what the network says."""
    logits = plain(self, x)
    distance, which = torch.cdist(x.detach().flatten(1), DATA.test.x.flatten(1), p=torch.inf).min(1)
    return torch.where(distance[:, None] < 0.201, 10 * torch.eye(10)[DATA.test.y[which]] + 0 * logits, logits)


def test_a_table_of_the_test_images_is_seen_beside_fresh_ones() -> None:
    known = probed(means(looking_up), attacked=DATA.test).memory
    assert known is not None
    assert known.moved == known.examples == 256 and known.fresh_moved < 80
    honest = probed(means(plain), attacked=DATA.test).memory
    assert honest is not None and abs(honest.moved - honest.fresh_moved) < 36
    # Where the suite's inputs seem better, more are made, so that luck with these hides nothing.
    assert (known.made_examples, honest.made_examples) == (4 * 256, 256)
    assert known.made_expected == known.made_clean, "of a table every input stays right, whatever its margin"


def test_of_inputs_that_are_made_as_many_are_expected_to_stay_as_of_the_suite_s_of_the_same_margin() -> None:
    def asked(margin: list[float], moved: list[bool]) -> _Asked:
        margins = torch.tensor(margin)
        return _Asked(margins > 0, margins > 0, torch.tensor(moved), margins)

    # Of 16 small margins a quarter stays, of 16 large ones all; what is wrong as it is does not count.
    known = asked([0.1] * 16 + [3.0] * 16 + [-1.0] * 8, [True] * 4 + [False] * 12 + [True] * 16 + [True] * 8)
    assert _as_sure(known, asked([0.2] * 4 + [-0.1], [False] * 5)) == 1.0
    assert _as_sure(known, asked([2.5] * 4, [False] * 4)) == 4.0
    assert _as_sure(known, asked([-1.0], [False])) == 0.0
    assert _as_sure(asked([-1.0], [True]), asked([1.0], [True])) == 0.0
    hard = asked([1.0] * 40, [True] * 10 + [False] * 30)
    assert _as_sure(hard, hard) == 10.0, "all of the same margin count, not the first ones"


def test_a_table_of_exact_test_images_is_seen_once_they_are_hardly_moved() -> None:
    def exact(self: Any, x: Tensor) -> Tensor:
        known = torch.cdist(x.flatten(1), DATA.test.x.flatten(1), p=torch.inf)
        labels = DATA.test.y[known.argmin(1)]
        return torch.where(known.amin(1)[:, None] < 1e-6, torch.eye(10)[labels], torch.eye(10)[(labels + 1) % 10])

    known = probed(means(exact), attacked=DATA.test).memory
    assert known is not None and known.clean == 256 and known.near == 0


def test_without_fresh_inputs_nothing_is_compared() -> None:
    assert probed(means(plain), attacked=DATA.validation).memory is None
    assert probed(means(plain)).memory is None


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 100)])
def test_other_inputs_are_probed_too(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    kind = "image" if len(shape) == 3 else "waveform"
    spec = InputSpec(shape, kind=kind)  # type: ignore[arg-type]
    x, y = torch.rand(90, *shape, generator=generator), torch.arange(90) % 3

    def split(name: str, rows: slice) -> Split:
        return Split(x[rows], y[rows], [f"{name}/{i}" for i in range(len(y[rows]))])

    parts = split("train", slice(30)), split("validation", slice(30, 60)), split("test", slice(60, 90))
    data = Data(DataInfo("made", spec, 3), list("abc"), *parts)

    class Sums(Defense):
        trainable = False

        def forward(self, x: Tensor) -> Tensor:
            values = x.flatten(1)
            return torch.stack([values[:, k::3].sum(1) for k in range(3)], 1)

    found = probed(Sums(data.info), data.test, data, Lp("l2", 0.5))
    assert not (found.randomized or found.batch_dependent or found.stateful or found.mode_dependent)
    assert found.slopes is not None and found.slopes.across > 0.9
    assert found.memory is not None and found.memory.examples == 30
