"""Gradients from differences of logits: the estimator that no defense can hide from by cutting its graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.toolkit.losses import Goal, repeat
from bench.contracts.attack import PrepareContext
from bench.contracts.target import Evaluation, Jacobian, Target, select

#: How the directions of finite differences are drawn: orthogonal ones, random signs, or independent Gaussians.
Directions = Literal["orthogonal", "rademacher", "gaussian"]


@dataclass(frozen=True)
class FiniteDifference:
    """Antithetic finite differences along random directions.

    Needs nothing but logits, so no defense can hide from it by cutting its graph. With as many orthogonal
    directions as there are values it is exact on a linear model. Random signs are SPSA (Uesato et al. 2018),
    independent Gaussians NES (Ilyas et al. 2018). All examples share the directions.

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
        grad = self.gradient(target, x, goal, index)
        logits = target.logits(x, index)
        return Evaluation(goal(logits), grad, logits)

    def gradient(self, target: Target, x: Tensor, goal: Goal, index: Tensor) -> Tensor:
        """The gradient alone, without a forward pass at ``x`` itself."""

        def loss(logits: Tensor, repeats: int) -> Tensor:
            return goal.repeat(repeats)(logits)[:, None]

        return self._differences(target, x, index, loss, 1)[:, 0]

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
        dim = x[0].numel()
        directions = self._directions(target, dim).to(x)
        pairs = len(directions)
        grads = x.new_zeros(len(x), number, dim)
        for some in directions.split(max(1, 4096 // max(1, len(x)))):
            probes = torch.cat([some, -some]) * self.sigma
            rows = (x.flatten(1)[None] + probes[:, None]).reshape(-1, *x.shape[1:])
            repeats = len(probes)
            seen = values(target.logits(rows, index.repeat(repeats)), repeats).view(2, len(some), len(x), number)
            seen = torch.nan_to_num(seen, nan=0.0, posinf=0.0, neginf=0.0)
            grads += torch.einsum("smk,sd->mkd", seen[0] - seen[1], some) / (2 * self.sigma * pairs)
        return grads.view(len(x), number, *x.shape[1:])

    def _directions(self, target: Target, dim: int) -> Tensor:
        """Directions ``(samples, dim)`` of root mean square 1."""
        count = min(self.samples, dim) if self.directions == "orthogonal" else self.samples
        gaussian = torch.randn(dim, count, generator=target.generator, dtype=torch.float64)
        if self.directions == "orthogonal":
            scaled: Tensor = torch.linalg.qr(gaussian).Q.T * dim**0.5
            return scaled
        return gaussian.T if self.directions == "gaussian" else gaussian.T.sign()

    def prepare(self, context: PrepareContext) -> dict[str, Tensor]:
        return {}
