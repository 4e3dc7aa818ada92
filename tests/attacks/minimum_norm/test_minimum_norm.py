"""What the attacks that shorten a perturbation have in common: closed forms, determinism, defenses gone wrong."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lab import LinearCase, assert_feasible, curved_case, length, linear_case, make_target
from torch import Tensor
from two_classes import INFO, Broken, CoinFlip, Constant

from attacks.minimum_norm.alma import alma
from attacks.minimum_norm.carlini_wagner import carlini_wagner
from attacks.minimum_norm.ddn import ddn
from attacks.minimum_norm.fmn import fmn
from attacks.minimum_norm.lbfgs import lbfgs
from attacks.minimum_norm.sigma_zero import sigma_zero
from bench.contracts.defense import Defense

#: Each with a small budget, and with one that meets the closed forms.
ATTACKS = {
    "cw-l2": (partial(carlini_wagner, steps=40, searches=2), partial(carlini_wagner, steps=60, searches=4), "l2"),
    "cw-linf": (partial(carlini_wagner, steps=40, searches=3), carlini_wagner, "linf"),
    "cw-l0": (partial(carlini_wagner, steps=40, searches=5), partial(carlini_wagner, steps=60, searches=4), "l0"),
    "alma": (partial(alma, steps=60), alma, "l2"),
    "ddn": (partial(ddn, steps=40), ddn, "l2"),
    **{f"fmn-{norm}": (partial(fmn, steps=60), fmn, norm) for norm in ("linf", "l2", "l1", "l0")},
    "sigma-zero": (partial(sigma_zero, steps=60), None, "l0"),  # to a few pixels, see its own tests
    "lbfgs": (partial(lbfgs, searches=6), lbfgs, "l2"),
}
EVERY = [pytest.param(attack, norm, id=name) for name, (attack, _, norm) in ATTACKS.items()]
EXACT = [pytest.param(attack, norm, id=name) for name, (_, attack, norm) in ATTACKS.items() if attack]
every_exact_attack = pytest.mark.parametrize(("attack", "norm"), EXACT)
every_attack = pytest.mark.parametrize(("attack", "norm"), EVERY)
every_batch = pytest.mark.parametrize("n", [1, 3, 8])
every_shape = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)], ids=str)


def _case(n: int, shape: tuple[int, int, int], norm: str, dtype: torch.dtype = torch.float32) -> LinearCase:
    return linear_case(n, shape, "l2" if norm == "l0" else norm, dtype=dtype)


def _minimal(case: LinearCase, norm: str) -> Tensor:
    """The length of the shortest perturbation of each example, ``(N,)``.

    In l0: as few pixels as reach the boundary when those that gain most go to the edge of the box.
    """
    if norm != "l0":
        return torch.full((len(case.x),), case.radius, dtype=case.x.dtype)
    model = case.defense.classifier
    difference = model.weight[1 - case.y] - model.weight[case.y]
    room = torch.where(difference > 0, 1 - case.x.flatten(1), case.x.flatten(1))
    gain = (difference.abs() * room).view(len(case.x), case.x.shape[1], -1).sum(1)
    logits = case.defense(case.x)
    margin = (logits.gather(1, case.y[:, None]) - logits.gather(1, 1 - case.y[:, None])).squeeze(1)
    reached = gain.sort(1, descending=True).values.cumsum(1) > margin[:, None]
    return reached.long().argmax(1).to(case.x.dtype) + 1


@every_batch
@every_shape
@every_exact_attack
def test_the_minimal_perturbation_is_reached(attack, norm, n, shape) -> None:
    case = _case(n, shape, norm)
    minimal = _minimal(case, norm)
    target = make_target(case.defense, n, "gradient", norm=norm, eps=4 * minimal.max().item())
    x_adv = attack(target, case.x, case.y, stop_inside=False)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()
    reached = length(x_adv - case.x, norm)
    assert (reached <= 1.05 * minimal).all() and (reached >= 0.999 * minimal).all()


@every_batch
@every_exact_attack
def test_it_succeeds_just_beyond_the_minimal_radius_and_not_below(attack, norm, n) -> None:
    case = _case(n, (3, 5, 7), norm)
    minimal = _minimal(case, norm)
    for beyond in (True, False):
        if norm == "l0":
            eps = minimal.max().item() if beyond else minimal.min().item() - 1
        else:
            eps = (1.02 if beyond else 0.98) * case.radius
        if eps < 1 and norm == "l0":
            continue
        target = make_target(case.defense, n, "gradient", norm=norm, eps=eps)
        x_adv = attack(target, case.x, case.y)
        assert_feasible(target, case.x, x_adv)
        assert (case.fooled(x_adv) == beyond).all()


@every_attack
def test_an_example_is_finished_once_it_is_inside_the_ball(attack, norm) -> None:
    defense, x, y = curved_case(8)
    eps = {"linf": 0.3, "l2": 2.0, "l1": 12.0, "l0": 20}[norm]
    early, late = (make_target(defense, 8, "gradient", norm=norm, eps=eps) for _ in range(2))
    x_early, x_late = attack(early, x, y), attack(late, x, y, stop_inside=False)
    assert (defense(x_early).argmax(1) != y).all() and (defense(x_late).argmax(1) != y).all()
    assert (early.counts.backward < late.counts.backward).all()
    assert (length(x_late - x, norm) <= length(x_early - x, norm)).all()
    assert length(x_late - x, norm).mean() < 0.9 * length(x_early - x, norm).mean()


@every_attack
def test_a_class_is_reached(attack, norm) -> None:
    defense, x, y = curved_case(8)
    towards = (y + 1 + torch.arange(8) % 3) % 4
    eps = {"linf": 1.0, "l2": 8.0, "l1": 64.0, "l0": 64}[norm]
    target = make_target(defense, 8, "gradient", norm=norm, eps=eps, towards=towards)
    x_adv = attack(target, x, y, stop_inside=False)
    assert torch.equal(defense(x_adv).argmax(1), towards)
    free = make_target(defense, 8, "gradient", norm=norm, eps=eps)
    assert length(x_adv - x, norm).mean() > 0.95 * length(attack(free, x, y, stop_inside=False) - x, norm).mean()


@every_attack
def test_an_example_that_is_wrong_already_costs_one_gradient(attack, norm) -> None:
    case = _case(3, (1, 8, 8), norm)
    target = make_target(case.defense, 3, "gradient", norm=norm, eps=1)
    wrong = torch.where(torch.arange(3) == 1, 1 - case.y, case.y)
    x_adv = attack(target, case.x, wrong, stop_inside=False)
    assert torch.equal(x_adv[1], case.x[1]) and not torch.equal(x_adv[0], case.x[0])
    assert target.counts.backward[1] == 1 and target.counts.forward[1] <= 2


@every_attack
def test_double_precision_the_same_seed_and_any_micro_batch_give_the_same_result(attack, norm) -> None:
    case = _case(3, (1, 8, 8), norm, dtype=torch.float64)
    state = torch.get_rng_state()
    targets = [
        make_target(case.defense, 3, "gradient", norm=norm, eps=8, seed=1, batch_size=size) for size in (8, 8, 2)
    ]
    whole, again, split = (attack(target, case.x, case.y, stop_inside=False) for target in targets)
    assert torch.equal(whole, again)
    torch.testing.assert_close(whole, split, atol=1e-6, rtol=0)
    assert torch.equal(targets[0].counts.forward, targets[2].counts.forward)
    assert torch.equal(state, torch.get_rng_state())
    assert_feasible(targets[0], case.x, whole)
    assert case.fooled(whole).all()


@every_attack
def test_the_other_examples_make_no_difference(attack, norm) -> None:
    case = _case(3, (1, 8, 8), norm, dtype=torch.float64)
    together = make_target(case.defense, 3, "gradient", norm=norm, eps=8)
    alone = make_target(case.defense, 1, "gradient", norm=norm, eps=8)
    x_adv = attack(together, case.x, case.y, stop_inside=False)
    one = attack(alone, case.x[:1], case.y[:1], stop_inside=False)
    torch.testing.assert_close(x_adv[:1], one, atol=1e-6, rtol=0)
    assert together.counts.forward[0] == alone.counts.forward[0]


@pytest.mark.parametrize("defense", [Broken(INFO), Constant(INFO)], ids=["nan", "constant"])
@every_attack
def test_a_defense_that_says_nothing_ends_in_a_feasible_point(attack, norm, defense) -> None:
    x = torch.rand(2, 1, 8, 8)
    target = make_target(defense, 2, "gradient", norm=norm, eps=1)
    assert_feasible(target, x, attack(target, x, torch.zeros(2).long()))


class PartlyBroken(Defense):
    """NaN for dark images, otherwise class 0 for as long as the left half is brighter than the right one."""

    def forward(self, x: Tensor) -> Tensor:
        halves = x.flatten(2).mean(1).view(len(x), 8, 8).mean(1)
        logits = torch.stack([halves[:, :4].sum(1), halves[:, 4:].sum(1)], 1)
        return torch.where((x.flatten(1).mean(1) < 0.45)[:, None], torch.nan, logits)


@every_attack
def test_points_without_a_prediction_do_not_spoil_the_result(attack, norm) -> None:
    x = torch.full((2, 1, 8, 8), 0.5)
    x[..., :4] += 0.05
    target = make_target(PartlyBroken(INFO), 2, "gradient", norm=norm, eps=64)
    x_adv = attack(target, x, torch.zeros(2).long(), stop_inside=False)
    assert_feasible(target, x, x_adv)
    assert (length(x_adv - x, norm) > 0).all()


@every_attack
def test_no_single_lucky_draw_ends_the_attack(attack, norm) -> None:
    x = torch.rand(6, 1, 8, 8)
    target = make_target(CoinFlip(INFO), 6, "gradient", norm=norm, eps=2, randomized=True)
    assert_feasible(target, x, attack(target, x, torch.arange(6) % 2))
    assert (target.counts.backward == target.counts.backward[0]).all()


class Noisy(Defense):
    """The linear model of a case behind noise on its logits."""

    randomized = True

    def __init__(self, case: LinearCase) -> None:
        super().__init__(case.defense.data)
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        return self.case.defense(x) + torch.randn(len(x), 4)


@every_attack
def test_a_randomised_defense_is_fooled_more_often_than_not(attack, norm) -> None:
    torch.manual_seed(0)
    case = _case(3, (1, 8, 8), norm)
    minimal = _minimal(case, norm)
    target = make_target(Noisy(case), 3, "gradient", norm=norm, eps=3 * minimal.max().item(), randomized=True)
    x_adv = attack(target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    wrong = torch.stack([target._defense(x_adv).argmax(1) != case.y for _ in range(50)]).float().mean(0)
    assert (wrong > 0.7).all()


@pytest.mark.parametrize(
    "estimator", ["classifier", {"finite_difference": {"samples": 64}}], ids=["stand-in", "differences"]
)
@every_exact_attack
def test_any_estimator_will_do(attack, norm, estimator) -> None:
    case = _case(2, (1, 8, 8), norm)
    minimal = _minimal(case, norm)
    target = make_target(case.defense, 2, "gradient", norm=norm, eps=4 * minimal.max().item())
    x_adv = attack(target, case.x, case.y, estimator=estimator, stop_inside=False)
    assert case.fooled(x_adv).all()
    assert (length(x_adv - case.x, norm) <= 1.05 * minimal).all()


@every_attack
def test_a_saturated_softmax_makes_no_difference(attack, norm) -> None:
    defense, x, y = curved_case(8)

    class Scaled(Defense):
        def forward(self, x: Tensor) -> Tensor:
            return 1000 * defense(x)

    eps = {"linf": 1.0, "l2": 8.0, "l1": 64.0, "l0": 64}[norm]
    plain, scaled = (make_target(d, 8, "gradient", norm=norm, eps=eps) for d in (defense, Scaled(defense.data)))
    near, far = (length(attack(t, x, y, stop_inside=False) - x, norm) for t in (plain, scaled))
    assert far.mean() < 1.2 * near.mean()


@every_attack
def test_the_box_holds_at_its_edges(attack, norm) -> None:
    case = _case(3, (1, 8, 8), norm)
    target = make_target(case.defense, 3, "gradient", norm=norm, eps=3)
    for x in (torch.zeros_like(case.x), torch.ones_like(case.x)):
        assert_feasible(target, x, attack(target, x, case.defense(x).argmax(1)))


