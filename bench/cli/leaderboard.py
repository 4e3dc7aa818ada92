"""`bench leaderboard`: the static site."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import PATH, results_option, stored_suite_options
from bench.cli.scene import epilog
from bench.cli.voice import Voice, speaking


@click.command(
    epilog=epilog(
        "bench leaderboard --results results --out site --serve",
        fails="a stored file cannot be read: it is named, here and on the site, which shows the rest",
    )
)
@results_option
@stored_suite_options
@click.option("--out", type=PATH, default=Path("site"), show_default=True, help="Site folder.")
@click.option("--serve", is_flag=True, help="Serve it on this machine afterwards.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port of --serve; 0: any."
)
@speaking
def leaderboard(
    results: Path, suite_names: tuple[str, ...], out: Path, serve: bool, port: int, voice: Voice
) -> int:
    """Build the static site from stored results."""
    import leaderboard as site
    from bench.summary.summarise import summarise_all

    summaries, unreadable = summarise_all(results, suite_names)
    index = site.render(summaries, results, out, unreadable)
    unreadable = unreadable + [text for summary in summaries for text in summary.unreadable]
    for text in unreadable:
        voice.warn(f"warning: {text}")
    voice.line(f"The leaderboard is at {index}; open it in a browser ({index.resolve().as_uri()}).")
    suites = [summary.record.name for summary in summaries if summary.defenses]
    voice.document({"index": index, "url": index.resolve().as_uri(), "suites": suites, "warnings": unreadable})
    if serve:
        site.serve(out, port)
    return 1 if unreadable else 0
