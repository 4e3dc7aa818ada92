"""Square: its parts, its counts, and its strength on models where the answer is known."""

from __future__ import annotations

import pytest
import torch
from lab import DIGITS, Wrapped, assert_feasible, digits, digits_classifier, linear_case, make_target
from registered import radius, toy
from torch import Tensor
from toys import INFO, Constant, NaNWhereBright

from attacks.score.square import square
from attacks.toolkit.windows import L2Windows, LinfWindows, Windows, _bumps
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded

SHAPES = [(1, 8, 8), (3, 5, 7)]
every_batch = pytest.mark.parametrize("n", [1, 3, 8])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_norm = pytest.mark.parametrize("norm", ["linf", "l2"])


@every_batch
@every_shape
def test_linf_succeeds_just_beyond_the_minimal_radius(n, shape) -> None:
    # On a linear model every corner that is wrong improves when it is flipped: the search is exact in the end.
    case = linear_case(n, shape, "linf")
    target = case.target(1.02, "score")
    x_adv = square(target, case.x, case.y, queries=2000, restarts=1)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()


@every_batch
@every_shape
def test_l2_succeeds_at_three_times_the_minimal_radius(n, shape) -> None:
    # The published proposals are smooth bumps, which a weight vector of white noise hardly resembles.
    case = linear_case(n, shape, "l2")
    target = case.target(3.0, "score")
    x_adv = square(target, case.x, case.y, queries=2000)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()


@every_norm
@every_shape
def test_nothing_succeeds_below_the_minimal_radius(norm, shape) -> None:
    case = linear_case(3, shape, norm)
    target = case.target(0.98, "score")
    x_adv = square(target, case.x, case.y, queries=500)
    assert_feasible(target, case.x, x_adv)
    assert not case.fooled(x_adv).any()


@every_norm
def test_a_class_to_reach_is_reached_and_no_other_one_counts(norm) -> None:
    case = linear_case(4, (1, 8, 8), norm, rivals=4)
    towards = (case.y + 2) % 4
    target = case.target(8.0, "score", towards=towards)
    x_adv = square(target, case.x, case.y, queries=1500)
    assert_feasible(target, case.x, x_adv)
    assert (case.defense(x_adv).argmax(1) == towards).all()


@pytest.mark.parametrize(("norm", "shape", "factor"), [
    ("linf", (1, 8, 8), 0.7), ("linf", (1, 28, 28), 2.8), ("linf", (3, 32, 32), 2.0),
    ("l2", (1, 8, 8), 1.6), ("l2", (1, 28, 28), 3.0), ("l2", (3, 32, 32), 2.2),
])  # fmt: skip
def test_examples_leave_between_two_draws_of_random_numbers(norm, shape, factor) -> None:
    defense, x, y = toy(shape, 16)
    target = make_target(defense, 16, "score", norm=norm, eps=factor * radius(norm, shape))
    x_adv = square(target, x, y, queries=300, rescale=False, restarts=1)
    assert_feasible(target, x, x_adv)
    # Windows have one size in the queries 51 to 200 and 201 to 300, and random numbers serve 64 steps at a time.
    late = (target.counts.forward > 51) & (target.counts.forward < 265)
    fooled = defense(x_adv).argmax(1) != y
    assert fooled[late].all() and late.any() and not fooled.all()


@every_norm
def test_examples_do_not_depend_on_which_others_are_finished(norm) -> None:
    case = linear_case(4, (1, 8, 8), norm)
    together = square(case.target(0.9, "score"), case.x, case.y, queries=200)
    wrong = case.y.clone()
    wrong[:3] = 1 - wrong[:3]  # these are fooled from the start, and leave at once
    alone = square(case.target(0.9, "score"), case.x, wrong, queries=200)
    torch.testing.assert_close(alone[3], together[3])


@every_norm
@pytest.mark.parametrize("queries", [1, 2, 7, 100, 700])
@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_every_query_is_spent_where_nothing_helps(norm, queries, restarts) -> None:
    target = make_target(Constant(INFO), 2, "score", norm=norm)
    x = torch.rand(2, 1, 8, 8)
    x_adv = square(target, x, torch.zeros(2).long(), queries=queries, restarts=restarts)
    assert_feasible(target, x, x_adv)
    assert target.counts.forward.tolist() == [queries] * 2


def test_an_example_that_is_wrong_already_costs_one_query() -> None:
    target = make_target(Constant(INFO), 2, "score")
    square(target, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), queries=50)
    assert target.counts.forward.tolist() == [50, 1]


def test_draws_are_averaged_and_counted_on_a_randomised_defense() -> None:
    target = make_target(Constant(INFO), 2, "score", randomized=True)
    square(target, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), queries=100, draws=3)
    assert target.counts.forward.tolist() == [99 + 9] * 2  # 33 looks of 3 draws, then the last point on 9


@every_norm
def test_outputs_that_are_not_numbers_end_in_feasible_points(norm) -> None:
    x, y = torch.full((2, 1, 8, 8), 0.4), torch.zeros(2).long()
    for towards in (None, torch.ones(2).long()):
        target = make_target(NaNWhereBright(INFO), 2, "score", norm=norm, eps=0.3, towards=towards)
        assert_feasible(target, x, square(target, x, y, queries=200))


def test_an_image_smaller_than_the_windows_works() -> None:
    info = DataInfo("tiny", InputSpec((1, 2, 3)), 3)
    for norm in ("linf", "l2"):
        target = make_target(Constant(info), 1, "score", norm=norm)
        x = torch.rand(1, 1, 2, 3)
        assert_feasible(target, x, square(target, x, torch.zeros(1).long(), queries=40))


def _windows(kind: type[Windows], n: int, shape: tuple[int, int, int]) -> tuple[Windows, Tensor]:
    x = torch.rand(n, *shape, dtype=torch.float64) * 0.5 + 0.25
    norm = "linf" if kind is LinfWindows else "l2"
    target = make_target(Constant(DataInfo("toy", InputSpec(shape), 3)), n, "score", norm=norm, eps=0.1)
    return kind(target, x, torch.arange(n)), x


def test_a_window_in_linf_has_the_asked_size_one_sign_per_channel_and_always_changes_something() -> None:
    windows, x = _windows(LinfWindows, 50, (3, 6, 9))
    for share in [0.3] * 20 + [0.02] * 20:
        before = windows.images.clone()
        windows.propose(share)
        changed = (windows.images != before).any(1)
        side = max(1, round((share * 54) ** 0.5))
        assert changed.flatten(1).any(1).all()
        extent = torch.stack([changed.any(dim).sum(1) for dim in (1, 2)])
        assert extent.max() <= side
        torch.testing.assert_close((windows.images - x).abs(), torch.full_like(x, 0.1))
        windows.settle(torch.ones(50, dtype=torch.bool))


def test_a_window_visits_every_place_before_it_returns_to_one() -> None:
    windows, _ = _windows(LinfWindows, 2, (1, 10, 10))
    seen = torch.zeros(2, 100)
    for _ in range(100):
        before = windows.points.clone()
        windows.propose(0.01)
        seen += (windows.points != before).flatten(1)
        windows.settle(torch.zeros(2, dtype=torch.bool))
        assert torch.equal(windows.points, before)
    assert (seen == 1).all()


def test_l2_proposals_keep_the_length_and_are_undone_exactly() -> None:
    windows, x = _windows(L2Windows, 40, (3, 9, 8))
    kept = torch.arange(40) % 2 == 0
    for share in [0.8, 0.5, 0.2, 0.1, 0.05, 0.01] * 5:
        before = windows.images.clone()
        windows.propose(share)
        proposed = windows.images.clone()
        torch.testing.assert_close((proposed - x).flatten(1).norm(dim=1), torch.full((40,), 0.1, dtype=x.dtype))
        windows.settle(kept)
        assert torch.equal(windows.images[~kept], before[~kept])
        assert torch.equal(windows.images[kept], proposed[kept])


def test_bumps_are_two_pyramids_of_opposite_sign() -> None:
    bumps = _bumps(5, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(bumps.norm(), torch.tensor(1.0, dtype=torch.float64))
    assert (bumps[:2] > 0).all() and (bumps[2:] < 0).all()
    # Lower half: centred at its row 1, column 2; 1 + 1/4 + 1/9 there, then 1/4 + 1/9 around it, 1/9 at the rim.
    lower = bumps[2:] / bumps[3, 2] * (1 + 1 / 4 + 1 / 9)
    expected = torch.full((3, 5), 1 / 4 + 1 / 9, dtype=torch.float64)
    expected[:, [0, 4]] = 1 / 9
    expected[1, 2] += 1
    torch.testing.assert_close(lower, expected)


def test_one_lucky_draw_does_not_end_it() -> None:
    """On a randomised defense the returned point has to fool fresh draws, not only the one it was found on."""
    x, y = digits()[2][:12], digits()[3][:12]
    noisy = Wrapped(digits_classifier(), DIGITS, lambda x: x + 0.05 * torch.randn_like(x))
    x_adv = square(make_target(noisy, 12, "score", eps=0.25, randomized=True), x, y, queries=200)
    fooled = torch.stack([noisy(x_adv).argmax(1) != y for _ in range(50)]).float().mean(0)
    assert fooled.mean() > 0.8  # about 0.6 when the first lucky draw ends it


@pytest.mark.parametrize("kind", [LinfWindows, L2Windows])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)], ids=str)
def test_no_example_s_windows_depend_on_who_else_is_left(kind: type[Windows], shape: tuple[int, int, int]) -> None:
    with seeded("windows"):
        all_of_them, _ = _windows(kind, 6, shape)
    with seeded("windows"):
        fewer, _ = _windows(kind, 6, shape)
    left = torch.tensor([True, False, True, True, False, True])
    for step in range(40):
        if step == 21:  # amid what has been worked out ahead
            fewer.keep(left)
        rows = left if step >= 21 else torch.ones_like(left)
        all_of_them.propose(0.1)
        fewer.propose(0.1)
        assert torch.equal(fewer.images, all_of_them.images[rows])
        kept = torch.arange(6) % 3 == step % 3
        all_of_them.settle(kept)
        fewer.settle(kept[rows])
        assert torch.equal(fewer.images, all_of_them.images[rows])
