"""The documentation is true: examples run as written, and what it names exists."""

from __future__ import annotations

import inspect
import itertools
import re
import runpy
import shlex
import sys
import time
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from attacks.toolkit.estimators import as_estimator
from bench.cli.commands import commands as commands_of
from bench.cli.main import main
from bench.contracts.defense import Defense
from bench.contracts.target import Target
from bench.engines.graph import Graph, Job, Outcome
from bench.plugins.registry import DEFENSES
from bench.storing.records import Row
from bench.suites.reading import load_config
from bench.summary import detection, flags
from bench.summary.metrics import wilson
from bench.summary.summarise import summarise
from defenses.parts import recipes

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
#: Every page of the repository, by its path in it.
EVERYWHERE = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in (*sorted(REPOSITORY.glob("*.md")), *sorted(DOCS.glob("*.md")), REPOSITORY / "results" / "README.md")
}

#: Stands in for the suites of the repository: the documented commands as they are, with budgets of seconds.
TINY = """
suites:
  demo:
    data: digits
    examples: 8
    threat_model: {norm: linf, eps: 0.2}
    seed: 1
    shard_size: 4
    draws: {select: 2, report: 3}
    attacks:
      noise: {draws: 2}
      pgd: {steps: 2}
      bpda: {attack: pgd, steps: 2, estimator: {eot: {samples: 2, of: {bpda: first}}}, rescore: 2}
      bpda-i: {attack: pgd, steps: 2, estimator: identity, rescore: 2}
"""


# -- fenced examples ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block. Its info string may name a file to write, or say ``run``."""

    language: str
    words: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), None)

    @property
    def commands(self) -> list[list[str]]:
        """The lines of a shell block, each as a list of words."""
        return [words for line in self.text.splitlines() if (words := shlex.split(line, comments=True))]


def blocks(text: str) -> list[Block]:
    found = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(language, tuple(words.split()), body) for language, words, body in found]


class InProcess:
    """An engine without worker processes, each of which would take seconds to start."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        graph = Graph(jobs)
        while (job := graph.take()) is not None:
            start = time.monotonic()
            try:
                outcome = Outcome(job, "ok", job.function(*job.args), "", time.monotonic() - start)
            except Exception:
                outcome = Outcome(job, "failed", None, traceback.format_exc(), time.monotonic() - start)
            yield from graph.end(outcome)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to try the examples in; the modules that they bring are forgotten afterwards."""
    (tmp_path / "bench.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("bench.engines.local.LocalEngine", InProcess)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run_bench(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 0, shlex.join(["bench", *arguments])


def install(project: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``pip install --no-deps -e`` does, as far as Python can tell; without touching the environment."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    info = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    lines = []
    for group, entries in about["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for path in (project, site):
        monkeypatch.syspath_prepend(path)


def follow(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what a page says, from top to bottom: write its files, run its commands."""
    for block in blocks(text):
        if block.file is not None:
            (folder / block.file).write_text(block.text)
        if "run" not in block.words:
            continue
        for program, *arguments in block.commands:
            if program == "bench":
                run_bench(*arguments)
            elif program == "python":
                runpy.run_path(arguments[0], run_name="__main__")
            elif (program, *arguments[:-1]) == ("pip", "install", "--no-deps", "-e"):
                install(folder / arguments[-1], folder / "site-packages", monkeypatch)
            else:
                pytest.fail(f"this test does not know how to run {program!r}")


def write_examples(page: str, folder: Path) -> None:
    """Write the files of a page, but for a ``bench.yaml``: that of the folder has the tiny suites."""
    for block in blocks(PAGES[page]):
        if block.file not in (None, "bench.yaml"):
            (folder / block.file).write_text(block.text)


def test_submit_a_defense_can_be_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule_for = recipes.schedule_for  # the scaffold trains as long as a real defense; one epoch shows that it does
    monkeypatch.setattr(recipes, "schedule_for", lambda *given: replace(schedule_for(*given), epochs=1))
    follow(PAGES["submit-a-defense.md"], folder, monkeypatch)
    names = {defense.record.name: defense for defense in summarise(Path("runs"), "demo").defenses}
    guarded = "guard.Nearest(classifier=mine.py:Dither)"
    assert set(names) == {"mine.Dither", "mine.Dither(levels=3)", "detector", guarded, "half-tone", "models.trained"}
    assert all(defense.complete for defense in names.values())
    assert all(names[name].detection is not None for name in ("detector", guarded))
    assert names["mine.Dither"].detection is None
    assert [d.record.name for d in summarise(Path("runs"), "demo@images").defenses] == ["mine.Dither"]
    assert Path("site/index.html").is_file()
    assert Path("checkpoints/mine.Dither/digits-b40dd28b.safetensors").is_file(), "where the page says it is"


def test_submit_an_attack_can_be_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(PAGES["submit-an-attack.md"], folder, monkeypatch)


def test_a_submission_can_be_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_examples("submit-a-defense.md", folder)
    follow(PAGES["submissions.md"], folder, monkeypatch)
    (mine,) = summarise(Path("accepted"), "demo").defenses
    assert mine.complete
    assert "A. Author" in Path("site/demo/defenses/mine.Dither.html").read_text()
    assert Path("harder/images.safetensors").is_file()


def test_the_documented_attacks_run_in_their_suite(folder: Path) -> None:
    if not list((REPOSITORY / "defenses/checkpoints/none").glob("digits-*.safetensors")):
        pytest.skip("the checkpoint of the undefended model is not there (bench train --defense none --suite demo)")
    write_examples("submit-an-attack.md", folder)
    run_bench("evaluate", "--config", "suite.yaml", "--suite", "try", "--defense", "none")
    (none,) = summarise(Path("runs"), "try").defenses
    assert none.complete
    left = {cell.record.name: cell.robust.value for cell in none.attacks if cell.robust}
    assert left["flips"] < none.standard.value - 0.2, "it attacks"
    assert left["one-step"] < none.standard.value - 0.2, "it attacks"
    assert left["one-step"] == left["one-step-bpda-i"], "without a transform, the identity is exact"
    assert not any(cell.violations for cell in none.attacks)


def test_another_engine_runs_an_evaluation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_examples("submit-a-defense.md", folder)
    run_bench("train", "--defense", "mine.py:Dither", "--suite", "demo")
    follow(PAGES["architecture.md"], folder, monkeypatch)
    assert summarise(Path("runs"), "demo").defenses[0].complete


def test_a_file_reaches_the_worker_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # the engine of the command line
    monkeypatch.chdir(folder)
    write_examples("submit-a-defense.md", folder)
    run_bench("train", "--defense", "mine.py:Dither", "--suite", "demo")
    run_bench("evaluate", "--defense", "mine.py:Dither", "--suite", "demo", "--workers", "1")
    assert "mine.Dither" in capsys.readouterr().out
    run_bench("verify", "--suite", "demo", "--defense", "mine.Dither")
    assert "bpda: 0 of 8 rows differ" in capsys.readouterr().out


# -- what the text names --------------------------------------------------------------------------------------


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", EVERYWHERE)
def test_links_within_the_repository_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(EVERYWHERE[page])):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = ((REPOSITORY / page).parent / name).resolve() if name else REPOSITORY / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def command_lines(text: str) -> list[str]:
    """Every ``bench …`` command line of a page: in fenced shell blocks and as inline code."""
    lines = [line for block in blocks(text) if block.language == "sh" for line in block.text.splitlines()]
    lines += [" ".join(line.split()) for line in re.findall(r"`(bench [^`]+)`", without_blocks(text))]
    return [line for line in lines if line.startswith("bench ")]


def commands(text: str) -> list[list[str]]:
    """The same as words, as a shell splits them; in synopses an option in brackets loses these."""
    return [shlex.split(re.sub(r" \[|\](?= |$)", " ", line), comments=True) for line in command_lines(text)]


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts} | {"--help"}


@pytest.mark.parametrize("page", EVERYWHERE)
def test_commands_and_their_options_exist(page: str) -> None:
    for words in commands(EVERYWHERE[page]):
        command: click.Command = main
        rest = words[1:]
        while isinstance(command, click.Group) and rest and rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
        line = " ".join(words)
        assert command is not main or rest[0].isupper() or rest[0] in options(main), f"{line}: no such command"
        for option in re.findall(r"--[a-z][a-z-]*", " ".join(rest)):
            assert option in options(command), f"{line}: {option}"


@pytest.mark.parametrize("page", EVERYWHERE)
def test_a_shell_takes_the_commands_as_they_are_written(page: str) -> None:
    for line in command_lines(EVERYWHERE[page]):
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.partition(" #")[0])
        assert not re.search(r"[()<>;&]|(?<=\w)\[", bare.replace("&& cd my-defense", "")), line


@pytest.mark.parametrize("page", EVERYWHERE)
def test_suites_defenses_and_attacks_in_commands_exist(page: str) -> None:
    text = EVERYWHERE[page]
    own = {name for block in blocks(text) if block.language == "yaml" for name in yaml.safe_load(block.text)["suites"]}
    suites = load_config(REPOSITORY / "bench.yaml").suites
    made = {words[-1] for words in commands(text) if words[:3] == ["bench", "new", "defense"]} | {"mine", "my-defense"}
    for words in commands(text):
        given = {option: value for option, value in itertools.pairwise(words) if option in ("--suite", "--attack")}
        suite = given.get("--suite", "demo")
        assert suite in {*suites, *own} or suite.isupper(), words
        if suite in suites and not (attack := given.get("--attack", "NAME")).isupper():
            assert attack in suites[suite].attacks, words
        for option, value in itertools.pairwise(words):
            if option in ("--defense", "--beside") and not re.search(r"[A-Z]{3}|[:./]", value):
                assert value.partition("(")[0] in {*DEFENSES.built_in(), *made}, words


@pytest.mark.parametrize("page", EVERYWHERE)
def test_targets_of_make_and_extras_exist(page: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    code_of_page = " ".join([*re.findall(r"`([^`]+)`", without_blocks(EVERYWHERE[page])), *(
        block.text for block in blocks(EVERYWHERE[page]) if block.language == "sh")])
    for target in re.findall(r"(?:^|\s)make ([a-z-]+)", code_of_page):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    extras = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-")[2]
    for quote, extra in re.findall(r"(.)worst-case-bench\[(\w+)\]", EVERYWHERE[page]):
        assert quote == "'" and re.search(rf"^{extra} = ", extras, re.MULTILINE), f"worst-case-bench[{extra}]"


@pytest.mark.parametrize("page", PAGES)
def test_options_named_alone_exist(page: str) -> None:
    known = set().union(*(options(command) for _, command in commands_of(main)))
    for option in re.findall(r"`(--[a-z-]+)", PAGES[page]):
        assert option in known, option


@pytest.mark.parametrize("page", EVERYWHERE)
def test_named_files_exist(page: str) -> None:
    named = re.findall(r"`((?:bench|attacks|defenses|leaderboard|tests|docs)/[\w/.-]+)`", EVERYWHERE[page])
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_things_are_in_the_file_that_is_named_with_them(page: str) -> None:
    named = re.findall(r"`([A-Za-z_][\w.]*)`(?: in| \() ?`((?:bench|attacks|leaderboard)/[\w/]+\.py)`", PAGES[page])
    for name, path in named:
        last = name.rpartition(".")[2]
        assert re.search(rf"\b{last}\b", (REPOSITORY / path).read_text()), f"{name} in {path}"


def table(page: str, first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading, each as its cells."""
    rows = re.search(rf"^\| {first_heading} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", PAGES[page], re.MULTILINE)
    assert rows is not None, f"{page}: no table {first_heading!r}"
    return [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows[1].splitlines()]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_of_flags_is_complete() -> None:
    source = inspect.getsource(flags) + inspect.getsource(detection)
    raised = set(re.findall(r'Flag\("([\w-]+)"', source))
    raised |= set(re.findall(r'^ +\("([\w-]+)", "[^"]+", ', source, re.MULTILINE))  # compared in a loop
    documented = {code(row[0])[0] for row in table("how-numbers-are-computed.md", "Id")}
    assert documented == raised


def test_the_thresholds_of_flags_are_those_of_the_code() -> None:
    (row,) = [row for row in table("how-numbers-are-computed.md", "Id") if "black-box-wins" in row[0]]
    assert f"{100 * flags.BEATS:g} points" in row[1] and f"{100 * flags.BEATS_RANDOMIZED:g} point)" in row[1]
    (row,) = [row for row in table("how-numbers-are-computed.md", "Id") if "unbounded-fails" in row[0]]
    assert f"chance + {100 * flags.ABOVE_CHANCE:g} points" in row[1]


def test_the_table_of_row_columns_is_complete() -> None:
    documented = {name for row in table("how-numbers-are-computed.md", "Columns") for name in code(row[0])}
    assert documented == set(Row.model_fields)


def test_the_half_widths_are_those_of_the_interval() -> None:
    page = PAGES["how-numbers-are-computed.md"]
    found = re.search(r"^\| p = 50 %, n = \|(.*)\|\n.*\n\| half width, points \|(.*)\|$", page, re.MULTILINE)
    assert found is not None
    for n, width in zip(found[1].split("|"), found[2].split("|"), strict=True):
        low, high = wilson(0.5, int(n.replace(" ", "")))
        assert f"{50 * (high - low):.1f}" == width.strip()


def test_the_parts_of_a_defense_exist() -> None:
    for row in table("submit-a-defense.md", "Part"):
        name = code(row[0])[0].partition("(")[0]
        assert name in {*vars(Defense), *Defense.__annotations__}, name


def test_the_target_asks_for_the_knowledge_that_the_table_says() -> None:
    target_source = "".join(inspect.getsource(cls) for cls in Target.__mro__ if cls is not object)
    for level, calls in table("submit-an-attack.md", "Knowledge"):
        for name in (call.partition("(")[0] for call in code(calls)):
            if code(level) == ["transfer"]:
                assert hasattr(Target, name) or f"self.{name} =" in target_source, name
                continue
            attribute = inspect.getattr_static(Target, name)
            function: Any = attribute.fget if isinstance(attribute, property) else attribute
            assert f'self._require("{code(level)[0]}")' in inspect.getsource(function), name


def test_the_estimators_can_be_written_like_that() -> None:
    written = [code(row[0])[0] for row in table("submit-an-attack.md", "`estimator:`")]
    assert len(written) == 9
    for text in written:
        as_estimator(yaml.safe_load(text))


def test_the_picture_is_whole_and_follows_the_colour_scheme() -> None:
    text = (DOCS / "data-flow.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for element in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 < float(element.attrib["x"]) < width and 0 < float(element.attrib["y"]) < height
    assert "prefers-color-scheme: dark" in text
    assert "href" not in text, "nothing is loaded from elsewhere"
