"""Where the jobs of a command run: the options, and the engine that they ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from bench.cli.scene import worker_count
from bench.contracts.errors import InputError

if TYPE_CHECKING:
    from bench.engines.engine import Engine

_OPTIONS = (
    click.option("--workers", type=click.IntRange(1), help="Jobs at a time [default: as many as fit]."),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Processes here, or Ray.",
    ),
    click.option("--address", help="A running Ray cluster: auto or HOST:PORT [default: one on this machine]."),
    click.option("--cpus-per-job", type=float, default=1.0, show_default=True, help="CPUs kept for a job; Ray only."),
    click.option("--gpus-per-job", type=float, help="Share of a GPU for a job [default: 1 on a GPU]."),
    click.option("--memory-per-job", help="Main memory kept for a job, such as 4GB; Ray only."),
)

#: What opens the engine that was asked for, given the device.
Opener = Callable[[str], "AbstractContextManager[Engine]"]


def on_an_engine(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of an engine to a command, which gets what opens it as the argument ``open_engine``."""

    @functools.wraps(function)
    def command(
        *given: Any,
        workers: int | None,
        engine: str,
        address: str | None,
        cpus_per_job: float,
        gpus_per_job: float | None,
        memory_per_job: str | None,
        **others: Any,
    ) -> Any:
        if engine == "local" and (address is not None or memory_per_job is not None or cpus_per_job != 1):
            raise InputError("--address, --cpus-per-job and --memory-per-job: need --engine ray")

        def open_engine(device: str) -> AbstractContextManager[Engine]:
            from bench.engines.engine import Resources, bytes_of

            share = gpus_per_job if gpus_per_job is not None else float(device == "cuda")
            resources = Resources(cpus_per_job, share, bytes_of(memory_per_job) if memory_per_job else 0)
            if engine == "local":
                return _local(workers, device, share)
            from bench.engines.ray_engine import RayEngine

            return RayEngine(address, resources, workers)

        return function(*given, open_engine=open_engine, **others)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _local(workers: int | None, device: str, share: float) -> AbstractContextManager[Engine]:
    from bench.engines import local
    from bench.engines.gpus import GpuSlots, gpus_here

    if device != "cuda":
        return local.LocalEngine(worker_count(workers, device))
    if not 0 < share <= 1:
        raise InputError(f"--gpus-per-job {share:g}: expected a share above 0 and up to 1")
    slots = GpuSlots(gpus_here(), per_gpu=int(1 / share + 1e-9))
    return local.LocalEngine(slots.most if workers is None else workers, slots)
