"""Writing results where the disk may be full for a while: try again, then stop with one line."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from bench.contracts.errors import InputError

_log = logging.getLogger(__name__)


class Patience:
    """Calls what writes a file, again and again while the system refuses.

    Args:
        folder: what is written, for messages.
        seconds: how long it may refuse.
        every: seconds between two attempts.
    """

    def __init__(self, folder: Path, seconds: float = 60.0, every: float = 2.0) -> None:
        self._folder, self._seconds, self._every = folder, seconds, every

    def __call__(self, write: Callable[[], None]) -> None:
        """Write; ``write`` must leave whole files or none.

        Raises:
            InputError: when it was refused for too long; says why, and what becomes of the run.
        """
        end = time.monotonic() + self._seconds
        told = False
        while True:
            try:
                return write()
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                if time.monotonic() >= end:
                    raise InputError(
                        f"results folder {self._folder}: {reason}; what was stored before is whole, "
                        "and the same command goes on from there"
                    ) from None
            if not told:
                _log.warning("note: results folder %s: %s; trying for %.0f s", self._folder, reason, self._seconds)
                told = True
            time.sleep(self._every)
