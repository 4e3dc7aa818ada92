"""Whether cross-entropy's gradient survives the numbers it is computed in.

Cross-entropy multiplies by 1 - p_y the gradient of the log odds against y. Where the softmax saturates, that factor and
all that it is made of underflow: the gradient is exactly zero, or what is left of it points elsewhere, and the same
attack in float64 or with smaller logits would go another way (Ozbulak et al. 2020, section IV-B). The log odds have the
same direction and no such factor, so that they tell in float32 what was lost, of any model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Defense
from bench.contracts.seeding import seeded

#: Cosine with the log odds' gradient below which cross-entropy's counts as one of another direction.
_ELSEWHERE = 0.5


def precision_lost(defense: Defense, x: Tensor, y: Tensor, *seed: object) -> float | None:
    """Share of the points ``x (N, …)`` at which cross-entropy's gradient has lost the direction of the log odds'.

    None where no gradient arrives, or that of the log odds is nowhere finite and other than zero.
    """
    start = x.detach().clone().requires_grad_()
    with seeded(*seed), torch.enable_grad():
        logits = defense(start)
        against = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)
        if not logits.requires_grad:
            return None
        try:
            (of_ce,) = torch.autograd.grad(
                F.cross_entropy(logits, y, reduction="sum"), start, allow_unused=True, retain_graph=True
            )
            (of_odds,) = torch.autograd.grad(against.sum(), start, allow_unused=True)
        except RuntimeError:
            return None
    if of_ce is None or of_odds is None:
        return None
    ce, odds = _unit(of_ce), _unit(of_odds)
    usable = torch.isfinite(odds).all(1) & (odds != 0).any(1) & torch.isfinite(ce).all(1)
    if not usable.any():
        return None
    return float(((ce * odds).sum(1)[usable] < _ELSEWHERE).float().mean())


def _unit(grad: Tensor) -> Tensor:
    """Rows of length 1, however small they were; those that are zero stay so."""
    flat = grad.flatten(1).double()
    length: Tensor = flat.norm(dim=1, keepdim=True)
    return flat / length.clamp_min(torch.finfo(torch.float64).tiny)
