"""Randomised smoothing (Cohen, Rosenfeld & Kolter 2019, https://arxiv.org/abs/1902.02918): l2 radii of any classifier.

The smoothed classifier gives an input the class that the defense gives most often under noise ``N(0, sigma² I)``. Where
that has a probability of at least ``p > 1/2``, it stays the most frequent within ``sigma · Φ⁻¹(p)`` in l2. What is
proven is of the smoothed classifier, not of the defense. The proof needs noise on all of space, so noisy inputs are not
clipped to the box; whatever a defense makes of inputs outside is part of the classifier that is smoothed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import beta, norm
from torch import Tensor

from bench.certifying.measure import Certifying, run_jobs, suite_of
from bench.contracts.answers import predictions
from bench.contracts.defense import Defense, check_logits, ready
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.reporting import report
from bench.contracts.seeding import generator, seeded
from bench.data.load import load_data
from bench.data.splits import Split
from bench.engines.engine import Engine
from bench.engines.graph import Job
from bench.plugins.resolve import LoadedDefense, load_defense
from bench.running.cell import defense_key, select_examples
from bench.running.describe import suite_record
from bench.running.progress import Display
from bench.storing import provenance
from bench.storing.certified import Smoothed, SmoothedRow, current_smoothed, examples_key, write_smoothed
from bench.storing.store import Store

#: Noisy inputs of one pass. Part of the procedure: logits may differ in the last digits with the size of a batch.
_BATCH = 256
#: Examples of one job.
_TOGETHER = 5


@dataclass(frozen=True)
class Smoothing:
    """The noise, and how often it is drawn.

    Attributes:
        sigma: standard deviation, in the units of the box.
        draws: from which the probability of the class is bounded.
        selection_draws: others, from which the class is chosen.
        alpha: probability, for each example, that its radius is too large.

    Raises:
        InputError: for a value that is out of range.
    """

    sigma: float
    draws: int = 10_000
    selection_draws: int = 100
    alpha: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise InputError(f"smoothing: sigma {self.sigma:g} must be above 0 and finite")
        if min(self.draws, self.selection_draws) < 1:
            raise InputError(f"smoothing: {self.selection_draws} and {self.draws} draws; each must be at least 1")
        if not 0 < self.alpha < 1:
            raise InputError(f"smoothing: alpha {self.alpha:g} must lie between 0 and 1")


def lower_bound(votes: int, draws: int, alpha: float) -> float:
    """The one-sided lower bound of Clopper and Pearson: a probability of less would give so many votes with
    probability ``alpha`` at most."""
    return float(beta.ppf(alpha, votes, draws - votes + 1)) if votes else 0.0


def certified_radius(p_lower: float, sigma: float) -> float | None:
    """The l2 radius that a lower bound of the most frequent class's probability proves; None: abstains."""
    return sigma * float(norm.ppf(p_lower)) if p_lower > 0.5 else None


def smoothed_row(defense: Defense, x: Tensor, y: int, example: str, how: Smoothing, seed: int) -> SmoothedRow:
    """What smoothing proves of one example ``x (*shape)``, whose label is ``y``."""
    start = time.process_time()
    selected = _votes(defense, x, how.selection_draws, (seed, "smoothing", how.sigma, example, "select"), how.sigma)
    predicted = int(selected.argmax())
    counted = _votes(defense, x, how.draws, (seed, "smoothing", how.sigma, example, "estimate"), how.sigma)
    votes = int(counted[predicted])
    p_lower = lower_bound(votes, how.draws, how.alpha)
    return SmoothedRow(
        id=example, label=y, predicted=predicted, votes=votes, p_lower=p_lower,
        radius=certified_radius(p_lower, how.sigma), seconds=round(time.process_time() - start, 2),
    )  # fmt: skip


def _votes(defense: Defense, x: Tensor, draws: int, stream: tuple[object, ...], sigma: float) -> Tensor:
    """How often each class is given under noise, int64 ``(K,)``.

    The noise has a generator of its own, the defense draws from the global ones. A randomised defense gets one input at
    a time: some draw once for a whole batch, and draws that hang together would make the bound wrong.
    """
    noise = generator(*stream, "noise")
    at_once, classes = 1 if defense.randomized else _BATCH, defense.data.num_classes
    counts = torch.zeros(classes, dtype=torch.int64)
    with seeded(*stream, "defense"), torch.no_grad():
        for first in range(0, draws, at_once):
            n = min(at_once, draws - first)
            logits = defense(x + sigma * torch.randn(n, *x.shape, generator=noise))
            check_logits(logits, n, classes)
            labels = predictions(logits)
            counts += labels[labels >= 0].bincount(minlength=classes)  # what is no number is no vote
    return counts


def smooth(
    store: Store, work: Certifying, how: Smoothing, engine: Engine, display: Display, command: str,
    examples: int | None = None,
) -> Smoothed:  # fmt: skip
    """Smooth a defense; rows of the same draws that are stored are kept.

    Args:
        examples: only the first so many of those that the suite runs the defense on.

    Raises:
        NotApplicable: where the defense has a detector.
        InputError: where it cannot be loaded, or fails under noise.
    """
    clock = provenance.start(command)
    data = load_data(work.suite.data, work.data_root)
    key = defense_key(work.spec, _opened(work).loaded)
    now = suite_record(work.suite, data)
    record = suite_of(store, now)
    settings: dict[str, Any] = {
        "sigma": how.sigma, "draws": how.draws, "selection_draws": how.selection_draws, "alpha": how.alpha,
        "seed": work.suite.seed,
    }  # fmt: skip
    known = [
        one
        for one in current_smoothed(store, record, key, unreadable=[])
        if {name: getattr(one, name) for name in settings} == settings
    ]
    rows = {row.id: row for one in known for row in one.rows}
    ids = now.ids[: now.examples_run(reference=work.spec.reference)][:examples]
    waiting = [i for i, example in enumerate(ids) if example not in rows]
    jobs = [
        Job(
            f"{work.spec.name}, sigma {how.sigma:g}, examples {some[0]} to {some[-1]}", smooth_some, (work, how, some),
            kind="certify", loads=work.spec.name,
        )
        for some in (waiting[k : k + _TOGETHER] for k in range(0, len(waiting), _TOGETHER))
    ]  # fmt: skip
    written = known[0] if known else None
    for found in run_jobs(jobs, engine, display):
        rows.update((row.id, row) for row in found)
        done = [rows[example] for example in record.ids if example in rows]
        written = Smoothed(
            defense=key, data=examples_key(record, [row.id for row in done]), provenance=provenance.finish(clock),
            rows=done, **settings,
        )  # fmt: skip
        write_smoothed(store, written)
    assert written is not None  # a suite has examples
    return written


@dataclass(frozen=True)
class _Opened:
    examples: Split
    loaded: LoadedDefense
    defense: Defense


#: What this process has opened last.
_last: list[tuple[Certifying, _Opened]] = []


def _opened(work: Certifying) -> _Opened:
    if not _last or _last[0][0] != work:
        data = load_data(work.suite.data, work.data_root)
        loaded = load_defense(work.spec, data.info, torch.device("cpu"), work.suite.training(data))
        defense = ready(loaded.defense)
        if defense.detect is not None:
            raise NotApplicable("smoothing is for classifiers; this defense is guarded by a detector")
        _last[:] = [(work, _Opened(select_examples(work.suite, data), loaded, defense))]
    return _last[0][1]


def smooth_some(work: Certifying, how: Smoothing, chosen: list[int]) -> list[SmoothedRow]:
    """The rows of the examples at these positions, in a worker."""
    opened, rows = _opened(work), list[SmoothedRow]()
    for number, i in enumerate(chosen):
        report(number / len(chosen), "")
        x, y = opened.examples.at([i])[0].clone(), int(opened.examples.y[i])
        rows.append(smoothed_row(opened.defense, x, y, opened.examples.ids[i], how, work.suite.seed))
    return rows
