"""`bench new`: working plugin folders to start from."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import PATH
from bench.cli.scene import epilog
from bench.cli.voice import Voice, speaking


@click.group(epilog=epilog("bench new defense my-defense"))
def new() -> None:
    """Write a working plugin folder to start from."""


@new.command("defense", epilog=epilog("bench new defense my-defense"))
@click.argument("name")
@click.option("--out", type=PATH, default=Path(), help="Parent folder [default: here].")
@speaking
def new_defense(name: str, out: Path, voice: Voice) -> None:
    """Write a working defense plugin named NAME."""
    from bench.plugins import scaffold

    _written(scaffold.new_defense(name, out), voice)


@new.command("attack", epilog=epilog("bench new attack my-attack"))
@click.argument("name")
@click.option("--out", type=PATH, default=Path(), help="Parent folder [default: here].")
@speaking
def new_attack(name: str, out: Path, voice: Voice) -> None:
    """Write a working attack plugin named NAME."""
    from bench.plugins import scaffold

    _written(scaffold.new_attack(name, out), voice)


def _written(folder: Path, voice: Voice) -> None:
    voice.line(f"Written to {folder}; its README.md says what to run.")
    voice.document({"folder": folder})
