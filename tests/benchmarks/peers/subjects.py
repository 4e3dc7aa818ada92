"""The models that are attacked, and the examples: the first of the test split that the model classifies correctly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.contracts.answers import predictions
from bench.contracts.defense import DefenseSpec, freeze
from bench.contracts.errors import InputError
from bench.data.load import load_data
from bench.data.splits import Data
from bench.plugins.resolve import load_defense
from bench.storing.digest import digest, state_digest

#: Standard deviation of the noise that makes the digits model a randomised one.
NOISE = 0.1


class Unavailable(Exception):
    """A subject that cannot be had here, with the reason."""


class Noisy(nn.Module):
    """A model behind Gaussian noise on its input, drawn anew in every pass."""

    def __init__(self, model: nn.Module, deviation: float) -> None:
        super().__init__()
        self.model, self.deviation = model, deviation

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.deviation * torch.randn_like(x))


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with examples.

    Attributes:
        title: for the document.
        model: in evaluation mode, its weights frozen.
        x, y: the examples to attack; all of them are classified as y (a randomised model: by its mean over draws).
        total: examples of the test split that these were taken from.
        digest: of weights and examples.
    """

    title: str
    model: nn.Module
    x: Tensor
    y: Tensor
    total: int
    num_classes: int
    randomized: bool
    digest: str


@dataclass(frozen=True)
class _Recipe:
    title: str
    data: str
    defense: DefenseSpec
    noise: float = 0.0


_CIFAR = "cifar10"
RECIPES = {
    "digits": _Recipe("adversarially trained digits network (`madry`)", "digits", DefenseSpec("madry")),
    "noisy-digits": _Recipe(
        f"the same behind Gaussian input noise of deviation {NOISE:g}", "digits", DefenseSpec("madry"), NOISE
    ),
    "cnn-a": _Recipe(
        "adversarially trained CIFAR-10 network (`madry(network=cnn-a)`)",
        _CIFAR,
        DefenseSpec("madry", {"network": "cnn-a"}),
    ),
    "resnet8": _Recipe(
        "ordinary CIFAR-10 network (`none(network=resnet8)`)", _CIFAR, DefenseSpec("none", {"network": "resnet8"})
    ),
}


def provider(cifar: str | None) -> Callable[[str, int], Subject]:
    """A function ``(name, examples) -> Subject`` that raises :class:`Unavailable` with a reason.

    Args:
        cifar: where CIFAR-10 is found: ``cifar10`` or ``folder:PATH``; None leaves its models out.
    """

    def provide(name: str, examples: int) -> Subject:
        recipe = RECIPES[name]
        if recipe.data == _CIFAR and cifar is None:
            raise Unavailable("needs CIFAR-10: --data cifar10 or --data folder:PATH")
        try:
            data = load_data(recipe.data if cifar is None or recipe.data != _CIFAR else cifar)
            model: nn.Module = load_defense(recipe.defense, data.info).defense
        except InputError as error:
            raise Unavailable(str(error)) from error
        return _subject(recipe, freeze(model), data, examples)

    return provide


def _subject(recipe: _Recipe, model: nn.Module, data: Data, examples: int) -> Subject:
    test = data.test.take(examples)
    with torch.no_grad():
        right = predictions(model(test.x)) == test.y
    weights = state_digest(model)
    model = freeze(Noisy(model, recipe.noise)) if recipe.noise else model
    return Subject(
        title=recipe.title,
        model=model,
        x=test.x[right].contiguous(),
        y=test.y[right],
        total=len(test),
        num_classes=data.info.num_classes,
        randomized=recipe.noise > 0,
        digest=digest(weights, test.digest, recipe.noise),
    )
