"""What benchmarks have measured: kept in a file, a line each, from which the page is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from bench.storing.provenance import git_state, hardware

#: Under which a test keeps its figures.
_PROPERTY = "figure"


@dataclass(frozen=True)
class Figure:
    """One row of the page.

    Attributes:
        table: the table it is in; what: its first column.
        ratio: of two times, or of two amounts of memory, measured in one run.
        of: what the ratio is of, in words.
        goal: what the ratio should not exceed; None where there is none.
        values: other figures, in words with their goals.
        sample: what was measured, in words.
        met: whether the goals named in ``values`` are met; None where there are none.
    """

    table: str
    what: str
    ratio: float
    of: str
    sample: str
    values: str = ""
    goal: float | None = None
    met: bool | None = None

    @property
    def good(self) -> bool | None:
        """Whether all its goals are met; None where it has none."""
        judged = [verdict for verdict in (self.met, self._ratio_met) if verdict is not None]
        return all(judged) if judged else None

    @property
    def _ratio_met(self) -> bool | None:
        return None if self.goal is None else self.ratio <= self.goal


@dataclass(frozen=True)
class Measured:
    """How one benchmark ended.

    Attributes:
        test: its name; status: passed, failed or skipped; message: the last line of why it did not pass.
        at: ISO 8601, UTC; load: processes that waited for a core or ran when it ended, over the minute before.
    """

    test: str
    status: str
    message: str
    figures: list[Figure]
    at: str
    commit: str
    machine: dict[str, str]
    load: float


@dataclass
class Collector:
    """A plugin of pytest: keeps what every benchmark measured as soon as it has ended."""

    store: Path
    failed: list[str] = field(default_factory=list)
    _benchmarks: set[str] = field(default_factory=set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._benchmarks = {item.nodeid for item in items if "benchmark" in getattr(item, "fixturenames", ())}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid not in self._benchmarks or (report.when != "call" and report.outcome == "passed"):
            return
        if report.when == "teardown":
            return
        commit, dirty = git_state()
        name = report.nodeid.rpartition("/")[2]
        measured = Measured(
            name,
            report.outcome,
            _reason(report),
            [Figure(**value) for key, value in report.user_properties if key == _PROPERTY],  # type: ignore[arg-type]
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            f"{(commit or 'unknown')[:10]}{' with changes' if dirty else ''}",
            hardware("cpu"),
            os.getloadavg()[0],
        )
        self.failed += [name] * (report.outcome == "failed")
        self.store.parent.mkdir(parents=True, exist_ok=True)
        with self.store.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(measured)) + "\n")


#: What a benchmark calls with each figure.
Note = Callable[[Figure], None]


def keep(properties: list[tuple[str, Any]], figure: Figure) -> None:
    """Add a figure to what a test reports of itself."""
    properties.append((_PROPERTY, asdict(figure)))


def read(store: Path) -> list[Measured]:
    """The last result of every benchmark, in the order of their names."""
    last = {measured.test: measured for measured in _lines(store)}
    return [last[name] for name in sorted(last)]


def _lines(store: Path) -> Iterator[Measured]:
    if store.is_file():
        for line in store.read_text(encoding="utf-8").splitlines():
            raw = json.loads(line)
            yield Measured(**{**raw, "figures": [Figure(**figure) for figure in raw["figures"]]})


def _reason(report: pytest.TestReport) -> str:
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):  # of a skipped one: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr)
    return next((line for line in text.splitlines() if line.strip()), "no reason was given")
