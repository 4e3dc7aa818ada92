"""Descent towards a class along four sources of perturbation (Ozbulak et al. 2020, equations 11 to 16).

x ← clip(x - α P), with P the gradient of cross-entropy (ce), its sign (ce_sign), minus that of the class's logit
(logit), or that of the multi-target logit loss (m_logit). Two settings: α is the same for all (*equal multiplier*), or
α = c/‖P‖₂, so that all steps are equally long (*equal perturbation*).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.toolkit.losses import Goal, get_loss
from attacks.toolkit.projections import per_example, steepest
from bench.contracts.clock import seconds_spent
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.studies.losses.record import Descent, Setting

#: The sources, in the order of the paper's tables.
SOURCES = ("ce", "ce_sign", "logit", "m_logit")
#: κ of ``m_logit``, in logits: how far beyond the border it still pushes.
KAPPA = 20.0
#: A curve is given at no more than so many of its iterations.
_CURVE = 64

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """How far a descent moves along P: ``size`` is α, or with equal perturbation c."""

    setting: Setting
    size: float

    def along(self, p: Tensor) -> Tensor:
        """α P, shaped like ``p (N, …)``; where P is zero there is no step."""
        if self.setting == "equal multiplier":
            return self.size * p
        # Squares of numbers below 1e-23 are zero in float32, so that the length of such a P would be too.
        largest = per_example(p.flatten(1).abs().amax(1), p)
        return self.size * steepest(torch.where(largest > 0, p / largest, p), "l2")


def perturbation(model: Model, x: Tensor, t: Tensor, source: str) -> tuple[Tensor, Tensor]:
    """P at ``x (N, …)`` towards the classes ``t (N,)``, shaped like x, and the logits ``(N, K)`` there.

    Raises:
        InputError: for an unknown source, or where no gradient reaches the input.
    """
    if source not in SOURCES:
        raise InputError(f"study of losses: source {source!r} is not one of {', '.join(SOURCES)}")
    name = "ce" if source == "ce_sign" else source
    goal = Goal(get_loss({"m_logit": {"kappa": KAPPA}} if name == "m_logit" else name), t, reach=True)
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        value = goal(logits).sum()
        grad = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    if grad is None:
        raise InputError("study of losses: the classifier cuts its graph; there is no gradient to descend along")
    p = -grad
    return (p.sign() if source == "ce_sign" else p), logits.detach()


def is_zero(p: Tensor) -> Tensor:
    """Bool ``(N,)``: where every value of a row of ``p (N, …)`` is exactly zero."""
    return (p == 0).flatten(1).all(1)


def other_classes(y: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """A class other than ``y (N,)`` for each example, all equally likely."""
    shift = torch.randint(1, num_classes, y.shape, generator=generator)
    return (y + shift.to(y)) % num_classes


def blurred(x: Tensor) -> Tensor:
    """Images ``x (N, C, H, W)`` under a 3 × 3 binomial filter (1 2 1 in either direction), borders repeated."""
    return F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 2, stride=1), 2, stride=1)


def trace(
    defense: Defense,
    x: Tensor,
    y: Tensor,
    t: Tensor,
    source: str,
    step: Step,
    iterations: int,
    judges: Mapping[str, Model] = {},
) -> Descent:
    """Descend for all ``iterations``, whether the class is reached or not, and note what happens.

    Args:
        defense: in evaluation mode, differentiable, deterministic.
        x: ``(N, …)``; y: the classes to leave; t: those to reach, int64 ``(N,)``.
        source: one of :data:`SOURCES`.
        step: the setting, with its multiplier or length.
        iterations: at least 1.
        judges: other ways from images to logits, by name: do they still see t where the descent ends?
    """
    low, high = defense.data.input.low, defense.data.input.high
    x_k, seconds = x.clone(), 0.0
    first = torch.full((len(x),), -1, dtype=torch.int64)
    l2, linf = torch.full((len(x),), torch.nan), torch.full((len(x),), torch.nan)
    shown = _shown(iterations)
    curves: dict[str, list[float]] = {
        name: []
        for name in ("softmax_initial", "softmax_target", "logit_initial", "logit_target", "gradient", "vanished")
    }
    lasting: dict[str, list[int | None]] = {}
    for k in range(iterations + 1):
        start = seconds_spent(x.device)
        p, logits = perturbation(defense, x_k, t, source)
        moved = (x_k - step.along(p)).clamp(low, high)
        seconds += seconds_spent(x.device) - start
        new = ((logits.argmax(1) == t).cpu()) & (first < 0)
        delta = (x_k - x).flatten(1).cpu()
        first[new] = k
        l2[new], linf[new] = delta[new].norm(dim=1), delta[new].abs().amax(1)
        if k in shown:
            for name, value in _point(p, logits, y, t).items():
                curves[name].append(value)
        if k == iterations:
            lasting = {name: _lasting(judge, x_k, t, logits.argmax(1) == t) for name, judge in judges.items()}
        x_k = moved
    return Descent(
        source=source, setting=step.setting, iterations=[None if k < 0 else k for k in first.tolist()],
        l2=_known(l2), linf=_known(linf), seconds=_short(seconds), steps=sorted(shown), lasting=lasting,
        **curves,
    )  # fmt: skip


@torch.no_grad()
def _lasting(judge: Model, x_adv: Tensor, t: Tensor, reached: Tensor) -> list[int | None]:
    same = judge(x_adv).argmax(1) == t
    return [int(one) if there else None for one, there in zip(same.tolist(), reached.tolist(), strict=True)]


def _shown(iterations: int) -> set[int]:
    every = max(1, -(-iterations // _CURVE))
    return {*range(0, iterations + 1, every), iterations}


def _point(p: Tensor, logits: Tensor, y: Tensor, t: Tensor) -> dict[str, float]:
    softmax = logits.softmax(1)
    length = p.flatten(1).norm(dim=1)
    values = {
        "softmax_initial": softmax.gather(1, y[:, None]),
        "softmax_target": softmax.gather(1, t[:, None]),
        "logit_initial": logits.gather(1, y[:, None]),
        "logit_target": logits.gather(1, t[:, None]),
        "gradient": length,
        "vanished": is_zero(p).float(),
    }
    return {name: _short(float(value.mean())) for name, value in values.items()}


def _short(value: float) -> float:
    """Four significant digits: more are neither shown nor the same on another machine."""
    return float(f"{value:.4g}")


def _known(values: Tensor) -> list[float | None]:
    return [None if value != value else _short(value) for value in values.tolist()]


@dataclass(frozen=True)
class Reached:
    """Where descents stopped: points ``x_adv (N, …)``, and whether each reached its class, bool ``(N,)``."""

    x_adv: Tensor
    reached: Tensor


def descend(
    defense: Defense, x: Tensor, t: Tensor, source: str, step: Step, iterations: int, batch_size: int = 512
) -> Reached:
    """Descend until the class is reached: each example stops at the first point that is classified as t.

    Arguments as those of :func:`trace`. An example that does not reach its class is left where it was last.
    """
    low, high = defense.data.input.low, defense.data.input.high
    x_adv, reached = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(batch_size):
        for k in range(iterations + 1):
            p, logits = perturbation(defense, x_adv[rows], t[rows], source)
            there = logits.argmax(1) == t[rows]
            reached[rows[there]] = True
            rows, p = rows[~there], p[~there]
            if not len(rows) or k == iterations:
                break
            x_adv[rows] = (x_adv[rows] - step.along(p)).clamp(low, high)
    return Reached(x_adv, reached)
