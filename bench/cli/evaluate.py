"""`bench evaluate`: attack defenses with every attack of a suite."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.engines import Opener, on_an_engine
from bench.cli.options import (
    attack_options,
    defense_options,
    isolation_option,
    results_option,
)
from bench.cli.scene import Scene, epilog, in_a_scene, with_changes
from bench.cli.voice import Voice, speaking
from bench.contracts.computing import settle

#: Shards from which on a run is announced.
_LONG = 10


@click.command(
    epilog=epilog(
        "bench evaluate --defense ours",
        "bench evaluate --defense path/to/mine.py:Mine --suite digits",
        fails="a defense could not be evaluated, or an attack on one failed: each is named",
    )
)
@defense_options(help="A defense: name, file.py:Name or module:attr (repeat).")
@click.option("--all", "every", is_flag=True, help="Every registered defense; of a study all variants.")
@attack_options(help="Only this attack of the suite (repeat for several).")
@click.option("--dry-run", is_flag=True, help="Say what would be run and how long it would take; write nothing.")
@results_option
@isolation_option
@on_an_engine
@with_changes
@speaking
@in_a_scene
def evaluate(
    scene: Scene,
    voice: Voice,
    defenses: tuple[str, ...],
    every: bool,
    attacks: tuple[str, ...],
    open_engine: Opener,
    dry_run: bool,
    results: Path,
    isolation: str,
) -> int:
    """Attack defenses with every attack of a suite. The same command again runs only what is missing."""
    from bench.running.evaluate import Evaluation, Request
    from bench.running.outline import outline
    from bench.storing import provenance
    from bench.storing.lock import check_unlocked
    from bench.storing.store import Store
    from bench.summary import report
    from bench.summary.summarise import summarise

    settle()  # as in the workers: the probe and the timing must not depend on the machine's cores
    request = Request(
        suite=scene.suite,
        defenses=scene.specs(defenses, every),
        attacks=attacks,
        results=results,
        device=scene.device,
        data_root=scene.data_root,
        command=provenance.command_line(),
        isolation=isolation,
    )
    if not dry_run:
        check_unlocked(Store(results, scene.suite.name).folder)  # before the defenses are loaded
    with open_engine(scene.device) as engine:
        evaluation = Evaluation(request, engine, voice.display())
        for warning in evaluation.warnings:
            voice.warn(f"skipped: {warning}")
        for note in evaluation.notes:
            voice.note(note)
        if dry_run:
            for skipped in evaluation.skipped:
                voice.warn(f"skipped: {skipped}")
            voice.text("\n".join(evaluation.plan.describe(engine.workers)))
            voice.document(outline(evaluation.plan, engine.workers))
            return 0
        if len(evaluation.plan.shards) >= _LONG:
            expectation = evaluation.plan.expectation(engine.workers)
            voice.note(f"{len(evaluation.plan.jobs)} jobs, {expectation}; --dry-run lists them")
        failures = evaluation.run()
    summary = summarise(results, scene.suite.name)
    voice.text(report.render(summary, "table"))
    voice.document({**report.document([summary]), "failed": failures})
    for failure in failures:
        voice.warn(f"failed: {failure}")
    return 1 if failures else 0
