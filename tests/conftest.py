"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    """One thread, as in the harness's workers, and global generators that do not depend on the tests before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
