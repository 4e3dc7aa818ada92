"""The attack that adapts itself: what it finds for defenses that hide in known ways, and that it says so."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from lab import DIGITS, assert_feasible, digits, digits_classifier, make_target
from torch import Tensor, nn

from attacks.adaptive.adaptive import _Movers, adaptive, budgets
from attacks.adaptive.as_released import released_bpda
from attacks.adaptive.candidates import Candidate, searches
from attacks.adaptive.hijack import hijack
from attacks.adaptive.search import FOUND, _Arena, _first_of_each, read, search
from attacks.adaptive.warm_start import warm_start
from attacks.score.square import square
from attacks.toolkit.pool import Pool
from bench.contracts.attack import PrepareContext
from bench.contracts.defense import Defense, freeze
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.threat import Lp
from bench.data.splits import Split


class Hidden(Defense):
    """A digits network behind a transform without gradient, as ``how`` says."""

    def __init__(self, how: str) -> None:
        super().__init__(DIGITS)
        self.how, self.randomized = how, how == "noise"
        self.classifier = digits_classifier()

    def transform(self, x: Tensor) -> Tensor:
        if self.how == "noise":
            return (x + 0.1 * torch.randn_like(x)).detach()
        return x.detach()

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "logits":  # not even the classifier's own gradient is left
            with torch.no_grad():
                return self.classifier(x).detach()
        return super().forward(x)


class Steps(nn.Module):
    """A digits network on the nearest of five grey levels: flat almost everywhere, as seen from outside and within."""

    def __init__(self) -> None:
        super().__init__()
        self.network = digits_classifier()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.network((4 * x).round() / 4)


class Stepped(Defense):
    """A classifier without any gradient, and nothing around it."""

    def __init__(self) -> None:
        super().__init__(DIGITS)
        self.classifier = Steps()


@cache
def _found(how: str) -> tuple[Defense, dict[str, Tensor]]:
    defense = freeze(Stepped() if how == "stepped" else Hidden(how))
    train_x, train_y, _, _ = digits()
    split = Split(train_x[:200], train_y[:200], [str(i) for i in range(200)])
    torch.manual_seed(0)
    return defense, search(PrepareContext(defense, DIGITS, Lp("linf", 0.2), split, torch.device("cpu"), split), 100)


def _by_hand(best: list[Candidate]) -> dict[str, Tensor]:
    """What a search would hand over that had found the candidates ``best``."""
    found = {"best": [vars(candidate) for candidate in best], "says": "by hand"}
    return {FOUND: torch.tensor(list(json.dumps(found).encode()), dtype=torch.uint8)}


@pytest.mark.parametrize("how", ["cut", "noise"])
def test_it_finds_the_gradient_that_a_defense_hides(how: str) -> None:
    defense, prepared = _found(how)
    candidates, says = read(prepared)
    assert len(candidates) == 3
    assert candidates[0].estimator in ("identity", "classifier")
    assert candidates[1].estimator != candidates[0].estimator, "the second is the best of another estimator"
    assert says.startswith("after ")
    assert f"{candidates[0]}, which left" in says
    assert "exact" in says
    assert "finite_difference (samples 16)" in says
    _, _, x, y = digits()
    x, y = x[:30], y[:30]
    target = make_target(defense, 30, "gradient", eps=0.2, randomized=defense.randomized, prepared=prepared)
    found = adaptive(target, x, y, passes=100)
    assert_feasible(target, x, found)
    assert target.counts.notes >= {says}
    assert (defense(found).argmax(1) == y).float().mean() < 0.15
    assert target.counts.forward.float().mean() < 130


def test_where_no_gradient_helps_the_search_notices_soon_and_gives_square_the_budget() -> None:
    defense, prepared = _found("stepped")
    candidates, says = read(prepared)
    assert not candidates[0].by_gradients
    assert "scores" in says
    assert int(says.split()[1]) < 30, "about as many as there are estimators: none is refined"
    _, _, x, y = digits()
    x, y = x[:30], y[:30]
    target = make_target(defense, 30, "gradient", eps=0.2, prepared=prepared)
    found = adaptive(target, x, y, passes=100)
    assert_feasible(target, x, found)
    alone = make_target(defense, 30, "score", eps=0.2)
    by_square = square(alone, x, y, queries=100)
    left, left_by_square = ((defense(points).argmax(1) == y).float().mean() for points in (found, by_square))
    assert left <= left_by_square
    assert target.counts.forward.float().mean() < 130


def test_the_search_is_the_same_every_time() -> None:
    defense, prepared = _found("cut")
    train_x, train_y, _, _ = digits()
    split = Split(train_x[:200], train_y[:200], [str(i) for i in range(200)])
    torch.manual_seed(0)
    again = search(PrepareContext(defense, DIGITS, Lp("linf", 0.2), split, torch.device("cpu"), split), 100)
    assert read(again) == read(prepared)


def test_the_first_of_each_kind_is_the_best_of_it() -> None:
    order = [Candidate(name, loss, "pgd", 1) for name, loss in (("a", "ce"), ("b", "ce"), ("c", "ce"), ("a", "dlr"))]
    assert _first_of_each(order, lambda candidate: candidate.estimator) == order[:3]


class _Told(_Arena):
    """An arena in which what each candidate leaves of two images is told, not tried."""

    def __init__(self, told: dict[str, tuple[float, float]]) -> None:
        self.x, self.told = torch.zeros(2, 1, 8, 8), told
        self.left = {}

    def _try(self, candidate: Candidate, passes: int) -> bool:
        left = torch.tensor(self.told[candidate.loss], dtype=torch.float64)
        self.left[str(candidate)] = str(candidate.estimator), left
        return passes > 0


def test_candidates_are_kept_that_leave_least_together() -> None:
    # c leaves more alone than b, and nothing of what a leaves. Beside both, b and d add nothing; d is of another kind.
    # So is Square, but what leaves much and adds nothing is no help.
    told = {"a": (0.0, 0.5), "b": (0.0, 0.6), "c": (1.0, 0.0), "d": (0.5, 0.7), "margin": (0.9, 0.9)}
    kinds = {"a": "identity", "b": "identity", "c": "identity", "d": "exact"}
    four = {loss: Candidate(estimator, loss, "pgd", 1) for loss, estimator in kinds.items()}
    arena = _Told(told)
    assert arena.together([*four.values(), *searches(1)], 10, 3) == [four["a"], four["c"], four["d"]]


def test_what_may_be_luck_does_not_choose_a_candidate() -> None:
    two = [Candidate("identity", "a", "pgd", 1), Candidate("identity", "b", "pgd", 1)]
    for left, chosen in ((0.4, two), (0.3, [two[0], *searches(1)])):
        arena = _Told({"a": (0.5, 0.5), "b": (0.6, 0.6), "margin": (1.0, left)})
        assert arena.together([*two, *searches(1)], 10, 2) == chosen


def test_square_takes_its_passes_and_leaves_the_fallen_alone() -> None:
    defense = freeze(Stepped())
    _, _, x, y = digits()
    x, y = x[:8], y[:8].clone()
    y[0] = (y[0] + 1) % 10  # wrong from the start
    target = make_target(defense, 8, "gradient", eps=0.02)
    pool = Pool(target, x, y, 3, 5)
    (way,) = searches(1)
    way.run(pool, pool.everyone, 60)
    spent = target.counts.forward
    assert spent[0] == 1
    # What moves no value to another grey level changes nothing: hardly anything falls at this radius.
    assert (spent[1:] <= 61).all()
    assert (spent == 61).any()
    assert str(searches(4)[0]) == "scores, margin, square, 4 draws"


def test_a_way_that_gained_nothing_gives_way_to_the_one_tried_least() -> None:
    movers = object.__new__(_Movers)
    movers.ways = [("one", print), ("other", print), ("third", print)]
    movers.gained, movers.taken = [0.0, 0.0, 0.0], [50, 20, 30]
    assert movers._best == 1
    movers.gained = [0.1, 0.0, 0.0]
    assert movers._best == 0


def test_what_the_fallen_leave_goes_to_the_few_that_stand() -> None:
    defense = freeze(Plain(DataInfo("toy", InputSpec((1, 8, 8)), 4)))
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    y = defense(x).argmax(1)
    margin = defense(x).topk(2).values.diff().abs()[:, 0]
    eps, strong = 0.02, margin.argsort(descending=True)[:2]
    y_all_wrong = (y + 1) % 4
    y_all_wrong[strong] = y[strong]
    prepared = _by_hand([Candidate("exact", "margin", "momentum", 1)])
    target = make_target(defense, 20, "gradient", eps=eps, prepared=prepared)
    points = adaptive(target, x, y_all_wrong, passes=100)
    assert_feasible(target, x, points)
    assert (defense(points).argmax(1) == y)[strong].all(), "the example is too easy to show anything"
    spent = target.counts.forward
    assert (spent[strong] > 8 * 100).all()
    assert (spent[strong] < 15 * 100).all()
    assert spent.float().mean() <= 115


def test_a_few_passes_are_one_climb_by_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    defense = freeze(Plain(DataInfo("toy", InputSpec((1, 8, 8)), 4)))
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    y = defense(x).argmax(1)
    prepared = _by_hand([Candidate(how, "margin", "momentum", 1) for how in ("exact", "identity", "classifier")])
    climbs: list[tuple[str, int]] = []
    run = Candidate.run

    def watched(self: Candidate, pool: Pool, index: Tensor, passes: int, *args: Any, **kwargs: Any) -> None:
        climbs.append((str(self.estimator), passes))
        run(self, pool, index, passes, *args, **kwargs)

    monkeypatch.setattr(Candidate, "run", watched)
    for passes, expected in ((12, [("exact", 10)]), (60, [("exact", 17), ("identity", 9), ("classifier", 4)])):
        climbs.clear()
        target = make_target(defense, 20, "gradient", eps=1e-4, prepared=prepared)
        adaptive(target, x, y, passes=passes)
        assert climbs[: len(expected)] == expected
        assert target.counts.forward.float().mean() <= passes + 2
        if passes == 12:
            assert len(climbs) == 1


def test_a_budget_is_split_into_halves() -> None:
    assert budgets(0.7, 3) == pytest.approx([0.4, 0.2, 0.1])
    assert budgets(10, 1) == [10]


def test_candidates_say_what_they_are() -> None:
    assert str(Candidate({"with_guide": {"of": "identity", "weight": 1.0}}, "ce", "apgd", 4)) == (
        "with_guide (of identity, weight 1.0), ce, apgd, 4 draws"
    )
    assert str(Candidate({"bpda": "tanh"}, "margin", "pgd", 1)) == "bpda tanh, margin, pgd"
    assert str(Candidate("exact", "dlr", "adam", 8, "selective", 4, 3)) == (
        "exact, dlr, adam, 8 draws (selective), 4 restarts, towards 3 classes"
    )


def test_it_is_not_taken_for_an_attack_by_plain_gradients() -> None:
    for function in (adaptive, warm_start, hijack, released_bpda):
        assert function.attack.adapts  # type: ignore[attr-defined]


class Plain(Defense):
    """A linear network on inputs of any shape."""

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        draw = torch.Generator().manual_seed(1)
        width = torch.Size(data.shape).numel()
        layer = torch.nn.Linear(width, 4)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(4, width, generator=draw) / width**0.5)
        self.classifier = torch.nn.Sequential(torch.nn.Flatten(), layer)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_at_other_sizes_and_in_l2_while_examples_fall(shape: tuple[int, ...], norm: str) -> None:
    defense = freeze(Plain(DataInfo("toy", InputSpec(shape), 4)))
    x = torch.rand(30, *shape, generator=torch.Generator().manual_seed(3))
    y = defense(x).argmax(1)
    eps = 0.02 * (8 / shape[-1]) if norm == "linf" else 0.1
    split = Split(x, y, [str(i) for i in range(30)])
    prepared = search(PrepareContext(defense, defense.data, Lp(norm, eps), split, torch.device("cpu")), 60)  # type: ignore[arg-type]
    target = make_target(defense, 30, "gradient", norm=norm, eps=eps, prepared=prepared)
    found = adaptive(target, x, y, passes=60)
    assert_feasible(target, x, found)
    fallen = defense(found).argmax(1) != y
    assert fallen.any()
