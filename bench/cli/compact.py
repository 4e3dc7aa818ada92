"""`bench compact`: stored results made small enough to be published."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import results_option, stored_suite_options
from bench.cli.scene import example
from bench.contracts.errors import one_line


@click.command(epilog=example("bench compact --suite digits --results results"))
@results_option
@stored_suite_options
def compact(results: Path, suite_names: tuple[str, ...]) -> int:
    """Make stored results small enough to be published, in place.

    All rows stay, compressed; of the adversarial inputs of an example, that of its worst attack stays. The exit code is
    1 where a stored file cannot be read: it is named, and its defense left alone.
    """
    from bench.storing.store import stored_suites
    from bench.upkeep.compact import compact as compact_suite

    code = 0
    for name in stored_suites(results, suite_names):
        for done in compact_suite(results, name):
            line = f"{name}: {done.defense}: {done.before / 2**20:.2f} MiB to {done.after / 2**20:.2f} MiB"
            click.echo(one_line(f"{line} ({done.note})" if done.note else line))
            for text in done.unreadable:
                click.echo(f"warning: {text}", err=True)
                code = 1
    return code
