"""Clean inputs do not reach a model server alone: a noisy copy of the batch goes with them, before or after.

A defense that knew which of the points around an example is the clean one could make it the centre of what it
remembers. So the copy looks alike: it lies on the data's grey levels, is differentiated where the clean batch is, and
lot decides which of the two is asked first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.contracts.defense import Defense
from bench.contracts.inputs import InputSpec
from bench.contracts.levels import Levels
from bench.contracts.threat import ThreatModel
from bench.isolation.remote import RemoteDefense


class Company:
    """What goes with clean inputs.

    Args:
        clean: these, ``(N, …)``; threat: what gives the copies their noise; spec: what an input looks like.
        generator: of the noise and the lot; another one than the defense and the attack draw from.
    """

    def __init__(self, clean: Tensor, threat: ThreatModel, spec: InputSpec, generator: torch.Generator) -> None:
        self._sums = _sum(clean)
        self._threat, self._spec, self._generator = threat, spec, generator

    def of(self, x: Tensor) -> Tensor | None:
        """A noisy copy of a batch ``(M, …)`` that has a clean input in it; None where it has none."""
        if x.ndim != 1 + len(self._spec.shape) or not torch.isin(_sum(x), self._sums).any():
            return None
        copy = self._threat.sample(x.detach(), self._generator)
        return copy if self._spec.levels is None else Levels(self._spec, self._threat, x.detach()).snapped(copy, None)

    def lot(self) -> bool:
        """Whether the copy comes first."""
        return bool(torch.randint(2, (), generator=self._generator))

    def seed(self) -> int:
        """A seed for the copy's pass."""
        return int(torch.randint(2**62, (), generator=self._generator))


def _sum(x: Tensor) -> Tensor:
    """By which inputs are told apart at little cost."""
    return x.detach().flatten(1).sum(1)


@contextlib.contextmanager
def in_company(defense: Defense, company: Company) -> Iterator[None]:
    """See to it that a defense in a server is never asked about these clean inputs alone; for one in this process it
    changes nothing."""
    if not isinstance(defense, RemoteDefense):
        yield
        return
    defense.keep_company(company)
    try:
        yield
    finally:
        defense.keep_company(None)
