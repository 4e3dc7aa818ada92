"""Inference time of a defense, its detector included, beside the undefended model, measured alternately in one run."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.seeding import seeded
from bench.data.splits import Split
from bench.isolation.opening import build_apart
from bench.running.cell import Setting, open_context
from bench.storing.records import Timing

#: Examples that time is measured on: with care, and roughly.
_EXAMPLES, _FEW = 256, 32
#: Alternating passes; seconds that one of the reference takes at least; how often the examples are repeated at most.
_REPEATS, _AT_LEAST, _MOST = 5, 0.1, 64


def timing_of(setting: Setting) -> Timing:
    """Measure a defense's inference time beside that of the suite's reference, in a worker that is alone."""
    context = open_context(setting)
    # Untrained: how long a network takes does not depend on its weights.
    # At the level of the defense, so that what the way there takes is in both.
    spec, isolation = DefenseSpec(setting.suite.reference), setting.isolation
    reference = build_apart(spec, context.data.info, setting.torch_device, None, isolation, beside=setting.spec)
    x = context.data.samples.take(_EXAMPLES).x.clone().to(setting.device)
    return measure(context.defense, reference, x)


def roughly_per_1000(defense: Defense, examples: Split, device: torch.device) -> float:
    """Seconds of inference per 1000 examples, from one pass over a few: enough to plan by, not to be shown."""
    x = examples.take(_FEW).x.to(device)
    with seeded("inference time"):
        return _seconds(defense, x, len(x)) * 1000 / len(x)


def seconds_to_measure(per_1000: float, reference_per_1000: float) -> float:
    """What :func:`timing_of` will take, by rough seconds per 1000 examples of the defense and of the reference."""
    once, ours = reference_per_1000 * _EXAMPLES / 1000, per_1000 * _EXAMPLES / 1000
    times = min(_MOST, max(1.0, _AT_LEAST / max(once, 1e-6)))
    return _REPEATS * times * (once + ours)


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
    batch_size: int = 128,
    repeats: int = _REPEATS,
    at_least: float = _AT_LEAST,
) -> Timing:
    """Median seconds per 1000 examples of both, over ``repeats`` alternating passes after one warm-up.

    Args:
        x: ``(N, …)``; repeated until one pass of the reference takes ``at_least`` seconds, so that a small
            network's time is not the clock's noise.
    """
    _seconds(reference, x, batch_size)
    _seconds(defense, x, batch_size)
    once = _seconds(reference, x, batch_size)
    x = x.repeat(min(_MOST, max(1, round(at_least / max(once, 1e-6)))), *[1] * (x.ndim - 1))
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(_seconds(reference, x, batch_size))
        ours.append(_seconds(defense, x, batch_size))
    per_1000 = 1000 / len(x)
    return Timing(
        seconds_per_1000=statistics.median(ours) * per_1000,
        reference_seconds_per_1000=statistics.median(theirs) * per_1000,
        batch_size=batch_size,
        repeats=repeats,
        device=str(x.device.type),
    )
