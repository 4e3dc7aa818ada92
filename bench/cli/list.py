"""`bench list`: what is registered, and where it comes from. Imports no PyTorch unless a plugin has to be imported."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from bench.cli.options import PATH
from bench.cli.scene import epilog
from bench.cli.voice import Output, Voice, speaking
from bench.contracts.errors import one_line

#: Columns, rows, and a line for each entry that cannot be listed.
_Listed = tuple[list[str], list[list[str]], list[str]]


@click.command("list", short_help="List what is registered, and where it is from.", epilog=epilog("bench list attacks"))
@click.argument("what", type=click.Choice(["defenses", "attacks", "suites"]), required=False)
@click.option("--config", type=PATH, help="Another bench.yaml (for suites).")
@speaking
def list_(what: str | None, config: Path | None, voice: Voice) -> None:
    """List what is registered, and where it comes from: all, or one kind. Piped, each entry is one line."""
    kinds = [what] if what else ["defenses", "attacks", "suites"]
    found = {kind: _suites(config) if kind == "suites" else _plugins(kind) for kind in kinds}
    if voice.as_json:
        lists = {
            kind: [dict(zip(columns, row, strict=True)) for row in rows] for kind, (columns, rows, _) in found.items()
        }
        voice.document(lists[what] if what else lists)
    else:
        for number, (columns, rows, _) in enumerate(found.values()):
            if number:
                click.echo()
            _print(columns, rows)
    for *_, problems in found.values():
        for problem in problems:
            voice.warn(f"skipped: {problem}")


def _plugins(what: str) -> _Listed:
    from bench.plugins.glance import glimpses
    from bench.plugins.registry import ATTACKS, DEFENSES

    registry = ATTACKS if what == "attacks" else DEFENSES
    found, problems = glimpses(registry)
    rows = [[name, seen.group, seen.title, seen.origin] for name, seen in found.items()]
    second = "knowledge; norms" if registry is ATTACKS else "family"
    return [registry.kind, second, "what it is", "from"], rows, problems


def _suites(config: Path | None) -> _Listed:
    from bench.contracts.words import format_eps
    from bench.suites.reading import load_config

    rows = []
    for name, suite in load_config(config).suites.items():
        threat = f"{suite.threat_model.norm} {format_eps(suite.threat_model.eps)}"
        origin = f"{suite.origin}, in place of the shipped one" if suite.replaces else suite.origin
        rows.append([name, suite.data, str(suite.examples or "all"), threat, suite.description, origin])
    return ["suite", "data", "examples", "threat model", "what it is", "from"], rows, []


def _print(columns: list[str], rows: list[list[str]]) -> None:
    console = Output(markup=False)
    if not console.is_terminal:  # a line that another program reads is not wrapped
        width = sum(max(map(len, cells)) + 2 for cells in zip(columns, *rows, strict=True))
        console = Output(markup=False, width=width)
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(one_line, row))
    console.print(table)
