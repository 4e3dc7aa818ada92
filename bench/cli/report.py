"""`bench report`: print stored results."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import results_option, stored_suite_options
from bench.cli.scene import example
from bench.contracts.errors import one_line


@click.command(epilog=example("bench report --suite digits --results results --format markdown"))
@click.option("--format", "form", type=click.Choice(["table", "csv", "json", "markdown"]), default="table")
@stored_suite_options
@results_option
def report(form: str, suite_names: tuple[str, ...], results: Path) -> int:
    """Print stored results.

    The exit code is 1 where a stored file cannot be read: it is named, and the rest is printed.
    """
    from bench.summary import report as reports
    from bench.summary.summarise import summarise_all

    summaries, unreadable = summarise_all(results, suite_names)
    click.echo(reports.render_all(summaries, form))
    below = form in ("table", "markdown")  # there, what is left out of a suite is said below its tables
    left_out = [] if below else [text for summary in summaries for text in reports.remarks(summary)]
    for text in unreadable + left_out:
        click.echo(f"warning: {one_line(text)}", err=True)
    return 1 if unreadable or any(summary.unreadable for summary in summaries) else 0
