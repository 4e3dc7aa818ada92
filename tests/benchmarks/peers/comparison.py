"""What a comparison is: a task, and the attacks of the libraries with their settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .problem import Adapter

OURS = "ours"


@dataclass(frozen=True)
class Library:
    """A public library: its distribution's name, and what is imported before the clock starts."""

    distribution: str
    modules: tuple[str, ...]


LIBRARIES = {
    OURS: Library("worst-case-bench", ("attacks",)),
    "pyautoattack": Library("pyautoattack", ("pyautoattack",)),
    "adv-lib": Library("adv-lib", ("adv_lib.attacks",)),
    "foolbox": Library("foolbox", ("foolbox",)),
    "torchattacks": Library("torchattacks", ("torchattacks",)),
    "art": Library("adversarial-robustness-toolbox", ("art.attacks.evasion", "art.estimators.classification")),
    "cleverhans": Library(
        "cleverhans",
        (
            "cleverhans.torch.attacks.projected_gradient_descent",
            "cleverhans.torch.attacks.hop_skip_jump_attack",
            "cleverhans.torch.attacks.carlini_wagner_l2",
        ),
    ),
}


@dataclass(frozen=True)
class Entry:
    """One library's attack with its settings."""

    library: str
    function: Callable[..., Tensor]
    settings: dict[str, Any]
    #: For ours: the largest share of the first peer's seconds that meets the goal, where there is one.
    time_goal: float | None = None

    @property
    def run(self) -> Adapter:
        """The adapter with its settings filled in."""
        return functools.partial(self.function, **self.settings)

    @property
    def label(self) -> str:
        """The attack and its settings, in words of the library's adapter."""
        settings = dict(self.settings)
        name = settings.pop("attack", self.function.__name__)
        return f"{name}({', '.join(f'{key}={_written(value)}' for key, value in settings.items())})"


def _written(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Comparison:
    """The same task for several libraries.

    Attributes:
        name: for ``--only``; title: of its section.
        subject: a key of ``subjects.RECIPES``; examples: how many of its test split.
        norm, eps: the ball; eps None: the median distance is the result instead of robust accuracy.
        budget: what is equal for everybody, in words.
        targeted: whether the class after y (modulo their number) has to be reached.
        slow: left out by ``--quick``.
        overhead_goal: for ours, where there is one.
        repeats: how often everything is run and timed, the least counting: of what takes a fraction of a second, the
            first run is largely that of preparing for batch sizes never seen before.
    """

    name: str
    title: str
    subject: str
    examples: int
    norm: str
    eps: float | None
    budget: str
    entries: tuple[Entry, ...]
    targeted: bool = False
    slow: bool = False
    overhead_goal: float | None = None
    repeats: int = 1
    seed: int = 0

    @property
    def peers(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.library != OURS)
