"""`bench accept`: check a submitted folder and add it to results."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from bench.cli.engines import Opener, on_an_engine
from bench.cli.options import (
    PATH,
    config_option,
    data_root_option,
    device_option,
    isolation_option,
    quiet_option,
    results_option,
)
from bench.cli.scene import example, pick_device
from bench.contracts.errors import one_line


@click.command(epilog=example("bench accept mine-on-digits --results results"))
@click.argument("bundle", type=PATH)
@results_option
@config_option
@data_root_option
@device_option
@click.option(
    "--again",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Attacks that are run anew with a secret seed, drawn among those that count.",
)
@quiet_option
@isolation_option
@on_an_engine
def accept(
    bundle: Path,
    results: Path,
    config: Path | None,
    data_root: Path | None,
    device: str,
    again: int,
    quiet: bool,
    isolation: str,
    open_engine: Opener,
) -> int:
    """Check a folder that `bench submit` or `bench submit-attack` wrote, and add it to results.

    Nothing in it is believed: it is judged again here, and a part of the attacks is run anew. It is added in one step,
    or a line says why not and nothing is written.
    """
    import torch

    from bench.running.progress import Display
    from bench.storing import provenance
    from bench.submissions.accept import Acceptance, accept_defense, accept_points, taken_in
    from bench.suites.reading import load_config

    torch.set_num_threads(1)
    chosen = pick_device(device)
    suites, command = load_config(config), provenance.command_line()
    asked = Acceptance(bundle, results, suites, chosen, data_root, again, command, isolation)
    with taken_in(asked) as (manifest, staging):
        if manifest.kind == "attack":
            said = accept_points(asked, manifest, staging)
        else:
            with open_engine(chosen) as engine:
                display = Display(Console(stderr=True), quiet=quiet)
                accepted = accept_defense(asked, manifest, staging, engine, display)
            anew = [f"{name} ({fell} fell, {rose} rose)" for name, (fell, rose, _) in accepted.again.items()]
            said = (
                f"{manifest.defense} on {manifest.suite}, by {manifest.by}: {accepted.judged} rows judged again, "
                f"run anew: {', '.join(anew) or 'nothing'}"
            )
    click.echo(one_line(f"accepted: {said}"))
    return 0
