"""The clock by which work is timed that may have others beside it on the machine."""

from __future__ import annotations

import time

import torch


def seconds_spent(device: torch.device) -> float:
    """Seconds since some moment: of this process on its processors, where ``device`` is a CPU, else of a GPU's clock.

    Processor time is what one thread takes on an idle machine; what runs beside hardly lengthens it. What another
    process does for this one is not in it. On a GPU all work that was asked for is awaited.
    """
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
