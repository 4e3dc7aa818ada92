"""`bench train`: train defenses on a suite's data."""

from __future__ import annotations

import click
from rich.console import Console

from bench.cli.scene import Scene, example, in_a_scene


@click.command(epilog=example("bench train --defense ours --suite digits"))
@click.option("--defense", "defenses", multiple=True, help="A defense (repeat for several).")
@click.option("--all", "every", is_flag=True, help="Every defense with a recipe; of a study all variants.")
@in_a_scene
def train(scene: Scene, defenses: tuple[str, ...], every: bool) -> int:
    """Train defenses on a suite's data. An interrupted training goes on where it stopped."""
    from bench.training.command import train_all

    specs = scene.specs(defenses, every)
    return train_all(specs, scene.suite, scene.device, scene.data_root, Console(stderr=True))
