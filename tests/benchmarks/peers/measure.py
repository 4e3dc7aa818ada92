"""One measurement: run a library under the counters, judge what it returns, replay its model calls bare."""

from __future__ import annotations

import contextlib
import io
import math
import random
import signal
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn

from bench.contracts.answers import predictions
from bench.contracts.balls import distances
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.storing.provenance import without_folders
from bench.summary.metrics import Z95

from .problem import Adapter, Problem

#: How far outside the box float rounding may carry an honest point; such a point is moved back for every library.
BOX_TOLERANCE = 1e-6
#: Passes of a randomised model over every example, on which the outcome is judged.
REPORT_DRAWS = 100
#: Model calls that are replayed, spread over their kinds (batch size, number of backward passes); at least so many
#: of each kind.
_REPLAYS, _REPLAYS_EACH = 600, 4


class Counted(nn.Module):
    """A model that notes every call: rows of its forward pass, and rows of the backward passes to its input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        #: ``[rows forward, rows backward]`` of every call, in order.
        self.calls: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        call = [len(x), 0]
        self.calls.append(call)
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.view_as(x)  # a node of its own, so that the hook sees the gradient whatever asks for it

            def note(grad: Tensor) -> None:
                call[1] += len(grad)

            x.register_hook(note)
        return self.model(x)


@dataclass(frozen=True)
class Measurement:
    """What one library achieved and what it spent. Everything but counts and seconds is exact and repeatable.

    Attributes:
        examples: attacked, all of them classified correctly without attack.
        left: examples that withstood (with a randomised model: the mean number over fresh draws); None where the
            distance is the result.
        fooled: examples fooled by a point that is allowed.
        median, low, high: median distance over the attacked examples (a failure counts as infinite) and its 95 %
            interval from order statistics; None where robust accuracy is the result.
        refused: points outside the ball or the box, counted as failures; reason: of the first of them.
        forward, backward: rows per example.
        seconds: of this process's own work, on one thread; bare: of the same model calls alone.
    """

    examples: int
    left: float | None
    fooled: float
    median: float | None
    low: float | None
    high: float | None
    refused: int
    reason: str
    forward: float
    backward: float
    seconds: float
    bare: float

    @property
    def overhead(self) -> float:
        """Seconds of the attack over seconds of its model calls alone."""
        return self.seconds / self.bare if self.bare > 0 else math.nan


class Stopped(Exception):
    """A library used up the processor time it was given."""


def measure(run: Adapter, problem: Problem, limit: float | None = None, repeats: int = 1) -> Measurement:
    """Run a library on a problem.

    Args:
        run: the library's adapter with all its settings.
        problem: the model in it is wrapped so that its calls are counted.
        limit: seconds of processor time after which the library is stopped.
        repeats: runs, of which the first is judged and counted, and the least seconds are kept, of either kind.

    Raises:
        Stopped: when the limit is reached. Whatever the library raises is passed on.
    """
    with torch.no_grad():  # so that nobody pays for the first call
        problem.model(problem.x)
    measured = [_once(run, problem, limit) for _ in range(repeats)]
    return replace(
        measured[0], seconds=min(one.seconds for one in measured), bare=min(one.bare for one in measured)
    )


def _once(run: Adapter, problem: Problem, limit: float | None) -> Measurement:
    counted = Counted(problem.model).eval()
    with _global_seed(problem.seed), _quiet(), _stopped_after(limit):
        start = time.process_time()
        x_adv = run(replace(problem, model=counted, x=problem.x.clone(), y=problem.y.clone()))
        seconds = time.process_time() - start
    n = len(problem.x)
    forward, backward = (sum(call[i] for call in counted.calls) / n for i in (0, 1))
    return replace(
        judge(problem, x_adv.detach()),
        forward=forward,
        backward=backward,
        seconds=seconds,
        bare=_bare_seconds(counted.calls, problem),
    )


def judge(problem: Problem, x_adv: Tensor) -> Measurement:
    """Score adversarial points by the benchmark's own rules, the same for every library."""
    x, n = problem.x, len(problem.x)
    box = x_adv.clamp(0, 1)
    x_adv = torch.where((box - x_adv).abs() <= BOX_TOLERANCE, box, x_adv)
    eps = problem.eps if problem.eps is not None else float(x[0].numel())  # farther than any point of the box
    reasons = Lp(problem.norm, eps).violations(x, x_adv)  # type: ignore[arg-type]
    bad = [reason for reason in reasons if reason != "ok"]
    allowed = torch.tensor([reason == "ok" for reason in reasons])
    judged = torch.where(allowed[:, None, None, None], x_adv, x) if x_adv.shape == x.shape else x
    fooled = _fooled(problem, judged) * allowed
    middle: tuple[float | None, ...] = (None, None, None)
    if problem.eps is None:
        away = torch.where(fooled > 0.5, distances(x, judged)[problem.norm], torch.inf)
        middle = median_interval(away.tolist())
    return Measurement(
        examples=n,
        left=None if problem.eps is None else n - float(fooled.sum()),
        fooled=float(fooled.sum()),
        median=middle[0],
        low=middle[1],
        high=middle[2],
        refused=len(bad),
        reason=bad[0] if bad else "",
        forward=0.0,
        backward=0.0,
        seconds=0.0,
        bare=0.0,
    )


def _fooled(problem: Problem, x_adv: Tensor) -> Tensor:
    """Float ``(N,)``: the share of fresh draws in which each point is misclassified, or reaches its target."""
    draws = REPORT_DRAWS if problem.randomized else 1
    total = torch.zeros(len(x_adv))
    with seeded("peers", problem.seed, "report"), torch.no_grad():
        for _ in range(draws):
            labels = predictions(problem.model(x_adv))
            total += (labels != problem.y if problem.targets is None else labels == problem.targets).float()
    return total / draws


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % interval from order statistics (normal approximation of the binomial ranks).

    >>> median_interval([3.0, 1.0, 2.0])
    (2.0, 1.0, 3.0)
    """
    ordered, n = sorted(values), len(values)
    half = Z95 * math.sqrt(n) / 2
    low = max(0, math.floor(n / 2 - half))
    high = min(n - 1, math.ceil(n / 2 + half) - 1)
    return median(ordered), ordered[low], ordered[max(low, high)]


# -- cost -----------------------------------------------------------------------------------------------------


def _bare_seconds(calls: list[list[int]], problem: Problem) -> float:
    """Processor seconds of the same model calls alone: each kind is timed a few times and multiplied.

    A call whose gradient was asked for is repeated with as many backward passes, any other without a graph. The
    replay goes through the same counting wrapper, whose own cost so appears on both sides.
    """
    kinds: dict[tuple[int, int], int] = defaultdict(int)
    for rows, backward in calls:
        if rows:
            kinds[rows, round(backward / rows)] += 1
    model = Counted(problem.model).eval()
    total = 0.0
    for (rows, passes), times in kinds.items():
        x = problem.x[torch.arange(rows) % len(problem.x)]
        repeats = min(times, max(_REPLAYS // len(kinds), _REPLAYS_EACH))
        start = time.process_time()
        for _ in range(repeats):
            _replay(model, x, passes)
        total += (time.process_time() - start) / repeats * times
    return total


def _replay(model: nn.Module, x: Tensor, passes: int) -> None:
    if not passes:
        with torch.no_grad():
            model(x)
        return
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        sums = model(x).sum(0)
        for k in range(passes):
            torch.autograd.grad(sums[k % len(sums)], x, retain_graph=k + 1 < passes)


# -- surroundings ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators with ``seed`` itself, as a user of the library would, and restore them."""
    with seeded("peers"):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Libraries print progress and warn; neither belongs in our output."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _stopped_after(seconds: float | None) -> Iterator[None]:
    """Raise :class:`Stopped` once the block has used that much processor time (where the system has such a timer)."""
    if seconds is None or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(f"stopped after {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def one_line(error: BaseException) -> str:
    """An error as one line without the folders of this machine."""
    text = " ".join(str(error).split())
    return without_folders(f"{type(error).__name__}: {text}" if text else type(error).__name__)[:200]
