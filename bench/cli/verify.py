"""`bench verify`: judge stored adversarial inputs again."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import (
    attack_options,
    checkpoints_option,
    data_root_option,
    defense_options,
    device_option,
    results_option,
    suite_option,
)
from bench.cli.scene import example, pick_device
from bench.contracts.errors import one_line


@click.command(epilog=example("bench verify --suite digits --results results --defense ours"))
@suite_option(help="The suite whose results are checked.")
@defense_options(help="Only this defense (repeat) [default: all stored].")
@attack_options(help='Only this attack, or "clean" (repeat) [default: all].')
@results_option
@device_option
@click.option("--data", "data_reference", help="Where the images are here, if the recorded folder is not.")
@data_root_option
@checkpoints_option
def verify(
    suite_name: str,
    defenses: tuple[str, ...],
    attacks: tuple[str, ...],
    results: Path,
    device: str,
    data_reference: str | None,
    data_root: Path | None,
    checkpoints: Path | None,
) -> int:
    """Judge stored adversarial inputs again and compare with the stored rows."""
    import torch

    from bench.upkeep.verify import Places
    from bench.upkeep.verify import verify as judge_again

    torch.set_num_threads(1)
    where = Places(data_reference, data_root, checkpoints)
    confirmed = True
    for verdict in judge_again(results, suite_name, defenses, pick_device(device), where, attacks):
        remark = "; ".join(text for text in (verdict.problem, verdict.note) if text)
        line = f"{verdict.defense} × {verdict.attack}: {verdict.different} of {verdict.rows} rows differ"
        click.echo(one_line(f"{line} ({remark})" if remark else line))
        confirmed &= verdict.confirmed
    return 0 if confirmed else 1
