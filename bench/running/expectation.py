"""How long what is left of a run will take, and how sure that is.

What a job takes is a random variable: log-normal, with a mean and with a spread (the standard deviation of its
logarithm) that says what the mean rests on. The spreads are those of 35 defenses under 16 attacks on the digits,
rounded; ``tests/bench/running/test_eta.py`` replays the times of these runs.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

#: Spread of a job's time about the mean of finished ones of its kind, and about what the same cell took in another run.
MEASURED, SAME_CELL = 0.3, 0.3
#: About what the attack takes on other defenses, in proportion to their inference; about the mean of everything else.
ELSEWHERE, UNKNOWN = 1.2, 1.4
#: About what a job says of itself.
REPORTED = 0.1
#: Standard deviations to either side within which the time is said to lie: four times out of five.
_SIDE = 1.28
#: One number is shown while the time lies within this factor of it, nothing when not even within the second.
_SURE, _VAGUE = 1.5, 6.0
#: Above so many jobs, how they are dealt out to workers makes no difference.
_DEALT = 1000


class Guess(NamedTuple):
    """What a job is expected to take: mean in seconds, and spread."""

    mean: float
    spread: float

    def beyond(self, elapsed: float) -> Guess:
        """The same of a job that has run for so long: the mean of those that take longer than that."""
        if elapsed <= 0 or self.mean <= 0:
            return self
        z = (math.log(elapsed / self.mean) + self.spread**2 / 2) / self.spread
        tail = _normal(-z)
        if tail < 1e-9:  # far longer than was expected: about as much again as one spread
            return Guess(elapsed * math.exp(self.spread**2), self.spread)
        return Guess(max(elapsed, self.mean * _normal(self.spread - z) / tail), self.spread)


def _normal(z: float) -> float:
    """The standard normal distribution function."""
    return math.erfc(-z / math.sqrt(2)) / 2


@dataclass(frozen=True)
class Left:
    """What is left of the jobs of one kind: expected seconds of those that run, and how many have not started."""

    guess: Guess
    running: list[float]
    waiting: int
    alone: bool = False

    @property
    def seconds(self) -> float:
        """Of a worker's time."""
        return sum(self.running) + self.waiting * self.guess.mean


class Estimate(NamedTuple):
    """Seconds to the end, and between which two they lie four times out of five."""

    seconds: float
    low: float
    high: float

    @property
    def shown(self) -> tuple[float, ...]:
        """One number where that says enough, else the two; none where these are so far apart that they say nothing."""
        factor = math.sqrt(self.high / self.low) if self.low > 0 else 1.0
        if factor <= _SURE:
            return (self.seconds,)
        return (self.low, self.high) if factor <= _VAGUE else ()


def estimate(kinds: Iterable[Left], workers: int, longest: float) -> Estimate:
    """What is left, dealt out to the workers.

    Args:
        longest: seconds of the longest chain of jobs that wait for each other.
    """
    kinds = list(kinds)
    work = sum(kind.seconds for kind in kinds)
    alone = sum(kind.seconds for kind in kinds if kind.alone)
    seconds = alone + max(_dealt_out([kind for kind in kinds if not kind.alone], workers), longest)
    # Jobs of one kind err together, kinds apart.
    variance = sum(kind.seconds**2 * math.expm1(kind.guess.spread**2) for kind in kinds)
    spread = math.sqrt(math.log1p(variance / work**2)) if work > 0 else 0.0
    side = math.exp(_SIDE * spread)
    return Estimate(seconds, seconds / side, seconds * side)


def _dealt_out(kinds: list[Left], workers: int) -> float:
    """Seconds until the last worker is done, each taking the longest job that is left."""
    if sum(kind.waiting for kind in kinds) > _DEALT:
        return sum(kind.seconds for kind in kinds) / workers
    busy = sorted((seconds for kind in kinds for seconds in kind.running), reverse=True)[:workers]
    ends = busy + [0.0] * (workers - len(busy))
    heapq.heapify(ends)
    for mean, waiting in sorted(((kind.guess.mean, kind.waiting) for kind in kinds), reverse=True):
        for _ in range(waiting):
            heapq.heapreplace(ends, ends[0] + mean)
    return max(ends)
