"""Targeted suites: the class that each example has to reach."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from bench.contracts.defense import Defense, check_logits
from bench.contracts.seeding import seeded
from bench.contracts.words import Towards
from bench.storing.keys import PROTOCOL, Protocol

#: Rows per pass; fixed, so that what a randomised defense draws does not hang on the batch size of a run.
_ROWS = 64


def classes_to_reach(
    towards: Towards | None,
    defense: Defense,
    x: Tensor,
    y: Tensor,
    ids: list[str],
    *,
    seed: int,
    draws: int,
    name: str,
    protocol: Protocol = PROTOCOL,
) -> Tensor | None:
    """The class that an attack has to reach for each example of a shard: int64 ``(N,)``, never y; None for any.

    Args:
        towards: how it is chosen; None: untargeted.
        x: clean inputs ``(N, …)``; y: labels ``(N,)``; ids: one per example.
        seed: of the suite; for one seed and id the random class is always the same.
        draws: passes of a randomised defense whose mean logits decide; 1 for a deterministic one.
        name: of the defense: under the first ``protocol`` part of the random stream of these passes.
    """
    classes = defense.data.num_classes
    if towards is None:
        return None
    if towards == "next":
        return (y + 1) % classes
    if towards == "random":
        steps = torch.tensor([1 + _hashed(seed, example) % (classes - 1) for example in ids], device=y.device)
        return (y + steps) % classes
    with seeded(seed, name if protocol == 1 else "", "towards", ids[0]):
        logits = _mean_logits(defense, x, draws)
    logits[torch.arange(len(y)), y.cpu()] = torch.inf
    least = torch.nan_to_num(logits, nan=torch.inf).argmin(1).to(y.device)
    return torch.where(least == y, (y + 1) % classes, least)  # equal only where no logit is a number


def _hashed(seed: int, example: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{example}".encode()).digest()[:8], "big")


@torch.no_grad()
def _mean_logits(defense: Defense, x: Tensor, draws: int) -> Tensor:
    """Mean over ``draws`` passes, float64 ``(N, K)`` on the CPU."""
    total = torch.zeros(len(x), defense.data.num_classes, dtype=torch.float64)
    for _ in range(draws):
        for start in range(0, len(x), _ROWS):
            batch = x[start : start + _ROWS]
            logits = defense(batch)
            check_logits(logits, len(batch), defense.data.num_classes)
            total[start : start + _ROWS] += logits.double().cpu()
    return total / draws
