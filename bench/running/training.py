"""`bench train`: trains defenses in worker processes; what was interrupted goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.contracts.defense import DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.reporting import Report, listening, report
from bench.contracts.seeding import seeded
from bench.data.load import load_data
from bench.engines.engine import Engine
from bench.engines.graph import Job
from bench.plugins.resolve import borrow_, build_defense, trained_as
from bench.running.progress import Display, Tracker
from bench.storing.checkpoints import checkpoint_path, load_
from bench.storing.store import check_writable
from bench.suites.config import Suite
from bench.suites.fitting import check_fit
from bench.training.recipe import Progress, train_defense


@dataclass(frozen=True)
class Trained:
    """What became of a defense that was to be trained.

    Attributes:
        defense: the name of what was trained; of one that has the weights of another, that other's.
        checkpoint: where its weights are; None where there are none.
        remark: why not, or why it was not trained now.
    """

    defense: str
    status: Literal["trained", "trained before", "skipped", "failed"]
    checkpoint: Path | None = None
    remark: str = ""


def train_all(
    specs: Sequence[DefenseSpec],
    suite: Suite,
    device: str,
    root: Path | None,
    engine: Engine,
    display: Display,
    again: bool = False,
    half: bool = False,
) -> list[Trained]:
    """Train each defense on the suite's data, for the threat model that its weights are for.

    Every worker computes with one CPU thread, so that the weights do not depend on the machine's cores. Says before
    it starts what is trained and where it is saved.

    Args:
        again: train also what has a checkpoint that can be loaded.
        half: store the weights as float16, rounded before they are measured.

    Returns:
        One for each defense, first those that were not trained now.

    Raises:
        InputError: before anything is trained, when a single named defense has no recipe or cannot be built.
    """
    data = load_data(suite.data, root)
    check_fit(suite, data)
    settings = suite.training(data)
    jobs: list[Job] = []
    ended: list[Trained] = []
    for spec in specs:
        with seeded(suite.seed, "probe of a recipe"):
            defense = build_defense(spec, data.info)
        if not defense.has_recipe:
            if len(specs) == 1:
                raise InputError(f"defense {spec.name!r} has no training recipe (fit is not implemented)")
            ended.append(Trained(spec.name, "skipped", remark="has no training recipe"))
            continue
        defense, trained = trained_as(defense, spec)
        if trained is not spec:
            display.note(f"{spec.name}: has the weights of {trained.name}")
            spec = trained
        if any(job.name == spec.name for job in jobs) or any(one.defense == spec.name for one in ended):
            continue
        path = checkpoint_path(defense, spec.name, settings, spec.checkpoints)
        problem = ""
        try:
            if path.is_file():
                _, behind = borrow_(defense, spec, settings)
                load_(defense, path, behind=behind.sha256)
                if not again:
                    remark = f"{path} (--again trains it again)"
                    ended.append(Trained(spec.name, "trained before", path, remark))
                    continue
        except InputError as error:
            problem = f"; what is there cannot be loaded ({error})"
        check_writable(path.parent, "checkpoints folder")
        goal = settings if defense.trains_in_ball else f"{settings.data}, seed {settings.seed}"
        unfinished = path.with_suffix(".unfinished").is_dir()
        verb = "goes on training" if unfinished else "training"
        display.note(f"{spec.name}: {verb} on {len(data.train)} examples for {goal}; to be saved as {path}{problem}")
        jobs.append(Job(spec.name, train_one, (spec, suite, device, root, half), kind=spec.name, loads=spec.name))
    return ended + (_run(jobs, engine, display) if jobs else [])


def train_one(spec: DefenseSpec, suite: Suite, device: str, root: Path | None, half: bool = False) -> Path:
    """Train one defense in a worker; returns the path of its checkpoint."""
    data = load_data(suite.data, root)

    def say(epoch: Progress) -> None:
        text = f"{epoch.stage}, epoch {epoch.epoch}/{epoch.epochs}, loss {epoch.loss:.3f}, {epoch.rate:.0f} images/s"
        report(epoch.epoch / epoch.epochs, text)

    report(0.0, "first epoch")
    return train_defense(spec, data, suite.training(data), device=device, progress=say, half=half)


def _run(jobs: Sequence[Job], engine: Engine, display: Display) -> list[Trained]:
    tracker, ended = Tracker(jobs, engine.workers, "trained"), list[Trained]()

    def heard(message: Report) -> None:
        tracker.report(message.job, message.fraction, message.text)
        display.show(tracker, "training")

    with display.running("training", tracker.total), listening(heard):
        display.show(tracker, "training")
        for outcome in engine.run(jobs):
            tracker.finish(outcome.job.name, outcome.seconds, outcome.status != "ok")
            if outcome.status == "ok":
                ended.append(Trained(outcome.job.name, "trained", outcome.value))
            else:
                why = f"{outcome.status}: {outcome.error.strip().splitlines()[-1]}"
                ended.append(Trained(outcome.job.name, "failed", remark=why))
            display.show(tracker, "training")
    return ended
