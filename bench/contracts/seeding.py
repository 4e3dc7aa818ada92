"""Randomness derived from names, never from global state left behind by something else."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else.

    Example: ``derive_seed(suite.seed, "ours", "pgd", 3, "report")`` is the stream on which the judge scores
    shard 3 of PGD against ``ours``.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by :func:`derive_seed`; attacks draw their own randomness from it."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextlib.contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators, and put their states back afterwards.

    A defense written anywhere may draw from the global generators; this makes its draws reproducible without
    asking its author for anything.
    """
    seed = derive_seed(*parts)
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:  # for devices that are not there, torch would keep a note of every call, and of where it came from
            torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@dataclass(frozen=True)
class Generators:
    """Where Python's, NumPy's and torch's global generators stood at one moment, those of all GPUs among them."""

    of_python: Any
    of_numpy: Any
    of_torch: torch.Tensor
    of_gpus: list[torch.Tensor]

    @classmethod
    def now(cls) -> Generators:
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus)  # noqa: NPY002

    def set(self) -> None:
        """Go on from there."""
        random.setstate(self.of_python)
        np.random.set_state(self.of_numpy)  # noqa: NPY002
        torch.set_rng_state(self.of_torch)
        if self.of_gpus:
            torch.cuda.set_rng_state_all(self.of_gpus)
