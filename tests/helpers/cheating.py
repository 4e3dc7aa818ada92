"""What the cheats of ``tests/cheats`` get out of an evaluation.

Each is a plugin file around the same undefended network, whose docstring says how it cheats. ``make cheats`` writes
docs/cheats.md from here.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors.torch import save_file

from bench.contracts.defense import DefenseSpec
from bench.contracts.isolation import LEVELS, Level
from bench.data.load import load_data
from bench.isolation.opening import objection
from bench.isolation.places import places
from bench.summary.numbers import Estimate
from bench.summary.summarise import summarise

PLUGINS = Path(__file__).resolve().parents[1] / "cheats" / "plugins"
#: What is under all of them.
HONEST = "underneath"
#: By name, what each does, in one line.
CHEATS = {
    path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    for path in sorted(PLUGINS.glob("*.py"))
    if path.stem != HONEST
}
#: These change the process in which they are imported, so that without isolation each is evaluated in one of its own.
PATCHING = ("patches_the_judge", "patches_the_tally")
#: The name of the class in a cheat's file, and in that of the network underneath.
_CLASS = ("Cheat", "Honest")
#: These need a run before: what counts is what they get in the next one.
TWICE = ("notes_in_a_temporary_file",)
#: Points by which a cheat may leave more than the network underneath.
ALLOWED = 0.05

EXAMPLES, EPS, SEED = 64, 0.2, 1
ATTACKS = {"pgd": {"steps": 10}, "square": {"queries": 50}}
SUITE: dict[str, Any] = {
    "data": "digits",
    "examples": EXAMPLES,
    "threat_model": {"norm": "linf", "eps": EPS},
    "seed": SEED,
    "shard_size": EXAMPLES,
    "draws": {"select": 5, "report": 10},
    "attacks": ATTACKS,
}

#: Runs ``bench`` with these arguments and this folder for temporary files; returns what it said on the standard error.
Runner = Callable[[Sequence[str], Path], str]


@dataclass(frozen=True)
class Found:
    """What a cheat got.

    Attributes:
        worst: worst-case accuracy; None where it was refused.
        warnings: ids of the flags that are warnings.
        refused: the line with which it was refused.
    """

    worst: Estimate | None
    warnings: tuple[str, ...] = ()
    refused: str = ""

    def ends_well(self, honest: Found) -> bool:
        """Whether it is refused, flagged with a warning, or no better than the network underneath."""
        if self.worst is None:
            return bool(self.refused)
        assert honest.worst is not None and not honest.warnings
        return bool(self.warnings) or self.worst.value <= honest.worst.value + ALLOWED


def measure(run: Runner, folder: Path, level: Level, names: Sequence[str] = tuple(CHEATS)) -> dict[str, Found]:
    """Evaluate cheats, and the honest network, in a small suite.

    Args:
        run: runs a command; folder: an empty one to work in, where the plugins are copied to, as a stranger's would
            lie somewhere; level: of isolation, for the honest network as well.
    """
    config, plugins, temporary = folder / "bench.yaml", folder / "plugins", folder / "tmp"
    # Of its own: over many runs in one folder a cheat's notes come to hold nearly every digit that a probe can make.
    temporary.mkdir()
    config.write_text(yaml.safe_dump({"suites": {"cheats": SUITE}}), encoding="utf-8")
    shutil.copytree(PLUGINS, plugins, ignore=shutil.ignore_patterns("__pycache__"))
    _write_table(plugins / "table.safetensors")
    (plugins / "suite.json").write_text(json.dumps(SUITE), encoding="utf-8")  # it is public
    alone = [name for name in names if name in PATCHING and level == "none"]
    together = [name for name in names if name not in alone]
    first = [[name] for name in names if name in TWICE]
    found: dict[str, Found] = {}
    for number, group in enumerate([*first, [HONEST, *together], *([name] for name in alone)]):
        results = folder / f"results-{number}"
        references = [f"{plugins / name}.py:{_CLASS[name == HONEST]}" for name in group]
        defenses = [part for reference in references for part in ("--defense", reference)]
        where = ["--suite", "cheats", "--config", str(config), "--results", str(results), "--device", "cpu"]
        said = run(["evaluate", *where, *defenses, "--workers=1", "--isolation", level], temporary)
        found |= {name: _found(results, name, said) for name in group}
    return found


def _write_table(path: Path) -> None:
    """Every image of the data set with its label, for the cheats that bring them along."""
    data = load_data("digits")
    splits = data.train, data.validation, data.test
    images, classes = (torch.cat(parts) for parts in ([s.x for s in splits], [s.y for s in splits]))
    save_file({"images": images, "classes": classes}, path)


def _found(results: Path, name: str, said: str) -> Found:
    called = f"{name}.{_CLASS[name == HONEST]}"
    summary = summarise(results, "cheats") if (results / "cheats").exists() else None
    for defense in [] if summary is None else summary.defenses:
        if defense.record.name == called:
            own = (flag for flag in defense.flags if flag.id not in ("not-isolated", "weakly-isolated"))
            return Found(defense.worst_case, tuple(flag.id for flag in own if flag.kind == "warning"))
    lines = [line for line in said.splitlines() if line.startswith(("failed: ", "error: "))]
    ours = [line for line in lines if called in line or line.startswith("error: ")]
    return Found(None, refused=ours[0].partition(": ")[2] if ours else "")


def in_a_process(arguments: Sequence[str], temporary: Path) -> str:
    """Run ``bench`` in a process of its own; what it said on the standard error."""
    command = [sys.executable, "-c", "from bench.cli.main import main; main()", *arguments]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stderr


def levels() -> list[Level]:
    """Those that this machine has, from none to the strongest."""
    return [level for level in LEVELS if _had(level)]


def strongest() -> Level:
    """The last of :func:`levels`."""
    return next(level for level in reversed(LEVELS) if _had(level))


def _had(level: Level) -> bool:
    where = places(DefenseSpec(f"{PLUGINS / 'huge_logits'}.py:Cheat"), ())
    return level == "none" or not objection(level, where)


def unnoticed(found: dict[str, Found]) -> dict[str, Found]:
    """The cheats that got something and were neither refused nor flagged."""
    honest = found[HONEST]
    assert honest.worst is not None and honest.warnings == ()
    return {name: got for name, got in found.items() if not got.ends_well(honest)}


def page(found: dict[Level, dict[str, Found]]) -> str:
    """The page of all cheats.

    Args:
        found: by the level of isolation, what each cheat and the honest network got there.
    """
    rows = [
        [f"`{name}`", CHEATS[name], *(_cell(found[level][name], found[level][HONEST]) for level in found)]
        for name in CHEATS
    ]
    rows.append(["nothing", "The network underneath.", *(_cell(found[level][HONEST]) for level in found)])
    table = pd.DataFrame(rows, columns=["Cheat", "How it cheats", *found]).to_markdown(index=False, tablefmt="github")
    attacks = ", ".join(f"`{name}` ({', '.join(f'{k} {v}' for k, v in how.items())})" for name, how in ATTACKS.items())
    return _PAGE.format(
        count=len(CHEATS),
        levels=", ".join(f"`{level}`" for level in found),
        examples=EXAMPLES,
        eps=EPS,
        seed=SEED,
        attacks=attacks,
        allowed=round(100 * ALLOWED),
        table=table,
    )


def _cell(got: Found, honest: Found | None = None) -> str:
    if got.worst is None:
        return f"refused: {_short(got.refused)}"
    low, high = (round(100 * bound) for bound in (got.worst.low, got.worst.high))
    flags = ", ".join(f"`{flag}`" for flag in got.warnings)
    text = f"{100 * got.worst.value:.0f} % [{low}, {high}]" + (f" {flags}" if flags else "")
    return text if honest is None or got.ends_well(honest) else f"**{text}**"


def _short(reason: str) -> str:
    """A refusal without the names of folders, up to its first explanation in brackets or after a semicolon."""
    words = [word.rpartition("/")[2] if "/" in word else word for word in reason.partition("; ")[0].split()]
    return " ".join(words).partition(" (")[0].replace("|", "\\|")


_PAGE = """# Cheats

Written by `make cheats`, which evaluates every plugin of `tests/cheats/plugins` at every level of isolation that the
machine has; here these are {levels}.
With `LEVELS="none landlock"` it does so at these alone, and joins them with what `build/cheats` has kept of the others.
At `none` a defense lives in the process of its judge, as all did before there
was isolation: the number in that column is what a cheat gets where nobody looks at flags.

All {count} are built around one undefended network. The suite is a small one: {examples} digits, linf {eps:g}, seed
{seed}; the attacks are {attacks}.

A cell has the worst case that they leave with its 95 % interval, and the warnings that stand beside it, or the line
with which the plugin was refused. **Bold** is what nobody would notice: more than {allowed} points above the network
underneath, without a warning. Flags are explained in [how numbers are computed](how-numbers-are-computed.md#flags),
levels in [isolation](isolation.md).

{table}

## What remains possible

- **In the process of the judge everything is.** A plugin that is evaluated at `none` can replace whatever would notice
  it. What the column shows is that these have not. Results of strangers belong at `landlock` or `bubblewrap`.
- **A network that has really learnt the test images**, and with them all the data, is no cheat that a probe can tell
  from a good one where it also gains on inputs that nobody has seen. `memorised` compares the suite's inputs with such:
  half way between two of a class, drawn with a seed of the operating system. What it misses is a gain of less than 15
  points, or of 3.5 standard errors of the suite's inputs beside 1024 that are made; and of less than 30 points, where
  what is known is answered with margins that the network underneath never has.
- **At `process` a plugin can read the data set and write files.** That level promises memory of its own and limits,
  nothing else.
- **A server that is attacked knows that it is.** It sees hundreds of points around one input, and the gradients of a
  loss that names the label. So nothing that it has learnt may reach the judge: that asks a server which was started
  after the attack and has seen nothing. What it has learnt may still mislead the attack itself, which then finds less
  (`remembers_clean_images`, `rejects_what_it_has_seen`, `honest_when_asked_again`): such a number means nothing, and
  `stateful` and `inconsistent` beside it say so. Clean inputs go to a server with a noisy copy of their batch, in an
  order by lot; but the mean of many points around one still says where it is.
- **What a plugin brings along no sandbox keeps from it.** A table of the data set beside its code is worth as much at
  every level (`a_table_beside_the_code`): `memorised` is what is left against it.
- **Pretending to be fooled** shows when the judge's server is asked what the attack was told: of each shard up to four
  batches, on the same random numbers. A defense that draws from a generator of its own escapes this comparison, and is
  left with the backward passes that the judge makes every other time, so that it looks like an attack.
- **Time** is not hidden: how long the judge waits between two questions differs from an attack's loop.
"""


def keep(kept: Path, level: Level, found: dict[str, Found]) -> None:
    """Write down what was found at a level."""
    kept.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: asdict(got) for name, got in found.items()}, indent=1)
    (kept / f"{level}.json").write_text(text, encoding="utf-8")


def kept_in(kept: Path) -> dict[Level, dict[str, Found]]:
    """What :func:`keep` has written, by level; of other cheats than those of today nothing."""
    found: dict[Level, dict[str, Found]] = {}
    for level in LEVELS:
        path = kept / f"{level}.json"
        told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if told.keys() == {HONEST, *CHEATS}:
            found[level] = {
                name: Found(got["worst"] and Estimate(**got["worst"]), tuple(got["warnings"]), got["refused"])
                for name, got in told.items()
            }
    return found


def main(chosen: Sequence[Level], kept: Path) -> None:
    """Evaluate all cheats at these levels, and print the page of all that are kept."""
    for level in chosen:
        with tempfile.TemporaryDirectory(prefix="cheats-") as folder:
            keep(kept, level, measure(in_a_process, Path(folder), level))
    print(page(kept_in(kept)), end="")


if __name__ == "__main__":
    main([level for level in levels() if level in sys.argv[2:]] or levels(), Path(sys.argv[1]))
