"""How attacks weigh a detector against the classifier, and what they do not ask it."""

from __future__ import annotations

import pytest
import torch
from detector_canaries import guarded
from lab import digits, make_target
from torch import Tensor

from attacks.toolkit.estimators import as_estimator
from attacks.toolkit.joint import look
from attacks.toolkit.losses import Goal, margin
from attacks.toolkit.spaces import spaces
from bench.contracts.detection import Detection
from bench.contracts.target import Target

N = 6


def asked(shares: float) -> tuple[Target, Tensor, Goal, Tensor]:
    """A target that has seen its first points, and the share of the classifier that steps have had since."""
    defense, threshold = guarded("median distance")
    x, y = (part[:N] for part in digits()[2:])
    target = make_target(defense, N, "gradient", threshold=threshold)
    assert target.detection is not None
    target.detection.scales = (1.0, 1.0)
    target.detection.shares = torch.full((N,), shares)
    return target, x, Goal(margin, y), torch.arange(N)


def test_a_share_is_kept_from_step_to_step_and_is_the_mean_of_an_examples_draws() -> None:
    detection = Detection(0.0, torch.tensor([0.5, 0.5, 0.0]))
    followed = detection.carried(torch.tensor([0, 2, 0]), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(followed, torch.tensor([0.5, 0.2, 0.5]))
    torch.testing.assert_close(detection.shares, torch.tensor([0.5, 0.5, 0.2]))


@pytest.mark.parametrize("scales", [(1.0, 1.0), (10.0, 0.001), (0.001, 10.0)])
def test_a_step_serves_the_classifier_until_it_is_fooled_and_then_the_detector(scales: tuple[float, float]) -> None:
    """However far the two are from success on scales that nobody has chosen."""
    detection = Detection(1.0, torch.full((4,), 0.5), scales=scales)
    margins = torch.tensor([-0.1, -5.0, 0.1, 5.0])
    rejected = torch.tensor([4.0, 1.01, 4.0, 1.01])
    assert detection.share(margins, rejected).tolist() == [1, 1, 0, 0]
    assert detection.share(margins, torch.zeros(4))[:2].tolist() == [1, 1]


def test_once_both_are_achieved_a_step_serves_the_one_with_less_to_spare() -> None:
    detection = Detection(1.0, torch.full((3,), 0.5), scales=(1.0, 1.0))
    share = detection.share(torch.tensor([0.1, 1.0, 2.0]), torch.tensor([-1.0, 0.0, 0.9]))
    assert share[0] > 0.99 and share[1] == 0.5 and share[2] < 0.01


def test_the_slacks_direction_is_that_of_all_steps_so_far_older_ones_fading() -> None:
    detection = Detection(0.0, torch.full((2,), 0.5))
    first, second = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    first[0, 0, 0, 0], second[0, 0, 7, 7] = 3.0, 0.01
    example = torch.tensor([1])
    torch.testing.assert_close(detection.remembered(example, first), first / 3)
    torch.testing.assert_close(detection.remembered(example, second), 0.7 * first / 3 + second / 0.01)
    assert detection.slopes is not None and not detection.slopes[0].any()


def test_a_slack_without_a_gradient_leaves_its_direction_as_it_was() -> None:
    detection = Detection(0.0, torch.full((2,), 0.5))
    both = torch.tensor([0, 1])
    slopes = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = detection.remembered(both, slopes)
    slopes[1] = 0
    after = detection.remembered(both, slopes)
    torch.testing.assert_close(after[0], 1.7 * before[0])
    assert after[1].equal(before[1])


def test_the_slacks_direction_is_the_mean_of_an_examples_draws() -> None:
    detection = Detection(0.0, torch.full((3,), 0.5))
    draws = torch.eye(2).view(2, 1, 1, 2)
    followed = detection.remembered(torch.tensor([2, 2]), 5 * draws)
    torch.testing.assert_close(followed, torch.full((2, 1, 1, 2), 0.5))


@pytest.mark.parametrize("estimator", ["exact", "identity", {"finite_difference": {"samples": 64}}])
def test_a_step_for_the_detector_alone_follows_the_direction_that_is_remembered(estimator) -> None:
    target, x, right, index = asked(0.0)
    goal = Goal(margin, (right.y + 1) % 10)
    assert target.detection is not None
    target.detection.threshold = -1e6
    points = target.threat.sample(x, target.generator)
    first, second = (as_estimator(estimator).evaluate(target, at, goal, index).grad for at in (points, x))
    memory = target.detection.slopes
    assert memory is not None
    assert torch.cosine_similarity(second.flatten(1), memory.flatten(1)).min() > 0.999
    assert torch.cosine_similarity(second.flatten(1), first.flatten(1)).max() < 0.999


def test_a_share_belongs_to_the_example_also_in_a_subset() -> None:
    target, x, goal, _ = asked(0.5)
    rows = torch.tensor([4, 1])
    as_estimator("exact").evaluate(target.subset(rows), x[rows], goal.at(rows), torch.arange(2))
    assert target.detection is not None
    changed = target.detection.shares != 0.5
    assert changed.tolist() == [i in (1, 4) for i in range(N)]


@pytest.mark.parametrize(("content", "passes"), [(True, (2, 1)), (False, (3, 2))])
def test_the_score_is_differentiated_only_where_a_step_follows_it(content: bool, passes: tuple[int, int]) -> None:
    """Where it has not mattered of late a forward pass sees whether it does now."""
    target, x, right, index = asked(1.0)
    goal = Goal(margin, (right.y + 1) % 10)  # the classifier is fooled already
    assert target.detection is not None
    target.detection.threshold = 1e6 if content else -1e6
    as_estimator("exact").evaluate(target, x, goal, index)
    assert set(zip(target.counts.forward.tolist(), target.counts.backward.tolist(), strict=True)) == {passes}


def test_where_the_classifiers_half_cannot_win_the_detector_is_not_asked() -> None:
    target, x, goal, index = asked(0.5)
    logits = target.logits(x)
    value, fooled = look(target, goal, logits, x, index)
    assert target.counts.forward.tolist() == [2] * N
    beats = torch.where(index % 2 == 0, torch.inf, -torch.inf)
    known, also = look(target, goal, logits, x, index, beats)
    assert target.counts.forward.tolist() == [2 if i % 2 == 0 else 3 for i in range(N)]
    assert known[1::2].equal(value[1::2]) and also.equal(fooled)
    assert (known >= value).all()  # what the classifier's half allows at most


@pytest.mark.parametrize(("name", "levels"), [("grid distance", True), ("median distance", False)])
def test_grey_levels_come_first_only_where_they_quiet_the_detector(name: str, levels: bool) -> None:
    defense, threshold = guarded(name)
    x = digits()[2][:40]
    target = make_target(defense, len(x), "gradient", eps=0.2, threshold=threshold)
    first, second = spaces(target, x)
    assert [space is target for space in (first, second)] == [not levels, levels]
