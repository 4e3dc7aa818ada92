"""Options that several commands have, and what the shell completes for them. Imports no PyTorch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.contracts.isolation import ASKED

if TYPE_CHECKING:
    from bench.suites.config import Suite

RESULTS = Path("runs")
PATH = click.Path(path_type=Path)


def _defense_names(context: click.Context, parameter: click.Parameter, start: str) -> list[str]:
    from bench.plugins.registry import DEFENSES

    return [name for name in DEFENSES.names() if name.startswith(start)]


def _attack_names(context: click.Context, parameter: click.Parameter, start: str) -> list[str]:
    """Those of the suite that stands before on the line, or of the default one."""
    suites, asked = _suites(context), context.params.get("suite_name") or "demo"
    return [name for name in suites[asked].attacks if name.startswith(start)] if asked in suites else []


def _suite_names(context: click.Context, parameter: click.Parameter, start: str) -> list[str]:
    return [name for name in _suites(context) if name.startswith(start)]


def _suites(context: click.Context) -> dict[str, Suite]:
    from bench.suites.reading import load_config

    return load_config(context.params.get("config")).suites


#: An argument or repeated options, to be given a ``help``.
defense_argument = click.argument("defense", shell_complete=_defense_names)
defense_options = partial(
    click.option, "--defense", "defenses", metavar="NAME", multiple=True, shell_complete=_defense_names
)
attack_options = partial(
    click.option, "--attack", "attacks", metavar="NAME", multiple=True, shell_complete=_attack_names
)
suite_option = partial(
    click.option,
    "--suite",
    "suite_name",
    metavar="NAME",
    default="demo",
    show_default=True,
    shell_complete=_suite_names,
)
stored_suite_options = click.option(
    "--suite",
    "suite_names",
    metavar="NAME",
    multiple=True,
    shell_complete=_suite_names,
    help="Only this suite (repeat) [default: all with results].",
)
results_option = click.option("--results", type=PATH, default=RESULTS, show_default=True, help="Results folder.")
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where defenses run; auto: on a GPU if there is one.",
)
config_option = click.option(
    "--config",
    type=PATH,
    help="A bench.yaml, whose suites are added to the shipped ones [default: that of this folder].",
)
data_root_option = click.option(
    "--data-root", type=PATH, help="Where data sets are kept [default: ~/.cache/worst-case-bench]."
)
checkpoints_option = click.option("--checkpoints", type=PATH, help="Folder of checkpoints [default: beside the code].")
isolation_option = click.option(
    "--isolation",
    type=click.Choice(ASKED),
    default="auto",
    show_default=True,
    envvar="BENCH_ISOLATION",
    help="How far a defense is kept apart from its judge; auto: code of a third party as far as can be, else none.",
)
