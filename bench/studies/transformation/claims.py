"""The verdict on the adversarial transformation, from stored results: the paper's numbers, those found, and sentences.

Nothing here is typed in by hand but what the paper prints (``paper``). What has no result names the command for it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.contracts.errors import InputError
from bench.storing.reading import read_record
from bench.storing.records import DefenseRecord
from bench.storing.store import Store
from bench.studies.transformation import paper
from bench.studies.transformation.plot import ladder
from bench.studies.transformation.record import Base, Transformation, read
from bench.studies.transformation.tables import (
    DEFENSE,
    SUITE,
    Table,
    command,
    defense_in,
    stored,
    tables,
    written,
)
from bench.summary.metrics import Array, judging_error
from bench.summary.numbers import SETTLED, AttackSummary, DefenseSummary, Estimate, SuiteSummary, estimate
from bench.summary.results import DefenseResults

#: The claim in a sentence.
CLAIMED = (
    f"on CIFAR-10 at linf 0.031, {paper.CLEAN} % clean and {paper.WORST} % under the worst of all attacks tried, "
    f"black-box transfer ({paper.SOURCE}, tables 2 and 3)"
)
#: How the bases are called.
BASES = {
    "guide": "f_ext alone",
    "classifier": "f alone",
    "madry": "adversarial training",
    "none": "no defense",
}
#: What each rung is (docs of the entries: ``bench.yaml``).
RUNGS = {
    0: "uniform noise, a control",
    1: "BPDA-I as released, defects included",
    2: "BPDA-I, correct: EOT, one draw, targeted, and EOT 500 as in the paper",
    3: "a fixed start noise",
    4: "unrolled, with smooth operators",
    5: "a surrogate of fewer steps",
    6: "hijack of the least likely class",
    7: "joint loss with the external network, and that alone",
    8: "a distilled student",
    9: "E[g(x)], and averaged logits",
    10: "transfer: from f, from robust and from clean surrogates",
    11: "black boxes: Square, HopSkipJump, GenAttack",
    12: "warm starts from the best points of many attacks",
}
#: Tries of an attacker who sends the same input again until it is misclassified.
TRIES = (1, 2, 5, 10, 20, 50)
_BASE = "its static base, the external network that g goes by"
_WHERE = {
    "not told apart from": f"to {_BASE}, as far as these images tell",
    "below": f"below {_BASE}",
    "above": f"but stays above {_BASE}",
}
_RUNG = re.compile(r"o(\d+)-")
#: Bases that the plot has a line of.
_DRAWN = ("guide", "madry")
#: Two standard errors are taken for a difference.
_SURE = 2.0


@dataclass(frozen=True)
class Rung:
    """An attack of the ladder.

    Attributes:
        number: the rung; name: the attack's entry.
        robust: accuracy left; None where nothing is stored.
        passes: forward passes per image: evaluations of g, but for attacks on a stand-in.
        n: images so far.
        command: what runs the rest; "" where it is complete.
    """

    number: int
    name: str
    robust: Estimate | None
    passes: float
    n: int
    command: str


@dataclass(frozen=True)
class Against:
    """The defense beside a base, on the same images: their accuracies, and the mean difference with its error."""

    name: str
    clean: float
    robust: float
    difference: float
    error: float
    cost: float | None  # inference, as a multiple of the base's

    @property
    def verdict(self) -> str:
        if abs(self.difference) <= _SURE * self.error:
            return "not told apart from"
        return "above" if self.difference > 0 else "below"


@dataclass(frozen=True)
class Verdict:
    """All that the page shows."""

    n: int
    standard: Estimate | None
    worst: Estimate | None
    judging_error: float | None
    complete: bool
    rungs: list[Rung]
    tries: list[tuple[int, float]]
    against: list[Against]
    record: Transformation | None
    tables: list[Table]
    sentences: tuple[str, ...] = ()

    @property
    def plot(self) -> str:
        """The ladder as an SVG, nothing where none of it has been run."""
        points = [(one.name, one.number, one.passes, one.robust) for one in self.rungs if one.robust is not None]
        lines = [] if self.standard is None or self.worst is None else [
            ("clean", self.standard.value), ("worst case", self.worst.value)
        ]  # fmt: skip
        bases = ((BASES.get(one.name, one.name), one.robust) for one in self.against if one.name in _DRAWN)
        return ladder(points, [*lines, *bases])


def is_about(suite: str, defense: str) -> bool:
    """Whether the verdict is about this defense of this suite."""
    return (suite, defense) == (SUITE, DEFENSE)


def verdict(results: Path) -> Verdict:
    """Everything that is known, from a results folder; what is not there is missing, not an error."""
    suite = stored(results, SUITE)
    defense = defense_in(suite, DEFENSE)
    record = _record(results, defense)
    rungs, tries, against, error = _rungs(defense), [], [], None
    standard = worst = None
    if suite is not None and defense is not None:
        clean, survived, ids = _worst(results, suite)
        standard, worst = estimate(clean), estimate(survived)
        draws = suite.record.draws_report
        tries = [(k, persistent(survived, draws, k)) for k in TRIES if k <= draws]
        error = judging_error(survived, draws)
        if record is not None:
            against = [_against(base, record, survived, ids) for base in record.bases]
    found = Verdict(
        n=0 if worst is None else worst.n,
        standard=standard,
        worst=worst,
        judging_error=error,
        complete=defense is not None and defense.complete,
        rungs=rungs,
        tries=tries,
        against=against,
        record=record,
        tables=tables(results, suite, record, worst),
    )
    return replace(found, sentences=tuple(sentences(found)))


def persistent(survived: Array, draws: int, k: int) -> float:
    """Accuracy that is left when every input is sent ``k`` times and one error is enough, without bias.

    Args:
        survived: share of ``draws`` that each input survived, ``(N,)``. Of c survivals k draws without replacement are
            all survived with chance C(c, k) / C(draws, k).
    """
    counts = np.rint(survived * draws).astype(int)
    return float(np.mean([math.comb(int(c), k) / math.comb(draws, k) for c in counts])) if len(counts) else 0.0


def sentences(found: Verdict) -> list[str]:
    """What the numbers say, each sentence made from them."""
    if found.standard is None or found.worst is None:
        return [f"Nothing of the ladder has been run yet: `{command(SUITE)}`."]
    drop, claimed = found.standard.value - found.worst.value, (paper.CLEAN - paper.WORST) / 100
    counted = [rung for rung in found.rungs if rung.robust is not None]
    missing = len(found.rungs) - sum(not rung.command for rung in found.rungs)
    said = []
    if missing:
        some = f"{missing} of {len(found.rungs)} attacks of the ladder are not complete"
        said.append(f"Not all has been run: {some}, so that the worst case on these images can only fall further.")
    allowed = found.standard.value - claimed
    falls, holds = found.worst.high < allowed, found.worst.value >= allowed
    what = "falls" if falls else "holds so far" if holds and missing else "holds" if holds else "may hold or fall"
    said.append(
        f"It {what}: from {_pc(found.standard.value)} clean to {_pc(found.worst.value)} "
        f"[{_pc(found.worst.low)}, {_pc(found.worst.high)}] in the worst case of {len(counted)} attacks on {found.n} "
        f"images, a loss of {100 * drop:.1f} points where the paper claims {100 * claimed:.1f}."
    )
    for one in found.against:
        name = BASES.get(one.name, one.name)
        said.append(
            f"It is {one.verdict} {name}, which keeps {_pc(one.robust)} of the same images when it is attacked itself: "
            f"ours minus that is {100 * one.difference:+.1f} ± {100 * one.error:.1f} points"
            + (f", at {one.cost:.1f} times the time of inference." if one.cost is not None else ".")
        )
    base = next((one for one in found.against if one.name == "guide"), None)
    if base is not None and falls:
        said.append(f"In one sentence: it falls {_WHERE[base.verdict]}.")
    if found.tries:
        k, left = found.tries[-1]
        said.append(f"Who may send the same input {k} times, and needs one error, leaves {_pc(left)}.")
    return said


def _pc(value: float) -> str:
    return f"{100 * value:.1f} %"


def _rungs(defense: DefenseSummary | None) -> list[Rung]:
    entries = written(SUITE).attacks
    cells = {} if defense is None else {cell.record.name: cell for cell in defense.attacks}
    found = []
    for name in entries:
        match = _RUNG.match(name)
        if match is None:
            continue
        cell: AttackSummary | None = cells.get(name)
        done = cell is not None and cell.status in SETTLED
        robust, of = (None, 0) if cell is None else (cell.robust, 0 if cell.robust is None else cell.robust.n)
        passes = 0.0 if cell is None else cell.mean_forward
        found.append(Rung(int(match[1]), name, robust, passes, of, "" if done else command(SUITE, name)))
    return found


def _against(base: Base, record: Transformation, survived: Array, ids: list[str]) -> Against:
    own = {example: pair for example, *pair in zip(record.ids, base.robust, base.right, strict=True)}
    same = np.array([[s, *map(float, own[i])] for s, i in zip(survived, ids, strict=True) if i in own]).reshape(-1, 3)
    each = same[:, 0] - same[:, 1]
    n = len(each)
    return Against(
        name=base.name,
        clean=float(same[:, 2].mean()) if n else float("nan"),
        robust=float(same[:, 1].mean()) if n else float("nan"),
        difference=float(each.mean()) if n else float("nan"),
        error=float(each.std(ddof=1)) / math.sqrt(n) if n > 1 else float("inf"),
        cost=record.seconds / base.seconds if base.seconds else None,
    )


# -- what is stored ---------------------------------------------------------------------------------------------------


def _record(results: Path, defense: DefenseSummary | None) -> Transformation | None:
    """The study's record, if it is of the weights that were evaluated."""
    try:
        found = read(Store(results, SUITE), DEFENSE)
    except InputError:
        return None
    return found if found is not None and (defense is None or found.defense == defense.record.key) else None


def _worst(results: Path, suite: SuiteSummary) -> tuple[Array, Array, list[str]]:
    """What is right when clean, survival under the worst attack, and ids.

    Of the images that every attack that has begun, and is meant for all images, has finished with: where strong attacks
    are still missing, an image would seem to survive.
    """
    store = Store(results, SUITE)
    record = read_record(store.defense_folder(DEFENSE) / "defense.json", DefenseRecord)
    rows = DefenseResults(store, suite.record, record)
    names = rows.names()
    values, _ = rows.worst(names)
    whole = [rows.reached(name) for name in names if rows.attacks[name].examples is None]
    seen = np.logical_and.reduce([np.ones(len(values), dtype=np.bool_), *whole])
    ids = [example for example, one in zip(suite.record.ids, rows.measured, strict=True) if one]
    clean = rows.clean["report_correct"][rows.measured]
    return clean[seen], values[seen], [example for example, one in zip(ids, seen, strict=True) if one]
