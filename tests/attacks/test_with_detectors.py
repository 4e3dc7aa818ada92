"""Attacks on a linear classifier with a linear detector: a linear program knows the smallest radius that beats both."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
import torch
from lab import Linear, assert_feasible, make_target
from scipy.optimize import linprog
from torch import Tensor

from attacks.adaptive.autoattack import autoattack
from attacks.adaptive.cascade import cascade
from attacks.decision.rays import rays
from attacks.gradient.apgd import apgd
from attacks.gradient.combined import _Weight, combined_pgd
from attacks.gradient.grid import grid_pgd
from attacks.gradient.orthogonal import orthogonal_pgd
from attacks.gradient.pgd import pgd
from attacks.score.genattack import genattack
from attacks.score.one_pixel import one_pixel
from attacks.score.spsa import spsa
from attacks.score.square import square
from attacks.toolkit.estimators import as_estimator
from attacks.toolkit.losses import Goal, margin
from bench.contracts.defense import BareModel, freeze
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.inputs import DataInfo, InputSpec

SHAPE, N = (1, 4, 4), 6
THRESHOLD = 0.0


class Guarded(BareModel):
    """Two classes, and a detector whose score is linear too and rises where the margin does."""

    def __init__(self, *, scale: float = 1.0, cut: bool = False) -> None:
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(2, 16, generator=generator, dtype=torch.float64)
        super().__init__(Linear(weight, torch.zeros(2, dtype=torch.float64)), DataInfo("two", InputSpec(SHAPE), 2))
        towards = weight[1] - weight[0]
        self.direction = 0.6 * towards + torch.randn(16, generator=generator, dtype=torch.float64)
        self.scale, self.cut = scale, cut

    def detect(self, x: Tensor) -> Tensor:
        x = x.detach() if self.cut else x
        return self.scale * ((x - 0.5).flatten(1) @ self.direction - 0.05)


@cache
def case(scale: float = 1.0, cut: bool = False) -> tuple[Guarded, Tensor, Tensor, Tensor]:
    """The defense, points that are right and accepted, their labels, and the smallest radius that beats both halves."""
    defense = freeze(Guarded(scale=scale, cut=cut))
    x = 0.5 + 0.1 * torch.randn(400, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    fine = (defense(x).argmax(1) == 0) & (defense.detect(x) < THRESHOLD)
    x = x[fine]
    radii = torch.tensor([_radius(defense, point) for point in x])
    far = ((radii > 0.03) & (radii < 0.15)).nonzero().squeeze(1)[:N]  # where the box does not interfere
    x, radii = x[far], radii[far]
    assert len(x) == N
    return defense, x, torch.zeros(N, dtype=torch.int64), radii


def _radius(defense: Guarded, x: Tensor) -> float:
    """min e such that some |δ| ≤ e has margin ≥ 0 and score ≤ τ."""
    weight = defense.classifier.weight.detach()
    slope = (weight[1] - weight[0]).numpy()
    margin_now = float((defense(x[None])[0, 1] - defense(x[None])[0, 0]).detach())
    score = float(defense.detect(x[None]).detach())
    ball = [np.c_[np.eye(16), -np.ones(16)], np.c_[-np.eye(16), -np.ones(16)]]
    halves = [np.r_[-slope, 0][None], np.r_[defense.scale * defense.direction.numpy(), 0][None]]
    rows = np.concatenate([*halves, *ball])
    limits = np.r_[margin_now, THRESHOLD - score, np.zeros(32)]
    found = linprog(np.r_[np.zeros(16), 1], A_ub=rows, b_ub=limits, bounds=[(None, None)] * 16 + [(0, None)])
    assert found.success
    return float(found.fun)


def beaten(attack, knowledge: str, factor: float, scale: float = 1.0, cut: bool = False) -> Tensor:
    """Bool ``(N,)``: fooled and accepted, at ``factor`` times the smallest radius of each point."""
    defense, x, y, radii = case(scale, cut)
    found = []
    for i in range(N):
        target = make_target(defense, 1, knowledge, eps=factor * float(radii[i]), threshold=THRESHOLD)
        x_adv = attack(target, x[i : i + 1], y[i : i + 1])
        assert_feasible(target, x[i : i + 1], x_adv)
        found.append((defense(x_adv).argmax(1) == 1) & (defense.detect(x_adv) <= THRESHOLD))
    return torch.cat(found)


ATTACKS = {
    "pgd": (partial(pgd, steps=100), "gradient", 1.1),
    "pgd ce": (partial(pgd, steps=100, loss="ce"), "gradient", 1.1),
    "apgd": (partial(apgd, steps=100), "gradient", 1.1),
    "orthogonal": (partial(orthogonal_pgd, steps=200, step_size=0.05), "gradient", 1.3),
    "sum": (partial(combined_pgd, steps=60), "gradient", 1.2),
    "class": (partial(combined_pgd, steps=100, objective="class"), "gradient", 1.2),
    "autoattack": (partial(autoattack, steps=60, queries=200), "gradient", 1.1),
    "cascade": (partial(cascade, queries=0), "gradient", 1.1),
    "finite differences": (partial(pgd, steps=100, estimator={"finite_difference": {"samples": 16}}), "score", 1.1),
    "square": (partial(square, queries=2000), "score", 1.3),
    "spsa": (partial(spsa, queries=3000), "score", 1.3),
    "genattack": (partial(genattack, generations=300), "score", 1.4),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_beats_both_near_the_smallest_radius(name: str) -> None:
    attack, knowledge, factor = ATTACKS[name]
    assert beaten(attack, knowledge, factor).all()
    assert not beaten(attack, knowledge, 0.99).any()


def test_selective_steps_undo_each_other_where_orthogonal_ones_do_not() -> None:
    """What the paper sets out from: steps for one half take back what was gained in the other."""
    modes = [partial(orthogonal_pgd, steps=200, step_size=0.05, mode=mode) for mode in ("selective", "orthogonal")]
    selective, orthogonal = (beaten(attack, "gradient", 1.3) for attack in modes)
    assert selective.any() and selective.sum() < orthogonal.sum()


@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("name", ["pgd", "sum", "class"])
def test_the_unit_of_the_score_does_not_matter(name: str, scale: float) -> None:
    attack, knowledge, factor = ATTACKS[name]
    assert beaten(attack, knowledge, factor, scale=scale).all()


def test_one_weight_for_all_is_not_enough() -> None:
    """What the bisection is for: the first λ loses examples that later ones win."""
    once, often = (beaten(partial(combined_pgd, steps=60, searches=n), "gradient", 1.2) for n in (1, 10))
    assert once.sum() < often.sum()


def test_the_weight_is_bracketed_then_bisected() -> None:
    weight = _Weight.ones(torch.zeros(2, 1))
    for fooled in ([True, False], [True, True], [False, True]):
        weight.update(torch.tensor(fooled))
    torch.testing.assert_close(weight.value, torch.tensor([1000**0.5, 10**-0.25]))


def test_a_score_that_is_cut_from_the_graph_is_differenced() -> None:
    assert beaten(partial(pgd, steps=100), "gradient", 1.15, cut=True).all()


def test_without_the_detector_in_mind_the_same_steps_are_rejected() -> None:
    defense, x, y, radii = case()
    target = make_target(defense, N, "gradient", eps=1.1 * float(radii.min()), threshold=THRESHOLD)
    x_adv = pgd(target.without_detector(), x, y, steps=100)
    fooled = defense(x_adv).argmax(1) == 1
    assert fooled.any() and (defense.detect(x_adv)[fooled] > THRESHOLD).all()


def test_a_decision_attack_stops_at_nothing_that_is_rejected() -> None:
    defense, x, y, _ = case()
    target = make_target(defense, N, "decision", eps=0.4, threshold=THRESHOLD)
    x_adv = rays(target, x, y, queries=500)
    fooled = defense(x_adv).argmax(1) == 1
    assert fooled.any() and (defense.detect(x_adv)[fooled] <= THRESHOLD).all()


def test_the_objective_is_positive_only_where_both_are_beaten() -> None:
    target = make_target(case()[0], N, "gradient", threshold=THRESHOLD)
    margins, scores = torch.tensor([-1.0, 1.0, 1.0, -1.0]), torch.tensor([-1.0, 1.0, -1.0, 1.0])
    assert (target.detection.joint(margins, scores) > 0).tolist() == [False, False, True, False]


def test_a_pass_of_the_detector_counts() -> None:
    defense, x, y, _ = case()
    target = make_target(defense, N, "gradient", threshold=THRESHOLD)
    at = as_estimator("exact").evaluate(target, x, Goal(margin, y), torch.arange(N))
    assert at.scores is not None and at.scores.equal(defense.detect(x))
    assert target.counts.forward.tolist() == target.counts.backward.tolist() == [2] * N
    target.fooled(at.logits, x, y, scores=at.scores)
    assert target.counts.forward.tolist() == [2] * N


def test_an_orthogonal_step_leaves_the_other_half_alone() -> None:
    from attacks.gradient.orthogonal import _direction

    one, two = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    serve = torch.tensor([True, False, True])
    kept = _direction(one, two, serve, "orthogonal")
    other = torch.where(serve[:, None], one, two)
    assert torch.allclose((kept * other).sum(1), torch.zeros(3), atol=1e-6)


def test_what_needs_a_detector_or_levels_says_so() -> None:
    defense, x, y, _ = case()
    target = make_target(defense, N, "gradient")
    with pytest.raises(NotApplicable, match="no detector"):
        orthogonal_pgd(target, x, y)
    with pytest.raises(NotApplicable, match="no detector"):
        combined_pgd(target, x, y)
    with pytest.raises(NotApplicable, match="grey levels of two are not known"):
        grid_pgd(target, x, y)
    with pytest.raises(InputError, match="has no detector"):
        target.scores(x)


def test_what_the_score_of_a_detector_costs_attacks_by_scores() -> None:
    defense, x, y, _ = case()

    def passes(attack, norm: str, eps: float, **settings) -> set[int]:
        target = make_target(defense, N, "score", norm=norm, eps=eps, threshold=THRESHOLD)
        attack(target, x, y, **settings)
        return set(target.counts.forward.tolist())

    assert passes(genattack, "linf", 1e-4, generations=5) == {2 * (6 + 4 * 5)}
    assert passes(one_pixel, "l0", 1, generations=4, population=5) <= set(range(2 * 5, 2 * 4 * 5 + 1, 2 * 5))
    directions, steps = 4, 3  # a look at the point, the gradient's own, and two probes for each direction
    asked = steps * (2 * directions + 1) + 1
    spent = 2 * (steps * (2 * directions + 2) + 1)
    assert passes(spsa, "linf", 1e-4, queries=asked, samples=directions, restarts=1) == {spent}
    assert max(passes(square, "linf", 1e-4, queries=20)) <= 2 * 20
