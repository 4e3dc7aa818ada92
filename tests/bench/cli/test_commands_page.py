"""docs/commands.md is what `make docs` writes now, and says everything of every command."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench.cli.commands import commands, reference
from bench.cli.main import main

PAGE = Path(__file__).resolve().parents[3] / "docs" / "commands.md"
FOUND = dict(commands(main))


def section(name: str) -> str:
    return PAGE.read_text(encoding="utf-8").partition(f"\n## bench {name}\n")[2].partition("\n## ")[0]


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"


@pytest.mark.parametrize("name", FOUND)
def test_a_section_has_usage_options_example_and_exit_codes(name: str) -> None:
    text, command = section(name), FOUND[name]
    assert f"```text\nbench {name}" in text and f"```sh\nbench {name}" in text
    assert "Exit codes: 0 done;" in text and "130 interrupted." in text
    shared = PAGE.read_text(encoding="utf-8").partition("## Options that many commands have")[2].partition("\n## ")[0]
    for option in command.params:
        if isinstance(option, click.Option) and option.name not in ("as_json", "quiet"):
            own = f"| `{option.opts[0]}" in text
            assert own != (f"`{option.opts[0]}`" in text.partition("\nAlso ")[2] and f"| `{option.opts[0]}" in shared)


@pytest.mark.parametrize("arguments", [["--help"], ["study", "--help"], ["new", "--help"]])
def test_lists_of_commands_say_whole_sentences(arguments: list[str]) -> None:
    shown = CliRunner().invoke(main, arguments, terminal_width=80).output.partition("Commands:\n")[2]
    lines = shown.partition("\n\n")[0].splitlines()
    assert len(lines) >= 2 and all(line.endswith(".") and not line.endswith("..") for line in lines), shown


def test_an_option_without_a_word_about_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FOUND["report"], "params", [click.Option(["--mystery"])])
    with pytest.raises(ValueError, match="bench report: --mystery has no help text"):
        reference()
