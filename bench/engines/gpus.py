"""Which GPU of this machine a worker process gets, and how many share one."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass

#: Share of a GPU's memory that workers may fill together by what they were seen to take.
_FILLED = 0.9
#: What a process takes of a GPU beyond PyTorch's own allocations: its context.
_CONTEXT = 512 * 2**20


@dataclass(frozen=True)
class Gpu:
    """A GPU: what ``CUDA_VISIBLE_DEVICES`` calls it, and its memory in bytes."""

    name: str
    memory: int


def gpus_here() -> list[Gpu]:
    """The GPUs that this process may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = [str(n) for n in range(count)] if visible is None else [part.strip() for part in visible.split(",")]
    return [Gpu(names[n], torch.cuda.get_device_properties(n).total_memory) for n in range(count)]


def peak_memory() -> int:
    """Bytes of its GPU that this process has taken at most; 0 where it has used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_reserved()) + _CONTEXT


class GpuSlots:
    """Hands out GPUs to workers: each GPU to one, and to more where the memory allows it.

    How much a job takes is not known before one has run: a GPU is shared only when a job has told, and only among as
    many as fit by the most that any took. Where it runs out all the same, that GPU takes one worker less from then on.

    Args:
        gpus: those of this machine.
        per_gpu: workers that may share one.
    """

    def __init__(self, gpus: list[Gpu], per_gpu: int = 1) -> None:
        self._gpus = {gpu.name: gpu for gpu in gpus}
        self._limit = {gpu.name: max(1, per_gpu) for gpu in gpus}
        self._on = Counter[str]()
        self._peak = 0

    @property
    def most(self) -> int:
        """How many workers there can be."""
        return sum(self._limit.values())

    def place(self) -> str | None:
        """The GPU of a new worker, the emptiest; None while there is no room."""
        free = [name for name in self._gpus if self._has_room(name)]
        if not free:
            return None
        chosen = min(free, key=lambda name: self._on[name])
        self._on[chosen] += 1
        return chosen

    def leave(self, name: str) -> None:
        """A worker has ended."""
        self._on[name] -= 1

    def seen(self, peak: int) -> None:
        """A job has ended on a worker that took so many bytes of its GPU."""
        self._peak = max(self._peak, peak)

    def too_many(self, name: str) -> bool:
        """Memory has run out there. Whether others are on that GPU, which from now on takes one worker less."""
        shared = self._on[name] > 1
        if shared:
            self._limit[name] = min(self._limit[name], self._on[name] - 1)
        return shared

    def _has_room(self, name: str) -> bool:
        there = self._on[name]
        if there == 0:
            return True
        fits = self._peak > 0 and (there + 1) * self._peak <= _FILLED * self._gpus[name].memory
        return there < self._limit[name] and fits
