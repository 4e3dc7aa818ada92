"""``bench new``: a working plugin folder to start from."""

from __future__ import annotations

import keyword
import re
import string
import sys
from pathlib import Path

from bench.contracts.errors import InputError
from bench.plugins.registry import ATTACKS, DEFENSES, Registry
from bench.storing.digest import PACKAGES

_TEMPLATES = Path(__file__).with_name("templates")


def new_defense(name: str, out: Path) -> Path:
    """Write ``out/name``: a randomised, quantising defense with its training recipe, a README and a test.

    Args:
        name: lower-case words joined by hyphens; the defense is registered under it.
        out: the folder in which the new one is made.

    Returns:
        The new folder.

    Raises:
        InputError: for a name that is invalid or taken, or a folder that exists.
    """
    return _write("defense", name, out, DEFENSES)


def new_attack(name: str, out: Path) -> Path:
    """Write ``out/name``: a gradient attack, a small suite to try it in, a README and a test.

    Arguments, result and errors as for :func:`new_defense`.
    """
    return _write("attack", name, out, ATTACKS)


def _write(kind: str, name: str, out: Path, registry: Registry) -> Path:
    _check_name(kind, name, registry)
    folder = out / name
    if folder.exists():
        raise InputError(f"{folder}: exists already; nothing was written")
    module = name.replace("-", "_")
    words = {
        "name": name,
        "module": module,
        "cls": "".join(word.capitalize() for word in name.split("-")),
        "title": name.replace("-", " ").capitalize(),
    }
    texts = {}
    for template in sorted(_TEMPLATES.glob(f"{kind}[._]*.tmpl")):
        file = template.name.removesuffix(".tmpl").removeprefix(kind).removeprefix("_")
        file = {".py": f"{module}.py", "test.py": f"test_{module}.py"}.get(file, file)
        texts[file] = string.Template(template.read_text(encoding="utf-8")).substitute(words)
    try:
        folder.mkdir(parents=True)
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
    return folder


def _check_name(kind: str, name: str, registry: Registry) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise InputError(f"{kind} name {name!r}: expected lower-case words joined by hyphens, such as my-{kind}")
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module in (*PACKAGES, "leaderboard", "torch"):
        raise InputError(f"{kind} name {name!r}: {module} means something else in Python; choose another")
    if name in registry.names():
        raise InputError(f"{kind} name {name!r}: is taken by {registry.entry(name).origin}")
