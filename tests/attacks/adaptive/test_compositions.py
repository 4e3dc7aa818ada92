"""AutoAttack and cascade: several attacks in a row, each on what the ones before it left standing."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lab import DIGITS, Wrapped, assert_feasible, digits, digits_classifier, length, linear_case, make_target
from torch import Tensor, nn

from attacks.adaptive.autoattack import autoattack
from attacks.adaptive.cascade import cascade
from attacks.adaptive.warm_start import warm_start
from attacks.gradient.pgd import pgd
from attacks.toolkit.composition import SURE, Stage, Standing, in_turn
from bench.contracts.defense import BareModel, freeze
from bench.contracts.errors import KnowledgeError
from bench.contracts.target import Target

SHORT = {
    "autoattack": partial(autoattack, steps=20, targets=3, queries=50),
    "plus": partial(autoattack, version="plus", steps=10, targets=2, queries=20),
    "rand": partial(autoattack, version="rand", steps=20, samples=2),
    "cascade": partial(cascade, restarts=4, halvings=2, rounds=2, queries=50),
    "warm-start": partial(warm_start, restarts=2, steps=20),
}
every = pytest.mark.parametrize("name", SHORT)


@every
@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)], ids=str)
def test_a_composition_succeeds_just_beyond_the_minimal_radius_and_not_below(name, n, norm, shape) -> None:
    rivals = 2 if name in ("rand", "warm-start") else 3  # these pursue the likeliest class alone
    case = linear_case(n, shape, norm, rivals=rivals)
    target = case.target(1.02, "gradient")
    x_adv = SHORT[name](target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()
    assert not case.fooled(SHORT[name](case.target(0.98, "gradient"), case.x, case.y)).any()


def test_cascade_in_l1() -> None:
    case = linear_case(3, (1, 8, 8), "l1")
    x_adv = SHORT["cascade"](case.target(1.05, "gradient"), case.x, case.y)
    assert case.fooled(x_adv).all()
    assert length(x_adv - case.x, "l1").max() <= 1.0501 * case.radius


def _shift(amount: float) -> Stage:
    return Stage(lambda target, x, y: (x + amount).clamp(0, 1))


def _bright(n: int) -> tuple[Target, Tensor, Tensor]:
    """A model that calls an image bright (1) when its first pixel is above 1/2; images ever farther from that."""

    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = x[:, 0, 0, :1] - 0.5
            return torch.cat([-first, first], 1)

    x = torch.linspace(0.45, 0.05, n)[:, None, None, None].expand(n, 1, 8, 8).clone()
    info = type(DIGITS)("toy", (1, 8, 8), 2)
    target = make_target(freeze(BareModel(Bright(), info)), n, "gradient", eps=0.5)
    return target, x, torch.zeros(n, dtype=torch.int64)


def test_a_stage_sees_what_is_still_standing_and_its_passes_count_for_the_right_examples() -> None:
    target, x, y = _bright(5)  # at .45, .35, .25, .15, .05
    sizes = []

    def looking(amount: float) -> Stage:
        def run(part: Target, points: Tensor, labels: Tensor) -> Tensor:
            sizes.append(len(points))
            part.logits(points)
            return points + amount

        return Stage(run)

    x_adv = in_turn(target, x, y, [looking(0.2), looking(0.3), looking(0.4)], draws=1)
    assert sizes == [5, 3, 2]
    torch.testing.assert_close(x_adv[:, 0, 0, 0], torch.tensor([0.65, 0.55, 0.55, 0.55, 0.45]))
    # One look at x; then two passes for every stage that an example took part in.
    assert target.counts.forward.tolist() == [3, 3, 5, 7, 7]


def test_a_stage_has_no_more_knowledge_than_it_declares() -> None:
    target, x, y = _bright(3)
    peek = Stage(lambda part, points, labels: points + part.defense(points).sum(), "score")
    with pytest.raises(KnowledgeError, match="a score attack asked for gradient"):
        in_turn(target, x, y, [peek], draws=1)


def test_clean_errors_are_left_alone() -> None:
    target, x, y = _bright(3)
    y[1] = 1  # wrong before any attack
    x_adv = in_turn(target, x, y, [_shift(0.3)], draws=1)
    assert torch.equal(x_adv[1], x[1])


def test_a_worse_point_never_replaces_a_better_one() -> None:
    target, x, y = _bright(1)
    x[:] = 0.1
    x_adv = in_turn(target, x, y, [_shift(0.3), _shift(0.2)], draws=1)
    torch.testing.assert_close(x_adv, x + 0.3)


def test_on_a_randomised_defense_one_lucky_draw_finishes_nothing() -> None:
    _, _, x, y = digits()
    x, y = x[:4], y[:4]
    noisy = freeze(Wrapped(digits_classifier(), DIGITS, lambda v: v + 0.3 * torch.randn_like(v)))
    noisy.randomized = True
    target = make_target(noisy, 4, "gradient", randomized=True)
    torch.manual_seed(0)
    standing = Standing(target, x, y, 16)
    standing.run(_shift(0.05))
    assert len(standing.index) == 4


class _InTurn(nn.Module):
    """Answers its rows, counted from the first on, with the margins of a script: above zero it errs."""

    def __init__(self, *margins: tuple[int, float]) -> None:
        super().__init__()
        self.margins = [margin for times, margin in margins for _ in range(times)]
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        said = torch.tensor(self.margins[self.seen : self.seen + len(x)])
        self.seen += len(x)
        return torch.stack([torch.zeros(len(x)), said], 1)


def _in_turn_of(*margins: tuple[int, float]) -> Target:
    defense = freeze(BareModel(_InTurn(*margins), type(DIGITS)("toy", (1, 2, 2), 2)))
    defense.randomized = True
    return make_target(defense, 1, "gradient", eps=0.5, randomized=True)


HALF, ZERO = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)


def test_a_clean_error_by_far_in_most_draws_gives_way_to_an_error_in_all() -> None:
    target = _in_turn_of((14, 9.0), (2, -1.0), (16 + SURE, 0.1))
    standing = Standing(target, HALF, ZERO, 16)
    standing.run(_shift(0.1))
    assert torch.equal(standing.best.x, HALF + 0.1)
    assert len(standing.index) == 0


def test_what_fools_a_randomised_defense_without_a_miss_is_left_alone() -> None:
    target = _in_turn_of((16, -1.0), (16 + SURE, 0.1))
    x_adv = in_turn(target, HALF, ZERO, [_shift(0.1), _shift(0.2)], draws=16)
    assert torch.equal(x_adv, HALF + 0.1)
    assert target.counts.forward.tolist() == [2 * 16 + SURE]


def test_a_lucky_row_of_draws_counts_as_what_it_is_with_those_after_it() -> None:
    half = SURE // 2
    target = _in_turn_of((16, -1.0), (16 + half, 0.1), (half, -1.0), (16 + SURE - 1, 0.1), (1, -1.0))
    standing = Standing(target, HALF, ZERO, 16)
    standing.run(_shift(0.1))
    assert standing.best.score.item() == pytest.approx((16 + SURE / 2) / (16 + SURE), abs=2e-3)
    standing.run(_shift(0.2))
    assert standing.best.score.item() == pytest.approx((16 + SURE - 1) / (16 + SURE), abs=2e-3)
    assert torch.equal(standing.best.x, HALF + 0.2) and len(standing.index) == 1


@pytest.mark.parametrize("name", ["rand", "cascade"])
def test_a_randomised_defense_is_attacked_through_its_noise(name) -> None:
    _, _, x, y = digits()
    x, y = x[:20], y[:20]
    noisy = freeze(Wrapped(digits_classifier(), DIGITS, lambda v: v + 0.05 * torch.randn_like(v)))
    noisy.randomized = True
    target = make_target(noisy, len(x), "gradient", eps=0.3, randomized=True)
    torch.manual_seed(0)
    estimator = {"eot": {"samples": 4, "of": "exact"}}
    x_adv = SHORT[name](target, x, y, estimator=estimator)
    assert_feasible(target, x, x_adv)
    with torch.no_grad():
        wrong = torch.stack([noisy(x_adv).argmax(1) != y for _ in range(20)]).float().mean(0)
    assert wrong.mean() > 0.9


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


@pytest.mark.parametrize("name", ["autoattack", "cascade"])
def test_square_finds_what_a_cut_gradient_hides(name) -> None:
    _, _, x, y = digits()
    x, y = x[:20], y[:20]
    hidden = freeze(Wrapped(digits_classifier(), DIGITS, _Masked.apply))
    target = make_target(hidden, len(x), "gradient", eps=0.3)
    x_adv = SHORT[name](target, x, y)
    assert (hidden(x_adv).argmax(1) != y).float().mean() > 0.8


def test_cascade_is_no_weaker_than_multi_targeted_pgd_of_the_same_cost() -> None:
    _, _, x, y = digits()
    x, y = x[:120], y[:120]
    model = freeze(BareModel(digits_classifier(), DIGITS))
    left, cost = [], []
    for attack in (partial(pgd, targets=9, steps=60), partial(cascade, restarts=4, rounds=4, queries=0)):
        target = make_target(model, len(x), "gradient", eps=0.1)
        left.append((model(attack(target, x, y)).argmax(1) == y).sum().item())
        cost.append(target.counts.backward.sum().item())
    assert left[1] <= left[0]
    assert cost[1] <= cost[0]


def test_a_targeted_cascade_reaches_its_class() -> None:
    _, _, x, y = digits()
    x, y = x[:20], y[:20]
    model = freeze(BareModel(digits_classifier(), DIGITS))
    towards = (y + 3) % 10
    target = make_target(model, len(x), "gradient", eps=0.4, towards=towards)
    x_adv = SHORT["cascade"](target, x, y)
    assert (model(x_adv).argmax(1) == towards).float().mean() > 0.9
