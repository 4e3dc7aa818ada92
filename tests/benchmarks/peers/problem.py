"""What every library is given: a model, examples that it classifies correctly, and a threat model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """One task for one library.

    Attributes:
        model: maps ``(N, C, H, W)`` in [0, 1] to logits, in evaluation mode, with frozen weights on the CPU.
        x, y: float32 ``(N, C, H, W)`` and int64 ``(N,)``; the model classifies x as y.
        norm: ``linf``, ``l2``, ``l1`` or ``l0``; eps: radius, None where the distance itself is the result.
        num_classes: K.
        seed: for libraries that accept one; the global generators are seeded with it as well.
        randomized: whether two passes of the model may differ.
        targets: int64 ``(N,)``, the class to reach, None in an untargeted comparison.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    norm: str
    eps: float | None
    num_classes: int
    seed: int = 0
    randomized: bool = False
    targets: Tensor | None = None

    @property
    def radius(self) -> float:
        """eps, where the comparison has one."""
        assert self.eps is not None, "a comparison of distances has no eps"
        return self.eps


class Adapter(Protocol):
    """Runs one library on a problem: ``(problem, **settings) -> x_adv``, shaped like x."""

    def __call__(self, problem: Problem) -> Tensor: ...
