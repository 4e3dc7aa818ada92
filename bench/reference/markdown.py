"""Docstrings as Markdown, for the pages of docs/ that are written from the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable

_ARGUMENT = re.compile(r"(\w+(?:, \w+)*): (.*)")


def split_docstring(function: Callable[..., object]) -> tuple[list[str], dict[str, str]]:
    """The paragraphs before ``Args:``, and the text of each argument (``a, b: text`` explains both)."""
    text, _, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    arguments: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break  # Returns, Raises
        found = _ARGUMENT.match(line[4:])
        if found:
            names = found[1].split(", ")
            arguments.update(dict.fromkeys(names, found[2]))
        elif line.strip():
            arguments.update({name: f"{arguments[name]} {line.strip()}" for name in names})
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()], arguments


def first_paragraph(thing: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def inline(text: str) -> str:
    """One line of a docstring as Markdown: code in single backticks, roles dropped, nothing else taken for markup."""
    pieces = re.split(r"(``.+?``|`.+?`)", re.sub(r":\w+:(?=`)", "", text))
    return "".join(
        f"`{piece.strip('`')}`" if piece.startswith("`") else re.sub(r"([*<\\])", r"\\\1", piece) for piece in pieces
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def meaning(owner: str, parameter: str, arguments: dict[str, str]) -> str:
    """What a docstring's ``arguments`` say of a parameter, as a cell of a table.

    Raises:
        ValueError: when they say nothing.
    """
    if not arguments.get(parameter):
        raise ValueError(f"{owner}: the docstring does not explain the parameter {parameter!r}")
    return inline(arguments[parameter])


def page(parts: Iterable[str]) -> str:
    """Parts with an empty line between any two."""
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)
