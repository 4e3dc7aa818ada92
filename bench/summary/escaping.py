"""What plugins name, as text of each format: nothing in it is taken for a part of the format itself."""

from __future__ import annotations

import html
import re
from typing import Any

from bench.contracts.errors import one_line

#: Characters of a cell that a table for people shows.
_WIDEST = 80


def table_cell(text: str) -> str:
    """A cell of a table on the terminal: one line, of a long text its two ends."""
    line = one_line(text)
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 28]}…{line[-27:]}"


def markdown(text: str) -> str:
    """Text inside Markdown: one line in which no character is markup, links and HTML included."""
    line = html.escape(one_line(text), quote=False)
    return re.sub(r"[\\`*|~]|\](?=[(\[])", lambda found: f"\\{found[0]}", line)


def csv_field(value: Any) -> Any:
    """A field of CSV. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line.lstrip().startswith(("=", "+", "-", "@")) else line
