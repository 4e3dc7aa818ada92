"""`bench report`: print stored results."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import results_option, stored_suite_options
from bench.cli.scene import epilog
from bench.cli.voice import Voice, speaking
from bench.contracts.errors import InputError


@click.command(
    epilog=epilog(
        "bench report --suite digits --results results --format markdown",
        fails="a stored file cannot be read: it is named, and the rest is printed",
    )
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    help="What to print [default: table]; --json says the same as json.",
)
@stored_suite_options
@results_option
@speaking
def report(form: str | None, suite_names: tuple[str, ...], results: Path, voice: Voice) -> int:
    """Print stored results."""
    from bench.summary import report as reports
    from bench.summary.summarise import summarise_all

    if voice.as_json and form not in (None, "json"):
        raise InputError(f"--format {form}: --json asks for JSON; give one or the other")
    form = "json" if voice.as_json else form or "table"
    summaries, unreadable = summarise_all(results, suite_names)
    if voice.as_json:
        voice.document(reports.document(summaries))
    else:
        click.echo(reports.render_all(summaries, form))
    below = form in ("table", "markdown")  # there, what is left out of a suite is said below its tables
    left_out = [] if below else [text for summary in summaries for text in reports.remarks(summary)]
    for text in unreadable + left_out:
        voice.warn(f"warning: {text}")
    return 1 if unreadable or any(summary.unreadable for summary in summaries) else 0
