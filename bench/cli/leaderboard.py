"""`bench leaderboard`: the static site."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import PATH, results_option, stored_suite_options
from bench.cli.scene import example
from bench.contracts.errors import one_line


@click.command(epilog=example("bench leaderboard --results results --out site --serve"))
@results_option
@stored_suite_options
@click.option("--out", type=PATH, default=Path("site"), show_default=True, help="Site folder.")
@click.option("--serve", is_flag=True, help="Serve it on this machine afterwards.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
def leaderboard(results: Path, suite_names: tuple[str, ...], out: Path, serve: bool, port: int) -> int:
    """Build the static site from stored results.

    The exit code is 1 where a stored file cannot be read: it is named, here and on the site, which shows the rest.
    """
    import leaderboard as site
    from bench.summary.summarise import summarise_all

    summaries, unreadable = summarise_all(results, suite_names)
    index = site.render(summaries, results, out, unreadable)
    unreadable = unreadable + [text for summary in summaries for text in summary.unreadable]
    for text in unreadable:
        click.echo(f"warning: {one_line(text)}", err=True)
    click.echo(f"The leaderboard is at {index}; open it in a browser ({index.resolve().as_uri()}).")
    if serve:
        site.serve(out, port)
    return 1 if unreadable else 0
