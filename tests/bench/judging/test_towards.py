"""Targeted suites: which class an example has to reach, and what the judge then counts."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from stand_ins import TINY, Coin, Scripted, ScriptedDetector, picture
from torch import Tensor

from bench.contracts.counting import Counts
from bench.contracts.defense import Defense
from bench.contracts.threat import Lp
from bench.contracts.words import Towards
from bench.judging.judge import Draws, Judging, judge
from bench.judging.towards import classes_to_reach
from bench.storing.records import Row

IDS = [f"test/{i}" for i in range(200)]
Y = torch.arange(200) % TINY.num_classes
X = torch.stack([picture((label + 0.5) / 4) for label in Y.tolist()])


def chosen(towards: Towards | None, defense: Defense | None = None, rows: slice = slice(None), **more: int) -> Tensor:
    values = {"seed": 3, "draws": 1, **more}
    model = (defense or Scripted()).eval()
    found = classes_to_reach(towards, model, X[rows], Y[rows], IDS[rows], name="some", **values)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_an_untargeted_suite_asks_for_no_class() -> None:
    assert classes_to_reach(None, Scripted(), X, Y, IDS, seed=0, draws=1, name="some") is None


def test_next_is_the_label_plus_one() -> None:
    assert chosen("next")[:4].tolist() == [1, 2, 3, 0]


def test_random_is_any_other_class_and_hangs_on_seed_and_id_alone() -> None:
    found = chosen("random")
    assert not (found == Y).any()
    steps = Counter(((found - Y) % 4).tolist())
    assert set(steps) == {1, 2, 3} and min(steps.values()) > 40  # of 200; 67 expected
    assert torch.equal(chosen("random", rows=slice(50, 90)), found[50:90])
    assert not torch.equal(chosen("random", seed=4), found)


def test_least_likely_is_the_smallest_clean_logit() -> None:
    assert chosen("least-likely")[:4].tolist() == [3, 3, 0, 0]  # the class whose level is farthest
    assert chosen("least-likely").dtype == torch.int64


def test_least_likely_is_never_the_label_nor_a_class_without_a_number() -> None:
    x = torch.stack([picture(0.9), picture(0.1, nan=1.0)])
    found = classes_to_reach("least-likely", Scripted(), x, torch.tensor([0, 0]), ["a", "b"], seed=0, draws=1, name="s")
    assert found is not None and found.tolist() == [1, 1]  # the first is taken for class 3: 0 is the least likely


def test_least_likely_of_a_randomised_defense_is_of_its_mean_logits_and_repeatable() -> None:
    again = [chosen("least-likely", Coin(), draws=30).tolist() for _ in range(2)]
    assert again[0] == again[1]
    assert all(target >= 2 for target, label in zip(again[0], Y.tolist(), strict=True) if label < 2)


def verdict(defense: Defense, x_adv: Tensor, towards: int, threshold: float | None = None, **more: Draws) -> Row:
    x, zeros = picture(0.1)[None], torch.zeros(1, dtype=torch.int64)
    how = Judging(
        Lp("linf", 1.0), more.get("draws", Draws(1, 1)), threshold, 8, ("s",), towards=torch.tensor([towards])
    )
    (row,) = judge(defense.eval(), x, zeros, ["a"], x_adv[None], Counts(zeros, zeros, zeros, zeros), how).rows
    return row


@pytest.mark.parametrize(
    ("x_adv", "survived"),
    [(picture(0.9), 0), (picture(0.4), 1), (picture(0.1), 1), (picture(0.9, nan=1.0), 1)],
    ids=["the class to reach", "another wrong class", "the right class", "no number"],
)
def test_only_the_class_to_reach_is_a_success(x_adv: Tensor, survived: int) -> None:
    row = verdict(Scripted(), x_adv, 3)
    assert row.report_robust == row.select_robust == row.report_correct == row.select_correct == survived
    assert row.label == 0


def test_a_rejected_input_has_not_reached_its_class() -> None:
    row = verdict(ScriptedDetector(), picture(0.9, score=0.8), 3, threshold=0.5)
    assert (row.report_robust, row.report_correct, row.report_rejected, row.report_caught) == (1, 0, 1, 1)
    other = verdict(ScriptedDetector(), picture(0.4, score=0.8), 3, threshold=0.5)
    assert (other.report_robust, other.report_correct, other.report_rejected, other.report_caught) == (1, 1, 1, 0)


def test_draws_of_a_randomised_defense_are_counted_one_by_one() -> None:
    row = verdict(Coin(), picture(0.25), 1, draws=Draws(40, 400))
    assert 0.18 < row.report_robust / 400 < 0.33  # class 0 in a quarter of the draws
    assert verdict(Coin(), picture(0.25), 2, draws=Draws(40, 400)).report_robust == 400
