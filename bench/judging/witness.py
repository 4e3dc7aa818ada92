"""What a defense told an attack, beside what it says of the same batches when the attack is over."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from bench.contracts.defense import Defense
from bench.contracts.seeding import Generators, seeded
from bench.storing.records import AskedAgain

#: Batches that are kept of all that an attack asks.
BATCHES = 4
#: By what share of the largest logit two passes of one batch may differ.
TOLERANCE = 1e-3


class Witness:
    """Keeps a few of the batches that a defense is asked while this is entered, each as likely as any other.

    With the answers, and where the global generators stood, so that a randomised defense can be asked the same again.

    Args:
        defense: whose ``forward`` is listened to.
        generator: decides which batches are kept.
    """

    def __init__(self, defense: Defense, generator: torch.Generator) -> None:
        self._defense, self._generator = defense, generator
        self._kept: list[tuple[Generators, Tensor, Tensor]] = []
        self._asked, self._place = 0, -1
        self._before: tuple[Generators, Tensor] | None = None

    def __enter__(self) -> Witness:
        hooks = self._defense.register_forward_pre_hook, self._defense.register_forward_hook
        self._hooks = hooks[0](self._listen), hooks[1](self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _listen(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Decide, before the defense draws, whether this batch replaces one that is kept."""
        self._asked += 1
        place = self._asked - 1
        if place >= BATCHES:
            place = int(torch.randint(self._asked, (), generator=self._generator))
        self._place = place
        self._before = (Generators.now(), given[0].detach().clone()) if place < BATCHES else None

    def _note(self, module: nn.Module, given: tuple[Any, ...], answer: Tensor) -> None:
        if self._before is not None:
            self._kept[self._place : self._place + 1] = [(*self._before, answer.detach().clone())]

    @torch.no_grad()
    def compare(self, defense: Defense) -> AskedAgain | None:
        """Ask ``defense`` about what was kept, in the same batches and on the same random numbers.

        None where nothing was kept, or the defense draws from generators of its own, so that nothing can be compared.
        """
        rows = differing = 0
        for generators, x, told in self._kept:
            answers = []
            for _ in range(2 if defense.randomized else 1):
                with seeded("witness"):  # puts them back afterwards
                    generators.set()
                    answers.append(defense(x.clone()))
            if _differ(answers[0], answers[-1]).any():
                return None
            rows += len(x)
            differing += int(_differ(told, answers[0]).sum())
        return AskedAgain(rows=rows, differing=differing) if rows else None


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Bool ``(N,)``: where logits differ by more than float noise; what is not finite agrees with its like alone."""
    a, b = one.double(), other.double()
    largest = a.abs().nan_to_num(0, posinf=0).max()
    apart = ((a - b).abs() > TOLERANCE * (1 + largest)) | (a.isfinite() != b.isfinite())
    return apart.any(1)
