"""Gradients from differences of logits: the estimator that no defense can hide from by cutting its graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.toolkit.directions import Directions, directions_of, slopes
from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal, repeat
from bench.contracts.answers import Evaluation, Jacobian, select
from bench.contracts.attack import PrepareContext
from bench.contracts.target import Target


@dataclass(frozen=True)
class FiniteDifference:
    """Antithetic finite differences along random directions.

    Needs nothing but logits, so no defense can hide from it by cutting its graph. With as many orthogonal
    directions as there are values it is exact on a linear model. Random signs are SPSA (Uesato et al. 2018),
    independent Gaussians NES (Ilyas et al. 2018). All examples share the directions. Of a detector it needs the
    scores: both halves of the joint objective are differenced along the same directions.

    Args:
        samples: number of directions per gradient; each costs two forward passes. (There are no more orthogonal
            directions than values.)
        sigma: typical size (root mean square) of a value of the probe, in units of x.
        directions: ``orthogonal``, ``rademacher`` (signs) or ``gaussian``.
    """

    true_forward = True
    prepares = False
    samples: int = 50
    sigma: float = 0.03
    directions: Directions = "orthogonal"

    def evaluate(self, target: Target, x: Tensor, goal: Goal, index: Tensor) -> Evaluation:
        if target.detection is None:
            grad = self.gradient(target, x, goal, index)
            logits = target.logits(x, index)
            return Evaluation(goal(logits), grad, logits)
        logits, scores = target.logits(x, index), target.scores(x, index)
        loss = merit(target, goal, logits, x, index, scores)
        return Evaluation(loss, self._joint_gradient(target, x, goal, index, logits, scores), logits, scores)

    def gradient(self, target: Target, x: Tensor, goal: Goal, index: Tensor) -> Tensor:
        """The gradient alone, without a forward pass at ``x`` itself (with a detector, whose halves it weighs, one)."""
        if target.detection is not None:
            logits, scores = target.logits(x, index), target.scores(x, index)
            return self._joint_gradient(target, x, goal, index, logits, scores)

        def loss(logits: Tensor, repeats: int) -> Tensor:
            return goal.repeat(repeats)(logits)[:, None]

        return self._differences(target, x, index, loss, 1)[:, 0]

    def _joint_gradient(
        self, target: Target, x: Tensor, goal: Goal, index: Tensor, logits: Tensor, scores: Tensor
    ) -> Tensor:
        assert target.detection is not None

        def halves(rows: Tensor, repeats: int) -> Tensor:
            owners = index.repeat(repeats)
            return torch.stack(
                [goal.repeat(repeats)(target.logits(rows, owners)), -target.scores(rows, owners).to(x)], 1
            )

        grads = slopes(x, self._directions(target, x), self.sigma, halves, 2)
        examples = target.examples(index)
        share = target.detection.carried(examples, target.detection.share(goal.margin(logits), scores))
        return target.detection.blended(grads[:, 0], target.detection.remembered(examples, grads[:, 1]), share)

    def jacobian(self, target: Target, x: Tensor, index: Tensor, classes: Tensor | None = None) -> Jacobian:
        def chosen(logits: Tensor, repeats: int) -> Tensor:
            return select(logits, None if classes is None else repeat(classes, repeats))

        number = target.num_classes if classes is None else classes.shape[1]
        grads = self._differences(target, x, index, chosen, number)
        return Jacobian(target.logits(x, index), grads)

    def _differences(
        self, target: Target, x: Tensor, index: Tensor, values: Callable[[Tensor, int], Tensor], number: int
    ) -> Tensor:
        """Gradients ``(M, number, …)`` of the ``number`` columns that ``values`` makes of stacked logits."""

        def seen(rows: Tensor, repeats: int) -> Tensor:
            return values(target.logits(rows, index.repeat(repeats)), repeats)

        return slopes(x, self._directions(target, x), self.sigma, seen, number)

    def _directions(self, target: Target, x: Tensor) -> Tensor:
        return directions_of(target, x[0].numel(), self.samples, self.directions).to(x)

    def prepare(self, context: PrepareContext) -> dict[str, Tensor]:
        return {}
