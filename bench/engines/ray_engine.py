"""Workers on the machines of a Ray cluster: the same jobs, the same rows, on as many machines as there are.

The driver alone schedules and stores. Data, weights and preparations go once into Ray's object store. A machine may
be lost or join while jobs run: its jobs are run again elsewhere, and it is asked about its versions before it works.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from bench.contracts import reporting
from bench.contracts.errors import InputError
from bench.engines.admission import facts, objections
from bench.engines.engine import Resources
from bench.engines.graph import Graph, Job, Outcome, Status
from bench.engines.ray_worker import Mailbox, RayWorker

_log = logging.getLogger(__name__)
#: Seconds between two looks at which machines there are, and between two looks into the mailbox.
_LOOK_EVERY, _READ_EVERY = 1.0, 0.5
#: Seconds that a worker may take to start, and that a run waits while no machine is there.
_START, _NOBODY = 300.0, 300.0


class _Slot:
    """One worker, on one machine."""

    def __init__(self, node: str, host: str, actor: Any) -> None:
        self.node, self.host, self.actor = node, host, actor
        self.admitted = False
        self.job: Job | None = None
        self.loaded = ""
        self.since = time.monotonic()
        self.answer: Any = actor.about.remote()

    def start(self, job: Job, supplies: dict[str, list[Any]]) -> None:
        self.job, self.since = job, time.monotonic()
        self.loaded = job.loads or self.loaded
        self.answer = self.actor.run.remote(replace(job, supplies=()), supplies)

    @property
    def deadline(self) -> float | None:
        if not self.admitted:
            return self.since + _START
        return None if self.job is None or self.job.timeout is None else self.since + self.job.timeout


class RayEngine:
    """Runs jobs on a Ray cluster. Use it as a context manager: it leaves the cluster at the end.

    Args:
        address: of a running cluster, as ``ray.init`` takes it; None starts one on this machine that ends with it.
        resources: what a job takes of its machine; how many fit is how many run there.
        workers: jobs at a time at most; None for as many as fit.
        patience: seconds to wait while no machine is there.

    Raises:
        InputError: when Ray is not installed, or no cluster answers.
    """

    def __init__(
        self,
        address: str | None = None,
        resources: Resources | None = None,
        workers: int | None = None,
        patience: float = _NOBODY,
    ) -> None:
        self._address, self._most, self._patience = address, workers, patience
        self.resources = resources or Resources()
        self._facts = facts()
        self._refused: set[str] = set()
        self._slots: list[_Slot] = []
        self._stored: dict[str, Any] = {}
        self._room: dict[str, tuple[str, int]] = {}
        self._looked = self._read = -_LOOK_EVERY

    def __enter__(self) -> RayEngine:
        try:
            import ray
        except ImportError:
            raise InputError("engine ray: is not installed (pip install 'worst-case-bench[ray]')") from None
        self._ray: Any = ray  # of many of its functions the types are not known
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self._address is None:
                ray.init(address="local", include_dashboard=False, num_cpus=self._most, **quiet)
            else:
                ray.init(address=self._address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
            raise InputError(f"engine ray: {self._address or 'this machine'}: {str(error).splitlines()[0]}") from None
        here = ray.get_runtime_context().get_node_id()
        self._mailbox: Any = self._ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=self._at(here)).remote()
        self._look()
        return self

    def __exit__(self, *_: object) -> None:
        self._slots.clear()
        self._stored.clear()
        self._ray.shutdown()

    @property
    def workers(self) -> int:
        room = sum(slots for _, slots in self._room.values())
        return max(1, room if self._most is None else min(room, self._most))

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        graph = Graph(jobs, self.workers)
        uses = Counter(supply.name for job in jobs for supply in job.supplies)
        alone_since = time.monotonic()
        while graph.left:
            self._look()
            graph.workers = self.workers
            for slot in self._slots:
                if slot.admitted and slot.job is None and (job := graph.take(slot.loaded)) is not None:
                    slot.start(job, {supply.name: [self._store(supply)] for supply in job.supplies})
            self._pass_reports_on()
            if self._slots:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > self._patience:
                raise InputError("engine ray: no machine of the cluster can work for this run; see the lines above")
            for slot in self._ready():
                outcomes = self._answered(graph, slot)
                for outcome in outcomes:
                    for supply in outcome.job.supplies:
                        uses[supply.name] -= 1
                        if uses[supply.name] == 0:
                            self._stored.pop(supply.name, None)
                yield from outcomes

    # -- machines -----------------------------------------------------------------------------------------------

    def _at(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node, soft=False)

    def _look(self) -> None:
        """Which machines there are now, and workers for what fits on them."""
        if time.monotonic() - self._looked < _LOOK_EVERY:
            return
        self._looked = time.monotonic()
        self._room = {}
        for node in self._ray.nodes():
            if node["Alive"] and node["NodeID"] not in self._refused:
                has = node["Resources"]
                fit = self.resources.slots(has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0))
                self._room[node["NodeID"]] = (node["NodeManagerAddress"], fit)
        there = Counter(slot.node for slot in self._slots)
        for node, (host, fit) in self._room.items():
            for _ in range(fit - there[node]):
                if len(self._slots) < self.workers:
                    self._slots.append(_Slot(node, host, self._actor(node)))

    def _actor(self, node: str) -> Any:
        options: dict[str, Any] = {"num_cpus": self.resources.cpus, "num_gpus": self.resources.gpus}
        if self.resources.memory:
            options["memory"] = self.resources.memory
        actor = self._ray.remote(RayWorker).options(max_restarts=0, scheduling_strategy=self._at(node), **options)
        return actor.remote(os.getcwd(), [path for path in sys.path if path], self._mailbox)  # noqa: PTH109

    def _refuse(self, slot: _Slot, why: str) -> None:
        """Nothing is run on this machine any more."""
        self._refused.add(slot.node)
        _log.warning("note: worker on %s refused: %s", slot.host, why)
        self._room.pop(slot.node, None)
        self._drop(slot)

    def _drop(self, slot: _Slot) -> None:
        self._ray.kill(slot.actor, no_restart=True)
        self._slots.remove(slot)
        self._looked = -_LOOK_EVERY

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _store(self, supply: Any) -> Any:
        if supply.name not in self._stored:
            self._stored[supply.name] = self._ray.put(supply.make())
        return self._stored[supply.name]

    def _pass_reports_on(self) -> None:
        if time.monotonic() - self._read >= _READ_EVERY:
            self._read = time.monotonic()
            for report in self._ray.get(self._mailbox.drain.remote()):
                reporting.pass_on(report)

    def _ready(self) -> list[_Slot]:
        """The workers that have answered, died or run out of time, after a short wait for one."""
        waiting = {slot.answer: slot for slot in self._slots if slot.answer is not None}
        if not waiting:
            time.sleep(0.05)
            return []
        some, _ = self._ray.wait(list(waiting), num_returns=1, timeout=0.2)
        if some and len(waiting) > 1:  # all that are there by now, in one go
            some, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        late = [
            slot
            for answer, slot in waiting.items()
            if answer not in some and slot.deadline is not None and time.monotonic() >= slot.deadline
        ]
        return [waiting[answer] for answer in some] + late

    def _answered(self, graph: Graph, slot: _Slot) -> list[Outcome]:
        if slot not in self._slots:  # its machine was refused a moment ago
            return []
        answer, slot.answer = slot.answer, None
        job, seconds = slot.job, time.monotonic() - slot.since
        slot.job = None
        try:
            given = self._ray.get(answer, timeout=0.5)
        except self._ray.exceptions.GetTimeoutError:
            if job is None:
                self._refuse(slot, f"did not start within {_START:g} s")
                return []
            self._drop(slot)
            return graph.end(Outcome(job, "timeout", None, f"stopped after {job.timeout:g} s", seconds))
        except self._ray.exceptions.RayTaskError as error:  # around the job: what it needs could not be brought
            if job is None:
                self._refuse(slot, _last_line(error))
                return []
            return graph.end(Outcome(job, "failed", None, str(error), seconds))
        except (self._ray.exceptions.RayError, ImportError) as error:
            return self._died(graph, slot, job, error, seconds)
        if job is None:
            if why := objections(self._facts, given):
                self._refuse(slot, "; ".join(why))
            slot.admitted = True
            return []
        status, value, reason = given
        if status == "refused":
            graph.give_back(job)
            self._refuse(slot, reason)
            return []
        return graph.end(Outcome(job, status, value, reason, seconds))

    def _died(self, graph: Graph, slot: _Slot, job: Job | None, error: Exception, seconds: float) -> list[Outcome]:
        lost = not any(node["Alive"] and node["NodeID"] == slot.node for node in self._ray.nodes())
        if job is None and not lost:
            self._refuse(slot, _last_line(error))
            return []
        self._drop(slot)
        if job is None:
            return []
        memory = isinstance(error, self._ray.exceptions.OutOfMemoryError)
        where = f"machine {slot.host} was lost" if lost else f"worker process on {slot.host} died"
        _log.warning("note: %s: %s; it is run again", job.name, where)
        status: Status = "out-of-memory" if memory else "failed"
        return graph.lost(Outcome(job, status, None, where, seconds), with_machine=lost)


def _last_line(error: Exception) -> str:
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
