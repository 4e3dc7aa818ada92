"""The threat model: what an adversarial input may look like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bench.contracts.balls import distances, l1_projection, l2_projection, largest_positions, uniform_directions
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.words import NORMS, Norm, format_eps


class ThreatModel(Protocol):
    """Which inputs an attack may return for x. ``x`` and ``x_adv`` are batches ``(M, …)`` of one shape."""

    def distances(self, x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
        """How far each ``x_adv`` is from its x: a dict of names → float64 ``(M,)``."""
        ...

    def project_(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Move ``x_adv``, in place, to a point that is allowed, the nearest one where that can be had; returns it."""
        ...

    def sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A random allowed point for each x, in its dtype and on its device."""
        ...

    def violations(self, x: Tensor, x_adv: Tensor) -> list[str]:
        """Why each row of ``x_adv`` is not allowed; ``"ok"`` where it is."""
        ...

    def __str__(self) -> str:
        """As it is shown, for example ``linf 8/255``."""
        ...


@dataclass(frozen=True)
class Lp:
    """A ball of radius ``eps`` around x in ``norm``, intersected with the box ``[low, high]``.

    ``eps`` is in the units of the box; for ``l0`` it is a number of positions (a pixel counts once, however many of
    its channels change).
    """

    norm: Norm
    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise InputError(f"threat_model.norm: {self.norm!r} is not one of {', '.join(NORMS)}")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise InputError(f"threat_model.eps: {self.eps!r} must be a finite number greater than 0")
        if not self.low < self.high:
            raise InputError(f"threat_model box: low {self.low} must be below high {self.high}")

    @property
    def tolerance(self) -> float:
        """How far beyond ``eps`` float32 rounding may carry an honest projection: 1e-6 + 1e-5·eps."""
        return 1e-6 + 1e-5 * self.eps

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.eps)}"

    def distances(self, x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
        """Distances in all four norms, float64 ``(M,)`` each; ``l0`` counts positions."""
        return distances(x, x_adv)

    def project_(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Project ``x_adv`` in place onto the ball around ``x`` intersected with the box; returns it.

        In linf, l2 and l1 the result is the feasible point that is nearest in l2. (Ball first and box after it would
        be feasible as well, but leave part of the radius unused wherever values are clipped.) In l0 the eps positions
        of largest change (in l2 over the channels, after clipping to the box) are kept.
        """
        if self.norm == "linf":
            torch.clamp(x_adv, x - self.eps, x + self.eps, out=x_adv)
        elif self.norm == "l2":
            x_adv.copy_(x + l2_projection(x_adv - x, self.low - x, self.high - x, self.eps))
        elif self.norm == "l1":
            x_adv.copy_(x + l1_projection(x_adv - x, self.low - x, self.high - x, self.eps))
        else:
            x_adv.clamp_(self.low, self.high)
            x_adv.copy_(torch.where(largest_positions(x_adv - x, int(self.eps)), x_adv, x))
        return x_adv.clamp_(self.low, self.high)

    def sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A point around each x, uniform in the ball and then projected onto the box (linf, l2, l1); in l0 eps random
        positions are uniform in the box."""
        if self.norm == "linf":
            return self.project_(x + self.eps * (2 * torch.rand(x.shape, generator=generator).to(x) - 1), x)
        if self.norm == "l0":
            order = torch.rand(x.shape if x.ndim == 2 else (len(x), 1, *x.shape[2:]), generator=generator).to(x)
            uniform = self.low + (self.high - self.low) * torch.rand(x.shape, generator=generator).to(x)
            return torch.where(largest_positions(order, int(self.eps)), uniform, x)
        radius = self.eps * torch.rand(len(x), generator=generator).to(x) ** (1 / x[0].numel())
        step = uniform_directions(self.norm, x, generator).flatten(1) * radius[:, None]
        return self.project_(x + step.view_as(x), x)

    def violations(self, x: Tensor, x_adv: Tensor) -> list[str]:
        """Why each row of ``x_adv`` is not allowed (shape, finite, box, ball within the tolerance); else ``"ok"``."""
        if x_adv.shape != x.shape:
            return [f"shape {tuple(x_adv.shape)} instead of {tuple(x.shape)}"] * len(x)
        reasons = ["ok"] * len(x)
        finite = torch.isfinite(x_adv).flatten(1).all(1)
        distance = distances(x, torch.where(torch.isfinite(x_adv), x_adv, x))[self.norm]
        low, high = x_adv.flatten(1).amin(1), x_adv.flatten(1).amax(1)
        for i in range(len(x)):
            if not finite[i]:
                reasons[i] = "not finite"
            elif low[i] < self.low or high[i] > self.high:
                reasons[i] = f"outside the box: [{low[i]:.6g}, {high[i]:.6g}]"
            elif distance[i] > self.eps + self.tolerance:
                reasons[i] = f"outside the ball: {self.norm} {distance[i]:.6g} > {self.eps:.6g}"
        return reasons


def as_lp(threat: ThreatModel) -> Lp:
    """The threat model as an :class:`Lp`. Raises :class:`NotApplicable` for one of another kind."""
    if not isinstance(threat, Lp):
        raise NotApplicable(f"needs an Lp ball as threat model, not {threat}")
    return threat
