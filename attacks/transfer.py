"""Transfer attack: adversarial examples made for surrogates, never for the defense (Dong et al. 2018)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from attacks.losses import ce
from attacks.projections import per_example, project_, start_in_ball, steepest
from attacks.surrogates import load_surrogates, train_surrogates
from bench.attack import PrepareContext, attack
from bench.target import Target

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
    knowledge="transfer",
    norms=("linf", "l2"),
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
    diversity: Annotated[float, Ge(0), Le(1)] = 0.5,
    surrogates: Annotated[int, Ge(1)] = 3,
    epochs: Annotated[int, Ge(1)] = 15,
    training: Training = "mixed",
) -> Tensor:
    """Momentum iterations (MI-FGSM) on an ensemble of surrogates; the defense itself is never queried.

    Args:
        target: transfer knowledge: the threat model, the class count and the surrogates' weights.
        x: ``(N, C, H, W)`` in the box; y: int64 ``(N,)``.
        steps: gradient steps.
        step_size: as a fraction of eps.
        momentum: μ, the decay of the sum of L1-normalised gradients.
        diversity: probability that a surrogate sees the images randomly shrunk and padded in a step (Xie et al.
            2019, DI²-FGSM).
        surrogates: how many are trained, of three architectures in turn.
        epochs: passes over the training split for each.
        training: adversarial training at the threat's eps for all surrogates, for none (``standard``), or for two
            of every three (``mixed``). Robust surrogates transfer best to robust defenses.

    Returns:
        x_adv, shaped like x.
    """
    models = load_surrogates(target.prepared, target.info, x.device)
    threat, clean = target.threat, x.float()
    x_k = start_in_ball(target, clean)
    velocity = torch.zeros_like(x_k)
    for _ in range(steps):
        x_k.requires_grad_()
        loss = sum(ce(_logits(model, x_k, target, diversity), y) for model in models)
        assert isinstance(loss, Tensor)
        (grad,) = torch.autograd.grad(loss.sum(), x_k)
        velocity = momentum * velocity + grad / per_example(grad.flatten(1).abs().sum(1).clamp_min(1e-30), grad)
        x_k = project_(x_k.detach() + step_size * threat.eps * steepest(velocity, threat.norm), clean, threat)
    return project_(x_k.to(x.dtype), x, threat)


def _logits(model: nn.Module, x: Tensor, target: Target, diversity: float) -> Tensor:
    """Logits of one surrogate, on randomly shrunk and padded images with probability ``diversity``."""
    chance, size, down, right = target.rand(4, like=x).tolist()
    height, width = x.shape[2:]
    if chance < diversity:
        scale = _SMALLEST + (1 - _SMALLEST) * size
        h, w = max(1, round(scale * height)), max(1, round(scale * width))
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        x = F.interpolate(x, (h, w), mode="bilinear", align_corners=False)
        x = F.pad(x, (left, width - w - left, top, height - h - top))
    return model(x)
