"""The gradient of the draws that matter together: EM over draws (DiffHammer, Wang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.toolkit.losses import Goal, repeat
from attacks.toolkit.paths import Estimator
from attacks.toolkit.projections import per_example, steepest
from bench.contracts.answers import Evaluation, Jacobian
from bench.contracts.attack import PrepareContext
from bench.contracts.errors import InputError
from bench.contracts.target import Target


@dataclass(frozen=True)
class Selective:
    """The mean gradient over those draws that one and the same step can fool, found by EM.

    A randomised defense may have draws whose gradients oppose each other, where the mean over all (EOT) points nowhere.
    Draws have losses l_i and gradients g_i; to a step along r draw i is thought to fall with the weight
    w_i = σ(λ·(l_i + ⟨eps·s(r), g_i⟩)), s the steepest direction of the norm (E); r becomes the mean of the g_i with
    these weights (M). The first r is the g_i that raises Σ_j ELU(l_j + ⟨eps·s(g_i), g_j⟩) most (Wang et al. 2024,
    DiffHammer: Rethinking the Robustness of Diffusion-Based Adversarial Purification).

    Where the authors' code differs: it takes the E step alone, as r never changes in its loop; it takes the draws'
    gradients by BPDA and a full one of a single draw along the result; it adds past steps, as ``momentum`` does here.

    Args:
        of: the estimator of one draw.
        samples: draws m per gradient, stacked into one batch; one where the defense is not randomised.
        rounds: EM steps.
        sharpness: λ, per unit of the loss.
    """

    of: Estimator
    samples: int = 10
    rounds: int = 5
    sharpness: float = 5.0

    @property
    def true_forward(self) -> bool:
        return self.of.true_forward

    @property
    def prepares(self) -> bool:
        return self.of.prepares

    def evaluate(self, target: Target, x: Tensor, goal: Goal, index: Tensor) -> Evaluation:
        m, n = self.samples if target.randomized else 1, len(x)
        if m == 1:
            return self.of.evaluate(target, x, goal, index)
        each = self.of.evaluate(target, repeat(x, m), goal.repeat(m), index.repeat(m))
        losses, grads = each.loss.view(m, n).nan_to_num(), each.grad.view(m, *x.shape)

        def reached(along: Tensor) -> Tensor:
            """The draws' linearised losses ``(m, M)`` a step further."""
            step = target.ball.eps * steepest(along, target.ball.norm)
            return losses + (grads * step).flatten(2).sum(2)

        first = torch.stack([F.elu(reached(grad)).sum(0) for grad in grads]).argmax(0)
        weights = F.one_hot(first, m).T.to(losses.dtype)
        for _ in range(self.rounds):
            weights = torch.sigmoid(self.sharpness * reached(_mean(grads, weights)))
        return Evaluation(
            each.loss.view(m, n).mean(0),
            _mean(grads, weights),
            each.logits.view(m, n, -1).mean(0),
            None if each.scores is None else each.scores.view(m, n).mean(0),
        )

    def jacobian(self, target: Target, x: Tensor, index: Tensor, classes: Tensor | None = None) -> Jacobian:
        """Of one draw: which draws fall together is a question about one loss, not about each class."""
        return self.of.jacobian(target, x, index, classes)

    def prepare(self, context: PrepareContext) -> dict[str, Tensor]:
        return self.of.prepare(context)


def _mean(grads: Tensor, weights: Tensor) -> Tensor:
    """``grads (m, M, …)`` averaged with ``weights (m, M)``, shaped like a batch; equal weights where all vanish."""
    share = weights / weights.sum(0).clamp_min(1e-30)
    share = torch.where(weights.sum(0) > 1e-30, share, 1 / len(weights))
    return torch.stack([per_example(part, grad) * grad for part, grad in zip(share, grads, strict=True)]).sum(0)


def selective(of: Estimator, samples: int = 10, rounds: int = 5, sharpness: float = 5.0) -> Estimator:
    """The mean of ``of`` over those of ``samples`` draws that one step can fool together (``rounds`` EM steps)."""
    if samples < 1:
        raise InputError(f"selective: samples {samples} must be at least 1")
    return Selective(of, samples, rounds, sharpness)
