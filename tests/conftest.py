"""What all tests share."""

from __future__ import annotations

import os

import pytest
import torch

# Plugins of the tests run in the tests' own process, but where isolation is what is tested: it starts processes.
os.environ.setdefault("BENCH_ISOLATION", "none")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    """One thread, as in the harness's workers, and global generators that do not depend on the tests before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
