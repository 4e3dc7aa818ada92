"""`bench leaderboard`: the static site."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.scene import PATH, RESULTS, example


@click.command(epilog=example("bench leaderboard --results results --out site --serve"))
@click.option("--results", type=PATH, default=RESULTS, show_default=True, help="Results folder.")
@click.option("--out", type=PATH, default=Path("site"), show_default=True, help="Site folder.")
@click.option("--serve", is_flag=True, help="Serve it on this machine afterwards.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
def leaderboard(results: Path, out: Path, serve: bool, port: int) -> None:
    """Build the static site from stored results."""
    import leaderboard as site

    index = site.build(results, out)
    click.echo(f"The leaderboard is at {index}; open it in a browser ({index.resolve().as_uri()}).")
    if serve:
        site.serve(out, port)
