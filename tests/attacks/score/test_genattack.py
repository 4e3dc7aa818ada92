"""GenAttack's parts."""

from __future__ import annotations

import torch
from lab import DIGITS, Wrapped, assert_feasible, digits, digits_classifier, linear_case, make_target
from torch import Tensor
from toys import INFO as TOY
from toys import NaNWhereBright

from attacks.score.genattack import _crossover, _draw_targets, _Mutation, _score, genattack
from attacks.toolkit.losses import Goal, log_odds
from bench.contracts.defense import Defense
from bench.contracts.inputs import DataInfo, InputSpec

INFO = DataInfo("toy", InputSpec((1, 2, 2)), 3)


class Table(Defense):
    """Logits read from the first pixel: a row of a table."""

    rows = torch.tensor([[2.0, 1.0, 0.0], [2e4, -2e4, 0.0], [0.0, 0.0, 0.0], [torch.nan, 0.0, 0.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[(x[:, 0, 0, 0] * 10).round().long()]


def _members(*rows: int) -> Tensor:
    members = torch.zeros(1, len(rows), 1, 2, 2)
    members[0, :, 0, 0, 0] = torch.tensor(rows) / 10
    return members


def test_fitness_is_the_log_ratio_and_stays_finite() -> None:
    target = make_target(Table(INFO), 1, "score")
    y = torch.tensor([0])
    fitness, fooled = _score(target, _members(0, 1, 2, 3), y, Goal(log_odds, y), torch.tensor([0]), 1)
    p = torch.tensor([2.0, 1.0, 0.0]).softmax(0)
    torch.testing.assert_close(fitness[0, 0], ((p[1] + p[2]) / p[0]).log())
    torch.testing.assert_close(fitness[0, 1], torch.tensor(-2e4))  # p_y rounds to 1, the others to 0
    torch.testing.assert_close(fitness[0, 2:], torch.tensor([2.0, 1.0]).log())
    assert not fooled[0, :3].any()
    goal = Goal(log_odds, y, torch.tensor([2]))
    fitness, _ = _score(target, _members(0), y, goal, torch.tensor([0]), 1)
    torch.testing.assert_close(fitness[0, 0], (p[2] / (p[0] + p[1])).log())


def test_targets_are_other_classes_and_all_of_them() -> None:
    y = torch.arange(3000) % 3
    drawn = _draw_targets(make_target(Table(INFO), 3000, "score"), y)
    assert (drawn != y).all()
    assert torch.bincount((drawn - y) % 3, minlength=3).tolist()[1] in range(1300, 1700)


def test_children_take_values_in_proportion_to_their_parents_fitness() -> None:
    target = make_target(Table(INFO), 1, "score")
    members = torch.arange(3.0)[None, :, None, None, None].expand(1, 3, 1, 100, 100)
    # Weights .9, .1, 0: parents are 0 and 1 alone; a mixed pair gives .9 of its values from 0.
    children = _crossover(target, members, torch.tensor([[0.9, 0.1, 0.0]]).log())
    assert children.shape == (1, 2, 1, 100, 100)
    assert children.max() <= 1
    means = []
    for _ in range(300):
        means.append(_crossover(target, members, torch.tensor([[0.9, 0.1, 0.0]]).log()).mean())
    # Pairs: (0,0) .81, mixed .18 with mean .1, (1,1) .01.
    assert abs(torch.stack(means).mean() - (0.18 * 0.1 + 0.01)) < 0.01


def test_mutations_shrink_at_plateaus_down_to_the_floor() -> None:
    target = make_target(Table(INFO), 2, "score")
    children = torch.zeros(2, 4, 1, 50, 50)
    mutation = _Mutation(children, rate=0.05, span=0.5, adaptive=True, patience=2)
    first = mutation.draw(target, children, 1.0)
    assert abs((first != 0).float().mean() - 0.2) < 0.02 and 1.9 < first.abs().max() <= 2.0
    mutation.observe(torch.tensor([1.0, 1.0]))
    for step in range(200):
        mutation.observe(torch.tensor([1.0, 2.0 + step]))  # the second keeps rising
    last = mutation.draw(target, children, 1.0)
    assert abs((last[0] != 0).float().mean() - 0.05) < 0.01 and 0.45 < last[0].abs().max() <= 0.5
    assert last[1].abs().max() > 1.9


def test_the_targeted_form_reaches_a_near_class() -> None:
    case = linear_case(4, (1, 8, 8), "linf", rivals=4)
    x_adv = genattack(case.target(2.5, "score"), case.x, case.y, generations=300, targeted=True)
    assert case.fooled(x_adv).all()


def test_a_class_to_reach_is_reached_and_no_other_one_counts() -> None:
    case = linear_case(4, (1, 8, 8), "linf", rivals=4)
    towards = (case.y + 2) % 4
    target = case.target(8.0, "score", towards=towards)
    x_adv = genattack(target, case.x, case.y, generations=300)
    assert_feasible(target, case.x, x_adv)
    assert (case.defense(x_adv).argmax(1) == towards).all()
    assert target.counts.forward.max() < 6 + 299 * 5  # they leave when they get there


def test_outputs_that_are_not_numbers_end_in_feasible_points() -> None:
    x, y = torch.full((2, 1, 8, 8), 0.4), torch.zeros(2).long()
    for towards in (None, torch.ones(2).long()):
        target = make_target(NaNWhereBright(TOY), 2, "score", eps=0.3, towards=towards)
        assert_feasible(target, x, genattack(target, x, y, generations=30))


def test_examples_do_not_depend_on_which_others_are_finished() -> None:
    case = linear_case(4, (1, 8, 8), "linf")
    together = genattack(case.target(0.9, "score"), case.x, case.y, generations=30)
    wrong = case.y.clone()
    wrong[:3] = 1 - wrong[:3]  # these are fooled from the start, and leave at once
    alone = genattack(case.target(0.9, "score"), case.x, wrong, generations=30)
    torch.testing.assert_close(alone[3], together[3])


def test_one_lucky_draw_does_not_end_it() -> None:
    """On a randomised defense the returned point has to fool fresh draws, not only the one it was found on."""
    x, y = digits()[2][:20], digits()[3][:20]
    noisy = Wrapped(digits_classifier(), DIGITS, lambda x: x + 0.05 * torch.randn_like(x))
    x_adv = genattack(make_target(noisy, 20, "score", eps=0.25, randomized=True), x, y, generations=100)
    fooled = torch.stack([noisy(x_adv).argmax(1) != y for _ in range(50)]).float().mean(0)
    assert fooled.mean() > 0.75  # about 0.4 when the first lucky draw ends it
