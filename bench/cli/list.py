"""`bench list`: what is registered, and where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.cli.scene import PATH, example
from bench.contracts.errors import one_line


@click.command("list", epilog=example("bench list attacks"))
@click.argument("what", type=click.Choice(["defenses", "attacks", "suites"]))
@click.option("--config", type=PATH, help="Another bench.yaml (for suites).")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list, one object per entry.")
def list_(what: str, config: Path | None, as_json: bool) -> None:
    """List what is registered, and where it comes from. Piped, each entry is one line."""
    (columns, rows), problems = _suites(config) if what == "suites" else _plugins(what)
    if as_json:
        click.echo(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=1, ensure_ascii=False))
    else:
        console = Console()
        if not console.is_terminal:  # a line that another program reads is not wrapped
            console = Console(width=sum(max(map(len, cells)) + 2 for cells in zip(columns, *rows, strict=True)))
        console.print(_table(columns, rows))
    for problem in problems:
        click.echo(f"skipped: {problem}", err=True)


def _plugins(what: str) -> tuple[tuple[list[str], list[list[str]]], list[str]]:
    """Columns and rows of ``defenses`` or ``attacks``, and a line for each plugin that cannot be imported."""
    from bench.contracts.attack import AttackSpec
    from bench.plugins.registry import ATTACKS, DEFENSES

    registry = ATTACKS if what == "attacks" else DEFENSES
    loaded, problems = registry.load_all()
    rows = []
    for name, obj in loaded.items():
        spec = getattr(obj, "attack", None)
        if isinstance(spec, AttackSpec):
            about = [f"{spec.knowledge}; {', '.join(spec.norms)}", spec.summary]
        else:
            card = getattr(obj, "card", None)
            about = [getattr(card, "family", "–"), getattr(card, "title", "") or name]
        rows.append([name, *about, registry.entry(name).origin])
    second = "knowledge; norms" if registry is ATTACKS else "family"
    return ([registry.kind, second, "what it is", "from"], rows), problems


def _suites(config: Path | None) -> tuple[tuple[list[str], list[list[str]]], list[str]]:
    from bench.contracts.threat import format_eps
    from bench.suites.reading import load_config

    rows = []
    for name, suite in load_config(config).suites.items():
        threat = f"{suite.threat_model.norm} {format_eps(suite.threat_model.eps)}"
        origin = f"{suite.origin}, in place of the shipped one" if suite.replaces else suite.origin
        rows.append([name, suite.data, str(suite.examples or "all"), threat, suite.description, origin])
    return (["suite", "data", "examples", "threat model", "what it is", "from"], rows), []


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(one_line(cell)) for cell in row))
    return table
