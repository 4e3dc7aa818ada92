"""Passes are counted per example, exactly; caps hold; no attack sees more than its knowledge allows."""

from __future__ import annotations

import pytest
import torch
from lab import Linear, linear_case, make_target
from torch import Tensor
from two_classes import INFO, CoinFlip, Constant

from attacks.decision.hopskipjump import hopskipjump
from attacks.gradient.pgd import pgd
from attacks.score.genattack import genattack
from bench.contracts.defense import BareModel, Defense
from bench.contracts.errors import KnowledgeError


def _bright(n: int) -> tuple[Defense, Tensor, Tensor]:
    """A model that calls an image bright (1) when its mean is above 1/2; images of growing distance to that."""
    weight = torch.stack([-torch.ones(64), torch.ones(64)])
    defense = BareModel(Linear(weight, torch.zeros(2)), INFO)
    x = (0.48 - 0.1 * torch.arange(n) / n)[:, None, None, None].expand(n, 1, 8, 8).clone()
    return defense, x, torch.zeros(n, dtype=torch.int64)


def test_pgd_counts_every_pass_of_every_example() -> None:
    # Distances .02, .045, .07, .095; steps of .02 from x, so the k-th step first reaches .02 k (> strictly).
    defense, x, y = _bright(4)
    target = make_target(defense, 4, "gradient", eps=0.08)
    pgd(target, x, y, steps=6, step_size=0.25, schedule="constant", random_start=False)
    # Looked at before each step: found on the 2nd..5th look or, for the last example, never: 6 steps and 1 look.
    assert target.counts.forward.tolist() == [3, 4, 5, 7]
    assert target.counts.backward.tolist() == [3, 4, 5, 6]


def test_an_example_that_is_fooled_takes_no_part_in_further_restarts() -> None:
    defense, x, y = _bright(4)
    target = make_target(defense, 4, "gradient", eps=0.08)
    pgd(target, x, y, steps=6, step_size=0.25, schedule="constant", restarts=3)
    assert target.counts.forward[:3].max() <= 7
    assert target.counts.forward[3] == 3 * 7


@pytest.mark.parametrize("restarts", [1, 3])
def test_pgd_spends_its_whole_budget_where_nothing_helps(restarts) -> None:
    target = make_target(Constant(INFO), 2, "gradient")
    pgd(target, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), steps=5, restarts=restarts)
    assert target.counts.forward.tolist() == [6 * restarts] * 2
    assert target.counts.backward.tolist() == [5 * restarts] * 2
    assert target.counts.zero_gradient.tolist() == [5 * restarts] * 2
    assert "no gradient reaches the input" in target.counts.notes


@pytest.mark.parametrize("average", ["loss", "logits"])
def test_pgd_with_eot_counts_every_draw(average) -> None:
    target = make_target(CoinFlip(INFO), 2, "gradient", randomized=True)
    estimator = {"eot": {"samples": 4, "of": "exact", "average": average}}
    pgd(target, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), steps=5, estimator=estimator, rescore=3)
    # 5 gradients of 4 draws, then 2 candidates on 3 draws each.
    assert target.counts.forward.tolist() == [5 * 4 + 2 * 3] * 2
    assert target.counts.backward.tolist() == [5 * 4] * 2


def test_pgd_by_finite_differences_counts_every_probe() -> None:
    target = make_target(Constant(INFO), 2, "score")
    estimator = {"finite_difference": {"samples": 7}}
    pgd(target, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), steps=5, estimator=estimator)
    assert target.counts.forward.tolist() == [5 * (2 * 7 + 1) + 1] * 2
    assert target.counts.backward.tolist() == [0, 0]


def test_restarts_by_a_stand_in_are_compared_on_the_defense() -> None:
    case = linear_case(3, (1, 8, 8), "linf")
    target = case.target(0.5, "gradient")
    pgd(target, case.x, case.y, steps=5, restarts=2, estimator="classifier")
    assert target.counts.forward.tolist() == [12] * 3
    assert target.counts.backward.tolist() == [10] * 3


@pytest.mark.parametrize("queries", [1, 2, 30, 77, 500])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hopskipjump_never_exceeds_its_queries(queries, norm) -> None:
    case = linear_case(5, (1, 8, 8), norm)
    target = case.target(0.5, "decision")
    hopskipjump(target, case.x, case.y, queries=queries)
    assert target.counts.forward.max() <= queries
    if queries == 500:
        assert target.counts.forward.min() > 400


@pytest.mark.parametrize("queries", [1, 8, 60, 400])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("stop_inside", [True, False])
def test_hopskipjump_ends_on_an_oracle_that_contradicts_itself(queries, draws, stop_inside) -> None:
    target = make_target(CoinFlip(INFO), 6, "decision", randomized=True)
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 2
    x_adv = hopskipjump(target, x, y, queries=queries, draws=draws, stop_inside=stop_inside)
    assert torch.isfinite(x_adv).all()
    assert target.counts.forward.max() <= queries


def test_hopskipjump_gives_up_where_no_start_exists() -> None:
    target = make_target(Constant(INFO), 2, "decision")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(hopskipjump(target, x, torch.zeros(2).long(), init_tries=10), x)
    assert target.counts.forward.tolist() == [11, 11]


def test_an_example_that_is_wrong_already_costs_one_query() -> None:
    defense, x, _ = _bright(3)
    target = make_target(defense, 3, "decision")
    assert torch.equal(hopskipjump(target, x, torch.ones(3).long()), x)
    assert target.counts.forward.tolist() == [1, 1, 1]


def test_genattack_counts_its_population_once_and_its_children_after_that() -> None:
    target = make_target(Constant(INFO), 2, "score")
    genattack(target, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), population=5, generations=7)
    assert target.counts.forward.tolist() == [5 + 6 * 4] * 2


def test_genattack_scores_its_elite_again_on_a_randomised_defense() -> None:
    class Loud(Defense):
        randomized = True

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([5 + torch.rand(len(x)), torch.zeros(len(x))], 1)

    target = make_target(Loud(INFO), 2, "score", randomized=True)
    genattack(target, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), population=5, generations=7, draws=3)
    assert target.counts.forward.tolist() == [7 * 5 * 3] * 2


def test_genattack_ends_on_a_defense_that_contradicts_itself() -> None:
    target = make_target(CoinFlip(INFO), 6, "score", randomized=True)
    x_adv = genattack(target, torch.rand(6, 1, 8, 8), torch.zeros(6).long(), generations=20)
    assert torch.isfinite(x_adv).all()


def test_a_decision_attack_cannot_see_logits() -> None:
    target = make_target(Constant(INFO), 1, "decision")
    x = torch.rand(1, 1, 8, 8)
    with pytest.raises(KnowledgeError):
        target.logits(x)
    with pytest.raises(KnowledgeError):
        _ = target.defense
    target = make_target(Constant(INFO), 1, "transfer")
    with pytest.raises(KnowledgeError):
        target.labels(x)
