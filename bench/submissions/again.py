"""Attacks that are run anew by who accepts, with a seed that nobody knew before."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from bench.contracts.errors import InputError
from bench.engines.engine import Engine
from bench.running.evaluate import Evaluation, Request
from bench.running.progress import Display
from bench.storing.reading import read_record
from bench.storing.records import DefenseRecord
from bench.storing.store import open_suite
from bench.summary.results import DefenseResults

#: How unlikely the difference between two seeds has to be, over all attacks that are compared, to refuse a bundle.
UNLIKELY = 1e-3
#: By which share of draws an example has to differ between the seeds to count as fallen.
_FALLEN = 0.2
#: Seeds are drawn from this many by the operating system.
SEEDS = 1 << 48


@dataclass(frozen=True)
class Compared:
    """One attack with two seeds.

    Attributes:
        fell: examples that stood in the bundle and fell anew; rose: the reverse.
        n: examples that were compared; p: the chance of as many more falls as rises if the seeds were alike.
        claimed, anew: robust accuracy in [0, 1] under the attack.
    """

    attack: str
    fell: int
    rose: int
    n: int
    p: float
    claimed: float
    anew: float


def choose(results: DefenseResults, count: int) -> list[str]:
    """``count`` of the counted attacks that have rows, at random, and each that claims not to apply."""
    measured = [name for name in results.names() if name in {attack.name for attack in results.suite.attacks}]
    system = random.SystemRandom()
    excused = [
        name for name, cell in results.cells.items() if cell.status == "not-applicable" and cell.applies
    ]
    return [*system.sample(measured, min(count, len(measured))), *excused]


def run_anew(request: Request, engine: Engine, display: Display) -> DefenseResults:
    """Run the attacks of a request on all examples with a secret seed in place of the suite's.

    Raises:
        InputError: when one of them fails.
    """
    secret = request.suite.with_(seed=random.SystemRandom().randrange(SEEDS))
    request = replace(request, suite=secret)
    if failures := Evaluation(request, engine, display).run():
        raise InputError(f"run anew: {failures[0]}")
    store, record = open_suite(request.results, secret.name)
    (path,) = store.defenses()
    return DefenseResults(store, record, read_record(path, DefenseRecord))


def compare(bundled: DefenseResults, anew: DefenseResults, names: list[str]) -> list[Compared]:
    """Each attack's survival with the two seeds.

    Two runs of an honest attack differ in some examples, as often in one direction as in the other; a sign test says
    whether more fall anew than that.

    Raises:
        InputError: when an attack that claims not to apply does, or one falls out of its bundle's numbers.
    """
    found = []
    for name in names:
        if bundled.cells[name].status == "not-applicable":
            if anew.cells[name].status != "not-applicable":
                raise InputError(f"attack {name}: does apply, the bundle says that it does not")
            continue
        reached = bundled.reached(name) & anew.reached(name)
        one, other = bundled.under(name)[reached], anew.under(name)[reached]
        fell, rose = int((one - other > _FALLEN).sum()), int((other - one > _FALLEN).sum())
        p = float(binomtest(fell, fell + rose, alternative="greater").pvalue) if fell + rose else 1.0
        found.append(Compared(name, fell, rose, len(one), p, float(one.mean()), float(other.mean())))
    worst = min(found, key=lambda each: each.p, default=None)
    if worst is not None and worst.p < UNLIKELY / len(found):
        raise InputError(
            f"attack {worst.attack} with another seed leaves {100 * worst.anew:.1f} %, the bundle says "
            f"{100 * worst.claimed:.1f} %: {worst.fell} examples fall that stood, {worst.rose} the other way round "
            f"(p = {worst.p:.1g})"
        )
    return found


def fallen(bundled: DefenseResults, anew: DefenseResults, names: list[str]) -> dict[str, NDArray[np.int64]]:
    """By attack, the positions in the suite of the examples that survive all of the bundle better than it anew."""
    everything = np.full(len(bundled.suite.ids), np.nan)
    everything[bundled.measured] = bundled.worst(bundled.names())[0]
    found = {}
    for name in names:
        if anew.cells[name].rows:
            found[name] = np.flatnonzero(anew.cells[name]["report_robust"] < everything)
    return found
