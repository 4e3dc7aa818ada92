"""Between which two numbers robust accuracy lies: the examples that are proven, and those that nothing has broken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.contracts.words import format_eps
from bench.storing.certified import Certificates, Smoothed, current_certificates, current_smoothed
from bench.storing.records import DefenseRecord, SuiteRecord
from bench.storing.store import Store
from bench.summary.numbers import CertifiedRadius, SmoothedAccuracy
from bench.summary.results import DefenseResults


def certified_radii(results: DefenseResults, records: Sequence[Certificates]) -> list[CertifiedRadius]:
    """What certificates and stored attacks say together, the smallest radius first."""
    return [beside(record, _broken(results, record.eps)) for record in records if record.rows]


def beside(record: Certificates, broken: set[str]) -> CertifiedRadius:
    """What certificates say, and the ids of examples that stored attacks break at their radius."""
    certified = {row.id for row in record.rows if row.status == "certified"}
    known = {row.id for row in record.rows if row.status == "broken" or row.id in broken}
    n = len(record.rows)
    return CertifiedRadius(
        eps=record.eps,
        certified=len(certified) / n,
        unbroken=(n - len(known)) / n,  # 1 - 5/6 is not 1/6
        n=n,
        contradicted=tuple(sorted(certified & broken)),
    )


def broken_within(store: Store, suite: SuiteRecord, record: DefenseRecord, eps: float) -> set[str]:
    """The ids of examples of a deterministic defense that are wrong as they are or at a stored x_adv within ``eps``."""
    return _broken(DefenseResults(store, suite, record), eps)


def _broken(results: DefenseResults, eps: float) -> set[str]:
    if not results.measured.any():
        return set()
    names = [*results.names(), *results.names(counted=False)]
    survived, _ = results.worst(names, kind="correct", radius=eps)
    ids = np.array(results.suite.ids)[results.measured]
    return set(ids[survived < 1].tolist())


def stored_radii(results: DefenseResults, unreadable: list[str]) -> list[CertifiedRadius]:
    """What is stored of a defense; nothing of one that is randomised or has a detector."""
    store, suite, record = results.store, results.suite, results.record
    if record.probe.randomized or record.probe.has_detector:
        return []
    return certified_radii(results, list(current_certificates(store, suite, record.key, unreadable)))


def smoothed_accuracy(record: Smoothed) -> SmoothedAccuracy:
    """Certified accuracy at multiples of half the noise, up to the largest at which anything is proven."""
    radii = np.array([row.radius if row.radius is not None else np.nan for row in record.rows])
    right = np.array([row.predicted == row.label for row in record.rows])
    held = np.where(right, np.nan_to_num(radii, nan=-1.0), -1.0)
    steps = int(max(held.max(), 0.0) / (record.sigma / 2))
    at = [record.sigma / 2 * step for step in range(steps + 1)]
    return SmoothedAccuracy(
        sigma=record.sigma, draws=record.draws, alpha=record.alpha, n=len(record.rows),
        abstained=float(np.isnan(radii).mean()), certified={radius: float((held >= radius).mean()) for radius in at},
    )  # fmt: skip


def stored_smoothed(results: DefenseResults, unreadable: list[str]) -> list[SmoothedAccuracy]:
    """What is stored of a defense's smoothed classifiers, the smallest noise first."""
    found = current_smoothed(results.store, results.suite, results.record.key, unreadable)
    return [smoothed_accuracy(record) for record in found if record.rows]


def contradictions(found: Sequence[CertifiedRadius], norm: str) -> list[str]:
    """A line for each example that is proven and yet broken by a stored attack."""
    what = "and yet broken by a stored attack; one of the two is wrong"
    return [
        f"{example} is certified at {norm} {format_eps(one.eps)} {what}"
        for one in found
        for example in one.contradicted
    ]
