"""The page of all commands, written from the commands: ``python -m bench.cli.commands > docs/commands.md``."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from bench.cli.main import main
from bench.reference.markdown import inline, page, table

#: An option of so many commands, with the same words, is explained once.
_SHARED = 5
_DEFAULT = re.compile(r"\s*\[default: ([^\]]+)\]")

_INTRODUCTION = """\
# Commands

<!-- Written by `make docs` from the commands; edits here are lost. -->

Every command takes `--help`, and these two, which mean the same everywhere:

- `--json`: standard output is the result as one JSON document and nothing else. Notes, progress and warnings are on
  standard error; after wrong input standard output is empty.
- `--quiet`: no progress and no notes. What went wrong is said all the same, on standard error.

Exit codes are 0 for done, 1 where some of it could not be done, which is named, 2 for wrong input, or where the system
refuses to read or write, in one line, and 130 for interrupted; the same command then goes on. `BENCH_TRACEBACK=1` shows
the whole traceback behind a line. Names complete in the shell after `eval "$(_BENCH_COMPLETE=bash_source bench)"`
(`zsh_source`, `fish_source`).
"""


def reference() -> str:
    """The whole page, Markdown.

    Raises:
        ValueError: for an option without a help text.
    """
    found = dict(commands(main))
    options = {name: [_Row.of(name, one) for one in _options(command)] for name, command in found.items()}
    times = Counter(row for rows in options.values() for row in rows)
    shared = [row for row, n in times.items() if n >= _SHARED and row.name not in ("--json", "--quiet")]
    overview = [[f"[`bench {name}`](#{_anchor(name)})", inline(_summary(command))] for name, command in found.items()]
    parts = [
        _INTRODUCTION,
        table(["Command", "What it does"], overview),
        "## Options that many commands have",
        table(["Option", "Default", "Meaning"], [row.cells for row in shared]),
        *(_section(name, command, options[name], shared) for name, command in found.items()),
    ]
    return page(parts)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by the words behind ``bench``; groups are only the way there."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


class _Row(tuple[str, str, str]):
    """An option as a row of a table: how it is written, its default, what it means."""

    @classmethod
    def of(cls, command: str, option: click.Option) -> _Row:
        if not option.help:
            raise ValueError(f"bench {command}: {option.opts[0]} has no help text")
        said = _DEFAULT.search(option.help)
        default = said[1] if said else _default(option)
        written = f"`{option.opts[0]}{'' if option.is_flag else f' {_value(option)}'}`"
        text = _DEFAULT.sub("", option.help)
        more = f" Also by `{option.envvar}` in the environment." if option.envvar else ""
        return cls((written, default, inline(text if text.endswith(".") else f"{text}.") + more))

    @property
    def name(self) -> str:
        return self[0].strip("`").split()[0]

    @property
    def cells(self) -> list[str]:
        return list(self)


def _options(command: click.Command) -> list[click.Option]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def _value(option: click.Option) -> str:
    """What is written behind an option: its choices, or a word for its kind."""
    kind: Any = option.type
    if isinstance(kind, click.Choice):
        return "|".join(kind.choices)
    return option.metavar or {"integer range": "N", "float": "X", "path": "PATH"}.get(kind.name, "TEXT")


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    if not option.show_default:
        return ""
    return f"`{option.default:g}`" if isinstance(option.default, float) else f"`{option.default}`"


def _summary(command: click.Command) -> str:
    return " ".join((command.help or "").partition("\n\n")[0].split())


def _section(name: str, command: click.Command, rows: list[_Row], shared: list[_Row]) -> str:
    context = click.Context(command, info_name=f"bench {name}")
    usage = " ".join([f"bench {name}", *command.collect_usage_pieces(context)])
    text = [inline(" ".join(paragraph.split())) for paragraph in (command.help or "").split("\n\n")]
    own = [row.cells for row in rows if row not in shared and row.name not in ("--json", "--quiet")]
    others = [f"`{row.name}`" for row in rows if row in shared]
    example, codes = (part.splitlines()[2:] for part in (command.epilog or "").split("\n\n"))
    known = (line.split(maxsplit=1) for line in codes)
    parts = [f"## bench {name}", *text, f"```text\n{usage}\n```"]
    parts += [table(["Option", "Default", "Meaning"], own)] if own else []
    parts += [f"Also {', '.join(others)}: [above](#options-that-many-commands-have)."] if others else []
    parts += ["```sh\n" + "\n".join(line.strip() for line in example) + "\n```"]
    parts += ["Exit codes: " + "; ".join(f"{code} {inline(what)}" for code, what in known) + "."]
    return "\n\n".join(part.rstrip("\n") for part in parts)


def _anchor(name: str) -> str:
    return f"bench {name}".replace(" ", "-")


if __name__ == "__main__":
    sys.stdout.write(reference())
