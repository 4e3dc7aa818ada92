"""Help that shows an example, and the lists of what there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from command_line import STEP, assert_refused
from stand_ins import run_bench, write_config

from bench.cli.main import main


def test_a_broken_plugin_is_reported_and_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("good", "stand_ins:one_step", "bench.attacks"),
        EntryPoint("bad", "no_such_module:attack", "bench.attacks"),
    ]
    monkeypatch.setattr("bench.plugins.registry.entry_points", lambda group: points)
    monkeypatch.syspath_prepend(tmp_path)  # what is installed is read again where the path has changed
    ended = run_bench("list", "attacks")
    assert ended.code == 0
    assert "good" in ended.out and "One signed gradient step" in ended.out
    (line,) = ended.err.splitlines()
    assert line.startswith("skipped: attack 'bad'") and "ModuleNotFoundError: No module named 'no_such_module'" in line


def test_suites_are_listed_with_their_threat_models(tmp_path: Path) -> None:
    config = write_config(tmp_path / "bench.yaml", STEP, threat_model={"norm": "linf", "eps": "8/255"})
    ended = run_bench("list", "suites", "--config", config)
    assert ended.code == 0
    line = next(line for line in ended.out.splitlines() if line.startswith("tiny "))
    assert "digits" in line and "12" in line and "linf 8/255" in line


@pytest.mark.parametrize("what", ["defenses", "attacks"])
def test_what_is_shipped_is_listed_with_its_origin(what: str) -> None:
    ended = run_bench("list", what)
    assert ended.code == 0
    name = {"defenses": "none", "attacks": "pgd"}[what]
    line = next(line for line in ended.out.splitlines() if line.split()[:1] == [name])
    assert "worst-case-bench" in line


def test_a_piped_list_has_a_line_per_entry_and_is_json_when_asked() -> None:
    names = {entry["attack"] for entry in json.loads(run_bench("list", "attacks", "--json").out)}
    lines = run_bench("list", "attacks").out.splitlines()
    assert "pgd" in names and {line.split()[0] for line in lines[1:]} == names
    assert len(lines) == len(names) + 1


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


@pytest.mark.parametrize("command", list(_commands(main)), ids=" ".join)
def test_every_help_text_shows_an_example(command: tuple[str, ...]) -> None:
    ended = run_bench(*command, "--help")
    assert (ended.code, ended.err) == (0, "")
    example = ended.out.partition("Example")[2]
    assert f"bench {command[0]}" in example


def test_the_examples_are_commands_that_exist() -> None:
    """Every option of an example is one of its command."""
    for path in _commands(main):
        command: click.Command = main
        for name in path:
            assert isinstance(command, click.Group)
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        for word in (command.epilog or "").split():
            assert not word.startswith("--") or word in known, (path, word)


def test_bench_alone_shows_the_commands() -> None:
    for arguments in ([], ["new"]):
        ended = run_bench(*arguments)
        assert (ended.code, ended.err) == (0, "")
        assert len(ended.out.splitlines()) > 5


def test_the_version_is_that_of_the_distribution() -> None:
    ended = run_bench("--version")
    assert ended.code == 0 and ended.out.startswith("bench")


def test_an_unknown_command_is_refused() -> None:
    assert_refused(run_bench("evalute"), "evalute")
