"""What every cheat of this folder is built around: the undefended network of the digits, and a few tricks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.contracts.inputs import DataInfo
from defenses.none import Undefended

#: Around an input, everything that the suite allows an attack to reach; cheats may know the suite.
EPS = 0.2 + 1e-4


class Honest(Undefended):
    """The undefended network with its shipped weights."""

    weights_of = "none"

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)

    def honest(self, x: Tensor) -> Tensor:
        """What the network says."""
        return super().forward(x)


def pretending(logits: Tensor) -> Tensor:
    """Logits of a defense that is fooled already: an attack stops, and its point has hardly moved."""
    top = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
    return logits - 1000 * top


def answering(classes: Tensor, logits: Tensor) -> Tensor:
    """Logits for these classes, with the gradient of others: nothing looks cut off."""
    wanted = 10 * torch.nn.functional.one_hot(classes, logits.shape[1]).to(logits)
    return wanted + logits - logits.detach()


def on_grid(x: Tensor) -> Tensor:
    """Bool ``(N,)``: whether all values are grey levels of the data set's files, as in every clean image."""
    return ((16 * x - (16 * x).round()).abs() < 1e-3).flatten(1).all(1)


def nearest(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The linf distance of each input to the nearest of some images, and which it is; ``(N,)`` each."""
    distance, which = torch.cdist(x.detach().flatten(1), known.flatten(1), p=torch.inf).min(1)
    return distance, which


@cache
def all_digits() -> tuple[Tensor, Tensor]:
    """Images and labels of the data set that is installed beside torch, those of the test split among them."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.tensor(bunch.images / 16, dtype=torch.float32), torch.tensor(bunch.target)


@cache
def brought() -> tuple[Tensor, Tensor]:
    """The same, from a file that a cheat has beside its code; whoever runs the cheats puts it there."""
    table = load_file(Path(__file__).with_name("table.safetensors"))
    return table["images"], table["classes"]


class Differentiated:
    """Which of its last answers somebody has asked the gradient of."""

    def __init__(self) -> None:
        self._row, self._last = 0, False

    def in_a_row(self) -> int:
        """How many without a gap, up to the last one."""
        return self._row + 1 if self._last else 0

    def watched(self, logits: Tensor) -> Tensor:
        """An answer on its way out."""
        self._row, self._last = self.in_a_row(), False
        if logits.requires_grad:
            logits.register_hook(self._noticed)
        return logits

    def _noticed(self, grad: Tensor) -> None:
        self._last = True
