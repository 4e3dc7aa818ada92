"""What registered plugins say of themselves, read from their source where that will do.

To list what there is need not import it: that takes seconds, since every defense imports PyTorch. A plugin is read
without being imported where nothing but an import could go wrong: its module and the packages around it do nothing at
their top level but import, define and assign, all that they import is installed, and what is asked for is written out
in its decorator or card. Every other plugin is imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from bench.contracts.errors import PluginError
from bench.plugins.registry import ATTACKS, Entry, Registry

_HARMLESS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


@dataclass(frozen=True)
class Glimpse:
    """A plugin in a list.

    Attributes:
        group: of an attack its knowledge and norms, of a defense its family.
        title: what it is, in a line.
        origin: the distribution it is from, with its version.
    """

    group: str
    title: str
    origin: str


def glimpses(registry: Registry) -> tuple[dict[str, Glimpse], list[str]]:
    """All plugins of a registry by name, and one line about each that cannot be imported or is hidden by another."""
    found: dict[str, Glimpse] = {}
    problems = registry.duplicates()
    for entry in registry.entries():
        try:
            found[entry.name] = _read(entry, registry) or _imported(entry, registry)
        except PluginError as error:
            problems.append(str(error))
    return found, problems


def _imported(entry: Entry, registry: Registry) -> Glimpse:
    plugin = registry.load(entry.name)
    spec, card = getattr(plugin, "attack", None), getattr(plugin, "card", None)
    if spec is not None:
        return _attack(spec.knowledge, spec.norms, spec.summary, entry)
    return Glimpse(getattr(card, "family", "–"), getattr(card, "title", "") or entry.name, entry.origin)


def _attack(knowledge: str, norms: tuple[str, ...], summary: str, entry: Entry) -> Glimpse:
    return Glimpse(f"{knowledge}; {', '.join(norms)}", summary, entry.origin)


def _read(entry: Entry, registry: Registry) -> Glimpse | None:
    """What the source says; None where it has to be imported."""
    module, _, name = entry.target.partition(":")
    try:
        *around, tree = _sources(module)
        if not all(map(_is_harmless, (*around, tree))):
            return None
        named = [node for node in tree.body if getattr(node, "name", None) == name]
        return (_read_attack if registry is ATTACKS else _read_defense)(named[-1], entry)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError):
        return None


def _read_attack(node: ast.AST, entry: Entry) -> Glimpse | None:
    if not isinstance(node, ast.FunctionDef) or len(node.decorator_list) != 1:
        return None
    given = _keywords(node.decorator_list[0], "attack")
    summary = (ast.get_docstring(node) or "").partition("\n")[0]
    return _attack(ast.literal_eval(given["knowledge"]), ast.literal_eval(given["norms"]), summary, entry)


def _read_defense(node: ast.AST, entry: Entry) -> Glimpse | None:
    if not isinstance(node, ast.ClassDef) or node.decorator_list:
        return None
    values = {
        target.id: statement.value
        for statement in node.body
        if isinstance(statement, (ast.Assign, ast.AnnAssign))
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
        if isinstance(target, ast.Name)
    }
    given = _keywords(values["card"], "Card")
    family, title = (ast.literal_eval(given[field]) for field in ("family", "title"))
    return Glimpse(family, title or entry.name, entry.origin)


def _keywords(call: ast.AST | None, function: str) -> dict[str | None, ast.expr]:
    """The keyword arguments of a call of that function. Raises LookupError for anything else."""
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != function:
        raise LookupError(function)
    return {keyword.arg: keyword.value for keyword in call.keywords}


def _sources(module: str) -> Iterator[ast.Module]:
    """The packages around a module, outermost first, and the module itself, parsed."""
    path = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:depth]), path)
        path = spec.submodule_search_locations
        if spec.origin is not None:  # a folder without an __init__.py has none, and runs nothing
            yield ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _spec(name: str, path: Any = None) -> ModuleSpec:
    """Where a module is, by all finders, its packages not imported. Raises LookupError where there is none."""
    for finder in sys.meta_path:
        if (find := getattr(finder, "find_spec", None)) and (spec := find(name, path)) is not None:
            return spec  # type: ignore[no-any-return]
    raise LookupError(name)


def _is_harmless(tree: ast.Module) -> bool:
    for node in tree.body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not (text or isinstance(node, _HARMLESS)):
            return False
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            imported = [node.module or ""]
        for name in imported:
            _spec(name.partition(".")[0])
    return True
