"""Measurements kept as JSON lines, so that an interrupted run goes on where it was, and the run itself."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from bench.contracts.errors import InputError, PluginError
from bench.plugins.resolve import get_attack
from bench.storing.digest import code_digest, digest
from bench.storing.provenance import hardware

from .comparison import LIBRARIES, OURS, Comparison, Entry
from .measure import Measurement, Stopped, measure, one_line
from .problem import Problem
from .subjects import Subject, Unavailable

#: Raised when what is measured, or how, changes: older measurements are then taken again.
SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """The outcome of one entry.

    Attributes:
        key: hash of everything that can change it.
        status: ``ok``, ``missing`` (not installed), ``error``, ``stopped`` (time limit) or ``unavailable`` (no model).
        message: why there is no measurement.
        total: test examples that the attacked ones were taken from.
        versions: of the library and of torch.
        measured: when, ISO 8601, UTC.
    """

    key: str
    comparison: str
    library: str
    label: str
    status: Literal["ok", "missing", "error", "stopped", "unavailable"]
    message: str = ""
    total: int = 0
    measurement: Measurement | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    measured: str = ""


class Store:
    """A file of records. Whatever is in it need not be measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            whole, newline, _ = text.rpartition("\n")
            if text and not text.endswith("\n"):  # an interruption left half a line
                path.write_text(whole + newline, encoding="utf-8")
            for line in whole.splitlines():
                record = _read(json.loads(line))
                self.records[record.key] = record

    def add(self, record: Record) -> None:
        """Keep a record, on disk at once."""
        self.records[record.key] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(record)) + "\n")


def _read(fields: dict[str, Any]) -> Record:
    measurement = fields.pop("measurement")
    return Record(**fields, measurement=None if measurement is None else Measurement(**measurement))


def run(
    comparisons: Iterable[Comparison],
    provide: Callable[[str, int], Subject],
    store: Store,
    *,
    limit: float | None = None,
    fresh: bool = False,
    only_stored: Callable[[Comparison], bool] = lambda _: False,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, list[Record]]:
    """Measure what the store does not hold; returns the records of every comparison in the order of its entries.

    Args:
        provide: ``(subject, examples) -> Subject``; may raise :class:`Unavailable`.
        limit: seconds of processor time for one entry.
        fresh: measure again what the store holds.
        only_stored: comparisons for which nothing is measured, and only the records in the store are returned.
        progress: told one line per measurement.
    """
    results: dict[str, list[Record]] = {}
    for comparison in comparisons:
        found = results.setdefault(comparison.name, [])
        try:
            subject = provide(comparison.subject, comparison.examples)
        except Unavailable as reason:
            found += [
                Record("", comparison.name, entry.library, entry.label, "unavailable", str(reason))
                for entry in comparison.entries
            ]
            continue
        for entry in comparison.entries:
            key = _key(comparison, entry, subject)
            if key in store.records and (not fresh or only_stored(comparison)):
                found.append(store.records[key])
            elif not only_stored(comparison):
                record = _record(comparison, entry, subject, key, limit)
                if record.status in ("ok", "stopped"):  # what failed otherwise is tried again
                    store.add(record)
                found.append(record)
                progress(_line(record))
    return results


def _record(comparison: Comparison, entry: Entry, subject: Subject, key: str, limit: float | None) -> Record:
    base = Record(
        key,
        comparison.name,
        entry.library,
        entry.label,
        "ok",
        total=subject.total,
        versions=_versions(entry),
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    try:
        for module in LIBRARIES[entry.library].modules:
            importlib.import_module(module)
    except ImportError as error:
        return dataclasses.replace(base, status="missing", message=one_line(error))
    problem = Problem(
        subject.model,
        subject.x,
        subject.y,
        comparison.norm,
        comparison.eps,
        subject.num_classes,
        comparison.seed,
        subject.randomized,
        (subject.y + 1) % subject.num_classes if comparison.targeted else None,
    )
    try:
        return dataclasses.replace(base, measurement=measure(entry.run, problem, limit, comparison.repeats))
    except Stopped as stopped:
        return dataclasses.replace(base, status="stopped", message=str(stopped))
    except Exception as error:  # whatever a library raises is its result
        return dataclasses.replace(base, status="error", message=one_line(error))


def _key(comparison: Comparison, entry: Entry, subject: Subject) -> str:
    code = ""
    if entry.library == OURS:
        try:
            code = code_digest(get_attack(entry.settings["attack"]).function)
        except (InputError, PluginError) as error:
            code = one_line(error)
    return digest(
        SCHEMA,
        [comparison.norm, comparison.eps, comparison.targeted, comparison.seed, comparison.examples],
        *([comparison.repeats] if comparison.repeats > 1 else []),
        subject.digest,
        entry.library,
        entry.label,
        repr(sorted(entry.settings.items())),
        code_digest(entry.function),
        code,
        _versions(entry),
        hardware("cpu"),
    )


def _versions(entry: Entry) -> dict[str, str]:
    name = LIBRARIES[entry.library].distribution
    try:
        installed = version(name)
    except PackageNotFoundError:
        installed = "not installed"
    return {name: installed, "torch": torch.__version__}


def _line(record: Record) -> str:
    what = f"{record.comparison}: {record.library} {record.label}"
    if record.measurement is None:
        return f"{what}: {record.status} ({record.message})"
    m = record.measurement
    result = f"median {m.median:.4g}" if m.left is None else f"{100 * m.left / record.total:.2f} % left"
    return f"{what}: {result}, {m.seconds:.1f} s"
