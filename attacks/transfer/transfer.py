"""Transfer attack: adversarial examples made for surrogates, never for the defense (Dong et al. 2018)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from attacks.toolkit.layers import convolved, resized
from attacks.toolkit.losses import Goal, ce
from attacks.toolkit.projections import l1_unit, steepest
from attacks.toolkit.surrogates import load_surrogates, train_surrogates
from bench.contracts.attack import PrepareContext, attack
from bench.contracts.target import Target

Training = Literal["mixed", "adversarial", "standard"]
#: Input diversity shrinks images to no less than this share of their side.
_SMALLEST = 0.85


def prepare_surrogates(
    context: PrepareContext, *, surrogates: int, epochs: int, training: Training, **_: object
) -> dict[str, Tensor]:
    """Train the surrogates on the training split alone, once per data set."""
    return train_surrogates(context, count=surrogates, epochs=epochs, training=training)


@attack(
    "transfer",
    version=1,
    knowledge="transfer",
    norms=("linf", "l2"),
    targeted=True,
    paper="Dong et al. 2018, Boosting Adversarial Attacks with Momentum",
    url="https://arxiv.org/abs/1710.06081",
    prepare=prepare_surrogates,
    prepare_scope="data",
)
def transfer(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    step_size: Annotated[float, Ge(0)] = 0.1,
    momentum: Annotated[float, Ge(0)] = 1.0,
    nesterov: bool = False,
    diversity: Annotated[float, Ge(0), Le(1)] = 0.5,
    translation: Annotated[int, Ge(0)] = 0,
    surrogates: Annotated[int, Ge(1)] = 3,
    epochs: Annotated[int, Ge(1)] = 15,
    training: Training = "mixed",
) -> Tensor:
    """Momentum iterations (MI-FGSM) on an ensemble of surrogates; the defense itself is never queried.

    Args:
        target: transfer knowledge: the threat model, the class count and the surrogates' weights.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient steps.
        step_size: as a fraction of eps.
        momentum: μ, the decay of the sum of L1-normalised gradients.
        nesterov: take the gradient one step ahead along the momentum (Lin et al. 2020, NI-FGSM).
        diversity: probability that a surrogate sees the images randomly shrunk and padded in a step (Xie et al.
            2019, DI²-FGSM).
        translation: shifts, in pixels to each side, over which gradients are averaged with Gaussian weights (Dong et
            al. 2019, TI-FGSM; the paper's 15 × 15 kernel is 7). 0: none, which was as good on 8 × 8 digits.
        surrogates: how many are trained, of three architectures in turn.
        epochs: passes over the training split for each, of 200,000 images at most (fewer of more than 32×32 pixels).
        training: adversarial training at the threat's eps for all surrogates, for none (``standard``), or for two
            of every three (``mixed``). Robust surrogates transfer best to robust defenses.

    Returns:
        x_adv, shaped like x.
    """
    models = load_surrogates(target.prepared, target.info, x.device)
    threat, clean = target.ball, x.float()
    goal = Goal.of(target, ce, y)
    x_k = target.threat.sample(clean, target.generator)
    velocity = torch.zeros_like(x_k)
    step = step_size * threat.eps
    for _ in range(steps):
        ahead = x_k + step * momentum * steepest(velocity, threat.norm) if nesterov else x_k
        at = ahead.detach().requires_grad_()
        # Summed over the surrogates: the loss of an ensemble.
        loss = torch.stack([goal(_logits(model, at, target, diversity)).sum() for model in models]).sum()
        (grad,) = torch.autograd.grad(loss, at)
        grad = blurred(grad, translation)
        velocity = momentum * velocity + l1_unit(grad)
        x_k = threat.project_(x_k + step * steepest(velocity, threat.norm), clean)
    return threat.project_(x_k.to(x.dtype), x)


def blurred(grad: Tensor, radius: int) -> Tensor:
    """``grad (M, C, …)`` convolved with a Gaussian of 2·radius + 1 pixels and standard deviation radius/3.

    Up to the border it is the mean gradient over the images shifted by at most ``radius`` pixels to each side, for a
    model that does not mind shifts (Dong et al. 2019, eq. 6, arXiv:1904.02884).
    """
    if radius == 0:
        return grad
    at = torch.arange(-radius, radius + 1, dtype=grad.dtype, device=grad.device)
    weights = torch.exp(-0.5 * (3 * at / radius) ** 2)
    weights /= weights.sum()
    return convolved(grad, weights)


def _logits(model: nn.Module, x: Tensor, target: Target, diversity: float) -> Tensor:
    """Logits of one surrogate, on randomly shrunk and padded inputs with probability ``diversity``."""
    chance, size, *shifts = target.rand(x.ndim, like=x).tolist()
    if chance < diversity:
        scale = _SMALLEST + (1 - _SMALLEST) * size
        sides = tuple(x.shape[2:])
        small = tuple(max(1, round(scale * side)) for side in sides)
        padding: list[int] = []
        for shift, side, inner in reversed(list(zip(shifts, sides, small, strict=True))):  # the last dimension first
            before = int(shift * (side - inner + 1))
            padding += [before, side - inner - before]
        x = F.pad(resized(x, small), padding)
    logits: Tensor = model(x)
    return logits
