"""`bench verify`: judge stored adversarial inputs again."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.scene import PATH, RESULTS, example, pick_device
from bench.contracts.errors import one_line


@click.command(epilog=example("bench verify --suite digits --results results --defense ours"))
@click.option("--suite", "suite_name", default="demo", show_default=True, help="The suite whose results are checked.")
@click.option("--defense", "defenses", multiple=True, help="Only this defense (repeat) [default: all stored].")
@click.option("--attack", "attacks", multiple=True, help='Only this attack, or "clean" (repeat) [default: all].')
@click.option("--results", type=PATH, default=RESULTS, show_default=True, help="Results folder.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--data", "data_reference", help="Where the images are here, if the recorded folder is not.")
@click.option("--data-root", type=PATH, help="Where downloaded data sets are kept.")
@click.option("--checkpoints", type=PATH, help="Folder of the defenses' checkpoints.")
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
