"""`bench train`: train defenses on a suite's data."""

from __future__ import annotations

import click

from bench.cli.options import defense_options
from bench.cli.scene import Scene, epilog, in_a_scene, worker_count
from bench.cli.voice import Voice, speaking
from bench.contracts.computing import settle


@click.command(epilog=epilog("bench train --defense ours --suite digits", fails="a training failed: it is named"))
@defense_options(help="A defense (repeat for several).")
@click.option("--all", "every", is_flag=True, help="Every defense with a recipe; of a study all variants.")
@click.option("--again", is_flag=True, help="Train also what has a checkpoint already.")
@click.option("--half", is_flag=True, help="Store the weights in half precision, rounded before they are measured.")
@click.option("--workers", type=click.IntRange(1), help="Trainings at a time [default: all cores, 1 on a GPU].")
@speaking
@in_a_scene
def train(
    scene: Scene, voice: Voice, defenses: tuple[str, ...], every: bool, again: bool, half: bool, workers: int | None
) -> int:
    """Train defenses on a suite's data. An interrupted training goes on where it stopped.

    Each training computes with one thread, so that its weights do not depend on the number of cores.
    """
    from bench.engines.local import LocalEngine
    from bench.running.training import train_all

    settle()
    specs = scene.specs(defenses, every)
    with LocalEngine(min(worker_count(workers, scene.device), len(specs))) as engine:
        display = voice.display()
        trained = train_all(specs, scene.suite, scene.device, scene.data_root, engine, display, again, half)
    for one in trained:
        if one.status == "failed":
            voice.warn(f"failed: {one.defense}: {one.remark}")
        else:
            voice.line(f"{one.defense}: {one.status}, {one.remark or one.checkpoint}")
    voice.document({"suite": scene.suite.name, "defenses": trained})
    return 1 if any(one.status == "failed" for one in trained) else 0
