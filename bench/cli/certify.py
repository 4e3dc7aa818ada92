"""`bench certify`: prove what can be proven of a defense's robustness."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import defense_options, results_option
from bench.cli.scene import Scene, epilog, in_a_scene, worker_count
from bench.cli.voice import Voice, speaking
from bench.contracts.computing import settle
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.words import as_eps, format_eps

if TYPE_CHECKING:
    from bench.certifying.measure import Certifying
    from bench.certifying.smoothing import Smoothing
    from bench.engines.engine import Engine
    from bench.storing.certified import Certificates, Smoothed
    from bench.storing.store import Store
    from bench.summary.numbers import CertifiedRadius, SmoothedAccuracy

#: Processor time per example and radius, where nothing is said.
SECONDS = 10.0


@click.command(
    short_help="Prove which examples no attack can break.",
    epilog=epilog(
        "bench certify --defense madry --suite digits --eps 0.05 --results results",
        "bench certify --defense rse --suite digits --smoothing 0.25 --results results",
        fails="certificates are not applicable to a defense, or a stored attack breaks what is proven: both are named",
    )
)
@defense_options(help="A deterministic, piecewise linear defense; to be smoothed, any (repeat for several).")
@click.option(
    "--eps", "radii", multiple=True, metavar="X", help='A radius (repeat), a number or "8/255" [default: the suite\'s].'
)
@click.option("--examples", "first", type=click.IntRange(1), help="Only the first so many of the suite's examples.")
@click.option(
    "--time-limit",
    "seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help=f"Processor time per example and radius [default: {SECONDS:g}].",
)
@click.option(
    "--smoothing",
    "sigmas",
    multiple=True,
    metavar="SIGMA",
    help='Smooth by noise of this standard deviation instead (repeat), a number or "8/255": bounds in l2.',
)
@click.option("--draws", type=click.IntRange(1), help="Draws of noise to bound a class's probability [default: 10000].")
@click.option("--selection-draws", type=click.IntRange(1), help="Other draws, to choose the class [default: 100].")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Probability, for each example, that its radius is too large [default: 0.001].",
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
    seconds: float | None,
    sigmas: tuple[str, ...],
    draws: int | None,
    selection_draws: int | None,
    alpha: float | None,
    workers: int | None,
    results: Path,
) -> int:
    """Prove which examples no attack can break, so that robust accuracy lies between two numbers.

    Every example is first attacked, where no stored attack has broken it; then bounded by intervals, by linear
    relaxation, by that with optimised slopes, and by branch and bound. What is proven is stored beside the defense's
    rows. The same command goes on where it stopped; with a longer time limit, what is open is tried again.

    With --smoothing, what is certified is another classifier: the class that the defense, any one without a detector,
    gives most often under Gaussian noise. Each example gets an l2 radius of its own.
    """
    from bench.certifying.measure import Certifying
    from bench.engines.local import LocalEngine
    from bench.storing.store import Store, check_writable

    settle()
    check_writable(results)
    counts = {"draws": draws, "selection_draws": selection_draws, "alpha": alpha}
    noises = _noises(sigmas, radii, seconds, {name: value for name, value in counts.items() if value is not None})
    chosen = [as_eps(eps) for eps in radii] or [scene.suite.threat_model.eps]
    failed, found = False, list[dict[str, Any]]()
    with LocalEngine(worker_count(workers, "cpu")) as engine:
        for spec in scene.specs(defenses):
            work = Certifying(scene.suite, spec, scene.data_root)
            store = Store(results, scene.suite.name)
            try:
                if noises:
                    _smooth(voice, store, work, noises, engine, first, found)
                else:
                    failed |= _certify(voice, store, work, chosen, seconds or SECONDS, engine, first, found)
            except NotApplicable as reason:
                failed = True
                voice.warn(f"{spec.name}: not applicable: {reason}")
    voice.document({"suite": scene.suite.name, "smoothed" if noises else "certificates": found})
    return 1 if failed else 0


def _noises(
    sigmas: tuple[str, ...], radii: tuple[str, ...], seconds: float | None, counts: dict[str, Any]
) -> list[Smoothing]:
    """What to smooth by, the smallest noise first.

    Raises:
        InputError: for options of the other kind of certificate, and a noise that is none.
    """
    from bench.certifying.smoothing import Smoothing

    if not sigmas:
        if counts:
            raise InputError(f"--{next(iter(counts)).replace('_', '-')}: is for --smoothing SIGMA, which is not given")
        return []
    if radii or seconds is not None:
        option = "--eps" if radii else "--time-limit"
        raise InputError(f"{option}: is not for --smoothing, which finds a radius for each example")
    numbers = []
    for sigma in sigmas:
        try:
            numbers.append(as_eps(sigma))
        except InputError:
            raise InputError(f'--smoothing: {sigma!r} is not a number or a fraction such as "8/255"') from None
    return [Smoothing(sigma, **counts) for sigma in sorted(set(numbers))]


def _certify(
    voice: Voice,
    store: Store,
    work: Certifying,
    radii: list[float],
    seconds: float,
    engine: Engine,
    first: int | None,
    found: list[dict[str, Any]],
) -> bool:
    """Certify one defense; whether a stored attack breaks what is proven."""
    from bench.certifying.measure import certify as certify_all
    from bench.storing import provenance
    from bench.summary.certified import contradictions

    name, wrong = work.spec.name, False
    command = provenance.command_line()
    for record, between in certify_all(store, work, radii, seconds, engine, voice.display(), command, first):
        voice.line(_said(name, record, between))
        for line in contradictions([between], record.norm):
            wrong = True
            voice.warn(f"error: {name}: {line}")
        found.append({"defense": name, "radius": between, "record": record})
    return wrong


def _smooth(
    voice: Voice,
    store: Store,
    work: Certifying,
    noises: list[Smoothing],
    engine: Engine,
    first: int | None,
    found: list[dict[str, Any]],
) -> None:
    """Smooth one defense by each noise."""
    from bench.certifying.smoothing import smooth
    from bench.storing import provenance
    from bench.summary.certified import smoothed_accuracy

    for how in noises:
        record = smooth(store, work, how, engine, voice.display(), provenance.command_line(), first)
        accuracy = smoothed_accuracy(record)
        voice.line(_said_smoothed(work.spec.name, record, accuracy))
        found.append({"defense": work.spec.name, "accuracy": accuracy, "record": record})


def _said(name: str, record: Certificates, between: CertifiedRadius) -> str:
    counts = Counter(row.status for row in record.rows)
    return (
        f"{name}, {record.norm} {format_eps(record.eps)}: of {between.n} examples {counts['certified']} certified, "
        f"{counts['broken']} broken, {counts['open']} open; robust accuracy {between.text} %"
    )


def _said_smoothed(name: str, record: Smoothed, accuracy: SmoothedAccuracy) -> str:
    abstained = sum(row.radius is None for row in record.rows)
    return (
        f"{name}, smoothed by noise of sigma {record.sigma:g}, {record.draws} draws: of {accuracy.n} examples "
        f"{abstained} abstained; certified accuracy in % by radius: {accuracy.text}"
    )
