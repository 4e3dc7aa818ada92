"""What a transformation does to its inputs on average, and what the classifiers around it are worth without it."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contracts.defense import BareModel, Defense, DefenseSpec, Function, freeze, ready
from bench.contracts.errors import InputError
from bench.contracts.reporting import report
from bench.contracts.seeding import generator, seeded
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.data.splits import Split
from bench.judging.judge import tally
from bench.plugins.resolve import get_attack, load_defense
from bench.running.cell import defense_key, select_examples
from bench.storing import provenance
from bench.storing.store import Store
from bench.studies.transformation.record import Base, Expectation, FixedStart, Transformation, write
from bench.suites.config import Suite

#: Draws of g behind an expectation, and images that are shown.
DRAWS, SHOWN = 64, 8
#: What bases are attacked with: all its climbs and Square at its defaults.
ATTACK = "cascade"
#: Steps of the attack on one start noise, rows of a pass, repeats of a timing.
STEPS, ROWS, REPEATS = 50, 100, 5
#: Inputs of a timed pass.
TIMED = 50


@dataclass(frozen=True)
class Beside:
    """Another defense to be set beside the one that is measured."""

    defense: Defense
    training_seconds: float | None


def measure(
    defense: Defense,
    split: Split,
    threat: Lp,
    *,
    beside: Mapping[str, Beside] = {},
    draws: int = DRAWS,
    seed: int = 1,
) -> Transformation:
    """Measure a defense that declares a guide.

    Args:
        defense: in evaluation mode.
        split: the examples; all of them are used.
        threat: the ball in which the bases are attacked.
        beside: other, deterministic defenses by name, attacked in the same way.
        draws: of g behind each expectation.
        seed: decides every draw.

    Raises:
        InputError: where the defense declares no guide, or one beside it is randomised.
    """
    guide = defense.guide()
    if guide is None:
        raise InputError(f"transformation: {type(defense).__name__} declares no network that its transform goes by")
    models: dict[str, Defense] = {
        "guide": freeze(BareModel(Function(guide.logits), defense.data)),
        "classifier": freeze(BareModel(defense.classifier, defense.data)),
        **{name: other.defense for name, other in beside.items()},
    }
    for name, model in models.items():
        if model.randomized:
            raise InputError(f"transformation: {name} is randomised; a base answers the same every time")
    device = next((p.device for p in defense.parameters()), torch.device("cpu"))
    x, y = split.x.to(device), split.y.to(device)
    with seeded(seed, "transformation", "expectation"):
        shift = expectation(defense, x, draws) - x
    seconds = timings({"": defense, **models}, x)
    bases = []
    for number, (name, model) in enumerate(models.items()):
        report((number + 1) / (len(models) + 2), f"{ATTACK} on {name}")
        right, robust = _attacked(model, x, y, threat, seed, name)
        other = beside.get(name)
        bases.append(
            Base(
                name=name,
                right=right,
                robust=robust,
                attack=ATTACK,
                seconds=seconds[name],
                training_seconds=None if other is None else other.training_seconds,
            )
        )
    size = shift.flatten(1).abs()
    return Transformation(
        ids=list(split.ids),
        draws=draws if defense.randomized else 1,
        mean=float(size.mean()),
        rms=float(size.square().mean(1).sqrt().mean()),
        largest=float(size.amax(1).mean()),
        expectations=[_shown(split, shift.cpu(), i) for i in range(min(SHOWN, len(x)))] if x.ndim == 4 else [],
        seconds=seconds[""],
        bases=bases,
        fixed_start=_fixed_start(defense, x, y, threat, seed),
    )


@torch.no_grad()
def expectation(defense: Defense, x: Tensor, draws: int) -> Tensor:
    """The mean of g(x) over draws, shaped like x (one draw, where the defense is not randomised)."""
    draws = draws if defense.randomized else 1
    return torch.cat([_mean_of(defense, rows, draws) for rows in x.split(ROWS)])


def _mean_of(defense: Defense, x: Tensor, draws: int) -> Tensor:
    total = torch.zeros_like(x)
    for _ in range(draws):
        total += defense.transform(x)
    return total / draws


def timings(models: Mapping[str, Defense], x: Tensor) -> dict[str, float]:
    """CPU seconds per 1000 inputs of each model: the least of several passes, which the models take in turn."""
    rows = x[:TIMED]
    least = dict.fromkeys(models, float("inf"))
    for turn in range(REPEATS + 1):
        for name, model in models.items():
            start = time.process_time()
            with torch.no_grad():
                model(rows)
            if turn:  # the first pass warms up
                least[name] = min(least[name], time.process_time() - start)
    return {name: 1000 * seconds / len(rows) for name, seconds in least.items()}


def _attacked(
    model: Defense, x: Tensor, y: Tensor, threat: Lp, seed: int, name: str
) -> tuple[list[bool], list[bool]]:
    """Which examples are right, and which of them stay right."""
    target = Target(
        model, threat, len(x), knowledge="gradient", batch_size=ROWS,
        generator=generator(seed, "transformation", name), randomized=False,
    )  # fmt: skip
    with seeded(seed, "transformation", name):
        found = get_attack(ATTACK).function(target, x.clone(), y.clone())
    allowed = [reason == "ok" for reason in threat.violations(x, found)]
    stream = (seed, "transformation", "judged")
    right = tally(model, x, y, 1, None, ROWS, *stream).correct.bool().tolist()
    stays = tally(model, found, y, 1, None, ROWS, *stream).correct.bool().tolist()
    return right, [a and (b or not fair) for a, b, fair in zip(right, stays, allowed, strict=True)]


class _OneStart(Defense):
    """The defense with its start noise fixed."""

    trainable = False

    def __init__(self, defense: Defense, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__(defense.data)
        self.classifier, self._transform = defense.classifier, transform

    def transform(self, x: Tensor) -> Tensor:
        return self._transform(x)


def _fixed_start(defense: Defense, x: Tensor, y: Tensor, threat: Lp, seed: int) -> FixedStart | None:
    """PGD with the identity as the backward pass on the defense whose start noise is always the same."""
    transform = defense.variants().get("fixed-start")
    if transform is None:
        return None
    fixed, name = freeze(_OneStart(defense, transform)), "fixed start"
    target = Target(
        fixed, threat, len(x), knowledge="gradient", batch_size=ROWS,
        generator=generator(seed, "transformation", name), randomized=False,
    )  # fmt: skip
    report(0.95, name)
    settings: dict[str, Any] = {"steps": STEPS, "estimator": "identity"}
    with seeded(seed, "transformation", name):
        found = get_attack("pgd").function(target, x.clone(), y.clone(), **settings)
    stream = (seed, "transformation", "fixed start judged")

    def share(model: Defense, points: Tensor, draws: int) -> float:
        return int(tally(model, points, y, draws, None, ROWS, *stream).correct.sum()) / (draws * len(points))

    return FixedStart(own=share(fixed, found, 1), fresh=share(defense, found, 20), clean=share(fixed, x, 1))


def _shown(split: Split, shift: Tensor, i: int) -> Expectation:
    low, high = float(split.x.amin()), float(split.x.amax())
    scale = float(shift[i].abs().amax()) or 1.0
    image = 255 * (split.x[i] - low) / ((high - low) or 1.0)
    moved = 127.5 + 127.5 * shift[i] / scale

    def encoded(values: Tensor) -> str:
        pixels = values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        return base64.b64encode(pixels.contiguous().numpy().tobytes()).decode()

    channels, height, width = image.shape
    return Expectation(
        id=split.ids[i], label=int(split.y[i]), shape=(height, width, channels), image=encoded(image),
        shift=encoded(moved), scale=float(f"{scale:.6g}"),
    )  # fmt: skip


def measure_and_store(
    store: Store,
    suite: Suite,
    spec: DefenseSpec,
    beside: list[DefenseSpec],
    *,
    device: str,
    root: Path | None,
    command: str,
) -> Transformation:
    """Measure a defense on a suite's examples, beside others, and store the record with its results.

    Raises:
        InputError: as :func:`measure`, or when a defense cannot be loaded.
    """
    clock = provenance.start(command)
    data = load_data(suite.data, root)

    def load(one: DefenseSpec) -> Any:
        loaded = load_defense(one, data.info, torch.device(device), suite.training(data))
        ready(loaded.defense)
        return loaded

    loaded, others = load(spec), {one.name: load(one) for one in beside}
    found = measure(
        loaded.defense,
        select_examples(suite, data),
        suite.threat_for(data.info),
        beside={name: Beside(other.defense, other.training.get("seconds")) for name, other in others.items()},
        seed=suite.seed,
    )
    record = found.model_copy(
        update={
            "defense": defense_key(spec, loaded),
            "training_seconds": loaded.training.get("seconds"),
            "provenance": provenance.finish(clock, torch.device(device)),
        }
    )
    write(store, spec.name, record)
    return record
