"""`bench list`: what is registered, and where it comes from."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from bench.contracts.attack import AttackSpec
from bench.contracts.threat import format_eps
from bench.plugins.registry import ATTACKS, DEFENSES, Registry
from bench.suites.config import load_config


def listing(what: str, config: Path | None) -> tuple[Table, list[str]]:
    """A table of ``defenses``, ``attacks`` or ``suites``, and a line for each plugin that cannot be imported."""
    if what == "suites":
        return _suites(config), []
    return _plugins(DEFENSES if what == "defenses" else ATTACKS)


def _plugins(registry: Registry) -> tuple[Table, list[str]]:
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
    return _table([registry.kind, second, "what it is", "from"], rows), problems


def _suites(config: Path | None) -> Table:
    rows = []
    for name, suite in load_config(config).suites.items():
        threat = f"{suite.threat.norm} {format_eps(suite.threat.eps)}"
        rows.append([name, suite.data, str(suite.examples or "all"), threat, suite.description])
    return _table(["suite", "data", "examples", "threat model", "what it is"], rows)


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table
