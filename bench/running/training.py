"""`bench train`: trains defenses in worker processes; what was interrupted goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.contracts.defense import DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.reporting import Report, listening, report
from bench.contracts.seeding import seeded
from bench.data.load import load_data
from bench.engines.engine import Engine
from bench.engines.graph import Job
from bench.plugins.resolve import build_defense, trained_as
from bench.running.progress import Display, Tracker
from bench.storing.checkpoints import checkpoint_path, load_
from bench.suites.config import Suite
from bench.suites.fitting import check_fit
from bench.training.recipe import Progress, train_defense


def train_all(
    specs: Sequence[DefenseSpec],
    suite: Suite,
    device: str,
    root: Path | None,
    engine: Engine,
    console: Console,
    again: bool = False,
    half: bool = False,
) -> list[str]:
    """Train each defense on the suite's data, for the threat model that its weights are for.

    Every worker computes with one CPU thread, so that the weights do not depend on the machine's cores. Says before
    it starts what is trained and where it is saved.

    Args:
        again: train also what has a checkpoint that can be loaded.
        half: store the weights as float16, rounded before they are measured.

    Returns:
        One line for each training that failed.

    Raises:
        InputError: before anything is trained, when a single named defense has no recipe or cannot be built.
    """
    data = load_data(suite.data, root)
    check_fit(suite, data)
    settings = suite.training(data)
    jobs: list[Job] = []
    for spec in specs:
        with seeded(suite.seed, "probe of a recipe"):
            defense = build_defense(spec, data.info)
        if not defense.has_recipe:
            if len(specs) == 1:
                raise InputError(f"defense {spec.name!r} has no training recipe (fit is not implemented)")
            _say(console, f"{spec.name}: has no training recipe, skipped")
            continue
        defense, trained = trained_as(defense, spec)
        if trained is not spec:
            _say(console, f"{spec.name}: has the weights of {trained.name}")
            spec = trained
        if any(job.name == spec.name for job in jobs):
            continue
        path = checkpoint_path(defense, spec.name, settings, spec.checkpoints)
        problem = ""
        try:
            if path.is_file():
                load_(defense, path)
                if not again:
                    _say(console, f"{spec.name}: is trained already, {path} (--again trains it again)")
                    continue
        except InputError as error:
            problem = f"; what is there cannot be loaded ({error})"
        goal = settings if defense.trains_in_ball else f"{settings.data}, seed {settings.seed}"
        unfinished = path.with_suffix(".unfinished").is_dir()
        verb = "goes on training" if unfinished else "training"
        _say(console, f"{spec.name}: {verb} on {len(data.train)} examples for {goal}; to be saved as {path}{problem}")
        jobs.append(Job(spec.name, train_one, (spec, suite, device, root, half), kind=spec.name, loads=spec.name))
    return _run(jobs, engine, console) if jobs else []


def train_one(spec: DefenseSpec, suite: Suite, device: str, root: Path | None, half: bool = False) -> Path:
    """Train one defense in a worker; returns the path of its checkpoint."""
    data = load_data(suite.data, root)

    def say(epoch: Progress) -> None:
        text = f"{epoch.stage}, epoch {epoch.epoch}/{epoch.epochs}, loss {epoch.loss:.3f}, {epoch.rate:.0f} images/s"
        report(epoch.epoch / epoch.epochs, text)

    report(0.0, "first epoch")
    return train_defense(spec, data, suite.training(data), device=device, progress=say, half=half)


def _run(jobs: Sequence[Job], engine: Engine, console: Console) -> list[str]:
    tracker, display, failures = Tracker(jobs, engine.workers, "trained"), Display(console), []

    def heard(message: Report) -> None:
        tracker.report(message.job, message.fraction, message.text)
        display.show(tracker, "training")

    with display.running("training", tracker.total), listening(heard):
        display.show(tracker, "training")
        for outcome in engine.run(jobs):
            tracker.finish(outcome.job.name, outcome.seconds, outcome.status != "ok")
            if outcome.status == "ok":
                _say(console, f"{outcome.job.name}: checkpoint written to {outcome.value}")
            else:
                failures.append(f"{outcome.job.name}: {outcome.status}: {outcome.error.strip().splitlines()[-1]}")
            display.show(tracker, "training")
    return failures


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)
