"""`bench accept`: check a submitted folder and add it to results."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.engines import Opener, on_an_engine
from bench.cli.options import (
    PATH,
    config_option,
    data_root_option,
    device_option,
    isolation_option,
    results_option,
)
from bench.cli.scene import epilog, pick_device
from bench.cli.voice import Voice, speaking
from bench.contracts.computing import settle


@click.command(
    short_help="Check a submitted folder and add it to results.",
    epilog=epilog("bench accept mine-on-digits --results results", refuses="wrong input, or it is not accepted")
)
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
@isolation_option
@on_an_engine
@speaking
def accept(
    bundle: Path,
    results: Path,
    config: Path | None,
    data_root: Path | None,
    device: str,
    again: int,
    isolation: str,
    open_engine: Opener,
    voice: Voice,
) -> int:
    """Check a folder that `bench submit` or `bench submit-attack` wrote, and add it to results.

    Nothing in it is believed: it is judged again here, and a part of the attacks is run anew. It is added in one step,
    or a line says why not and nothing is written.
    """
    from bench.storing import provenance
    from bench.submissions.accept import Acceptance, accept_defense, accept_points, taken_in
    from bench.suites.reading import load_config

    settle()
    chosen = pick_device(device)
    suites, command = load_config(config), provenance.command_line()
    asked = Acceptance(bundle, results, suites, chosen, data_root, again, command, isolation)
    about: dict[str, object] = {}
    with taken_in(asked) as (manifest, staging):
        if manifest.kind == "attack":
            said = accept_points(asked, manifest, staging)
        else:
            with open_engine(chosen) as engine:
                accepted = accept_defense(asked, manifest, staging, engine, voice.display())
            anew = [f"{name} ({fell} fell, {rose} rose)" for name, (fell, rose, _) in accepted.again.items()]
            said = (
                f"{manifest.defense} on {manifest.suite}, by {manifest.by}: {accepted.judged} rows judged again, "
                f"run anew: {', '.join(anew) or 'nothing'}"
            )
            about = {"rows_judged_again": accepted.judged, "run_anew": sorted(accepted.again)}
    voice.line(f"accepted: {said}")
    voice.document({"accepted": manifest.kind, "suite": manifest.suite, "defense": manifest.defense,
                    "by": manifest.by, "said": said, **about})  # fmt: skip
    return 0
