"""Jobs that sleep. Workers import this module, and so it imports next to nothing."""

from __future__ import annotations

import os
import time


def pid_after(seconds: float) -> int:
    """Sleep, and say in which process."""
    time.sleep(seconds)
    return os.getpid()
