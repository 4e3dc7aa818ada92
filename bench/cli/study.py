"""`bench study`: measurements beside the leaderboard, each with its record and its page."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.scene import PATH, RESULTS, Scene, example, in_a_scene


@click.group()
def study() -> None:
    """Measure something beside the leaderboard (losses)."""


@study.command(
    epilog=example(
        "bench study losses --suite digits --results results",
        "bench study losses --suite cifar10 --data-root data --results runs",
    )
)
@click.option("--defense", default="none", show_default=True, help="The classifier: deterministic, differentiable.")
@click.option("--results", type=PATH, default=RESULTS, show_default=True, help="Results folder.")
@click.option("--images", type=click.IntRange(1), default=200, show_default=True, help="Of the descents.")
@click.option("--iterations", type=click.IntRange(1), default=200, show_default=True, help="Of every descent.")
@click.option("--multiplier", type=float, default=0.01, show_default=True, help="α of equal multiplier.")
@click.option("--step", type=float, default=0.05, show_default=True, help="l2 length of a step of equal perturbation.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Of each detector's training.")
@in_a_scene
def losses(
    scene: Scene, defense: str, results: Path, images: int, iterations: int, multiplier: float, step: float, epochs: int
) -> None:
    """Cross-entropy, its sign, one logit and the margin: speed, length, and detectors trained on each."""
    from bench.storing import provenance
    from bench.storing.store import Store
    from bench.studies.losses.claims import claims, table
    from bench.studies.losses.measure import Budget, measure_and_store

    budget = Budget(examples=images, iterations=iterations, multiplier=multiplier, step=step, epochs=epochs)
    record = measure_and_store(
        Store(results, scene.suite.name), scene.suite, scene.spec(defense), budget,
        device=scene.device, root=scene.data_root, command=provenance.command_line(),
    )  # fmt: skip
    click.echo(f"{defense}: {record.n} examples of {scene.suite.name}")
    for line in table(record):
        click.echo(f"  {line}")
    for claim in claims(record):
        click.echo(f"  {claim.verdict}: {claim.text}")
