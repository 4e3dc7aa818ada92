"""What a command says, and where: its result on standard output, everything else on standard error."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from rich.console import Console

from bench.contracts.errors import one_line

if TYPE_CHECKING:
    from bench.running.progress import Display


@dataclass(frozen=True)
class Voice:
    """How a command speaks. Every command has both options, so that they mean the same everywhere.

    Attributes:
        as_json: the result is one JSON document on standard output, where nothing else stands.
        quiet: neither progress nor notes. What went wrong is always said.
        out: where the document goes.
    """

    as_json: bool = False
    quiet: bool = False
    out: TextIO | None = None

    def line(self, text: str) -> None:
        """A line of the result as soon as it is known; beside a document it is a note."""
        if self.as_json:
            self.note(text)
        else:
            click.echo(one_line(text))

    def text(self, text: str) -> None:
        """The whole result as text of several lines, where no JSON was asked for."""
        if not self.as_json:
            click.echo(text)

    def document(self, result: object) -> None:
        """The whole result, where JSON was asked for; said once."""
        if self.as_json:
            click.echo(json.dumps(plain(result), indent=1), file=self.out)

    def note(self, text: str) -> None:
        """What helps to follow the work."""
        if not self.quiet:
            click.echo(one_line(text), err=True)

    def warn(self, text: str) -> None:
        """What went wrong, or was left out."""
        click.echo(one_line(text), err=True)

    def display(self) -> Display:
        """Where progress is shown."""
        from bench.running.progress import Display

        return Display(Console(stderr=True), quiet=self.quiet)

    @contextmanager
    def following(self, what: str) -> Iterator[None]:
        """Show how far the work is that is done in this process inside the block, as it reports itself."""
        from bench.contracts.reporting import Report, listening
        from bench.engines.graph import Job
        from bench.running.progress import Tracker

        display, tracker = self.display(), Tracker([Job(what, _nothing, (), kind=what)], 1, "done")

        def heard(message: Report) -> None:
            tracker.report(what, message.fraction, message.text)
            display.show(tracker, what)

        with display.running(what, 1), listening(heard):
            heard(Report(0.0, ""))
            yield


def _nothing() -> None:
    """Stands for work that runs here and not as a job."""


class Output(Console):
    """A console whose reader may have gone, as `| head` does; the command line knows how that ends."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def speaking(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json`` and ``--quiet`` to a command, which gets a :class:`Voice` as the argument ``voice``."""

    @click.option("--json", "as_json", is_flag=True, help="The result as one JSON document, and nothing beside it.")
    @click.option("--quiet", is_flag=True, help="No progress and no notes; what went wrong is said.")
    @functools.wraps(function)
    def command(*given: Any, as_json: bool, quiet: bool, **others: Any) -> Any:
        if not as_json:
            return function(*given, voice=Voice(quiet=quiet), **others)
        with _apart() as out:
            return function(*given, voice=Voice(as_json, quiet, out), **others)

    return command


@contextmanager
def _apart() -> Iterator[TextIO]:
    """Standard output for the document alone: what plugins, libraries and workers print is on standard error."""
    result = sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            number = result.fileno()
        except (AttributeError, OSError):  # closed, or none of the system's
            yield result
            return
        result.flush()
        with os.fdopen(os.dup(number), "w", encoding="utf-8") as kept:
            os.dup2(sys.stderr.fileno(), number)
            try:
                yield kept
            finally:
                os.dup2(kept.fileno(), number)


def plain(value: Any) -> Any:
    """A result as JSON can hold it: records and dataclasses as objects, paths as text, NaN and infinity as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    return value
