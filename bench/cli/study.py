"""`bench study`: measurements beside the leaderboard, each with its record and its page."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import defense_options, results_option
from bench.cli.scene import Scene, epilog, in_a_scene
from bench.cli.voice import Voice, plain, speaking


@click.group(epilog=epilog("bench study losses"))
def study() -> None:
    """Measure losses, or where a transform moves images."""


@study.command(
    short_help="Compare the losses behind gradient attacks.",
    epilog=epilog(
        "bench study losses --suite digits --beside distillation --results results",
        "bench study losses --suite cifar10 --data-root data --images 100 --train-images 1500",
    )
)
@defense_options(help="The classifier: deterministic, differentiable [default: none].")
@click.option(
    "--beside",
    metavar="NAME",
    help="Another classifier, for what transfers; with settings in quotes: 'none(network=resnet8)'.",
)
@results_option
@click.option(
    "--images", type=click.IntRange(1), default=200, show_default=True, help="Images to lead to another class."
)
@click.option("--iterations", type=click.IntRange(1), default=200, show_default=True, help="Steps for each of them.")
@click.option("--multiplier", type=float, default=0.01, show_default=True, help="Step at an equal multiplier.")
@click.option(
    "--step", type=float, default=0.05, show_default=True, help="l2 length of a step at an equal perturbation."
)
@click.option(
    "--train-images",
    type=click.IntRange(1),
    default=5000,
    show_default=True,
    help="Images that detectors learn from, at most.",
)
@click.option(
    "--test-images",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Images that detectors are tested on, at most.",
)
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Epochs of each detector.")
@speaking
@in_a_scene
def losses(
    scene: Scene,
    voice: Voice,
    defenses: tuple[str, ...],
    beside: str | None,
    results: Path,
    images: int,
    iterations: int,
    multiplier: float,
    step: float,
    train_images: int,
    test_images: int,
    epochs: int,
) -> None:
    """Compare cross-entropy, its sign, one logit and the margin as what gradient attacks follow.

    How fast and how far each leads to another class, and how well detectors that learn from one find the others.
    """
    from bench.storing import provenance
    from bench.storing.store import Store
    from bench.studies.losses.claims import claims, table
    from bench.studies.losses.measure import Budget, measure_and_store

    budget = Budget(
        examples=images, iterations=iterations, multiplier=multiplier, step=step, train_examples=train_images,
        test_examples=test_images, epochs=epochs,
    )  # fmt: skip
    store, command = Store(results, scene.suite.name), provenance.command_line()
    records = []
    for spec in scene.specs(defenses or ("none",)):
        with voice.following(f"losses on {spec.name}"):
            record = measure_and_store(
                store, scene.suite, spec, budget, device=scene.device, root=scene.data_root, command=command,
                beside=None if beside is None else scene.beside(beside),
            )  # fmt: skip
        records.append({**plain(record), "claims": claims(record)})
        voice.line(f"{spec.name}: {record.n} examples of {scene.suite.name}")
        for line in table(record):
            voice.line(f"  {line}")
        for claim in claims(record):
            voice.line(f"  {claim.verdict}: {claim.text}")
    voice.document({"suite": scene.suite.name, "records": records})


@study.command(
    short_help="Measure where a transform moves images.",
    epilog=epilog(
        "bench study transformation --suite digits --defense ours --results results",
        "bench study transformation --suite ours-ladder --defense ours --beside madry --data-root data",
    )
)
@defense_options(help="A defense whose transform goes by another network, as that of ours.")
@click.option("--beside", multiple=True, metavar="NAME", help="A deterministic defense to compare with (repeat).")
@results_option
@speaking
@in_a_scene
def transformation(
    scene: Scene, voice: Voice, defenses: tuple[str, ...], beside: tuple[str, ...], results: Path
) -> None:
    """Measure where a transform moves images on average, and what the classifiers around it keep without it."""
    from bench.storing import provenance
    from bench.storing.store import Store
    from bench.studies.transformation.measure import measure_and_store

    store, command = Store(results, scene.suite.name), provenance.command_line()
    others = [scene.beside(name) for name in beside]
    records = []
    for spec in scene.specs(defenses):
        with voice.following(f"transformation of {spec.name}"):
            record = measure_and_store(
                store, scene.suite, spec, others, device=scene.device, root=scene.data_root, command=command
            )
        records.append(record)
        voice.line(f"{spec.name}: {len(record.ids)} examples, E[g(x)] is {record.rms:.3f} from x (root mean square)")
        for base in record.bases:
            right, robust = (100 * sum(rows) / len(rows) for rows in (base.right, base.robust))
            voice.line(f"  {base.name}: {right:.1f} % clean, {robust:.1f} % under {base.attack}")
    voice.document({"suite": scene.suite.name, "records": records})
