"""What an attack has spent on each example, and what was noticed on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Series:
    """Passes of the same rows, one call after the other: ``times`` for every one of ``examples``."""

    index: Tensor | None
    version: int | None
    within: Tensor | None
    examples: Tensor | None
    times: int

    def goes_on(self, index: Tensor | None, within: Tensor | None) -> bool:
        """Whether a call for these rows is one more of the series."""
        version = _version(index)
        return self.index is index and self.within is within and version is not None and version == self.version


def _version(index: Tensor | None) -> int | None:
    """How often ``index`` was written into; None where nothing tells."""
    if index is None:
        return 0
    return None if index.is_inference() else index._version


class Counts:
    """Passes per example (int64 ``(N,)`` each) and what was noticed about the gradients.

    A search asks for the same rows many times in a row. Such a series is one number until the rows change or
    somebody reads, since adding it up row by row would take longer than all else around a pass of a small network.

    Attributes:
        forward, backward: passes of each example; zero_gradient, nonfinite_gradient: how many gradients were so.
        notes: what was noticed, in words.
    """

    def __init__(self, forward: Tensor, backward: Tensor, zero_gradient: Tensor, nonfinite_gradient: Tensor) -> None:
        self._counted = {
            "forward": forward,
            "backward": backward,
            "zero_gradient": zero_gradient,
            "nonfinite_gradient": nonfinite_gradient,
        }
        self._open: dict[str, _Series] = {}
        self.notes: set[str] = set()

    @property
    def forward(self) -> Tensor:
        return self._settled("forward")

    @property
    def backward(self) -> Tensor:
        return self._settled("backward")

    @property
    def zero_gradient(self) -> Tensor:
        return self._settled("zero_gradient")

    @property
    def nonfinite_gradient(self) -> Tensor:
        return self._settled("nonfinite_gradient")

    def add(self, what: str, index: Tensor | None, within: Tensor | None = None, times: int = 1) -> None:
        """Count ``times`` for every row.

        Args:
            what: the name of a count.
            index: the example of each row, int64 ``(M,)``; None: all in order.
            within: the examples, int64 on the CPU, that ``index`` counts from 0 on; None: all.
        """
        series = self._open.get(what)
        if series is not None and series.goes_on(index, within):
            series.times += times
            return
        self._settled(what)
        examples = within if index is None else index.cpu() if within is None else within[index.cpu()]
        if examples is not None and examples is index:
            examples = examples.clone()  # its owner may write into it before it is read
        self._open[what] = _Series(index, _version(index), within, examples, times)

    def _settled(self, what: str) -> Tensor:
        counted, series = self._counted[what], self._open.pop(what, None)
        if series is not None and series.examples is None:
            counted += series.times
        elif series is not None and series.examples is not None:
            counted.index_add_(0, series.examples, torch.full_like(series.examples, series.times))
        return counted


def no_counts(n: int) -> Counts:
    """Nothing spent yet on ``n`` examples."""
    zeros = torch.zeros(4, n, dtype=torch.int64)
    return Counts(zeros[0], zeros[1], zeros[2], zeros[3])
