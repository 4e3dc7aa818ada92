"""`bench status`: what is stored, what of it is current, and what a run would do."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import (
    checkpoints_option,
    config_option,
    data_root_option,
    device_option,
    results_option,
    stored_suite_options,
)
from bench.cli.scene import example, pick_device
from bench.contracts.errors import one_line


@click.command(epilog=example("bench status --suite digits --results results --why"))
@stored_suite_options
@click.option("--why", is_flag=True, help="Say for every stale result what has changed since.")
@results_option
@config_option
@data_root_option
@checkpoints_option
@device_option
def status(
    suite_names: tuple[str, ...],
    why: bool,
    results: Path,
    config: Path | None,
    data_root: Path | None,
    checkpoints: Path | None,
    device: str,
) -> None:
    """Say what is stored, what of it is current, what is stale, and what a run would do and take.

    A result is stale when something that it was made of has changed: the attack, the defense, the examples, the threat
    model, the judging, torch's version or the device. Nothing is run or written.
    """
    from bench.storing.store import stored_suites
    from bench.suites.reading import load_config
    from bench.training.unused import unused_checkpoints
    from bench.upkeep.status import describe, suite_status

    shipped = load_config(config)
    names = suite_names or stored_suites(results)
    machine = pick_device(device)
    for name in names:
        if not suite_names and name not in shipped.suites:
            click.echo(f"{name}: stored, but not in the configuration")
            continue
        found = suite_status(shipped.suite(name), results, device=machine, root=data_root, checkpoints=checkpoints)
        for line in describe(found, why):
            click.echo(one_line(line))
    unused = unused_checkpoints(shipped.suites.values(), checkpoints)
    if unused:
        click.echo(f"{len(unused)} checkpoints that no suite of the configuration evaluates:")
    for checkpoint in unused:
        click.echo(f"  {checkpoint.path.parent.name}/{checkpoint.path.name}: {checkpoint.reason}")
