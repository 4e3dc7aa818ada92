"""The command line.

Exit codes: 0 done; 1 some of it could not be done, which is named: cells that failed, stored files that cannot be read,
rows that are not confirmed; 2 wrong input, or the system refuses to read or write; 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from bench.cli.accept import accept
from bench.cli.certify import certify
from bench.cli.check import check
from bench.cli.compact import compact
from bench.cli.evaluate import evaluate
from bench.cli.gradients import gradients
from bench.cli.leaderboard import leaderboard
from bench.cli.list import list_
from bench.cli.new import new
from bench.cli.report import report
from bench.cli.status import status
from bench.cli.study import study
from bench.cli.submit import submit, submit_attack
from bench.cli.train import train
from bench.cli.verify import verify
from bench.contracts.errors import TRACEBACK, InputError, one_line


class _Group(click.Group):
    """Turns the errors a user can meet into one line and exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that knows no × gets a question mark
                stream.reconfigure(errors="replace")
        try:
            Path.cwd()
        except OSError as error:
            _stop(f"error: the current folder: {error.strerror}", 2)
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except InputError as error:
            if error.__cause__ is not None and os.environ.get(TRACEBACK):
                traceback.print_exception(error.__cause__)
            _stop(f"error: {error}", 2)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)
        except click.ClickException as error:
            _stop(f"error: {error.format_message()}", 2)
        except (KeyboardInterrupt, click.Abort):
            _stop("interrupted: what is finished is kept; run the same command again to go on", 130)
        except OSError as error:
            if os.environ.get(TRACEBACK):
                traceback.print_exception(error)
            _stop(f"error: {_refused(error)}", 2)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output has gone, as `| head` does
            _write_nowhere()
            return 0
        return code


def _refused(error: OSError) -> str:
    """What the system refused, and why."""
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    try:
        sys.stdout.flush()
    except OSError:
        _write_nowhere()  # or Python says at its end that this failed
    return error.strerror or str(error)


def _write_nowhere() -> None:
    """What is still to be written to standard output at the end could not be written either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(message: str, code: int) -> None:
    click.echo(one_line(message.strip()), err=True)
    sys.exit(code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="worst-case-bench", prog_name="bench")
def main() -> None:
    """Attack every defense by the worst of all attacks adapted to it, and publish what is left."""


_COMMANDS = (
    list_,
    check,
    train,
    evaluate,
    report,
    status,
    verify,
    certify,
    gradients,
    study,
    compact,
    leaderboard,
    new,
    submit,
    submit_attack,
    accept,
)
for command in _COMMANDS:
    main.add_command(command)
