"""What the command says of stored results: whole, damaged, of another version, or none."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from command_line import assert_refused, evaluate
from stand_ins import run_bench

from bench.storing.records import SCHEMA_VERSION


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of one evaluation; copy before changing anything."""
    folder = tmp_path_factory.mktemp("finished")
    assert evaluate(folder).code == 0
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("file", ["suite.json", "stand_ins.Means/defense.json", "stand_ins.Means/step/001.json"])
def test_results_of_a_newer_version_are_refused_and_left_alone(tmp_path: Path, finished: Path, file: str) -> None:
    shutil.copytree(finished / "results", tmp_path / "results")
    path = tmp_path / "results" / "tiny" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": SCHEMA_VERSION + 1}))
    before = snapshot(tmp_path / "results")
    assert_refused(evaluate(tmp_path), f"schema version {SCHEMA_VERSION + 1} is newer than {SCHEMA_VERSION}")
    assert snapshot(tmp_path / "results") == before
    reported = run_bench("report", "--results", tmp_path / "results")
    if file == "suite.json":
        assert_refused(reported, "is newer than")
    else:
        assert reported.code == 1 and "is newer than" in reported.out


@pytest.mark.parametrize("suite", [(), ("--suite", "demo")])
def test_the_command_that_a_report_of_nothing_says_works(tmp_path: Path, suite: tuple[str, ...]) -> None:
    folder = tmp_path / "my results"
    said = run_bench("report", "--results", folder, *suite).err.strip().partition("; run: bench ")[2]
    assert run_bench(*shlex.split(said), "--dry-run").code == 0
    assert str(folder) in shlex.split(said)  # so that the next report finds what it made


def test_no_command_recommends_an_option_that_it_lacks() -> None:
    for command in ("gradients", "train", "evaluate"):
        said = run_bench(command).err
        assert "no defense given" in said
        assert ("--all" in said) == ("--all" in run_bench(command, "--help").out), command


def test_reports_of_nothing_say_what_to_run(tmp_path: Path) -> None:
    assert_refused(run_bench("report", "--results", tmp_path), "no results in", "bench evaluate --defense ours")
    assert_refused(run_bench("report", "--results", tmp_path, "--suite", "demo"), "no results of suite 'demo'")


@pytest.mark.parametrize(
    "command",
    [
        ["report", "--suite", "tinny"],
        ["compact", "--suite", "tinny"],
        ["leaderboard", "--suite", "tinny", "--out", "site"],
        ["verify", "--suite", "tinny"],
        ["verify", "--suite", "tiny", "--defense", "stand_ins.Meens"],
        ["verify", "--suite", "tiny", "--attack", "stepp"],
    ],
    ids=" ".join,
)
def test_a_name_of_which_nothing_is_stored_is_refused_with_the_one_that_was_meant(
    tmp_path: Path, finished: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = snapshot(finished)
    meant = {"tinny": "tiny", "stand_ins.Meens": "stand_ins.Means", "stepp": "step"}
    (typo,) = [name for name in meant if name in command]
    assert_refused(run_bench(*command, "--results", finished / "results"), repr(typo), f"did you mean {meant[typo]!r}?")
    assert snapshot(finished) == before and not list(tmp_path.iterdir())


def test_status_of_an_unknown_suite_is_refused(finished: Path) -> None:
    where = ["--results", finished / "results", "--config", finished / "bench.yaml"]
    assert_refused(run_bench("status", "--suite", "tinny", *where), "did you mean 'tiny'?")


@pytest.mark.parametrize("file", ["stand_ins.Means/step/001.json", "stand_ins.Means/defense.json"])
@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
def test_a_file_that_cannot_be_read_is_named_the_rest_is_shown_and_the_code_says_so(
    tmp_path: Path, finished: Path, form: str, file: str
) -> None:
    shutil.copytree(finished / "results", tmp_path / "results")
    shutil.copytree(tmp_path / "results" / "tiny", tmp_path / "results" / "tiny2")  # a second suite that is whole
    suite = tmp_path / "results" / "tiny2" / "suite.json"
    suite.write_text(suite.read_text().replace('"name": "tiny"', '"name": "tiny2"'))
    path = tmp_path / "results" / "tiny" / file
    path.write_bytes(path.read_bytes()[:-30])
    ended = run_bench("report", "--results", tmp_path / "results", "--format", form)
    assert ended.code == 1
    assert file in (ended.out if form in ("table", "markdown") else ended.err)
    assert ended.out.count("stand_ins.Means") and "tiny2" in ended.out
    if form == "json":
        assert file in json.loads(ended.out)["warnings"][0]
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(ended.out)))
        assert {row["suite"] for row in rows} >= {"tiny2"} and all(row["n"] != "n" for row in rows)
    if form != "table":
        return
    site = run_bench("leaderboard", "--results", tmp_path / "results", "--out", tmp_path / "site")
    assert site.code == 1 and file in site.err
    assert any(file in page.read_text() for page in (tmp_path / "site").rglob("index.html"))


def test_of_several_suites_those_that_can_be_read_are_shown(tmp_path: Path, finished: Path) -> None:
    shutil.copytree(finished / "results", tmp_path / "results")
    broken = tmp_path / "results" / "broken"
    broken.mkdir()
    (broken / "suite.json").write_text("{")
    ended = run_bench("report", "--results", tmp_path / "results", "--format", "json")
    assert ended.code == 1 and "broken/suite.json" in ended.err
    assert [suite["name"] for suite in json.loads(ended.out)["suites"]] == ["tiny"]
    assert_refused(run_bench("report", "--results", tmp_path / "results", "--suite", "broken"), "cannot be read")


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
def test_reports_of_stored_results(finished: Path, form: str) -> None:
    ended = run_bench("report", "--results", finished / "results", "--format", form)
    assert (ended.code, ended.err) == (0, "")
    assert "stand_ins.Means" in ended.out and "step" in ended.out
    if form == "json":
        json.loads(ended.out)


def test_the_model_of_the_stand_ins_is_good_enough_to_be_attacked(finished: Path) -> None:
    """The tests above would pass on a model that is always wrong."""
    numbers = json.loads(run_bench("report", "--results", finished / "results", "--format", "json").out)["results"]
    accuracy = {entry["what"]: entry["accuracy"] for entry in numbers}
    assert accuracy["standard_accuracy"] > 0.7 > accuracy["step"]
    assert torch.get_num_threads() == 1
