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
    target, x, goal, index = asked(1.0)
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
