"""What the cheats of ``tests/cheats`` get out of an evaluation.

Each is a plugin file around the same undefended network, whose docstring says how it cheats.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.summary.summarise import summarise

PLUGINS = Path(__file__).resolve().parents[1] / "cheats" / "plugins"
#: By name, what each does, in one line.
CHEATS = {
    path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    for path in sorted(PLUGINS.glob("*.py"))
    if path.stem != "underneath"
}
#: What is under all of them.
HONEST = "none"
#: These change the process in which they are imported, so each is evaluated in one of its own.
PATCHING = ("patches_the_judge", "patches_the_tally")
#: These need a run before: what counts is what they get in the next one.
TWICE = ("notes_in_a_temporary_file",)
#: Points by which a cheat may leave more than the network underneath.
ALLOWED = 0.05

SUITE = """
suites:
  cheats:
    data: digits
    examples: 32
    threat_model: {norm: linf, eps: 0.2}
    seed: 1
    shard_size: 32
    draws: {select: 5, report: 10}
    attacks:
      noise: {draws: 20}
      pgd: {steps: 10}
      square: {queries: 100}
"""

#: Runs ``bench`` with these arguments; returns what it said on the standard error.
Runner = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Found:
    """What a cheat got.

    Attributes:
        clean, worst: standard and worst-case accuracy; None where it was refused.
        warnings: ids of the flags that are warnings.
        refused: the line with which it was refused.
    """

    clean: float | None
    worst: float | None
    warnings: tuple[str, ...] = ()
    refused: str = ""

    def ends_well(self, honest: Found) -> bool:
        """Whether it is refused, flagged with a warning, or no better than the network underneath."""
        if self.worst is None:
            return bool(self.refused)
        assert honest.worst is not None and not honest.warnings
        return bool(self.warnings) or self.worst <= honest.worst + ALLOWED


def measure(
    run: Runner, folder: Path, names: Sequence[str] = tuple(CHEATS), options: Sequence[str] = ()
) -> dict[str, Found]:
    """Evaluate cheats, and the honest network, in a suite of a few seconds.

    Args:
        run: runs a command; folder: an empty one to work in.
        options: more arguments of ``bench evaluate``.
    """
    config = folder / "bench.yaml"
    config.write_text(SUITE, encoding="utf-8")
    together = [name for name in names if name not in PATCHING]
    first = [[name] for name in names if name in TWICE]
    found: dict[str, Found] = {}
    for number, group in enumerate([*first, [HONEST, *together], *([name] for name in names if name in PATCHING)]):
        results = folder / f"results-{number}"
        defenses = [part for name in group for part in ("--defense", name if name == HONEST else _reference(name))]
        where = ["--suite", "cheats", "--config", str(config), "--results", str(results), "--device", "cpu"]
        said = run(["evaluate", *where, *defenses, "--workers=1", *options])
        found |= {name: _found(results, name, said) for name in group}
    return found


def _reference(name: str) -> str:
    return f"{PLUGINS / name}.py:Cheat"


def _found(results: Path, name: str, said: str) -> Found:
    called = name if name == HONEST else f"{name}.Cheat"
    summary = summarise(results, "cheats") if (results / "cheats").exists() else None
    for defense in [] if summary is None else summary.defenses:
        if defense.record.name == called:
            warnings = tuple(flag.id for flag in defense.flags if flag.kind == "warning")
            return Found(defense.standard.value, defense.worst_case.value, warnings)
    lines = [line for line in said.splitlines() if called in line or line.startswith("error:")]
    return Found(None, None, refused=lines[0] if lines else "")


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder to measure in."""
    return tempfile.TemporaryDirectory(prefix="cheats-")
