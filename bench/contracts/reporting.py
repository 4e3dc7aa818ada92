"""How long work says how far it is: ``report(3 / 30, "epoch 3/30")``. Costs nothing where nobody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Report:
    """How far a piece of work is.

    Attributes:
        fraction: done, in [0, 1].
        text: a few words, for example ``epoch 3/30``.
        job: the job that says so; "" where it is the only one.
    """

    fraction: float
    text: str
    job: str = ""

    def of(self, job: str) -> Report:
        """The same report, signed."""
        return replace(self, job=job)


Listener = Callable[[Report], None]

_listener: Listener | None = None


def report(fraction: float, text: str) -> None:
    """Say how far the work is that is being done here. A preparation or a training calls this after every epoch.

    Args:
        fraction: done, in [0, 1].
        text: a few words, shown to the user.
    """
    pass_on(Report(fraction, text))


def pass_on(message: Report) -> None:
    """Hand a report to whoever listens in this process."""
    if _listener is not None:
        _listener(message)


def listen(listener: Listener | None) -> None:
    """From now on, reports in this process go to ``listener``; None: to nobody."""
    global _listener
    _listener = listener


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Reports go to ``listener`` inside the block, and to whom they went before after it."""
    before = _listener
    listen(listener)
    try:
        yield
    finally:
        listen(before)
