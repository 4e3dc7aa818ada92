"""How attacks take a detector into account: their losses, gradients and choices are those of the joint objective.

Where the target rejects nothing, each of these does what would be done without it, at the same price. The objective
is in ``bench.contracts.detection``: positive only where the classifier is fooled and the detector accepts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.toolkit.directions import directions_of, slopes
from attacks.toolkit.losses import Goal, repeat
from bench.contracts.answers import Evaluation
from bench.contracts.target import Target

#: Directions along which a score is differenced where it has no gradient, and their root mean square in shares of the
#: box. After so many attempts in a row that found it flat it is left alone.
_SAMPLES, _SIGMA, _BLIND = 64, 0.03, 3
#: By how much the score of a randomised defense has to change more along the directions than it does from draw to draw
#: at one point, in mean squares, and how many draws tell the latter.
_ABOVE_LUCK, _REPEATS = 1.3, 8
#: Share of the detector's half below which its gradient is worth neither a backward pass nor a search.
_WORTH = 0.05


def with_detector(target: Target, x: Tensor, goal: Goal, index: Tensor, at: Evaluation, draws: int = 1) -> Evaluation:
    """``at``, the evaluation of the classifier at ``x``, with the detector's half: loss and gradient of both.

    A score without a gradient, or with one of zero where it decides, is differenced along random directions.

    Args:
        goal: of the rows ``x (M, …)`` of examples ``index (M,)``; its loss gives the direction of the classifier's
            half, its margin says how far that is from success.
        draws: of the score, averaged.
    """
    if target.detection is None:
        return at
    margins = goal.margin(at.logits)
    scores, grads, share = _scored(target, x, index, margins, draws)
    flat = (grads.flatten(1).abs().sum(1) == 0) & (1 - share > _WORTH)
    if flat.any() and target.detection.blind < _BLIND:
        slope = _differenced(target, x[flat], index[flat])
        if slope is None:
            target.detection.blind += 1
        else:
            target.detection.blind = 0
            grads = grads.clone()
            grads[flat] = slope
    return Evaluation(
        target.detection.joint(margins, scores).to(at.loss),
        target.detection.blended(at.grad, target.detection.remembered(target.examples(index), -grads), share),
        at.logits,
        scores,
    )


def _scored(target: Target, x: Tensor, index: Tensor, margins: Tensor, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """The detector's scores ``(M,)``, their gradients, shaped like x, and the classifier's share of the step ``(M,)``.

    The gradient is zero where no step would follow it. Where the steps before had no need of it, a forward pass shows
    whether this one has.
    """
    assert target.detection is not None
    examples = target.examples(index)
    # All of the first points set the scales.
    wanted = (1 - target.detection.shares[examples] > _WORTH).to(x.device) | (target.detection.scales is None)
    scores, grads = margins.new_zeros(len(x)), torch.zeros_like(x)

    def differentiate(rows: Tensor) -> None:
        if len(rows):
            each, of_rows = target.score_gradient(repeat(x[rows], draws), index[rows].repeat(draws))
            scores[rows] = each.view(draws, -1).mean(0).to(scores)
            grads[rows] = of_rows.view(draws, -1, *x.shape[1:]).mean(0)

    differentiate(wanted.nonzero().squeeze(1))
    others = (~wanted).nonzero().squeeze(1)
    if len(others):
        scores[others] = target.scores(x[others], index[others], draws=draws).to(scores)
    share = target.detection.carried(examples, target.detection.share(margins, scores))
    differentiate(others[1 - share[others] > _WORTH])
    return scores, grads, share


def score_slope(target: Target, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The detector's scores ``(M,)`` at ``x`` and their gradients, shaped like x, differenced where they are zero."""
    assert target.detection is not None
    scores, grads = target.score_gradient(x, index)
    flat = grads.flatten(1).abs().sum(1) == 0
    if flat.any() and target.detection.blind < _BLIND:
        slope = _differenced(target, x[flat], index[flat])
        if slope is None:
            target.detection.blind += 1
        else:
            target.detection.blind = 0
            grads[flat] = slope
    return scores, grads


def _differenced(target: Target, x: Tensor, index: Tensor) -> Tensor | None:
    """The gradient of the score from differences, for the rows ``x`` of the examples ``index``.

    None where the score does not depend on the input, or no more than on luck.
    """
    box = target.info.input
    directions = directions_of(target, x[0].numel(), _SAMPLES, "orthogonal").to(x)
    seen: list[Tensor] = []

    def scores(rows: Tensor, repeats: int) -> Tensor:
        seen.append(target.scores(rows, index.repeat(repeats)).to(x))
        return seen[-1][:, None]

    slope = slopes(x, directions, _SIGMA * (box.high - box.low), scores, 1)[:, 0]
    change = torch.cat([values.view(2, -1).diff(dim=0).flatten() for values in seen]).square().mean()
    luck = x.new_zeros(())
    if target.randomized:
        again = x.repeat(_REPEATS, *[1] * (x.ndim - 1)), index.repeat(_REPEATS)
        luck = 2 * target.scores(*again).to(x).view(_REPEATS, -1).var(0).mean()
    return slope if change > _ABOVE_LUCK * luck else None


def merit(
    target: Target, goal: Goal, logits: Tensor, x: Tensor, index: Tensor | None, scores: Tensor | None = None
) -> Tensor:
    """How near points are to success, ``(M,)``, positive on success: the margin, or the joint objective.

    Args:
        logits: of ``x``; scores: likewise, where they are known already (else the detector is asked).
    """
    margins = goal.margin(logits)
    if target.detection is None:
        return margins
    scores = target.scores(x, index) if scores is None else scores
    return target.detection.joint(margins, scores).to(margins)


def look(
    target: Target, goal: Goal, logits: Tensor, x: Tensor, index: Tensor, beats: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Loss ``(M,)`` and success, bool ``(M,)``, of points ``x`` with these ``logits``.

    The loss is the goal's, or with a detector the joint objective.

    Args:
        beats: loss ``(M,)`` below which a point is of no interest. Where the classifier's half alone stays below, the
            detector is not asked: the loss is then that half, and no success.
    """
    if target.detection is None:
        return goal(logits), target.fooled(logits, x, goal.y, index)
    margins = goal.margin(logits)
    value, fooled = target.detection.of_margin(margins), torch.zeros_like(index, dtype=torch.bool)
    asked = torch.ones_like(fooled) if beats is None else value > beats
    if asked.any():
        rows = index[asked]
        scores = target.scores(x[asked], rows)
        value[asked] = target.detection.joint(margins[asked], scores).to(value)
        fooled[asked] = target.fooled(logits[asked], x[asked], goal.y[asked], rows, scores)
    return value, fooled
