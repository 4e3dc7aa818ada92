"""Hashes of values, of weights, and of the code of a plugin that declares no version.

The hash of code is over its meaning: comments, docstrings, formatting, type-checking imports and the card of a defense
do not count; the plugin's own modules that it imports do, and nothing outside its own package or folder.
"""
from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: The packages of this project. What they do is told by declared versions, so that no hash follows an import into them.
PACKAGES = ("attacks", "bench", "defenses")

_INSTALLED = {Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib", "stdlib")}


def digest(*parts: object) -> str:
    """SHA-256 (hexadecimal) of values that JSON can write: mappings are sorted by key."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def state_digest(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers: names, types, shapes and bytes."""
    import torch  # here, since records need this module, and reading suites and names needs no torch

    sha = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        # Bytes, so that dtypes NumPy lacks (bfloat16) are hashed like any other.
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def code_digest(obj: object) -> str:
    """SHA-256 of the meaning of the code behind a function, a class, an instance or a module.

    Covers the module that defines it, for a class also the modules of its bases in the same package, and every module
    that these import, transitively, from their own package or folder. Nothing is imported; only source files are
    read. Other packages do not count.
    """
    sources = _reached(_defining_files(obj))
    return digest(sorted((source.label, source.parsed.meaning) for source in sources))


def source_files(*objects: object) -> dict[Path, str]:
    """The files that :func:`code_digest` of these objects covers, and the packages that they need to be imported.

    Each with the place that it has below a folder from which the same modules can be imported: ``mine.py``,
    ``package/module.py``.
    """
    files = {file for obj in objects for file in _defining_files(obj)}
    found: dict[Path, str] = {}
    for source in _reached(files):
        package = (source.root / "__init__.py").exists()
        base = source.root.parent if package else source.root
        above = source.path.relative_to(base).parents if package else ()
        inits = [base / folder / "__init__.py" for folder in above if folder.parts]
        for path in (source.path, *inits):
            found[path] = path.relative_to(base).as_posix()
    return found


def _reached(files: Iterable[str]) -> list[_Source]:
    """These files and every module that they import, transitively, from their own package or folder."""
    waiting = [_Source.of(Path(file)) for file in sorted(files)]
    seen: dict[Path, _Source] = {}
    while waiting:
        source = waiting.pop()
        if source.path not in seen:
            seen[source.path] = source
            waiting += [_Source.of(path) for path in source.imports()]
    return list(seen.values())


def _defining_files(obj: object) -> set[str]:
    """Source files of the object itself, without those of installed libraries that it extends."""
    if isinstance(obj, functools.partial):
        return _defining_files(obj.func)
    modules: list[ModuleType | None]
    if isinstance(obj, ModuleType):
        modules = [obj]
    elif inspect.isfunction(obj):
        modules = [sys.modules.get(inspect.unwrap(obj).__module__), sys.modules.get(obj.__module__)]
    else:
        cls = obj if isinstance(obj, type) else type(obj)
        own = _top_level(cls.__module__)
        modules = [sys.modules.get(base.__module__) for base in cls.__mro__ if _top_level(base.__module__) == own]
    return {file for module in modules if module is not None and (file := inspect.getsourcefile(module))}


def _top_level(module: str) -> str:
    return module.partition(".")[0]


@dataclass(frozen=True)
class _Parsed:
    meaning: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]  # level, module, names imported from it


@dataclass(frozen=True)
class _Source:
    """A source file, the folder its label is relative to, and the folders its absolute imports start from."""

    path: Path
    root: Path

    @classmethod
    def of(cls, path: Path) -> _Source:
        path = path.resolve()
        folder = path.parent
        while (folder / "__init__.py").exists() and (folder.parent / "__init__.py").exists():
            folder = folder.parent
        return cls(path, folder)

    @property
    def label(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @property
    def parsed(self) -> _Parsed:
        stat = self.path.stat()
        return _parse(self.path, stat.st_mtime_ns, stat.st_size)

    def imports(self) -> set[Path]:
        """The files in scope that this one imports."""
        found: set[Path] = set()
        for level, module, names in self.parsed.imports:
            for base in self._bases(level, module):
                found.update(_locate(base, module, names))
        return found

    def _bases(self, level: int, module: str) -> Iterator[Path]:
        if level:
            yield self.path.parents[level - 1]
            return
        top = _top_level(module)
        if top in PACKAGES:
            return
        if top == self.root.name and (self.root / "__init__.py").exists():
            yield self.root.parent
        # The modules beside a plugin file, unless it is a single file among all installed packages.
        for folder in {self.path.parent, self.root}:
            if folder not in _INSTALLED:
                yield folder


def _locate(base: Path, module: str, names: tuple[str, ...]) -> Iterator[Path]:
    """The files that ``from module import names`` runs, ``module`` being looked up in the folder ``base``."""
    package = tuple(module.split(".")) if module else ()
    for chain in (package, *((*package, name) for name in names)):
        for depth in range(len(chain) + 1):
            place = base.joinpath(*chain[:depth])
            candidates = [place / "__init__.py", *([place.parent / f"{place.name}.py"] if depth else [])]
            yield from (path for path in candidates if path.is_file())


@functools.lru_cache(maxsize=1024)
def _parse(path: Path, mtime_ns: int, size: int) -> _Parsed:
    tree = _Strip().visit(ast.parse(path.read_bytes()))
    imports: list[tuple[int, str, tuple[str, ...]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
    return _Parsed(hashlib.sha256(_canonical(tree).encode()).hexdigest(), tuple(imports))


class _Strip(ast.NodeTransformer):
    """Removes what does not change what the code does: docstrings, ``if TYPE_CHECKING`` blocks, and ``card``, which is
    how a defense presents itself."""

    def _without_docstring(self, node: Any) -> Any:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        return self.generic_visit(node)

    visit_Module = visit_FunctionDef = visit_AsyncFunctionDef = _without_docstring

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        node.body = [statement for statement in node.body if not _assigns_card(statement)]
        return self._without_docstring(node)

    def visit_If(self, node: ast.If) -> Any:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return [self.visit(child) for child in node.orelse] or None
        return self.generic_visit(node)


def _assigns_card(statement: ast.stmt) -> bool:
    if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
        return False
    names = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [name.id for name in names if isinstance(name, ast.Name)] == ["card"]


def _canonical(node: Any) -> str:
    """The tree as text, without empty fields: the same code reads the same in every version of Python.

    (``ast.dump`` gains fields, and changes which it leaves out, from one version to the next.)
    """
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    return repr(node)
