"""What the commands share: the options of those that run a defense on a suite's data, and forms of help and paths."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import checkpoints_option, config_option, data_root_option, device_option, suite_option
from bench.cli.voice import Voice
from bench.contracts.errors import InputError

if TYPE_CHECKING:
    from bench.contracts.defense import DefenseSpec
    from bench.suites.config import Suite


def epilog(*examples: str, fails: str = "", refuses: str = "wrong input") -> str:
    """The end of a help text: examples, and what the exit codes mean.

    Args:
        fails: when the code is 1; "": it never is.
        refuses: when it is 2.
    """
    shown = "\n".join(f"  {line}" for line in examples)
    meanings = {"0": "done", "1": fails, "2": refuses, "130": "interrupted"}
    codes = "\n".join(f"  {code:<3}  {what}" for code, what in meanings.items() if what)
    return f"\b\nExample:\n{shown}\n\n\b\nExit codes:\n{codes}"


def pick_device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is available here (use auto or cpu)")
    return name


def worker_count(asked: int | None, device: str) -> int:
    """How many workers: those asked for, else one on a GPU and one per core on a CPU."""
    if asked is not None:
        return asked
    return 1 if device == "cuda" else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@dataclass(frozen=True)
class Scene:
    """What every command that runs a defense on a suite's data is told."""

    suite: Suite
    device: str
    params: dict[str, str]
    checkpoints: Path | None
    data_root: Path | None

    def spec(self, reference: str) -> DefenseSpec:
        from bench.contracts.defense import DefenseSpec

        return DefenseSpec(reference, self.params, self.checkpoints)

    def beside(self, name: str) -> DefenseSpec:
        """A second defense, to which ``--set`` does not speak: its name in results, as ``none(network=resnet8)``."""
        from bench.contracts.defense import DefenseSpec

        reference, bracket, rest = name.partition("(")
        pairs = tuple(rest.removesuffix(")").split(",")) if bracket else ()
        return DefenseSpec(reference, _settings(pairs, "--beside"), self.checkpoints)

    def specs(self, references: tuple[str, ...], every: bool | None = None) -> list[DefenseSpec]:
        """The defenses named by ``--defense``, and with ``--all`` all registered ones, or those of a suite's study.

        Args:
            every: whether ``--all`` was given; None: the command has no such option.
        """
        from bench.plugins.registry import DEFENSES
        from bench.suites.config import variants_of

        names, variants = list(references), []
        if every and names:
            raise InputError(f"--all: takes every defense, so --defense {names[0]} says nothing; give one or the other")
        if every and self.suite.study is not None:
            variants = variants_of(self.suite, self.checkpoints)
        elif every:
            # Code of a third party is not imported here; whether it can be shows when it is opened.
            loaded, problems = DEFENSES.load_all(DEFENSES.built_in())
            for problem in problems:
                click.echo(f"skipped: {problem}", err=True)
            shipped = set(DEFENSES.built_in())
            names += [name for name in DEFENSES.names() if name in loaded or name not in shipped]
        if not names and not variants:
            other = "" if every is None else " or --all"
            raise InputError(f"no defense given; use --defense NAME (bench list defenses){other}")
        return [self.spec(name) for name in dict.fromkeys(names)] + variants


_SCENE = (
    suite_option(help="A suite of the configuration."),
    config_option,
    click.option("--data", "data_reference", help="Other data: digits, cifar10, …, folder:PATH, file:PATH, hf:NAME."),
    data_root_option,
    click.option("--download", is_flag=True, help="Download the data set if it is not there (SHA-256 checked)."),
    click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter of the defense."),
    checkpoints_option,
    device_option,
)


_CHANGES = (
    click.option("--norm", type=click.Choice(["linf", "l2", "l1", "l0"]), help="Another norm than the suite's."),
    click.option("--eps", help='Another radius than the suite\'s: a number or "8/255".'),
    click.option("--examples", type=click.IntRange(1), help="Only the first so many of the suite's examples."),
    click.option("--seed", type=click.IntRange(0), help="Another seed than the suite's; the weights stay the same."),
)


def with_changes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that make a suite of its own of another one to a command :func:`in_a_scene`."""
    for option in reversed(_CHANGES):
        command = option(command)
    return command


def in_a_scene(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a :class:`Scene` to a :func:`speaking` command, which gets it as its first argument."""

    @functools.wraps(function)
    def command(
        voice: Voice,
        suite_name: str,
        config: Path | None,
        data_reference: str | None,
        data_root: Path | None,
        download: bool,
        settings: tuple[str, ...],
        checkpoints: Path | None,
        device: str,
        norm: str | None = None,
        eps: str | None = None,
        examples: int | None = None,
        seed: int | None = None,
        **others: Any,
    ) -> Any:
        from bench.data.load import is_published, load_data
        from bench.suites.config import SHIPPED
        from bench.suites.reading import load_config

        written = load_config(config).suite(suite_name)
        itself = None if data_reference is None else is_published(data_reference, written.data)
        if itself is not None:  # the suite's own data, in another form: not a suite of its own
            data_reference, data_root = None, itself
        suite = written.with_(data=data_reference, norm=norm, eps=eps, examples=examples, seed=seed)
        if written.replaces:
            voice.note(f"suite {suite_name}: that of {written.origin}, in place of the shipped one")
        elif written.origin != SHIPPED and config is None:
            voice.note(f"suite {suite_name}: of {written.origin}")
        scene = Scene(suite, pick_device(device), _settings(settings), checkpoints, data_root)
        if download:
            load_data(suite.data, data_root, download=True)
        return function(scene, voice=voice, **others)

    for option in reversed(_SCENE):
        command = option(command)
    return command


def _settings(pairs: tuple[str, ...], option: str = "--set") -> dict[str, str]:
    params: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"{option} {pair!r}: expected name=value")
        name = name.replace("-", "_")
        if name in params:
            raise InputError(f"{option} {pair!r}: {name} is given twice ({params[name]} before)")
        params[name] = value
    return params
