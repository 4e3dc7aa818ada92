"""`bench gradients`: input gradients per pixel, and PGD confined to some pixels."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import defense_options, results_option
from bench.cli.scene import Scene, epilog, in_a_scene
from bench.cli.voice import Voice, speaking


@click.command(
    short_help="Measure input gradients, and PGD on some pixels alone.",
    epilog=epilog("bench gradients --defense prm --suite digits --results results"),
)
@defense_options(help="A differentiable defense (repeat for several).")
@results_option
@speaking
@in_a_scene
def gradients(scene: Scene, voice: Voice, defenses: tuple[str, ...], results: Path) -> None:
    """Measure input gradients per pixel, and accuracy under PGD confined to some pixels."""
    from bench.storing import provenance
    from bench.storing.store import Store
    from bench.studies.input_gradients.measure import measure_and_store

    store = Store(results, scene.suite.name)
    records = []
    for spec in scene.specs(defenses):
        with voice.following(f"input gradients of {spec.name}"):
            record = measure_and_store(
                store, scene.suite, spec, device=scene.device, root=scene.data_root, command=provenance.command_line()
            )
        records.append(record)
        agreement = "" if record.iou is None else f"; IoU with the designated pixels {record.iou:.3f}"
        voice.line(f"{spec.name}: {record.n} examples{agreement}")
        for entry in record.accuracies:
            bound = f"{entry.norm} {entry.eps:.3g}"
            voice.line(f"  {entry.pixels} ({entry.changeable} pixels), {bound}: {100 * entry.accuracy:.1f} %")
    voice.document({"suite": scene.suite.name, "records": records})
