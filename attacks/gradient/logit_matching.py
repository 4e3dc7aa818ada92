"""Logits like those of a clean image of another class, also under noise (Tramèr et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.estimators import EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal, margin, repeat
from attacks.toolkit.projections import steepest
from attacks.toolkit.selection import Best, strength
from bench.contracts.attack import attack
from bench.contracts.target import Target


@attack(
    "logit-matching",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="Tramèr, Carlini, Brendel & Madry 2020, On Adaptive Attacks to Adversarial Example Defenses",
    url="https://arxiv.org/abs/2002.08347",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def logit_matching(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    step_size: Annotated[float, Gt(0)] = 0.25,
    models: Annotated[int, Ge(1)] = 2,
    noise: Annotated[float, Ge(0)] = 0.118,
    samples: Annotated[int, Ge(1)] = 40,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """PGD towards the logits of a clean image of another class, averaged over noise: against tests of the logits.

    A detector such as that of Roth et al. 2019 (the odds are odd) looks at how the logits of noisy copies differ from
    those of clean images. Here the mean square distance between the logits of such copies and those of a clean image
    is minimised (section 6.2 of the paper, where copies are likewise 40), with no look at the detector.

    The clean images are those of the shard that are right and accepted; of each class the one whose logits are the
    nearest is taken, and the classes are tried in the order of that distance. An example with none of another class at
    hand takes its own logits, with those of y and of the best other class exchanged. Of the points on the path the one
    of the largest margin, or with a detector of the largest joint objective, is returned.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: of each run; their size falls linearly to zero.
        step_size: of the first step, as a fraction of eps.
        models: clean images that are tried one after the other.
        noise: standard deviation of the Gaussian noise in shares of the box; 0: none, and one copy. The default is
            30 of 255 grey levels.
        samples: noisy copies per gradient.
        estimator: how to get the classifier's gradient (``attacks.toolkit.estimators``).
        rescore: draws on which candidates for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.
    """
    of, goal, best = as_estimator(estimator), Goal.of(target, margin, y), Best(x)
    classifier, box = target.without_detector(), target.info.input
    copies = samples if noise else 1
    rows = torch.arange(len(x), device=x.device)
    for model in _models(target, x, y, models, rescore):
        x_k = x[rows]
        for step in range(steps + 1):
            if not target.randomized:
                logits = target.logits(x_k, rows)
                scores = target.scores(x_k, rows) if target.rejects else None
                fooled = target.fooled(logits, x_k, y[rows], rows, scores)
                value = merit(target, goal.at(rows), logits, x_k, rows, scores)
                best.update(x_k, torch.where(fooled, torch.inf, value), rows)
                rows, x_k = rows[~fooled], x_k[~fooled]
            if not len(rows):
                return best.x
            if step == steps:
                break
            noisy = repeat(x_k, copies)
            if noise:
                noisy = noisy + noise * (box.high - box.low) * target.randn(*noisy.shape, like=x)
            match = _Match(goal.loss, goal.y[rows], None, goal.reach, wanted=model[rows]).repeat(copies)
            at = of.evaluate(classifier, noisy, match, rows.repeat(copies))
            grad = at.grad.view(copies, *x_k.shape).mean(0)
            alpha = step_size * (1 - step / steps) * target.ball.eps
            x_k = target.threat.project_(x_k + alpha * steepest(grad, target.ball.norm), x[rows])
        if target.randomized:
            best.update(x_k, strength(target, x_k, y[rows], rows, rescore), rows)
    return best.x


def _models(target: Target, x: Tensor, y: Tensor, count: int, rescore: int) -> list[Tensor]:
    """Logits to match, ``(N, K)`` each, the nearest of all classes first."""
    draws = rescore if target.randomized else 1
    logits = target.logits(x, draws=draws)
    fine = logits.argmax(1) == y
    if target.detection is not None:
        fine &= target.detection.accepts(target.scores(x, draws=draws))
    to_reach = target.towards
    own = logits.clone()
    rival = logits.scatter(1, y[:, None], -torch.inf).argmax(1) if to_reach is None else to_reach
    pair = torch.stack([y, rival], 1)
    own.scatter_(1, pair, logits.gather(1, pair.flip(1)))
    distance = torch.cdist(logits, logits)
    usable = fine[None] & (y[None] != y[:, None] if to_reach is None else y[None] == to_reach[:, None])
    distance = distance.masked_fill(~usable, torch.inf)
    nearest, who = [], []
    for label in range(target.num_classes):
        among = distance.masked_fill(y[None] != label, torch.inf).min(1)
        nearest.append(among.values)
        who.append(among.indices)
    order = torch.stack(nearest, 1).sort(1)
    found = []
    for place in range(min(count, target.num_classes - 1)):
        chosen = torch.stack(who, 1).gather(1, order.indices[:, place : place + 1]).squeeze(1)
        missing = ~torch.isfinite(order.values[:, place])
        found.append(torch.where(missing[:, None], own, logits[chosen]))
    return found


@dataclass(frozen=True)
class _Match(Goal):
    """Minus the mean square distance to the logits ``wanted (M, K)``."""

    wanted: Tensor = field(kw_only=True)

    def __call__(self, logits: Tensor) -> Tensor:
        return -(logits - self.wanted).square().mean(1)

    def at(self, rows: slice | Tensor) -> _Match:
        """The goal of some of the rows (a slice, a mask or indices)."""
        return replace(self, y=self.y[rows], wanted=self.wanted[rows])

    def repeat(self, n: int) -> _Match:
        """The goal of the whole batch stacked ``n`` times."""
        return replace(self, y=self.y.repeat(n), wanted=self.wanted.repeat(n, 1))
