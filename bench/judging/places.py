"""Where a probe looks: clean inputs, and the points of the ball at which attacks ask and the judge judges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contracts.defense import Defense
from bench.contracts.inputs import InputSpec
from bench.contracts.levels import Levels
from bench.contracts.seeding import generator
from bench.contracts.threat import Lp
from bench.data.splits import Split

CLEAN_PLACE = "clean inputs"
#: Inputs towards which others are moved.
_POOL = 500


def places(defense: Defense, spec: InputSpec, threat: Lp, x: Tensor, y: Tensor, seed: int) -> dict[str, Tensor]:
    """Points of the balls around ``x (N, …)`` by a name for the place, each ``(N, …)``, without the clean inputs.

    Random points are off the grey levels of the data set's files, on which all clean images lie; so the same on these
    levels, where they are known, and the points where one gradient step to the edge of the ball ends.
    """
    inside = threat.sample(x, generator("probe", "ball", seed))
    found = {"random points of the ball": inside}
    if spec.levels is not None:
        found["points of the ball on grey levels"] = Levels(spec, threat, x).snapped(inside, None)
    if (step := along_the_gradient(defense, x, y, threat)) is not None:
        found["adversarial points"] = step
    return found


def along_the_gradient(defense: Defense, x: Tensor, y: Tensor, threat: Lp) -> Tensor | None:
    """The edge of the ball in the direction of the sign of the margin's gradient; None where there is no gradient."""
    grad, _ = margin_gradient(defense, x, y)
    if grad is None:
        return None
    return threat.project_(x + (threat.high - threat.low) * torch.nan_to_num(grad).sign(), x)


def margin_gradient(defense: Defense, x: Tensor, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of the margin (largest other logit minus that of y) by plain autograd, and the logits it is of.

    The gradient is None where none arrives, or the backward pass raises.
    """
    start = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = defense(start)
        loss = margin(logits, y).sum()
        if not loss.requires_grad:
            return None, logits.detach()
        try:
            (grad,) = torch.autograd.grad(loss, start, allow_unused=True)
        except RuntimeError:
            return None, logits.detach()
    return grad, logits.detach()


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """By how much another class leads over y, ``(N,)``."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - true


@dataclass(frozen=True)
class Pool:
    """Labelled inputs, by which others are moved towards other classes without a gradient: ``x (P, …)``, ``y (P,)``."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, split: Split, device: torch.device) -> Pool:
        some = split.take(_POOL)
        return cls(some.x.to(device), some.y.to(device))

    def nearest(self, x: Tensor, y: Tensor, threat: Lp) -> Tensor:
        """For each x the allowed point that is nearest to the nearest input of another class."""
        distance = torch.cdist(x.flatten(1), self.x.flatten(1))
        distance[y[:, None] == self.y[None]] = torch.inf
        return threat.project_(self.x[distance.argmin(1)].clone(), x)

    def between_means(self, x: Tensor, y: Tensor, threat: Lp) -> Tensor:
        """The edge of the ball in the direction that leads from the mean of y's class to the nearest other mean.

        These are the adversarial points of the classifier by the nearest mean.
        """
        classes = self.y.unique()
        means = torch.stack([self.x[self.y == k].mean(0) for k in classes])
        own = (y[:, None] == classes[None]).long().argmax(1)
        distance = torch.cdist(x.flatten(1), means.flatten(1)).scatter(1, own[:, None], torch.inf)
        step = means[distance.argmin(1)] - means[own]
        return threat.project_(x + (threat.high - threat.low) * step.sign(), x)
