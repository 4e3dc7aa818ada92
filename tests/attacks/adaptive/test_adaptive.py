"""The attack that adapts itself: what it finds for defenses that hide in known ways, and that it says so."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from lab import DIGITS, assert_feasible, digits, digits_classifier, make_target
from torch import Tensor

from attacks.adaptive.adaptive import adaptive, budgets
from attacks.adaptive.as_released import released_bpda
from attacks.adaptive.candidates import Candidate
from attacks.adaptive.hijack import hijack
from attacks.adaptive.search import _first_of_each, read, search
from attacks.adaptive.warm_start import warm_start
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


@cache
def _found(how: str) -> tuple[Defense, dict[str, Tensor]]:
    defense = freeze(Hidden(how))
    train_x, train_y, _, _ = digits()
    split = Split(train_x[:200], train_y[:200], [str(i) for i in range(200)])
    torch.manual_seed(0)
    return defense, search(PrepareContext(defense, DIGITS, Lp("linf", 0.2), split, torch.device("cpu"), split), 100)


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
