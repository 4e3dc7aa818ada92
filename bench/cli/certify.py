"""`bench certify`: prove what can be proven of a defense's robustness."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import defense_options, results_option
from bench.cli.scene import Scene, epilog, in_a_scene, worker_count
from bench.cli.voice import Voice, speaking
from bench.contracts.errors import NotApplicable
from bench.contracts.words import as_eps, format_eps

if TYPE_CHECKING:
    from bench.storing.certified import Certificates
    from bench.summary.numbers import CertifiedRadius


@click.command(
    epilog=epilog(
        "bench certify --defense madry --suite digits --eps 0.05 --results results",
        fails="certificates are not applicable to a defense, or a stored attack breaks what is proven: both are named",
    )
)
@defense_options(help="A deterministic, piecewise linear defense (repeat for several).")
@click.option(
    "--eps", "radii", multiple=True, metavar="X", help='A radius (repeat), a number or "8/255" [default: the suite\'s].'
)
@click.option("--examples", "first", type=click.IntRange(1), help="Only the first so many of the suite's examples.")
@click.option(
    "--time-limit",
    "seconds",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Processor time per example and radius.",
)
@click.option("--workers", type=click.IntRange(1), help="Examples at a time [default: all cores].")
@results_option
@speaking
@in_a_scene
def certify(
    scene: Scene,
    voice: Voice,
    defenses: tuple[str, ...],
    radii: tuple[str, ...],
    first: int | None,
    seconds: float,
    workers: int | None,
    results: Path,
) -> int:
    """Prove which examples no attack can break, so that robust accuracy lies between two numbers.

    Every example is first attacked, where no stored attack has broken it; then bounded by intervals, by linear
    relaxation, by that with optimised slopes, and by branch and bound. What is proven is stored beside the defense's
    rows. The same command goes on where it stopped; with a longer time limit, what is open is tried again.
    """
    import torch

    from bench.certifying.measure import Certifying
    from bench.certifying.measure import certify as certify_all
    from bench.engines.local import LocalEngine
    from bench.storing import provenance
    from bench.storing.store import Store, check_writable
    from bench.summary.certified import contradictions

    torch.set_num_threads(1)
    check_writable(results)
    chosen = [as_eps(eps) for eps in radii] or [scene.suite.threat_model.eps]
    failed, found = False, []
    with LocalEngine(worker_count(workers, "cpu")) as engine:
        for spec in scene.specs(defenses):
            work = Certifying(scene.suite, spec, scene.data_root)
            store = Store(results, scene.suite.name)
            try:
                records = certify_all(
                    store, work, chosen, seconds, engine, voice.display(), provenance.command_line(), first
                )
                for record, between in records:
                    voice.line(_said(spec.name, record, between))
                    for line in contradictions([between], record.norm):
                        failed = True
                        voice.warn(f"error: {spec.name}: {line}")
                    found.append({"defense": spec.name, "radius": between, "record": record})
            except NotApplicable as reason:
                failed = True
                voice.warn(f"{spec.name}: not applicable: {reason}")
    voice.document({"suite": scene.suite.name, "certificates": found})
    return 1 if failed else 0


def _said(name: str, record: Certificates, between: CertifiedRadius) -> str:
    counts = Counter(row.status for row in record.rows)
    return (
        f"{name}, {record.norm} {format_eps(record.eps)}: of {between.n} examples {counts['certified']} certified, "
        f"{counts['broken']} broken, {counts['open']} open; robust accuracy {between.text} %"
    )
