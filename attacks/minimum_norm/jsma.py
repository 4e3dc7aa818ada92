"""JSMA: pairs of pixels by the Jacobian's saliency map (Papernot et al. 2016), batched over images and classes."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from attacks.toolkit.active import take
from attacks.toolkit.estimators import Estimator, EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.hyperplanes import Shortest
from attacks.toolkit.losses import Goal, ce
from attacks.toolkit.projections import length
from attacks.toolkit.selection import ranked_classes
from bench.contracts.attack import attack
from bench.contracts.errors import InputError
from bench.contracts.target import Target

#: Entries of the pair map that exist at a time (33 million float32 are 128 MiB).
_VALUES = 2**25


def _not_zero(theta: float) -> float:
    if theta == 0:
        raise InputError("theta must not be 0")
    return theta


@attack(
    "jsma",
    version=1,
    knowledge="gradient",
    norms=("l0",),
    targeted=True,
    minimum_norm=True,
    paper="Papernot et al. 2016, The Limitations of Deep Learning in Adversarial Settings",
    url="https://arxiv.org/abs/1511.07528",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def jsma(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    theta: Annotated[float, Ge(-1), Le(1), pydantic.AfterValidator(_not_zero)] = 1.0,
    gamma: Annotated[float, Gt(0), Le(1)] = 1.0,
    targets: Annotated[int, Ge(1)] = 9,
    outputs: Literal["logits", "probabilities"] = "logits",
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
    stop_inside: bool = True,
) -> Tensor:
    """JSMA: change the pair of values of largest saliency, again and again (Papernot et al. 2016, algorithm 3).

    The saliency of a pair for class t is α·|β| with α the sum of the two ∂F_t/∂x and β that of the two
    Σ_{j≠t} ∂F_j/∂x, and 0 where α < 0 or β > 0 (signs reversed where values are decreased). Values at the end of the
    box are out of the search. A run ends when t is reached, when no pair is salient, or at ``gamma``.

    The attack is a targeted one. Without a class to reach, the runs towards the classes ranked highest at x go side
    by side, and the first to leave y with the fewest pixels ends the others.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        theta: what is added to both values of a pair, as a share of the box, negative to decrease them; not 0.
        gamma: share of the values of an image that may be changed.
        targets: classes to try where none has to be reached.
        outputs: what F is. ``logits``: the layer before the softmax, as in the original attack (Carlini & Wagner 2017
            call it JSMA-Z), two backward passes a step. ``probabilities``: their variant JSMA-F; since the ∂F_j sum
            to 0, its most salient pair are the two largest ∂F_t, hence of ∂log F_t, one backward pass a step.
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws by which a point is confirmed on a randomised defense.
        stop_inside: a run ends once it has changed more pixels than eps; False lets it go on to ``gamma``.

    Returns:
        x_adv, shaped like x: the point with the fewest pixels changed, in l0 moved onto the ball where there are more
        than eps; x where no point fools.
    """
    estimator = as_estimator(estimator)
    best = Shortest(target, x, y, rescore=rescore, stop_inside=stop_inside)
    owner, t = _runs(target, x, y, targets)
    aim = t if outputs == "probabilities" else _sums(t, target.num_classes).to(x)
    box = target.ball.high - target.ball.low
    x_k, pixels = x[owner], torch.zeros_like(owner)
    for _ in range(math.floor(gamma * x[0].numel() / 2)):
        logits, gain, loss = _derivatives(target, estimator, x_k, owner, aim)
        _record(best, x_k, logits if estimator.true_forward else target.logits(x_k, owner), owner, pixels)
        free = x_k < target.ball.high
        if theta < 0:
            gain, loss, free = -gain, -loss, x_k > target.ball.low
        pair, found = most_salient_pair(gain, loss, free.flatten(1))
        flat = x_k.flatten(1)
        changed = (flat.gather(1, pair) + theta * box).clamp(target.ball.low, target.ball.high)
        x_k = flat.scatter(1, pair, changed).view_as(x_k)
        pixels = length(x_k - x[owner], "l0").long()
        # Values move one way, so pixels become no fewer: a run that has reached its class is over as well.
        owner, aim, x_k, pixels = take(found & (pixels < _limit(best, owner)), owner, aim, x_k, pixels)
        if not len(owner):
            return best.result(x)
    _record(best, x_k, target.logits(x_k, owner), owner, pixels)
    return best.result(x)


def _runs(target: Target, x: Tensor, y: Tensor, targets: int) -> tuple[Tensor, Tensor]:
    """The example and the class of every run, int64 ``(R,)`` each."""
    everyone = torch.arange(len(x), device=x.device)
    if target.towards is not None:
        return everyone, target.towards
    ranked = ranked_classes(target.logits(x), y, targets)
    return everyone.repeat(len(ranked)), ranked.flatten()


def _sums(t: Tensor, num_classes: int) -> Tensor:
    """Weights of the logits, int64 ``(R, 2, K)``: F_t, and the negative sum of all others."""
    one = torch.nn.functional.one_hot(t, num_classes)
    return torch.stack([one, one - 1], 1)


def _derivatives(
    target: Target, estimator: Estimator, x_k: Tensor, owner: Tensor, aim: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and per value by how much it raises F_t and lowers the sum of all others: ``(R, D)`` each.

    Args:
        aim: t ``(R,)``, where F are probabilities; else the weights of :func:`_sums`.
    """
    if not aim.is_floating_point():
        at = estimator.evaluate(target, x_k, Goal(ce, aim, aim), owner)
        both = at.grad.flatten(1)
        return at.logits, both, both
    of_sums = estimator.jacobian(target, x_k, owner, aim)
    return of_sums.logits, of_sums.grads[:, 0].flatten(1), of_sums.grads[:, 1].flatten(1)


def _record(best: Shortest, x_k: Tensor, logits: Tensor, owner: Tensor, pixels: Tensor) -> None:
    """Keep the successful run of fewest ``pixels`` (int64 ``(R,)``, changed in each run) of each example."""
    hit = best.target.fooled(logits, x_k, best.y[owner], owner)
    rows = hit.nonzero().squeeze(1)
    if not len(rows):
        return
    # One number per run orders them by pixels and then by class rank; the smallest of each example wins.
    order = pixels[rows] * len(owner) + rows
    none = torch.iinfo(torch.int64).max
    first = torch.full((len(best.x),), none, device=owner.device).scatter_reduce(0, owner[rows], order, "amin")
    winner = first[first < none] % len(owner)
    best.keep(x_k[winner], logits[winner], owner[winner], hit[winner])


def _limit(best: Shortest, owner: Tensor) -> Tensor:
    """Below how many pixels a point of each run is of use."""
    limit = best.distance[owner]
    return limit.clamp_max(math.floor(best.target.ball.eps) + 1) if best.stop_inside else limit


def most_salient_pair(gain: Tensor, loss: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """The pair (p, q) of largest ``(gain_p + gain_q)·(loss_p + loss_q)``, both sums positive.

    A value that two others surpass in both respects is in no better pair than those, so only the values that at most
    one other surpasses are paired. They are few, whatever the size of the image. Where gain and loss are one and the
    same tensor, the pair are its two largest values.

    Args:
        gain, loss: ``(R, D)``; free: bool ``(R, D)``, the values allowed.

    Returns:
        int64 ``(R, 2)``, and bool ``(R,)``: whether there is such a pair.
    """
    runs, barred, alike = len(gain), ~free, loss is gain
    gain, order = gain.masked_fill(barred, -torch.inf).sort(1, descending=True)
    if alike and gain.shape[1] > 1:
        alpha = gain[:, 0] + gain[:, 1]
        return order[:, :2], (alpha > 0) & (alpha * alpha > 0)
    loss = loss.masked_fill(barred, -torch.inf).gather(1, order)
    # The largest and second largest loss among the values of larger gain.
    none = loss.new_full((runs, 1), -torch.inf)
    largest = torch.cat([none, loss.cummax(1).values[:, :-1]], 1)
    second = torch.cat([none, torch.minimum(loss, largest).cummax(1).values[:, :-1]], 1)
    front = loss > second
    place = front.cumsum(1)
    size = int(place[:, -1].max()) if runs else 0
    # Values off the front, and places that a run does not need, end up in column 0 and are cut off.
    slot = torch.where(front, place, 0)
    few = torch.full((2, runs, size + 1), -torch.inf, dtype=gain.dtype, device=gain.device)
    few.scatter_(2, slot.expand(2, -1, -1), torch.stack([gain, loss]))
    few = few[:, :, 1:]
    where = torch.zeros(runs, size + 1, dtype=torch.int64, device=gain.device).scatter_(1, slot, order)[:, 1:]
    best, pair = _best_of_pairs(few[0], few[1])
    return where.gather(1, pair), best > 0


def _best_of_pairs(gain: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """The largest saliency of all pairs of columns, ``(R,)``, 0 if none, and the pair, int64 ``(R, 2)``."""
    runs, size = gain.shape
    best, pair = gain.new_zeros(runs), torch.zeros(runs, 2, dtype=torch.int64, device=gain.device)
    rows = max(1, _VALUES // max(1, size * size))
    columns = max(1, _VALUES // max(1, rows * size))
    for r in range(0, runs, rows):
        block = slice(r, r + rows)
        for c in range(0, size, columns):
            alpha = gain[block, c : c + columns, None] + gain[block, None, :]
            beta = loss[block, c : c + columns, None] + loss[block, None, :]
            map_ = torch.where((alpha > 0) & (beta > 0), alpha * beta, 0.0)
            map_.diagonal(c, 1, 2).zero_()
            top, at = map_.flatten(1).max(1)
            better = top > best[block]
            found = torch.stack([at // size + c, at % size], 1)
            best[block] = torch.where(better, top, best[block])
            pair[block] = torch.where(better[:, None], found, pair[block])
    return best, pair
