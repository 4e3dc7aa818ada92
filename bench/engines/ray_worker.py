"""What runs on the machines of a Ray cluster: one actor per job slot. Imports nothing heavy before a job needs it."""

from __future__ import annotations

import os
import sys
from typing import Any

from bench.contracts import reporting
from bench.contracts.computing import settle
from bench.engines.admission import DiffersHere, facts
from bench.engines.graph import Job
from bench.engines.local import attempt, now_and_then
from bench.engines.supply import bring


class Mailbox:
    """On the driver's machine: what running jobs report, until the driver asks for it."""

    def __init__(self) -> None:
        self._held: list[reporting.Report] = []

    def put(self, report: reporting.Report) -> None:
        self._held.append(report)

    def drain(self) -> list[reporting.Report]:
        held, self._held = self._held, []
        return held


class RayWorker:
    """One job at a time, in a process of its own.

    Args:
        folder: the driver's, where relative references to plugins start.
        paths: where the driver finds modules.
        mailbox: where reports go.
    """

    def __init__(self, folder: str, paths: list[str], mailbox: Any) -> None:
        # One thread whatever the CPUs kept for a job, so that rows are those of every other engine.
        os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
        if os.path.isdir(folder):  # noqa: PTH112
            os.chdir(folder)
        sys.path += [path for path in paths if path not in sys.path]
        self._mailbox = mailbox
        self._held: dict[str, Any] = {}

    def about(self) -> dict[str, str]:
        """What has to be the same here as at the driver (``bench.engines.admission``)."""
        return facts()

    def run(self, job: Job, supplies: dict[str, list[Any]]) -> tuple[str, Any, str]:
        """Run a job: how it ended (``refused`` where this machine cannot run it rightly), its value, the reason.

        Args:
            supplies: the references of what it needs in the object store, by name.
        """
        import ray

        missing = {name: reference for name, (reference,) in supplies.items() if name not in self._held}
        fetched = dict(zip(missing, ray.get(list(missing.values())), strict=True))
        self._held = {name: self._held[name] for name in supplies if name in self._held} | fetched
        bring(self._held)
        if "torch" in sys.modules:
            settle()
        reporting.listen(now_and_then(lambda report: self._mailbox.put.remote(report.of(job.name))))
        try:
            return attempt(job.function, job.args, DiffersHere)
        except DiffersHere as reason:
            return "refused", None, str(reason)
