"""`bench verify`: judge stored adversarial inputs again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from bench.cli.options import (
    attack_options,
    checkpoints_option,
    data_root_option,
    defense_options,
    device_option,
    isolation_option,
    results_option,
    suite_option,
)
from bench.cli.scene import epilog, pick_device
from bench.cli.voice import Voice, plain, speaking
from bench.contracts.computing import settle
from bench.contracts.errors import InputError


@click.command(
    short_help="Judge stored adversarial inputs again.",
    epilog=epilog(
        "bench verify --suite digits --results results --defense ours",
        fails="a row came out differently, or could not be judged again",
    )
)
@suite_option(help="The suite whose results are checked.")
@defense_options(help="Only this defense (repeat) [default: all stored].")
@attack_options(help='Only this attack, or "clean" (repeat) [default: all].')
@results_option
@device_option
@click.option("--data", "data_reference", help="Where the images are here, if the recorded folder is not.")
@data_root_option
@checkpoints_option
@click.option("--record", is_flag=True, help="Keep what is found beside the results: the site says it.")
@isolation_option
@speaking
def verify(
    suite_name: str,
    defenses: tuple[str, ...],
    attacks: tuple[str, ...],
    results: Path,
    device: str,
    data_reference: str | None,
    data_root: Path | None,
    checkpoints: Path | None,
    record: bool,
    isolation: str,
    voice: Voice,
) -> int:
    """Judge stored adversarial inputs again and compare with the stored rows.

    Each is judged once more as a file would hold it, rounded to 8 bits or to the data's grey levels inside the ball.
    """
    from bench.storing import provenance
    from bench.storing.lock import writing
    from bench.storing.store import open_suite
    from bench.upkeep.verified import keep
    from bench.upkeep.verify import Places
    from bench.upkeep.verify import verify as judge_again

    if record and attacks:
        raise InputError(f"--record: keeps what all attacks say, so --attack {attacks[0]} cannot be given with it")
    settle()
    where, chosen = Places(data_reference, data_root, checkpoints), pick_device(device)
    clock, verdicts = provenance.start(), []
    for verdict in judge_again(results, suite_name, defenses, chosen, where, attacks, isolation):
        remark = "; ".join(text for text in (verdict.problem, verdict.note) if text)
        line = f"{verdict.defense} × {verdict.attack}: {verdict.different} of {verdict.rows} rows differ"
        if (rounding := verdict.rounding).rows:
            moved = f"{rounding.survive} survive, {rounding.fall} fall"
            line += f"; rounded to grey levels {rounding.changed} change ({moved})"
        voice.line(f"{line} ({remark})" if remark else line)
        verdicts.append(verdict)
    if record:
        store, suite = open_suite(results, suite_name)
        with writing(store.folder, provenance.command_line()):
            keep(store, suite, verdicts, clock, chosen)
    confirmed = all(verdict.confirmed for verdict in verdicts)
    cells = [plain(replace(verdict, key=None)) | {"confirmed": verdict.confirmed} for verdict in verdicts]
    for cell in cells:
        del cell["key"]
    voice.document({"suite": suite_name, "confirmed": confirmed, "cells": cells})
    return 0 if confirmed else 1
