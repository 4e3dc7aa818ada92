"""`bench compact`: stored results made small enough to be published."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.scene import PATH, RESULTS, example
from bench.contracts.errors import InputError


@click.command(epilog=example("bench compact --suite digits --results results"))
@click.option("--results", type=PATH, default=RESULTS, show_default=True, help="Results folder.")
@click.option("--suite", "suite_names", multiple=True, help="Only this suite [default: all with results].")
def compact(results: Path, suite_names: tuple[str, ...]) -> None:
    """Make stored results small enough to be published, in place.

    All rows stay, compressed; of the adversarial inputs of an example, that of its worst attack stays.
    """
    from bench.storing.store import suites
    from bench.upkeep.compact import compact as compact_suite

    names = suite_names or tuple(suites(results))
    if not names:
        raise InputError(f"no results in {results}")
    for name in names:
        for done in compact_suite(results, name):
            line = f"{name}: {done.defense}: {done.before / 2**20:.2f} MiB to {done.after / 2**20:.2f} MiB"
            click.echo(f"{line} ({done.note})" if done.note else line)
