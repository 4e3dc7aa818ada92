"""`bench train`: trains defenses with a live display; what was interrupted goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench.contracts.defense import DefenseSpec
from bench.contracts.errors import InputError
from bench.data.load import load_data
from bench.plugins.resolve import build_defense
from bench.suites.config import Suite
from bench.training.recipe import Progress as Epoch
from bench.training.recipe import train_defense


def train_all(specs: Sequence[DefenseSpec], suite: Suite, device: str, root: Path | None, console: Console) -> int:
    """Train each defense on the suite's data, for the threat model that its weights are for. Returns the exit code.

    Raises:
        InputError: before anything is trained, when a single named defense has no recipe or cannot be built.
    """
    data = load_data(suite.data, root)
    have_recipe = []
    for spec in specs:
        if not build_defense(spec, data.info).has_recipe:
            if len(specs) == 1:
                raise InputError(f"defense {spec.name!r} has no training recipe (fit is not implemented)")
            console.print(f"{spec.name}: has no training recipe, skipped", highlight=False)
        else:
            have_recipe.append(spec)
    for spec in have_recipe:
        with _Display(console, spec.name) as show:
            path = train_defense(spec, data, suite.training(data), device=device, progress=show)
        console.print(f"{spec.name}: checkpoint written to {path}", highlight=False, soft_wrap=True)
    return 0


class _Display:
    """A live bar per stage on a terminal, otherwise a plain line every few seconds."""

    def __init__(self, console: Console, name: str, every: float = 10.0) -> None:
        self._console, self._name, self._every, self._last = console, name, every, 0.0
        line = TextColumn("{task.fields[line]}")
        columns = (TextColumn("{task.description}"), BarColumn(), line, TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, epoch: Epoch) -> None:
        line = f"epoch {epoch.epoch}/{epoch.epochs}, loss {epoch.loss:.3f}, {epoch.rate:.0f} images/s"
        title = f"{self._name}: {epoch.stage}"
        if self._console.is_terminal:
            if epoch.stage not in self._tasks:
                self._tasks[epoch.stage] = self._bar.add_task(title, total=epoch.epochs, line="")
            self._bar.update(self._tasks[epoch.stage], completed=epoch.epoch, line=line)  # type: ignore[arg-type]
        elif epoch.epoch == epoch.epochs or time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._console.print(f"{title}: {line}", highlight=False, soft_wrap=True)
