"""`bench report`: print stored results."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.scene import PATH, RESULTS, example
from bench.contracts.errors import InputError


@click.command(epilog=example("bench report --suite digits --results results --format markdown"))
@click.option("--format", "form", type=click.Choice(["table", "csv", "json", "markdown"]), default="table")
@click.option("--suite", "suite_names", multiple=True, help="Only this suite [default: all with results].")
@click.option("--results", type=PATH, default=RESULTS, show_default=True, help="Results folder.")
def report(form: str, suite_names: tuple[str, ...], results: Path) -> None:
    """Print stored results."""
    from bench.storing.store import suites
    from bench.summary import report as reports
    from bench.summary.summarise import summarise

    names = suite_names or suites(results)
    if not names:
        raise InputError(f"no results in {results}; run: bench evaluate --defense ours")
    click.echo("\n\n".join(reports.render(summarise(results, name), form) for name in names))
