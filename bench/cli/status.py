"""`bench status`: what is stored, what of it is current, and what a run would do."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import (
    checkpoints_option,
    config_option,
    data_root_option,
    device_option,
    isolation_option,
    results_option,
    stored_suite_options,
)
from bench.cli.scene import epilog, pick_device
from bench.cli.voice import Voice, speaking


@click.command(
    short_help="Say what is stored, what is stale, what a run would do.",
    epilog=epilog("bench status --suite digits --results results --why"),
)
@stored_suite_options
@click.option("--why", is_flag=True, help="Say for every stale result what has changed since.")
@results_option
@config_option
@data_root_option
@checkpoints_option
@device_option
@isolation_option
@speaking
def status(
    suite_names: tuple[str, ...],
    why: bool,
    results: Path,
    config: Path | None,
    data_root: Path | None,
    checkpoints: Path | None,
    device: str,
    isolation: str,
    voice: Voice,
) -> None:
    """Say what is stored, what of it is current, what is stale, and what a run would do and take.

    A result is stale when something that it was made of has changed: the attack, the defense, the examples, the threat
    model, the judging, torch's version or the device. Nothing is run or written.
    """
    from bench.storing.store import stored_suites
    from bench.suites.reading import load_config
    from bench.training.unused import unused_checkpoints
    from bench.upkeep.status import as_document, describe, suite_status

    shipped = load_config(config)
    names = suite_names or stored_suites(results)
    machine = pick_device(device)
    documents, elsewhere = [], []
    for name in names:
        if not suite_names and name not in shipped.suites:
            voice.line(f"{name}: stored, but not in the configuration")
            elsewhere.append(name)
            continue
        found = suite_status(
            shipped.suite(name),
            results,
            device=machine,
            root=data_root,
            checkpoints=checkpoints,
            isolation=isolation,
        )
        for line in describe(found, why):
            voice.line(line)
        documents.append(as_document(found))
    unused = unused_checkpoints(shipped.suites.values(), checkpoints)
    if unused:
        voice.line(f"{len(unused)} checkpoints that no suite of the configuration evaluates:")
    for checkpoint in unused:
        voice.line(f"  {checkpoint.path.parent.name}/{checkpoint.path.name}: {checkpoint.reason}")
    voice.document({"suites": documents, "not_in_the_configuration": elsewhere, "unused_checkpoints": unused})
