"""Random draws that several passes of a randomised defense have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.contracts.seeding import seeded
from bench.contracts.target import Target


@contextlib.contextmanager
def common_draws(target: Target, token: object) -> Iterator[None]:
    """The global generators, from which a defense draws, stand where they stood whenever this ``token`` was given.

    Afterwards they stand where they were before. So two batches of the same shape meet the same draws row by row, and
    points can be compared, or a random state attacked, without the luck of the draw. On a deterministic target it does
    nothing.
    """
    if not target.randomized:
        yield
        return
    with seeded("common draws", token):
        yield
