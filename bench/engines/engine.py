"""Engines run jobs somewhere and report how each ended. Same jobs, same rows, whichever engine runs them.

Which job is next is not an engine's business: it asks :class:`bench.engines.graph.Graph`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.contracts.errors import InputError
from bench.engines.graph import Job, Outcome


class Engine(Protocol):
    """Runs jobs and yields one outcome for each, as they come.

    A job starts after those that it waits for; where one of these failed, its outcome is that it failed too. An
    outcome is yielded before the jobs behind it start: what it brought is stored by then.
    """

    @property
    def workers(self) -> int:
        """How many jobs can run at a time, now."""
        ...

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]: ...


@dataclass(frozen=True)
class Resources:
    """What one job takes of a machine. It computes with one CPU thread however many CPUs are kept for it.

    Attributes:
        cpus: CPUs kept for it.
        gpus: share of a GPU: 0.25 lets four jobs run on one; 0 where jobs run on the CPU.
        memory: bytes of main memory kept for it; 0 where nothing is known.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.cpus < math.inf:
            raise InputError(f"CPUs of a job: expected a number above 0, got {self.cpus:g}")
        if not 0 <= self.gpus < math.inf or (self.gpus > 1 and self.gpus % 1):
            raise InputError(f"GPUs of a job: expected a share up to 1, or a whole number, got {self.gpus:g}")

    def slots(self, cpus: float, gpus: float, memory: float) -> int:
        """How many jobs a machine with so much takes at a time."""
        rooms = [cpus / self.cpus]
        if self.gpus:  # shares of one GPU are not put together from two
            rooms.append(gpus * (1 / self.gpus // 1) if self.gpus <= 1 else gpus / self.gpus)
        if self.memory:
            rooms.append(memory / self.memory)
        return max(0, int(min(rooms) + 1e-9))


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def bytes_of(text: str) -> int:
    """Bytes of ``4GB`` (10⁹), ``4GiB`` (2³⁰), ``500 MB`` or a plain number.

    Raises:
        InputError: for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*", text.lower())
    if found is None or (found[3] and not found[2]):
        raise InputError(f"memory {text!r}: expected a number of bytes such as 4GB, 4GiB or 500MB")
    unit = 1024 ** " kmgt".index(found[2]) if found[3] else _UNITS[found[2]]
    return int(float(found[1]) * unit)
