"""The losses behind gradient attacks: Ozbulak et al. 2020, Perturbation Analysis (tables I to III, figures).

Four sources of perturbation descend towards a class, at an equal multiplier and at an equal perturbation; detectors
are trained on each and on all, and attacked with each, blindly and adaptively; and the plane of the two circles shows
where each gradient dies. :func:`measure` makes the record; ``claims`` draws from it whether the paper's orderings hold.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.contracts.defense import Defense, DefenseSpec, ready
from bench.contracts.errors import InputError
from bench.contracts.reporting import report
from bench.contracts.seeding import generator, seeded
from bench.data.load import load_data
from bench.data.splits import Data, Split
from bench.judging.behaviour import is_random
from bench.plugins.resolve import LoadedDefense, load_defense
from bench.running.cell import defense_key, select_examples
from bench.storing import provenance
from bench.storing.store import Store
from bench.studies.losses.circles import measure_circles
from bench.studies.losses.descent import KAPPA, SOURCES, Step, blurred, other_classes, trace
from bench.studies.losses.detectors import DESCENTS, NETWORKS, Bench, measure_detectors
from bench.studies.losses.record import BLURRED, SETTINGS, TRANSFERRED, Descent, Losses, write
from bench.suites.config import Suite


@dataclass(frozen=True)
class Budget:
    """How much a study does.

    Attributes:
        examples: of the descents; adaptive_examples: of the adaptive attacks on detectors; train_examples: genuine
            images that a detector learns from, at most; test_examples: that it is tested on, at most.
        iterations: of every descent; adaptive_iterations: at most, of an attack on classifier and detector.
        epochs: of the training of a detector.
        multiplier: α of equal multiplier; step: c of equal perturbation, the l2 length of a step. The paper's are lost.
        networks: of the detectors, by name (``defenses.parts.nets``).
        circle_epochs: of the training on the circles.
    """

    examples: int = 200
    iterations: int = 200
    multiplier: float = 0.01
    step: float = 0.05
    train_examples: int = 5000
    test_examples: int = 1000
    epochs: int = 10
    adaptive_examples: int = 40
    adaptive_iterations: int = 400
    networks: tuple[str, ...] = NETWORKS
    circle_epochs: int = 3000

    def __post_init__(self) -> None:
        if not all(0 < length < math.inf for length in (self.multiplier, self.step)):
            raise InputError(f"study of losses: multiplier {self.multiplier} and step {self.step} must be above 0")


def measure(
    defense: Defense,
    data: Data,
    examples: Split,
    budget: Budget,
    *,
    rate: float,
    seed: int,
    beside: Defense | None = None,
) -> Losses:
    """Measure what four losses do to a classifier, and what detectors learn of it.

    Args:
        defense: in evaluation mode, deterministic, differentiable.
        data: detectors learn from its training images; its validation images set their thresholds.
        examples: the test images; those that the classifier gets wrong are left out.
        budget: how many of everything.
        rate: false positives of a detector on validation images.
        seed: decides every draw.
        beside: another classifier, which is shown the images that the descents end at.

    Raises:
        InputError: where the defense draws at random, cuts its graph or gets no image right.
    """
    device = next((p.device for p in defense.parameters()), torch.device("cpu"))
    if defense.randomized or is_random(defense, examples.take(8).x.to(device)):
        raise InputError("study of losses: the classifier draws at random; a descent along one draw says nothing")
    right = {
        name: _right(defense, split.take(most), device)
        for name, split, most in (
            ("train", data.train, budget.train_examples),
            ("validation", data.validation, budget.test_examples),
            ("test", examples, max(budget.test_examples, budget.examples)),
        )
    }
    for name, split in right.items():
        if not len(split):
            raise InputError(f"study of losses: the classifier gets no {name} image right")
    steps = dict(zip(SETTINGS, (budget.multiplier, budget.step), strict=True))
    some = right["test"].take(budget.examples)
    x, y = some.x.to(device), some.y.to(device)
    t = other_classes(some.y, defense.data.num_classes, generator(seed, "losses", "descents")).to(device)
    judges = {BLURRED: lambda image: defense(blurred(image))} | ({} if beside is None else {TRANSFERRED: beside})
    with seeded(seed, "losses"):
        descents: list[Descent] = []
        for setting, source in itertools.product(SETTINGS, SOURCES):
            report(DESCENTS * len(descents) / (len(SETTINGS) * len(SOURCES)), f"{source}, {setting}")
            descents.append(trace(defense, x, y, t, source, Step(setting, steps[setting]), budget.iterations, judges))
        bench = Bench(
            classifier=defense, train=right["train"], validation=right["validation"],
            test=right["test"].take(budget.test_examples), step=Step("equal perturbation", budget.step),
            iterations=budget.iterations, adaptive_iterations=budget.adaptive_iterations,
            adaptive_examples=budget.adaptive_examples, epochs=budget.epochs, rate=rate, seed=seed,
        )  # fmt: skip
        detectors = measure_detectors(bench, budget.networks)
    return Losses(
        n=len(x), seed=seed, multiplier=budget.multiplier, step=budget.step, kappa=KAPPA, false_positive_rate=rate,
        epochs=budget.epochs, adaptive_iterations=budget.adaptive_iterations, train_examples=len(right["train"]),
        descents=descents, detectors=detectors, circles=measure_circles(seed, epochs=budget.circle_epochs),
    )  # fmt: skip


@torch.no_grad()
def _right(defense: Defense, split: Split, device: torch.device) -> Split:
    """The images that the classifier gets right: from others there is nothing to leave."""
    flags = [defense(x.to(device)).argmax(1).cpu() == y for x, y in split.batches(512)]
    keep: Tensor = torch.cat(flags) if flags else torch.zeros(0, dtype=torch.bool)
    return Split(
        split.inputs[keep], split.y[keep], [id_ for id_, is_right in zip(split.ids, keep, strict=True) if is_right]
    )


def measure_and_store(
    store: Store,
    suite: Suite,
    spec: DefenseSpec,
    budget: Budget,
    *,
    device: str,
    root: Path | None,
    command: str,
    beside: DefenseSpec | None = None,
) -> Losses:
    """Measure on a suite's data and store the record with the defense's results.

    ``beside`` is another classifier, which the images are transferred to.

    Raises:
        InputError: as :func:`measure`; when the inputs are no images, or the defense cannot be loaded.
    """
    clock = provenance.start(command)
    data = load_data(suite.data, root)
    if data.info.input.kind != "image":
        raise InputError(f"study of losses: is one of images; the inputs of {data.info.name} are waveforms")

    def load(one: DefenseSpec) -> LoadedDefense:
        loaded = load_defense(one, data.info, torch.device(device), suite.training(data))
        ready(loaded.defense)
        return loaded

    loaded, other = load(spec), None if beside is None else load(beside)
    found = measure(
        loaded.defense, data, select_examples(suite, data), budget, rate=suite.false_positive_rate, seed=suite.seed,
        beside=None if other is None else other.defense,
    )  # fmt: skip
    about = {
        "defense": defense_key(spec, loaded),
        "beside": None if beside is None else beside.name,
        "provenance": provenance.finish(clock, torch.device(device)),
    }
    record = found.model_copy(update=about)
    write(store, spec.name, record)
    return record
