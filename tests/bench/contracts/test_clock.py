"""The clock of the contracts: processor time, which waiting does not lengthen."""

from __future__ import annotations

import time

import torch

from bench.contracts.clock import seconds_spent


def test_waiting_takes_no_processor_time() -> None:
    start, wall = seconds_spent(torch.device("cpu")), time.perf_counter()
    time.sleep(0.3)
    assert seconds_spent(torch.device("cpu")) - start < 0.15
    assert time.perf_counter() - wall >= 0.3


def test_work_does() -> None:
    start, x = seconds_spent(torch.device("cpu")), torch.ones(200, 200)
    while seconds_spent(torch.device("cpu")) - start < 0.05:  # ends, or the clock stands still
        x = x @ x / 200
    assert seconds_spent(torch.device("cpu")) > start
