"""Which attack suits a defense: a search over estimator, loss, optimiser and draws on validation images.

Estimators first, then losses and draws of the best, then optimisers of the best of these; each by successive halving
(Jamieson & Talwalkar 2016): all candidates get a small budget, the better half twice as much, and so on. A candidate is
judged by how often the points that it returns fool the defense on fresh draws.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attacks.gradient.apgd import apgd
from attacks.gradient.pgd import pgd
from attacks.toolkit.composition import Stage
from attacks.toolkit.estimators import Estimator, as_estimator
from attacks.toolkit.selection import strength
from bench.contracts.attack import PrepareContext
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.reporting import report
from bench.contracts.target import Target

#: Validation images that candidates are tried on, and draws that compare what they return.
_IMAGES, _DRAWS = 40, 20
#: Passes per example of the first round.
_FIRST = 32
#: Losses of the first stage, in which estimators are compared; all of them in the second.
_FEW, _LOSSES = ("margin", "probability"), ("margin", "probability", "ce", "log_odds")
#: Draws in a gradient of a randomised defense, as against steps.
_SAMPLES = (1, 4, 16)
#: Estimators that go on to the second stage, and candidates that come out of it.
_ESTIMATORS, _KEPT = 2, 3
#: Key of the finding among prepared tensors.
FOUND = "found"


@dataclass(frozen=True)
class Candidate:
    """One way to attack.

    Attributes:
        estimator: as written in a suite, without the average over draws.
        loss, optimiser: of the climb; the optimiser is ``pgd``, ``momentum`` or ``apgd``.
        samples: draws in a gradient, where the defense is randomised.
    """

    estimator: Any
    loss: str
    optimiser: str
    samples: int

    def __str__(self) -> str:
        draws = f", {self.samples} draws" if self.samples > 1 else ""
        return f"{written(self.estimator)}, {self.loss}, {self.optimiser}{draws}"

    def gradient(self) -> Estimator:
        """Its estimator, with the average over draws."""
        return as_estimator({"eot": {"samples": self.samples, "of": self.estimator}})

    def stage(self, passes: int, rescore: int, **settings: Any) -> Stage:
        """The attack with a budget of forward and backward passes per example."""
        steps = max(2, passes // (self.samples * cost(self.estimator)))
        shared = {"steps": steps, "loss": self.loss, "estimator": self.gradient(), "rescore": rescore} | settings
        if self.optimiser == "apgd":
            return Stage(partial(apgd, **shared))
        return Stage(partial(pgd, momentum=0.75 if self.optimiser == "momentum" else 0.0, **shared))


def cost(estimator: Any) -> int:
    """Passes of one gradient."""
    if isinstance(estimator, dict):
        ((name, settings),) = estimator.items()
        if name == "finite_difference":
            return 2 * int(settings["samples"])
        if name == "with_guide":
            return 2
    return 1


def written(estimator: Any) -> str:
    """An estimator in words."""
    if isinstance(estimator, str):
        return estimator
    ((name, settings),) = estimator.items()
    if not isinstance(settings, dict):
        return f"{name} {settings}"
    rest = ", ".join(f"{key} {written(value)}" if key == "of" else f"{key} {value}" for key, value in settings.items())
    return f"{name} ({rest})"


def estimators_for(defense: Defense) -> list[Any]:
    """Every gradient estimator that the defense gives reason to try, as in a suite; none that has to be trained."""
    found: list[Any] = ["exact", "identity", "classifier", {"finite_difference": {"samples": 16}}]
    found += [{"bpda": name} for name in defense.approximations()]
    found += [{"variant": name} for name in defense.variants()]
    if defense.guide() is not None:
        found += ["guide", {"with_guide": {"of": "identity", "weight": 1.0}}]
    return found


def search(context: PrepareContext) -> dict[str, Tensor]:
    """The finding, as bytes of JSON under :data:`FOUND`: candidates, best first, and what was tried."""
    defense = context.defense
    assert defense is not None, "what suits a defense is searched per defense"
    images = context.train if context.validation is None else context.validation
    if not len(images):
        raise InputError("adaptive: is adapted on validation images, and the data have none")
    x, y = images.at(slice(_IMAGES)).to(context.device), images.y[:_IMAGES].to(context.device)
    arena = _Arena(defense, context, x, y)
    samples = _SAMPLES[1] if defense.randomized else 1
    first = [Candidate(each, loss, "pgd", samples) for each in estimators_for(defense) for loss in _FEW]
    order = arena.halve(first, keep=2 * _ESTIMATORS)
    kept = list({written(candidate.estimator): candidate.estimator for candidate in order}.values())[:_ESTIMATORS]
    draws = _SAMPLES if defense.randomized else (1,)
    second = [Candidate(estimator, loss, "pgd", m) for estimator in kept for loss in _LOSSES for m in draws]
    ahead = arena.halve(second, keep=_KEPT)
    third = [replace(candidate, optimiser=optimiser) for candidate in ahead for optimiser in ("momentum", "apgd")]
    best = arena.halve([*ahead, *third], keep=_KEPT)
    found = {"best": [vars(candidate) for candidate in best], "says": arena.says(best)}
    return {FOUND: torch.frombuffer(bytearray(json.dumps(found).encode()), dtype=torch.uint8).clone()}


def read(prepared: Mapping[str, Tensor]) -> tuple[list[Candidate], str]:
    """What :func:`search` found: the candidates, best first, and a sentence about them."""
    found = json.loads(bytes(prepared[FOUND].tolist()))
    return [Candidate(**fields) for fields in found["best"]], str(found["says"])


class _Arena:
    """The validation images, and how candidates do on them."""

    def __init__(self, defense: Defense, context: PrepareContext, x: Tensor, y: Tensor) -> None:
        self.defense, self.context, self.x, self.y = defense, context, x, y
        self.trials = 0
        #: Of each candidate, as text: its estimator, and the share of draws survived with the largest budget it got.
        self.left: dict[str, tuple[str, float]] = {}

    def halve(self, candidates: list[Candidate], keep: int) -> list[Candidate]:
        """The best ``keep``, best first. Those that do not apply drop out."""
        passes, going = _FIRST, candidates
        while True:
            going = sorted((c for c in going if self._try(c, passes)), key=lambda c: self.left[str(c)][1])
            if len(going) <= keep:
                return going
            going, passes = going[: max(keep, len(going) // 2)], 2 * passes

    def _try(self, candidate: Candidate, passes: int) -> bool:
        """Note what the candidate leaves; whether it applies."""
        defense, n = self.defense, len(self.x)
        generator = torch.Generator().manual_seed(0)
        target = Target(
            defense, self.context.threat, n, knowledge="gradient", generator=generator, randomized=defense.randomized
        )
        try:
            found = candidate.stage(passes, 4).run(target, self.x, self.y)
        except (NotApplicable, InputError):  # such as an identity where g changes the shape
            return False
        draws = _DRAWS if defense.randomized else 1
        index = torch.arange(n, device=self.x.device)
        # Ties in how often it fools are broken by the mean margin.
        left = 1 - float(strength(target, found, self.y, index, draws).mean())
        self.left[str(candidate)] = written(candidate.estimator), left
        self.trials += 1
        report(min(0.99, self.trials / 120), f"trial {self.trials}: {candidate}")
        return True

    def says(self, best: list[Candidate]) -> str:
        """The finding in a sentence."""
        per_estimator: dict[str, float] = {}
        for name, left in self.left.values():
            per_estimator[name] = max(0.0, min(left, per_estimator.get(name, 1.0)))
        others = ", ".join(f"{name} {100 * left:.0f}" for name, left in sorted(per_estimator.items(), key=_second))
        return (
            f"after {self.trials} trials on {len(self.x)} validation images: {best[0]}, which left "
            f"{100 * max(0.0, self.left[str(best[0])][1]):.0f} % of draws; best of each estimator (%): {others}"
        )


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def budgets(passes: int, parts: int) -> Iterator[int]:
    """``passes`` in so many parts, each half of the one before."""
    share = passes / (2 - 2 ** (1 - parts))
    for part in range(parts):
        yield max(1, round(share / 2**part))
