"""Inference time of a defense, its detector included, beside the undefended model, measured alternately in one run."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from bench.contracts.defense import Defense
from bench.storing.records import Timing


@torch.no_grad()
def _seconds(defense: Defense, x: Tensor, batch_size: int) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for part in x.split(batch_size):
        defense(part)
        if defense.detect is not None:  # deployed, every answer includes the detector's
            defense.detect(part)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    defense: Defense,
    reference: Defense,
    x: Tensor,
    *,
    training_seconds: float | None,
    batch_size: int = 128,
    repeats: int = 5,
    at_least: float = 0.1,
) -> Timing:
    """Median seconds per 1000 examples of both, over ``repeats`` alternating passes after one warm-up.

    Args:
        x: ``(N, …)``; repeated until one pass of the reference takes ``at_least`` seconds, so that a small
            network's time is not the clock's noise.
    """
    _seconds(reference, x, batch_size)
    _seconds(defense, x, batch_size)
    once = _seconds(reference, x, batch_size)
    x = x.repeat(min(64, max(1, round(at_least / max(once, 1e-6)))), *[1] * (x.ndim - 1))
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(_seconds(reference, x, batch_size))
        ours.append(_seconds(defense, x, batch_size))
    per_1000 = 1000 / len(x)
    return Timing(
        training_seconds=training_seconds,
        seconds_per_1000=statistics.median(ours) * per_1000,
        reference_seconds_per_1000=statistics.median(theirs) * per_1000,
        batch_size=batch_size,
        repeats=repeats,
        device=str(x.device.type),
    )
