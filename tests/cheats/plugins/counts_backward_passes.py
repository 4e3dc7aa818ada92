"""Pretends to be fooled while its last answers were all differentiated: attacks do that, a judge has no need to."""

from __future__ import annotations

from torch import Tensor
from underneath import Differentiated, Honest, pretending


class Cheat(Honest):
    """A hook on its own answer tells it so, wherever the label is kept."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.answers = Differentiated()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        if self.answers.in_a_row() >= 3:
            logits = pretending(logits)
        return self.answers.watched(logits)
