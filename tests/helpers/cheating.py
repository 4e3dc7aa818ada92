"""What the cheats of ``tests/cheats`` get out of an evaluation.

Each is a plugin file around the same undefended network, whose docstring says how it cheats. ``make cheats`` writes
docs/cheats.md from here.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

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
            own = (flag for flag in defense.flags if flag.id not in ("not-isolated", "weakly-isolated"))
            warnings = tuple(flag.id for flag in own if flag.kind == "warning")
            return Found(defense.standard.value, defense.worst_case.value, warnings)
    lines = [line for line in said.splitlines() if called in line or line.startswith("error:")]
    return Found(None, None, refused=lines[0] if lines else "")


def in_a_process(arguments: Sequence[str]) -> str:
    """Run ``bench`` in a process of its own; what it said on the standard error."""
    command = [sys.executable, "-c", "from bench.cli.main import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def page(found: dict[str, dict[str, Found]]) -> str:
    """The page of all cheats.

    Args:
        found: by the level of isolation, what each cheat and the honest network got there.
    """
    levels = list(found)
    rows = [
        [f"`{name}`", CHEATS[name], *(_cell(found[level][name], found[level][HONEST]) for level in levels)]
        for name in CHEATS
    ]
    honest = ", ".join(f"{level} {100 * (found[level][HONEST].worst or 0):.0f} %" for level in levels)
    table = pd.DataFrame(rows, columns=["Cheat", "How it cheats", *levels]).to_markdown(index=False, tablefmt="github")
    return _PAGE.format(honest=honest, count=len(CHEATS), levels=", ".join(levels), table=table)


def _cell(got: Found, honest: Found) -> str:
    if got.worst is None:
        return f"refused: {got.refused.removeprefix('error: ')}"
    flags = ", ".join(f"`{flag}`" for flag in got.warnings)
    text = f"{100 * got.worst:.0f} %" + (f", {flags}" if flags else "")
    return text if got.ends_well(honest) else f"**{text}**"


_PAGE = """# Cheats

Written by `make cheats`, which evaluates every plugin of `tests/cheats/plugins` at every level of isolation that the
machine has. Here these are: {levels}. At the level `none` a defense lives in the process of its judge.

All {count} are built around one undefended network, of which the attacks of this small suite leave: {honest}. A cell
has what they leave of the cheat (its worst case on 32 digits, linf 0.2) and the warnings that the number carries, or
the line with which the plugin was refused. **Bold** is what nobody would notice: more than {allowed:.0f} points above
the network underneath, without a warning. A flag is explained in
[how numbers are computed](how-numbers-are-computed.md#flags).

{table}
""".replace("{allowed:.0f}", f"{100 * ALLOWED:.0f}")


def main(levels: Sequence[str]) -> None:
    """Print the page."""
    found = {}
    for level in levels:
        with tempfile.TemporaryDirectory(prefix="cheats-") as folder:
            found[level] = measure(in_a_process, Path(folder), options=options_of(level))
    print(page(found), end="")


def options_of(level: str) -> list[str]:
    """What makes ``bench evaluate`` isolate a defense at a level."""
    return [] if level == "none" else ["--isolation", level]


if __name__ == "__main__":
    main(["none"])
