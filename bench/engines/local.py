"""Worker processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from bench.contracts import reporting
from bench.contracts.computing import settle
from bench.engines.gpus import GpuSlots, peak_memory
from bench.engines.graph import Graph, Job, Outcome, Status

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

#: Seconds between two reports of one job that are passed on.
_REPORT_EVERY = 0.2


class LocalEngine:
    """Worker processes on this machine.

    Every worker computes with one CPU thread whatever their number, so that rows do not depend on it. A worker
    that hangs past its timeout or runs out of memory costs its job, not the run; the job of one that dies is run
    again, and recorded as failed when that happens twice. What a job reports about itself is reported again in this
    process. Use it as a context manager: workers are kept from one ``run`` to the next, and ended at the end.

    Args:
        workers: number of processes.
        gpus: where jobs run on GPUs: which worker gets which.
    """

    def __init__(self, workers: int, gpus: GpuSlots | None = None) -> None:
        self.workers = workers if gpus is None else min(workers, gpus.most)
        self._gpus = gpus
        self._crew: list[_Worker] = []

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self._crew):
            worker.stop()
            self._dismiss(worker)

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        graph = Graph(jobs, self.workers)
        while graph.left:
            self._start_what_can(graph)
            busy = [worker for worker in self._crew if worker.job]
            wait([worker.pipe for worker in busy], timeout=_next_deadline(busy))
            for worker in busy:
                outcome = worker.poll()
                if outcome is not None:
                    yield from self._ended(graph, worker, outcome)

    def _start_what_can(self, graph: Graph) -> None:
        for worker in self._crew:
            if worker.job is None and (job := graph.take(worker.loaded)) is not None:
                worker.start(job)
        while len(self._crew) < self.workers and (place := self._place()) is not None:
            if (job := graph.take("")) is None:
                self._leave(place)
                break
            self._crew.append(_Worker(place))
            self._crew[-1].start(job)

    def _ended(self, graph: Graph, worker: _Worker, outcome: Outcome) -> list[Outcome]:
        crowded = False
        if self._gpus is not None:
            self._gpus.seen(worker.peak)
            crowded = outcome.status == "out-of-memory" and self._gpus.too_many(worker.place)
            if crowded and worker.alive:
                worker.stop()  # gives its memory back
        if not worker.alive:
            self._dismiss(worker)
        return graph.lost(outcome) if worker.died or crowded else graph.end(outcome)

    def _dismiss(self, worker: _Worker) -> None:
        self._crew.remove(worker)
        self._leave(worker.place)

    def _place(self) -> str | None:
        """Where a new worker goes: a GPU, "" where there are none; None while there is no room."""
        return "" if self._gpus is None else self._gpus.place()

    def _leave(self, place: str) -> None:
        if self._gpus is not None:
            self._gpus.leave(place)


def _next_deadline(busy: list[_Worker]) -> float | None:
    deadlines = [worker.deadline for worker in busy if worker.deadline is not None]
    return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


class _Worker:
    """One process and the job it is working on; ``place``: its GPU, "" for none."""

    def __init__(self, place: str = "") -> None:
        context = _context()
        self.pipe, theirs = context.Pipe()
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": place} if place else {})}
        self.process = context.Process(target=_work, args=(theirs, environment), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.loaded = ""
        self.deadline: float | None = None
        self.place = place
        self.alive, self.died = True, False
        self.peak = 0
        self._since = 0.0

    def start(self, job: Job) -> None:
        self.job, self._since = job, time.monotonic()
        self.loaded = job.loads or self.loaded
        self.deadline = None if job.timeout is None else self._since + job.timeout
        with contextlib.suppress(BrokenPipeError):  # a worker that has died is noticed by poll
            self.pipe.send((job.function, job.args))

    def poll(self) -> Outcome | None:
        """The outcome of the job if it has ended in any way, else None; passes on what the job has reported."""
        assert self.job is not None
        seconds = time.monotonic() - self._since
        if self.pipe.poll():
            try:
                message = self.pipe.recv()
                if isinstance(message, reporting.Report):
                    reporting.pass_on(message.of(self.job.name))
                    return None
                status, value, error, self.peak = message
            except (EOFError, ConnectionResetError):  # reset: it died before it had read its job
                self.process.join()
                code = self.process.exitcode
                status, value = "failed", None
                error = f"worker process died (exit code {code})"
                if code == -signal.SIGKILL:
                    error = "worker process was killed (signal 9), most likely out of memory"
                    status = "out-of-memory"
                self.alive, self.died = False, True
        elif self.deadline is not None and time.monotonic() >= self.deadline:
            self.stop()
            status, value, error = "timeout", None, f"stopped after {self.job.timeout:g} s"
        else:
            return None
        outcome = Outcome(self.job, status, value, error, seconds)
        self.job = self.deadline = None
        return outcome

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.alive = False


def _context() -> ForkServerContext | SpawnContext:
    """How workers are started: where it can be, forked from a server that has imported what all of them need.

    They then start at once and share the memory of these libraries. The server itself never computes: a fork of a
    process that has used threads or a GPU would not work.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.running.cell"])
    return context


def _work(pipe: Connection, environment: dict[str, str]) -> None:
    """The loop of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ.update(environment)  # a server has that of when it was started
    threading.Thread(target=_die_with_parent, daemon=True).start()
    settle()
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        reporting.listen(now_and_then(pipe.send))
        pipe.send((*attempt(function, args), peak_memory()))


def attempt(
    function: Callable[..., Any], args: tuple[Any, ...], but: type[Exception] | tuple[()] = ()
) -> tuple[Status, Any, str]:
    """Run a job in this process: how it ended, its value, and the reason it has none. ``but``: is raised."""
    try:
        return "ok", function(*args), ""
    except but:
        raise
    except Exception as error:
        torch = sys.modules.get("torch")
        if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
            return "out-of-memory", None, traceback.format_exc()
        return "failed", None, traceback.format_exc()


def now_and_then(send: reporting.Listener) -> reporting.Listener:
    """A listener that passes on a job's reports, but for those that follow another at once."""
    last = -_REPORT_EVERY

    def listener(report: reporting.Report) -> None:
        nonlocal last
        if time.monotonic() - last >= _REPORT_EVERY:
            last = time.monotonic()
            send(report)

    return listener


def _die_with_parent() -> None:
    """End this process when its parent is gone (killed, so that it could not say goodbye)."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
