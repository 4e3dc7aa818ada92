"""`bench new`: working plugin folders to start from."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import PATH
from bench.cli.scene import example


@click.group(epilog=example("bench new defense my-defense"))
def new() -> None:
    """Write a working plugin folder to start from."""


@new.command("defense", epilog=example("bench new defense my-defense"))
@click.argument("name")
@click.option("--out", type=PATH, default=Path(), help="Parent folder [default: here].")
def new_defense(name: str, out: Path) -> None:
    """Write a working defense plugin named NAME."""
    from bench.plugins import scaffold

    click.echo(f"Written to {scaffold.new_defense(name, out)}; its README.md says what to run.")


@new.command("attack", epilog=example("bench new attack my-attack"))
@click.argument("name")
@click.option("--out", type=PATH, default=Path(), help="Parent folder [default: here].")
def new_attack(name: str, out: Path) -> None:
    """Write a working attack plugin named NAME."""
    from bench.plugins import scaffold

    click.echo(f"Written to {scaffold.new_attack(name, out)}; its README.md says what to run.")
